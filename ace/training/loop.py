"""The one training loop, on accelerate: any module, any dataset whose item depends on its index alone, killable at any
moment.

A run is its folder. Sample number i of a run is the same whatever happened before, and so is the noise of step n, so a
run that was killed goes on from its last checkpoint exactly as if nothing had happened. Weights averaged over the last
steps (EMA) are what a finished run hands on.

Not here: what is trained and its loss (`autoencoder.py`, `denoiser.py`), reading recipes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ace.errors import AceError
from ace.training.config import Stage, _Run

Loss = Callable[[nn.Module, Any, torch.Generator], tuple[Tensor, dict[str, float]]]
LOG_EVERY = 20


class TrainingError(AceError):
    """Training cannot go on; the message says why and what to do."""


def train(
    module: nn.Module,
    recipe: _Run,
    make_dataset: Callable[[Stage, int], Dataset],
    loss: Loss,
    collate: Callable[[list[Any]], Any],
    folder: Path,
    quiet: bool = False,
    lr_scales: dict[str, float] | None = None,
) -> nn.Module:
    """Train `module` in place through all stages of `recipe`; returns it with its averaged weights.

    make_dataset: (stage, number of its first sample) → dataset of the stage's samples. loss: (module, batch, generator)
    → (scalar, figures to log). folder: of the run; an earlier, unfinished run there is continued.
    lr_scales: parameter name prefix → factor on the learning rate.
    Raises TrainingError if the loss is not finite."""
    folder.mkdir(parents=True, exist_ok=True)
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision, cpu=not torch.cuda.is_available())
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = _parameter_groups(module, recipe.weight_decay, lr_scales or {})
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=recipe.betas, fused=True)
    module, optimizer = accelerator.prepare(module, optimizer)
    average = Average(trained, recipe.ema_decay)
    accelerator.register_for_checkpointing(average)
    progress = _resume(accelerator, folder)

    first_sample, first_step = 0, 0
    with _bar(quiet or not accelerator.is_main_process) as bar:
        for number, stage in enumerate(recipe.stages):
            done = progress["step"] - first_step
            if done < stage.steps:
                task = bar.add_task(
                    f"{stage.name} ({number + 1}/{len(recipe.stages)})", total=stage.steps, completed=done, note=""
                )
                dataset = make_dataset(stage, first_sample)
                for step, batch in _batches(dataset, stage, done, recipe.num_workers, collate):
                    _set_lr(optimizer, stage.lr_at(step))
                    generator = torch.Generator().manual_seed((recipe.seed << 32) + first_step + step)
                    with accelerator.autocast():
                        value, figures = loss(module, batch, generator)
                    accelerator.backward(value)
                    norm = float(accelerator.clip_grad_norm_(trained, recipe.clip_norm) or 0.0)
                    if not math.isfinite(norm):
                        raise TrainingError(
                            f"the gradient of step {progress['step']} is not finite: lower the learning rate"
                        )
                    optimizer.step()
                    optimizer.zero_grad()
                    average.update(trained)
                    progress["step"] += 1
                    _log(
                        folder,
                        progress,
                        stage,
                        figures | {"loss": value.detach().item(), "norm": norm},
                        bar,
                        task,
                    )
                    if time.monotonic() - progress["saved"] > 60 * recipe.save_minutes:
                        _save(accelerator, folder, progress)
            first_sample += stage.steps * stage.batch_size
            first_step += stage.steps
    _save(accelerator, folder, progress)
    average.copy_to(trained)
    return accelerator.unwrap_model(module)


class Average:
    """Exponential moving average of parameters, with a short memory at the start (decay grows to its full value)."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: list[nn.Parameter]) -> None:
        """Move towards the parameters' values of now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: list[nn.Parameter]) -> None:
        """Write the averages into the parameters."""
        for parameter, value in zip(parameters, self.values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.updates = state["updates"]
        for value, saved in zip(self.values, state["values"], strict=True):
            value.copy_(saved)


def _batches(
    dataset: Dataset, stage: Stage, done: int, num_workers: int, collate: Callable
) -> Iterator[tuple[int, Any]]:
    rest = Subset(dataset, range(done * stage.batch_size, stage.steps * stage.batch_size))
    loader = DataLoader(
        rest,
        batch_size=stage.batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        prefetch_factor=4 if num_workers else None,
    )
    yield from enumerate(loader, start=done)


def _parameter_groups(module: nn.Module, weight_decay: float, lr_scales: dict[str, float]) -> list[dict[str, Any]]:
    """Trained parameters by learning rate factor and by decay: vectors (biases, norms) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            scale = next((s for prefix, s in lr_scales.items() if name.startswith(prefix)), 1.0)
            groups.setdefault((scale, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": ps, "lr_scale": scale, "weight_decay": decay} for (scale, decay), ps in groups.items()]


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _save(accelerator: Accelerator, folder: Path, progress: dict) -> None:
    """Write a checkpoint beside the last one, then put it in its place by renaming."""
    if accelerator.is_main_process:
        new, kept, old = folder / "checkpoint.new", folder / "checkpoint", folder / "checkpoint.old"
        shutil.rmtree(new, ignore_errors=True)
        accelerator.save_state(str(new), safe_serialization=True)
        (new / "progress.json").write_text(json.dumps({"step": progress["step"]}))
        shutil.rmtree(old, ignore_errors=True)
        if kept.exists():
            os.rename(kept, old)
        os.rename(new, kept)
        shutil.rmtree(old, ignore_errors=True)
    progress["saved"] = time.monotonic()


def _resume(accelerator: Accelerator, folder: Path) -> dict:
    """Load the last whole checkpoint, if any. A kill between the two renames leaves it under its old name."""
    for name in ("checkpoint", "checkpoint.old"):
        if (folder / name / "progress.json").exists():
            accelerator.load_state(str(folder / name))
            return {**json.loads((folder / name / "progress.json").read_text()), "saved": time.monotonic(), "seen": {}}
    return {"step": 0, "saved": time.monotonic(), "seen": {}}


def _log(folder: Path, progress: dict, stage: Stage, figures: dict[str, float], bar: Progress, task: Any) -> None:
    """Every LOG_EVERY steps the means since the last line go to log.jsonl and the progress line."""
    for name, value in figures.items():
        progress["seen"].setdefault(name, []).append(value)
    bar.advance(task)
    if progress["step"] % LOG_EVERY:
        return
    means = {name: sum(values) / len(values) for name, values in progress["seen"].items()}
    progress["seen"].clear()
    now = time.monotonic()
    rate = LOG_EVERY * stage.batch_size / (now - progress["logged"]) if "logged" in progress else 0.0
    progress["logged"] = now
    line = {"step": progress["step"], "stage": stage.name, "samples_per_s": round(rate, 2)}
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line | {name: round(value, 6) for name, value in means.items()}) + "\n")
    bar.update(task, note=f"loss {means['loss']:.4f}  {rate:.1f} samples/s")


def _bar(disable: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    return Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), disable=disable
    )
