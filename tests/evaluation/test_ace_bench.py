"""Any set of edit samples is a benchmark."""

import pytest

from ace.data.shards import write_shards
from ace.data.world import SpriteLibrary, World
from ace.data.world.sprites import SHIPPED_PACK
from ace.errors import ConfigError, DataError
from ace.evaluation import our_contestant
from ace.evaluation.benchmarks.ace_bench import evaluate_sets
from tests.random_models import random_pipeline

TASKS = ("element_editing/object_add", "repainting/inpainting", "multi_turn/chain")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets, of two samples of each task: sizes may differ."""
    folder = tmp_path_factory.mktemp("bench")
    for name, size in (("real", 48), ("generated", 64)):
        world = World(size, "held_out", SpriteLibrary(SHIPPED_PACK))
        write_shards([world.sample(n, task) for task in TASKS for n in range(2)], folder / name)
    return [folder / "real", folder / "generated"]


def test_every_sample_of_the_sets_is_answered_and_scored(sets, tmp_path):
    report = evaluate_sets(our_contestant(random_pipeline(), 1), sets, tmp_path / "run", quiet=True)
    assert report.count == 12 and {group.name for group in report.tasks} == set(TASKS)
    assert report.autoencoder_psnr is None and report.drift.violations == 0
    assert {group.name: group.count for group in report.kinds} == {
        "global": 6,
        "local": 6,
        "multi-turn": 4,
        "set real": 6,
        "set generated": 6,
    }
    page = (tmp_path / "run" / "report.md").read_text()
    assert "Autoencoder" not in page and "object add" in page and "| set generated | 6 |" in page
    assert "never saw" not in page and "held-out" not in page
    kept = (tmp_path / "run" / "rows.jsonl").read_bytes()
    evaluate_sets(our_contestant(random_pipeline(), 1), sets, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "rows.jsonl").read_bytes() == kept


def test_a_limit_is_of_each_task_in_each_set(sets, tmp_path):
    report = evaluate_sets(our_contestant(random_pipeline(), 1), sets, tmp_path / "run", 1, quiet=True, tasks=TASKS[:1])
    assert [(group.name, group.count) for group in report.kinds] == [
        ("global", 2),
        ("set generated", 1),
        ("set real", 1),
    ]


def test_sets_that_cannot_be_told_apart_or_have_nothing_are_refused(sets, tmp_path):
    ours = our_contestant(random_pipeline())
    with pytest.raises(ConfigError, match="two sets are called real"):
        evaluate_sets(ours, [sets[0], sets[0]], tmp_path / "run")
    with pytest.raises(DataError, match="real has no sample of these tasks"):
        evaluate_sets(ours, sets, tmp_path / "run", tasks=("semantic_editing/camera",))
    assert not (tmp_path / "run").exists()
