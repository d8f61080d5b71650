"""The study over HTTP: anonymous, evenly spread, safe on the disk; and its statistics."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from ace.errors import ConfigError, DataError
from ace.evaluation.cases import RunCase, write_cases
from ace.evaluation.study import Answered, Rating, Study, answers_of_runs, as_markdown, krippendorff_alpha, make_report
from ace.evaluation.study_page import make_app

from .random_encoders import picture

SERVER = """
import sys, uvicorn
from pathlib import Path
from ace.evaluation.study import Answered, Study
from ace.evaluation.study_page import make_app
folder = Path(sys.argv[1])
answers = [Answered(s, str(i), f"make it <b>{i}</b>", (folder / "in.png",), folder / f"{s}.png")
           for i in range(4) for s in ("secret-a", "secret-b")]
uvicorn.run(make_app(Study(answers, folder)), host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


def make_answers(folder, systems=("a", "b"), items=4):
    return [Answered(s, str(i), f"make it {i}", (), folder / "x.png") for i in range(items) for s in systems]


@pytest.fixture
def serve(tmp_path):
    for number, name in enumerate(("in", "secret-a", "secret-b")):
        picture(number).save(tmp_path / f"{name}.png")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []

    def start():
        process = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path), str(port)])
        running.append(process)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                return process
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the page did not come up")

    yield start, f"http://127.0.0.1:{port}", tmp_path
    for process in running:
        process.kill()
        process.wait()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return reply.read().decode()


def post(url: str, **fields: object) -> str:
    data = urllib.parse.urlencode(fields).encode()
    with urllib.request.urlopen(url, data, timeout=30) as reply:
        return reply.read().decode()


def key_on(page: str) -> str:
    return page.split('name="key" value="')[1].split('"')[0]


def test_a_rater_sees_anonymous_answers_and_a_killed_page_loses_nothing(serve):
    start, url, folder = serve
    process = start()
    page = get(f"{url}/?rater=Ann%20B")
    assert "secret" not in page and "&lt;b&gt;" in page and "<b>" not in page
    with urllib.request.urlopen(f"{url}/picture/{key_on(page)}/answer", timeout=30) as reply:
        assert reply.headers["content-type"] == "image/png" and "secret" not in str(reply.headers)
    page = post(f"{url}/rate", rater="Ann B", key=key_on(page), prompt_following=4, image_quality=2)
    assert "1 of 8" in page
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with (folder / "ratings.jsonl").open("a") as file:
        file.write('{"rater": "cut o')  # what a crash in the middle of a line leaves
    start()
    page = get(f"{url}/?rater=Ann%20B")
    assert "1 of 8" in page
    post(f"{url}/rate", rater="Ann B", key=key_on(page), prompt_following=5, image_quality=5)
    lines = [json.loads(line) for line in (folder / "ratings.jsonl").read_text().splitlines()]
    assert [line["image_quality"] for line in lines] == [2, 5]
    assert "1 raters" in get(f"{url}/report")


