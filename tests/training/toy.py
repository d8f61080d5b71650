"""A run of the real loop that takes milliseconds: a linear layer learns to add numbers, from samples of any length.

As a script it trains in a folder, with settings from the command line, to be killed: `python -m tests.training.toy
FOLDER [key=value …]`."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset

from ace.training.config import ModelRecipe, TrainingStage
from ace.training.loop import Task, train
from ace.training.stream import Item, Skipped

WIDTH = 64


class Numbers(Dataset):
    """Sample i is decided by i: 1 to 5 rows. `broken` ones cannot be made, `poisoned` ones are not finite."""

    def __init__(self, broken: tuple[int, ...] = (), poisoned: tuple[int, ...] = ()) -> None:
        self.broken, self.poisoned = broken, poisoned

    def __getitem__(self, number: int) -> Item | Skipped:
        if number in self.broken:
            return Skipped(number, f"toy {number}", "OSError: the file is cut off")
        rows = torch.randn(1 + number * 7 % 5, WIDTH, generator=torch.Generator().manual_seed(number))
        if number in self.poisoned:
            rows[0, 0] = float("nan")
        return Item(number, f"toy {number}", ("odd/one", "even/one")[number % 2], len(rows), rows)


def collate(items: tuple[Item, ...]) -> tuple[Tensor, Tensor, list[int]]:
    rows = torch.cat([item.content for item in items])
    noise = [
        torch.randn(len(item.content), 1, generator=torch.Generator().manual_seed(10**6 + item.number))
        for item in items
    ]
    return rows, 0.1 * torch.cat(noise), [len(item.content) for item in items]


def losses(module: nn.Module, batch: tuple[Tensor, Tensor, list[int]]) -> Tensor:
    rows, noise, lengths = batch
    errors = (module(rows) - rows.sum(1, keepdim=True) - noise).square().squeeze(1)
    return torch.stack([part.mean() for part in errors.split(lengths)])


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def toy_recipe(steps: int = 20, **settings: object) -> ModelRecipe:
    stages = (
        TrainingStage("one", lr=0.01, batch_tokens=24, steps=steps, micro_tokens=11),
        TrainingStage("two", lr=0.01, batch_size=4, steps=steps, schedule="linear"),
    )
    return ModelRecipe(
        stages,
        **{"num_workers": 0, "mixed_precision": "no", "ema_decay": 0.9, "tracker": "none", **settings},  # type: ignore[arg-type]
    )


def toy_task(folder: Path, dataset: Dataset | None = None) -> Task:
    """A preview is a file of the weights that it would be drawn with."""
    newest: list[nn.Module] = []

    def rebuild() -> nn.Module:
        torch.manual_seed(0)
        newest.append(nn.Sequential(nn.Linear(WIDTH, 512), nn.Linear(512, 1)))
        return newest[-1]

    def preview(step: int) -> Path:
        torch.save(newest[-1].state_dict(), folder / f"drawn-{step}.pt")
        return folder / f"drawn-{step}.pt"

    return Task(rebuild(), lambda stage: dataset or Numbers(), collate, losses, preview=preview, rebuild=rebuild)


def run(folder: Path, dataset: Dataset | None = None, steps: int = 20, **settings: object) -> nn.Module:
    return train(toy_task(folder, dataset), toy_recipe(steps, **settings), folder, quiet=True, on_warning=say)


def main(folder: Path, options: dict[str, int]) -> None:
    """slow_ms: pause in every step; full_at: from this step on no file may grow over `full_bytes`; poisoned: number of
    a sample that is not finite."""
    pause, full_at = options.pop("slow_ms", 0), options.pop("full_at", 0)
    full_bytes = options.pop("full_bytes", 50_000)
    poisoned = (options.pop("poisoned"),) if "poisoned" in options else ()
    task = toy_task(folder, Numbers(poisoned=poisoned))
    count = 0

    def slow_losses(module: nn.Module, batch: tuple[Tensor, Tensor, list[int]]) -> Tensor:
        nonlocal count
        count += 1
        time.sleep(pause / 1000)
        if full_at and count == full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (full_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return losses(module, batch)

    steps = options.pop("steps", 20)
    task = dataclasses.replace(task, losses=slow_losses)
    module = train(task, toy_recipe(steps, **options), folder, quiet=True, on_warning=say)
    if PartialState().is_main_process:
        torch.save(module.state_dict(), folder / "done.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), {key: json.loads(value) for key, value in (a.split("=") for a in sys.argv[2:])})
