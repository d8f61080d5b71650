"""The loop: a killed run goes on exactly where it was; a broken loss stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from ace.training.config import ModelRecipe, Stage
from ace.training.loop import TrainingError, train

SCRIPT = """
    import sys, time
    from pathlib import Path
    import torch
    sys.path.insert(0, {tests!r})
    from test_loop import Numbers, loss, recipe
    from ace.training.loop import train

    def slow_loss(module, batch, generator):
        time.sleep(0.02)
        return loss(module, batch, generator)

    torch.manual_seed(0)
    module = train(torch.nn.Linear(4, 1), recipe(save_minutes=0.0), lambda stage, first: Numbers(first, stage.samples),
                   slow_loss, torch.stack, Path(sys.argv[1]), quiet=True)
    torch.save(module.state_dict(), Path(sys.argv[1]) / "done.pt")
"""


class Numbers(Dataset):
    """Sample i is decided by i."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(4, generator=torch.Generator().manual_seed(self.first + index))


def loss(module: nn.Module, batch: torch.Tensor, generator: torch.Generator):
    noise = 0.1 * torch.randn(len(batch), 1, generator=generator)
    return (module(batch) - batch.sum(1, keepdim=True) - noise).square().mean(), {"figure": 1.0}


def recipe(save_minutes: float = 60.0, lr: float = 0.05) -> ModelRecipe:
    stages = (Stage("one", 160, lr, batch_size=4), Stage("two", 120, lr, batch_size=4, schedule="linear"))
    return ModelRecipe(stages, num_workers=0, mixed_precision="no", save_minutes=save_minutes, ema_decay=0.9)


def run(folder: Path) -> nn.Module:
    torch.manual_seed(0)
    return train(
        nn.Linear(4, 1), recipe(), lambda s, first: Numbers(first, s.samples), loss, torch.stack, folder, quiet=True
    )


def test_a_killed_run_ends_with_the_very_weights_of_an_undisturbed_one(tmp_path: Path):
    expected = run(tmp_path / "whole").state_dict()
    script = textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parent)))
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)])
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint" / "progress.json").exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "done.pt").exists()
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, timeout=240)
    resumed = torch.load(folder / "done.pt", weights_only=True)
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_training_reduces_the_loss_and_logs_it(tmp_path: Path):
    module = run(tmp_path)
    assert torch.allclose(module.weight, torch.ones(1, 4), atol=0.1)
    assert '"stage": "two"' in (tmp_path / "log.jsonl").read_text()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path):
    def broken(module: nn.Module, batch: torch.Tensor, generator: torch.Generator):
        value, figures = loss(module, batch, generator)
        return value * float("nan"), figures

    with pytest.raises(TrainingError, match="not finite"):
        train(nn.Linear(4, 1), recipe(), lambda s, f: Numbers(f, s.samples), broken, torch.stack, tmp_path, quiet=True)
