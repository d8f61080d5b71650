"""A person's decisions are kept in versions and become the curated set, through the page's own requests."""

import json

import pytest
from fastapi.testclient import TestClient

from ace.data.review import Corrections, export_curated, review_app
from ace.data.shards import read_shards, write_shards
from ace.data.world import World
from ace.errors import ConditionError, DataError


@pytest.fixture
def samples(tmp_path):
    world = World(32)
    write_shards([world.sample(seed, "repainting/inpainting") for seed in range(4)], tmp_path / "set")
    return read_shards(tmp_path / "set")


def client(samples, kept):
    return TestClient(review_app(samples, kept), base_url="http://127.0.0.1")


def test_decisions_made_on_the_page_become_the_curated_set(samples, tmp_path):
    kept = Corrections(tmp_path / "corrections.jsonl")
    with client(samples, kept) as page:
        assert "Sample 1 of 4" in page.get("/").text
        assert page.post("/decide", json={"index": 0, "decision": "accept"}).json()["next"] == 1
        fixed = {"index": 1, "decision": "fix", "instruction": "make  {image} whole\nagain"}
        assert page.post("/decide", json=fixed).json()["version"] == 1
        assert page.post("/decide", json={"index": 2, "decision": "reject", "note": "dull"}).status_code == 200
        assert "Sample 4 of 4" in page.get("/").text
        assert page.get("/status").json() == {"samples": 4, "decided": 3, "accept": 1, "fix": 1, "reject": 1}
    export_curated(samples, Corrections(tmp_path / "corrections.jsonl"), tmp_path / "curated")
    first, second = read_shards(tmp_path / "curated", verify=True)
    assert first.request.current.instruction == samples[0].request.current.instruction
    assert second.request.current.instruction == "make {image} whole again"
    assert second.provenance["before_review"] == samples[1].request.current.instruction
    assert second.target.tobytes() == samples[1].target.tobytes()


def test_a_second_thought_is_another_version_and_the_last_one_counts(samples, tmp_path):
    kept = Corrections(tmp_path / "corrections.jsonl")
    row = samples.row(0)
    kept.add(row, "reject")
    kept.add(row, "fix", "mend {image}")
    kept.add(row, "accept")
    again = Corrections(tmp_path / "corrections.jsonl")
    assert [(c.version, c.decision) for c in again.all] == [(1, "reject"), (2, "fix"), (3, "accept")]
    assert again.latest[row["id"]].decision == "accept"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"index": 0, "decision": "adore"}, "no decision"),
        ({"index": 0, "decision": "fix", "instruction": " "}, "empty"),
        ({"index": 0, "decision": "fix", "instruction": "mend {image} with {image1}"}, "names {image1}"),
        ({"index": 9, "decision": "accept"}, "no sample 9"),
        ({"decision": "accept"}, "send index"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_kept(samples, tmp_path, body, said):
    kept = Corrections(tmp_path / "corrections.jsonl")
    with client(samples, kept) as page:
        reply = page.post("/decide", json=body)
    assert reply.status_code == 422 and said in reply.json()["detail"]
    assert not (tmp_path / "corrections.jsonl").exists()


def test_another_sites_page_cannot_decide(samples, tmp_path):
    with client(samples, Corrections(tmp_path / "c.jsonl")) as page:
        form = page.post("/decide", content="index=0", headers={"Content-Type": "text/plain"})
        assert form.status_code == 422
        assert page.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_a_line_that_a_kill_cut_short_is_left_out_and_another_is_named(samples, tmp_path):
    file = tmp_path / "corrections.jsonl"
    Corrections(file).add(samples.row(0), "accept")
    whole = file.read_text()
    file.write_text(whole + '{"id": "ab')
    kept = Corrections(file)
    kept.add(samples.row(1), "accept")
    assert len(Corrections(file).all) == 2
    file.write_text("nonsense\n" + whole)
    with pytest.raises(DataError, match="line 1"):
        Corrections(file)


def test_nothing_accepted_is_said(samples, tmp_path):
    with pytest.raises(DataError, match="nothing was accepted"):
        export_curated(samples, Corrections(tmp_path / "c.jsonl"), tmp_path / "curated")
    with pytest.raises(ConditionError):
        Corrections(tmp_path / "c.jsonl").add(samples.row(0), "fix", samples.row(0)["instruction"])


def test_words_with_markup_are_shown_as_words(samples, tmp_path):
    kept = Corrections(tmp_path / "c.jsonl")
    kept.add(samples.row(0), "fix", "mend {image} <script>alert(1)</script>")
    with client(samples, kept) as page:
        text = page.get("/?at=0").text
    assert "<script>alert(1)" not in text and "&lt;script&gt;" in text
    assert json.loads((tmp_path / "c.jsonl").read_text())["version"] == 1
