"""Two real runs side by side."""

import json

import pytest
from PIL import Image

from ace.errors import DataError
from ace.evaluation import evaluate_world, our_contestant
from ace.evaluation.compare import compare_runs, read_run, verdicts, write_comparison
from ace.evaluation.folder import read_timings
from tests.random_models import random_pipeline

TASKS = ("element_editing/object_add", "semantic_editing/background")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("one", 0), ("other", 1)):
        ours = our_contestant(random_pipeline(), 2, name=name)
        evaluate_world(ours, folder / name, 2, seed, quiet=True, tasks=TASKS, num_pictures=1)
    return folder


def test_two_runs_of_the_same_model_are_not_told_apart(runs, tmp_path):
    found = compare_runs(read_run(runs / "one"), read_run(runs / "other"))
    assert list(found.families) == ["all", "semantic_editing", "element_editing"]
    assert all("no difference shown" in line for line in verdicts(found))
    write_comparison(found, tmp_path)
    page = (tmp_path / "compare.md").read_text()
    assert "| all | 4 |" in page and "PARTIAL" not in page
    with Image.open(tmp_path / "compare.png") as picture:
        assert picture.width > 1000


def test_a_better_run_is_named(runs):
    worse = read_run(runs / "one")
    many = {(task, n + 100 * i): 0.3 for task, n in worse.errors for i in range(20)}
    samples = dict.fromkeys(many, "x")
    a = type(worse)("worse", many, samples)
    b = type(worse)("better", dict.fromkeys(many, 0.1), samples)
    assert verdicts(compare_runs(a, b))[0] == "all: better is better"


def test_samples_that_only_one_run_has_are_counted(runs):
    whole = read_run(runs / "one")
    part = type(whole)("part", dict(list(whole.errors.items())[:2]), whole.samples)
    found = compare_runs(whole, part)
    assert found.num_left_out == 2


def test_the_time_of_a_picture_is_over_every_call_of_a_run(tmp_path):
    ours = our_contestant(random_pipeline(), 2, name="one")

    def call(limit):
        evaluate_world(ours, tmp_path, limit, 0, quiet=True, tasks=TASKS, num_pictures=1)
        return read_timings(tmp_path)

    first, both = call(1), call(2)
    assert (first.pictures, both.pictures) == (2, 4) and both.seconds > first.seconds > 0
    assert call(2) == both  # nothing was made
    assert read_run(tmp_path).seconds == pytest.approx(both.seconds / 4, rel=0.01)
    (tmp_path / "timings.json").write_text("{")
    assert read_run(tmp_path).seconds is None


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({}) + "\n")
    with pytest.raises(DataError, match="no finished run"):
        read_run(tmp_path)