def test_what_is_not_part_of_the_study_is_refused(serve):
    start, url, folder = serve
    start()
    for path, fields in (
        ("/picture/0000/answer", None),
        ("/picture/..%2F..%2Fetc/passwd", None),
        ("/rate", {"rater": "x", "key": "nothing", "prompt_following": 3, "image_quality": 3}),
        ("/rate", {"rater": "x", "key": "nothing", "prompt_following": 9, "image_quality": 3}),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(url + path) if fields is None else post(url + path, **fields)
        assert refused.value.code in (400, 404)
        refused.value.close()
    assert not (folder / "ratings.jsonl").exists()


def test_answers_are_spread_evenly_and_none_comes_twice(tmp_path):
    study = Study(make_answers(tmp_path), tmp_path)
    for rater in ("one", "two", "three"):
        for _ in range(5):
            answer = study.next_for(rater)
            assert answer is not None
            study.add(Rating(rater, answer.key, 3, 3))
    per_answer = Counter(rating.key for rating in study.ratings)
    assert len(per_answer) == 8 and max(per_answer.values()) - min(per_answer.values()) <= 1
    with pytest.raises(ConfigError, match="already"):
        study.add(study.ratings[0])


def test_raters_see_different_orders(tmp_path):
    study = Study(make_answers(tmp_path, items=12), tmp_path)
    first = {study.next_for(f"rater {n}").key for n in range(8)}
    assert len(first) > 3


def test_alpha_equals_published_values():
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D: interval data, alpha = 0.849
    nan = None
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    ]
    units = [[row[n] for row in observers if row[n] is not None] for n in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha([[3, 3], [5, 5]]) == 1
    assert krippendorff_alpha([[3], [5]]) is None


def test_the_report_says_who_wins_and_what_is_thin(tmp_path):
    answers = make_answers(tmp_path, items=6)
    ratings = [
        Rating(f"r{n}", answer.key, 5 if answer.system == "a" else 2, 3)
        for n in range(3)
        for answer in answers
        if not (answer.item == "5" and n == 2)
    ]
    report = make_report(answers, ratings)
    a, b = report.systems
    assert a.means["prompt_following"].mean == 5 and b.means["prompt_following"].mean == 2
    assert (a.ratings, a.thin) == (17, 1) and report.num_raters == 3
    wins = {(w.first, w.second, w.question): w.rate.mean for w in report.wins}
    assert wins["a", "b", "prompt_following"] == 1 and wins["a", "b", "image_quality"] == 0.5
    assert report.alpha["prompt_following"] == 1


def test_ratings_of_answers_that_are_not_there_any_more_are_counted(tmp_path):
    before = Study(make_answers(tmp_path, systems=("a", "b")), tmp_path)
    for key in before.answers:
        before.add(Rating("Ann", key, 4, 4))
    report = Study(make_answers(tmp_path, systems=("a",)), tmp_path).report()
    assert report.num_left_out == 4 and report.systems[0].ratings == 4
    assert "PARTIAL: 4 ratings are left out" in as_markdown(report)


def test_ratings_that_cannot_be_read_stop_the_study(tmp_path):
    (tmp_path / "ratings.jsonl").write_text('{"rater": "x"}\n')
    with pytest.raises(DataError, match="holds a line that is no rating"):
        Study(make_answers(tmp_path), tmp_path)


def test_runs_of_any_benchmark_are_rated_on_what_all_have_answered(tmp_path):
    picture(0).save(tmp_path / "in.png")
    Image.new("L", (64, 48), 255).save(tmp_path / "mask.png")
    runs = [tmp_path / name for name in ("one", "other")]
    for run in runs:
        (run / "answers").mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"name": run.name}))
        cases = []
        for number in range(3):
            answer = run / "answers" / f"{number}.png"
            picture(number).save(answer)
            asked = f"make it {number}" if number < 2 else f"what only {run.name} was asked"
            mask = tmp_path / "mask.png" if number == 1 else None
            cases.append(RunCase(f"local/{number}", asked, (tmp_path / "in.png",), mask, answer))
        write_cases(run, [*cases, RunCase("local/3", "make it 3", (), None, None)])
    answers = answers_of_runs(runs, 10)
    assert [(a.system, a.instruction) for a in answers] == [
        (name, f"make it {n}") for n in (0, 1) for name in ("one", "other")
    ]
    with TestClient(make_app(Study(answers, tmp_path / "study"))) as client:
        pages = [client.get(f"/?rater=rater{n}").text for n in range(12)]
        masked = next(page for page in pages if answers[2].key in page or answers[3].key in page)
        assert "only the white part may change" in masked
        assert client.get(f"/picture/{key_on(masked)}/mask").headers["content-type"] == "image/png"
        plain = next(page for page in pages if answers[0].key in page or answers[1].key in page)
        assert "white part" not in plain and client.get(f"/picture/{key_on(plain)}/mask").status_code == 404
    with pytest.raises(ConfigError, match="two runs"):
        answers_of_runs([runs[0], runs[0]], 10)
    with pytest.raises(DataError, match="no finished run"):
        answers_of_runs([runs[0], tmp_path], 10)
