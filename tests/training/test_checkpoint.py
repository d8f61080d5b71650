"""Checkpoints from elsewhere: whatever stands in their files, resuming runs none of it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ace.errors import CheckpointError
from tests.training.toy import run


class Hostile:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def seal(folder: Path) -> None:
    """The manifest of what is in a checkpoint now: a stranger knows how to make one."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    hashes = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "manifest.json").write_text(json.dumps(hashes))


def newest(folder: Path) -> Path:
    return max(path for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(folder, steps=8, save_steps=6)
    return folder


def test_nothing_in_a_checkpoint_needs_unpickling(finished: Path):
    names = sorted(path.name for path in newest(finished).iterdir())
    assert names == [
        *("average.safetensors", "manifest.json", "model.safetensors", "optimizer.pt", "progress.json", "rng_0.pt")
    ]
    for name in ("optimizer.pt", "rng_0.pt"):
        torch.load(newest(finished) / name, weights_only=True)
        assert not torch.serialization.get_unsafe_globals_in_checkpoint(newest(finished) / name)


@pytest.mark.parametrize("whole_pickle", [True, False], ids=["pickle", "torch"])
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_0.pt", "custom_checkpoint_0.pkl", "random_states_0.pkl"])
def test_a_malicious_pickle_in_a_run_folder_is_not_executed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, whole_pickle: bool
):
    folder, mark = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(finished, folder)
    expected = (folder / "log.jsonl").read_bytes()
    bad = newest(folder)
    if name not in ("optimizer.pt", "rng_0.pt"):  # the file that version 0.1 had in place of one of ours
        (bad / {"custom_checkpoint_0.pkl": "average.safetensors", "random_states_0.pkl": "rng_0.pt"}[name]).unlink()
    if whole_pickle:
        (bad / name).write_bytes(pickle.dumps(Hostile(mark)))
    else:
        torch.save({"state": Hostile(mark)}, bad / name)
    seal(bad)
    run(folder, steps=8, save_steps=6)
    assert not mark.exists()
    said = capsys.readouterr().out
    assert f"checkpoint {bad.name} is damaged ({name} holds more than tensors and could run code)" in said
    assert (folder / "log.jsonl").read_bytes() == expected, "it went on from the checkpoint before"
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists(), "the attack works on whoever unpickles"


def test_a_run_folder_with_nothing_but_hostile_checkpoints_is_refused(finished: Path, tmp_path: Path):
    folder, mark = tmp_path / "run", tmp_path / "executed"
    shutil.copytree(finished, folder)
    for bad in (folder / "checkpoints").iterdir():
        torch.save(Hostile(mark), bad / "optimizer.pt")
        seal(bad)
    with pytest.raises(CheckpointError, match="every checkpoint in run/checkpoints is damaged"):
        run(folder, steps=8, save_steps=6)
    assert not mark.exists()


@pytest.mark.parametrize(
    "manifest",
    ["{", "[]", "3", '{"progress.json": 3}', '{"../../../../../../dev/zero": "x", "progress.json": "x"}', "[" * 10_000],
)
def test_a_manifest_from_elsewhere_is_checked_before_it_is_used(finished: Path, tmp_path: Path, manifest: str):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    expected = (folder / "log.jsonl").read_bytes()
    (newest(folder) / "manifest.json").write_text(manifest)
    run(folder, steps=8, save_steps=6)
    assert (folder / "log.jsonl").read_bytes() == expected


@pytest.mark.parametrize("progress", ["{", "[1]", '{"step": "x"}', '{"step": -1}', '{"step": 1e99}'])
def test_progress_that_makes_no_sense_is_named(finished: Path, tmp_path: Path, progress: str):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (newest(folder) / "progress.json").write_text(progress)
    seal(newest(folder))
    with pytest.raises(CheckpointError, match="does not say how far the run is"):
        run(folder, steps=8, save_steps=6)


def test_a_checkpoint_of_another_recipe_is_named_and_not_skipped(finished: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with pytest.raises(CheckpointError, match="averages of 4 weights, the recipe trains 0"):
        run(folder, steps=8, save_steps=6, ema_decay=0.0)


def test_a_checkpoint_of_version_0_1_is_gone_on_from_exactly(finished: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    expected = (folder / "log.jsonl").read_bytes()
    shutil.rmtree(newest(folder))
    old = newest(folder)
    (old / "optimizer.pt").rename(old / "optimizer.bin")
    averages = load_file(old / "average.safetensors")
    state = {"updates": json.loads((old / "progress.json").read_text())["step"], "values": list(averages.values())}
    torch.save(state, old / "custom_checkpoint_0.pkl")
    rng = {"step": 0, "random_state": random.getstate(), "numpy_random_seed": np.random.get_state()}
    torch.save({**rng, "torch_manual_seed": torch.get_rng_state()}, old / "random_states_0.pkl")
    (old / "average.safetensors").unlink()
    (old / "rng_0.pt").unlink()
    seal(old)
    resumed = run(folder, steps=8, save_steps=6).state_dict()
    assert (folder / "log.jsonl").read_bytes() == expected
    whole = run(tmp_path / "whole", steps=8, save_steps=6).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
