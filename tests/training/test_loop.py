"""The loop: killed anywhere, it goes on exactly where it was; what cannot be used is left out by name."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ace.errors import CheckpointError, ConfigError
from ace.training.stream import TrainingError
from tests.training.toy import Numbers, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes that are killed: the number of threads decides the last bits of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.training.toy", str(folder), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def lines(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill(folder: Path, dice: random.Random, in_write: bool, *options: str) -> bool:
    """Start the run and kill it, inside a checkpoint write or after some more steps; False if it got to its end."""
    process = start(folder, *options)
    writing = folder / "checkpoints" / ".writing"
    wanted = lines(folder) + dice.randint(1, 4)
    deadline = time.monotonic() + 120
    while process.poll() is None:
        if writing.exists() if in_write else lines(folder) >= wanted:
            os.kill(process.pid, signal.SIGKILL)
            break
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def check_killed_run(tmp_path: Path, kills: int, steps: int) -> int:
    """Kill a run so many times; its log must end as the very file of an undisturbed one, with the same weights."""
    expected = run(tmp_path / "whole", steps=steps, save_steps=2).state_dict()
    folder, dice, killed, in_write = tmp_path / "killed", random.Random(kills), 0, 0
    options = (f"steps={steps}", "save_steps=2", "slow_ms=30")
    for number in range(kills):
        inside = number % 2 == 1
        done = kill(folder, dice, inside, *options)
        killed += done
        in_write += done and inside
    process = start(folder, f"steps={steps}", "save_steps=2")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert (folder / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    resumed = torch.load(folder / "done.pt", weights_only=True)
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
    assert in_write >= kills // 2 - 1, "the kills must also hit checkpoint writes"
    return killed


def test_a_run_killed_three_times_has_the_same_losses_and_weights_to_the_bit(tmp_path: Path):
    assert check_killed_run(tmp_path, kills=3, steps=12) == 3


@pytest.mark.slow
def test_a_run_killed_twenty_times_has_the_same_losses_and_weights_to_the_bit(tmp_path: Path):
    assert check_killed_run(tmp_path, kills=20, steps=150) == 20


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_is_gone(tmp_path: Path):
    process = start(tmp_path, "steps=100", "slow_ms=200")
    deadline = time.monotonic() + 120
    while not lines(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(ConfigError, match="another process trains in"):
        run(tmp_path, steps=2)
    process.kill()
    process.communicate()
    run(tmp_path, steps=2)
    assert lines(tmp_path) == 4


def test_a_refused_second_run_leaves_everything_of_the_first_as_it_is(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.toml").write_text("of the run that is going on")
    hold = "import sys, time, pathlib; from ace.training.lock import held\n"
    hold += "with held(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    first = subprocess.Popen([sys.executable, "-c", hold, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        command = [sys.executable, "-m", "ace", "train", str(ROOT / "recipes" / "lora.toml"), "--output", str(folder)]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert second.returncode == 2
        assert second.stderr == "ace: another process trains in run: stop it, or choose another folder\n"
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    finally:
        first.kill()
        first.communicate()


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(tmp_path: Path):
    expected = run(tmp_path / "whole", steps=8, save_steps=2).state_dict()
    folder = tmp_path / "full"
    process = start(folder, "steps=8", "save_steps=2", "full_at=18")
    out, _ = process.communicate(timeout=240)
    assert process.returncode != 0, "the last checkpoint has no room: the run must say so"
    assert "could not be written" in out and "training goes on" in out
    assert [path.name for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    process = start(folder, "steps=8", "save_steps=2")
    process.communicate(timeout=240)
    assert (folder / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    resumed = torch.load(folder / "done.pt", weights_only=True)
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    expected = run(tmp_path, save_steps=5).state_dict()
    whole = (tmp_path / "log.jsonl").read_bytes()
    checkpoints = sorted(path for path in (tmp_path / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    weights = checkpoints[-1] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-10] ^= 1
    weights.write_bytes(data)
    resumed = run(tmp_path, save_steps=5).state_dict()
    assert f"{checkpoints[-1].name} is damaged (model.safetensors has changed)" in capsys.readouterr().out
    assert (tmp_path / "log.jsonl").read_bytes() == whole
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
    assert checkpoints[-1].with_suffix(".damaged").exists()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="pip install 'ace-allround[quant]'")
@pytest.mark.filterwarnings("ignore")  # of the library, when it is imported
def test_eight_bit_adamw_learns_and_goes_on_exactly_from_its_checkpoint(tmp_path: Path):
    settings = {"optimizer": "adamw_8bit", "save_steps": 15}
    expected = run(tmp_path, **settings).state_dict()
    whole = (tmp_path / "log.jsonl").read_bytes()
    log = [json.loads(line)["loss"] for line in whole.splitlines()]
    assert log[-1] < 0.3 * log[0]
    newest = max((tmp_path / "checkpoints").iterdir())
    (newest / "manifest.json").write_text("{}")
    resumed = run(tmp_path, **settings).state_dict()
    assert (tmp_path / "log.jsonl").read_bytes() == whole
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_when_no_checkpoint_is_whole_the_run_does_not_silently_start_over(tmp_path: Path):
    run(tmp_path, steps=2)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match="delete the folder to start over"):
        run(tmp_path, steps=2)


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(tmp_path: Path):
    run(tmp_path, steps=3)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "progress.json").write_text(json.dumps({"step": 6}))
    os.rename(checkpoint, tmp_path / "checkpoint")
    before = (tmp_path / "log.jsonl").read_bytes()
    run(tmp_path, steps=3)
    assert (tmp_path / "log.jsonl").read_bytes() == before, "nothing was left to do"


def test_training_reduces_the_loss_and_logs_every_step_and_family(tmp_path: Path):
    run(tmp_path, steps=60)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 121))
    assert log[-1]["loss"] < 0.1 * log[0]["loss"]
    assert {"loss/odd", "loss/even"} <= log[0].keys()
    assert (log[0]["stage"], log[-1]["stage"]) == ("one", "two")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_number_of_workers_changes_nothing(tmp_path: Path, num_workers: int):
    run(tmp_path / "some", steps=6, num_workers=num_workers)
    run(tmp_path / "one", steps=6, num_workers=1)
    assert (tmp_path / "some" / "log.jsonl").read_bytes() == (tmp_path / "one" / "log.jsonl").read_bytes()


def test_broken_and_poisoned_samples_are_left_out_named_and_counted(tmp_path: Path):
    module = run(tmp_path, Numbers(broken=(5, 17), poisoned=(30,)))
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(entry["name"], entry["reason"]) for entry in skipped] == [
        ("toy 5", "OSError: the file is cut off"),
        ("toy 17", "OSError: the file is cut off"),
        ("toy 30", "its loss is not finite"),
    ]
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["loss"] is None] == [skipped[2]["step"]]


def test_a_model_without_any_finite_loss_stops_the_run(tmp_path: Path):
    with pytest.raises(TrainingError, match="no finite loss for 20 steps"):
        run(tmp_path, Numbers(poisoned=tuple(range(2000))), steps=30)


def test_data_without_any_usable_sample_stops_the_run_and_says_why(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"none of 1000 samples .*cut off"):
        run(tmp_path, Numbers(broken=tuple(range(3000))))
