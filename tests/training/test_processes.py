"""Several processes train as one does: the batch and the loss are of all of them together, sharded or not."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ace.training.config import DataSource, ModelRecipe, PlusRecipe, TrainingStage, write_recipe
from tests.random_flux import SMALL, random_plus
from tests.training.toy import run

ROOT = Path(__file__).parents[2]


def two(folder: Path, *options: str, **environment: str) -> None:
    """Train the toy in two processes."""
    in_two_processes("tests.training.toy", str(folder), *options, **environment)


def in_two_processes(module: str, *options: str, **environment: str) -> None:
    """Run a module in two processes that talk through gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", module, *options]
    processes = []
    for rank in ("0", "1"):
        own = {**os.environ, **common, **environment, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=400)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), errors


def losses(folder: Path) -> list[float | None]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def zero(stage: int) -> dict[str, str]:
    """DeepSpeed by accelerate's settings."""
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "DS_ACCELERATOR": "cuda" if torch.cuda.is_available() else "cpu",
    }


needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="pip install deepspeed")


def check(tmp_path: Path, **environment: str) -> None:
    expected = run(tmp_path / "one", steps=10).state_dict()
    two(tmp_path / "two", "steps=10", **environment)
    alone, together = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(alone) == len(together) == 20
    assert together == pytest.approx(alone, rel=1e-5)
    state = torch.load(tmp_path / "two" / "done.pt", weights_only=True)
    assert all(torch.allclose(state[name], value, atol=1e-5) for name, value in expected.items())


def test_two_processes_with_sharded_weights_have_the_losses_of_one(tmp_path: Path):
    check(tmp_path, **SHARDED)


def test_a_sharded_run_draws_its_previews_from_the_whole_averages(tmp_path: Path):
    run(tmp_path / "one", steps=4, preview_steps=3)
    two(tmp_path / "two", "steps=4", "preview_steps=3", **SHARDED)
    for step in (3, 6):
        alone, sharded = (torch.load(tmp_path / n / f"drawn-{step}.pt", weights_only=True) for n in ("one", "two"))
        assert alone.keys() == sharded.keys()
        assert all(torch.allclose(alone[name], value, atol=1e-5) for name, value in sharded.items())
    expected = run(tmp_path / "blind", steps=4).state_dict()
    state = torch.load(tmp_path / "two" / "done.pt", weights_only=True)
    assert all(torch.allclose(state[name], value, atol=1e-5) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "plus"])
def test_ace_train_on_two_processes_writes_the_whole_model_and_its_previews(tmp_path: Path, kind: str):
    common = {"num_workers": 0, "mixed_precision": "no", "tracker": "none", "preview_steps": 1}
    stages = (TrainingStage("only", lr=1e-3, steps=2, batch_size=2),)
    if kind == "model":
        recipe = ModelRecipe(stages, init="ace-tiny", num_inference_steps=1, **common)
    else:
        random_plus(SMALL).save_pretrained(tmp_path / "flux")
        Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
        (tmp_path / "list.csv").write_text("a.png#;##;##;#a.png#;#as it is#;#local_editing\n")
        source = DataSource("pairs", "csv", str(tmp_path / "list.csv"))
        init, small = str(tmp_path / "flux"), {"max_sequence": 64, "max_text_tokens": 16, "num_inference_steps": 1}
        recipe = PlusRecipe(stages, init=init, data=(source,), **small, **common)
    write_recipe(recipe, tmp_path / "recipe.toml")
    options = ("train", str(tmp_path / "recipe.toml"), "--output")
    in_two_processes("ace", *options, str(tmp_path / "two"), **SHARDED)
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "ace", *options, str(tmp_path / "one")], cwd=ROOT, env=one, check=True)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    weights = [load_file(next((tmp_path / n / "model" / "transformer").glob("*.safetensors"))) for n in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[0][name], value, atol=2e-3) for name, value in weights[1].items())
    pictures = [np.array(Image.open(tmp_path / n / "previews" / "00000002.png")).astype(int) for n in ("one", "two")]
    assert np.abs(pictures[0] - pictures[1]).mean() < 2


@pytest.mark.slow
def test_two_processes_with_whole_weights_have_the_losses_of_one(tmp_path: Path):
    check(tmp_path)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_of_deepspeed_have_the_losses_of_one(tmp_path: Path, stage: int):
    check(tmp_path, **zero(stage))


@pytest.mark.slow
@needs_deepspeed
def test_a_poisoned_sample_changes_no_weight_under_deepspeed_either(tmp_path: Path):
    two(tmp_path, "steps=10", "poisoned=30", **zero(1))
    log = losses(tmp_path)
    assert log.count(None) == 1, "the step of the poisoned sample, and no other"
    assert "its loss is not finite" in (tmp_path / "skipped.jsonl").read_text()
    state = torch.load(tmp_path / "done.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{}, SHARDED, pytest.param(zero(1), marks=needs_deepspeed)],
    ids=["whole", "sharded", "deepspeed"],
)
def test_a_run_of_two_processes_goes_on_from_its_checkpoint(tmp_path: Path, environment: dict[str, str]):
    two(tmp_path / "whole", "steps=8", **environment)
    two(tmp_path / "stopped", "steps=8", "save_steps=4", **environment)
    newest, before = sorted((tmp_path / "stopped" / "checkpoints").iterdir(), reverse=True)
    (newest / "manifest.json").write_text("{}")
    two(tmp_path / "stopped", "steps=8", "save_steps=4", **environment)
    assert int(before.name) < 16
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_begun_by_one_process_is_finished_by_two(tmp_path: Path):
    run(tmp_path / "one", steps=10)
    run(tmp_path / "both", steps=10, save_steps=8)
    newest, _ = sorted((tmp_path / "both" / "checkpoints").iterdir(), reverse=True)
    (newest / "manifest.json").write_text("{}")
    two(tmp_path / "both", "steps=10", "save_steps=8")
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
