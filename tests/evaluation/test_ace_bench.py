"""Any set of edit samples is a benchmark."""

import pytest

from ace.data.shards import write_shards
from ace.data.world import SpriteLibrary, World
from ace.data.world.sprites import SHIPPED_PACK
from ace.errors import DataError
from ace.evaluation import our_contestant
from ace.evaluation.benchmarks.ace_bench import evaluate_set
from tests.random_models import random_pipeline

TASKS = ("element_editing/object_add", "repainting/inpainting")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "set"
    worlds = [World(size, "held_out", SpriteLibrary(SHIPPED_PACK)) for size in (48, 64)]  # sizes may differ
    write_shards([world.sample(n, task) for task in TASKS for n, world in enumerate(worlds)], folder)
    return folder


def test_every_sample_of_a_set_is_answered_and_scored(shards, tmp_path):
    report = evaluate_set(our_contestant(random_pipeline(), 1), shards, tmp_path / "run", quiet=True)
    assert report.count == 4 and {group.name for group in report.tasks} == set(TASKS)
    assert report.autoencoder_psnr is None and report.drift.violations == 0
    page = (tmp_path / "run" / "report.md").read_text()
    assert "Autoencoder" not in page and "object add" in page
    kept = (tmp_path / "run" / "rows.jsonl").read_bytes()
    evaluate_set(our_contestant(random_pipeline(), 1), shards, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "rows.jsonl").read_bytes() == kept


def test_a_set_without_the_tasks_asked_for_is_refused(shards, tmp_path):
    with pytest.raises(DataError, match="no sample of these tasks"):
        evaluate_set(our_contestant(random_pipeline()), shards, tmp_path / "run", tasks=("multi_turn/chain",))
