"""The one training loop, on accelerate: one device or many (DDP, FSDP2, DeepSpeed by accelerate's own settings),
killable at any moment.

A run is its folder. Sample number n of a run is the same whatever happened before, and so are its noise and its dice,
so a run that was killed goes on from its last checkpoint exactly as if nothing had happened; `log.jsonl`, one line per
step without any times, is then the same file to the byte. The loss is the mean over the samples of the global batch,
however many processes share it. Weights averaged over the last steps (EMA) are what a finished run hands on.

Not here: what is trained and its loss (`autoencoder.py`, `denoiser.py`, `plus.py`), reading recipes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import Dataset

from ace.errors import CheckpointError
from ace.training.checkpoint import Average, load_checkpoint, save_checkpoint
from ace.training.config import Run, Stage
from ace.training.optimizers import make_optimizer
from ace.training.speed import Speedometer, peak_flops
from ace.training.stream import GlobalBatch, Item, TrainingError, global_batches

LOG, SPEED, SKIPPED = "log.jsonl", "speed.jsonl", "skipped.jsonl"
SPEED_EVERY = 20
MANY_BAD_STEPS = 20  # in a row without a finite loss: then something is wrong with the model


@dataclass(frozen=True)
class Task:
    """What is trained.

    module: holds all that is trained. dataset: a stage's samples by number, each an `Item`. collate: items → what the
    module takes. losses: (module, batch) → one loss per item, (B,). operations: forward multiplications and additions
    of a batch, for the share of peak. lr_scales: parameter name prefix → factor on the learning rate.
    preview: draws with the module as it is; gets the step and says where the picture is. rebuild: a module like the one
    at the start, for the whole weights of one that was sharded (FSDP2), which cannot be put together in place."""

    module: nn.Module
    dataset: Callable[[Stage], Dataset]
    collate: Callable[[tuple[Item, ...]], Any]
    losses: Callable[[nn.Module, Any], Tensor]
    operations: Callable[[Any], int] = lambda batch: 0
    lr_scales: dict[str, float] = dataclasses.field(default_factory=dict)
    preview: Callable[[int], Path] | None = None
    rebuild: Callable[[], nn.Module] | None = None


def train(
    task: Task, recipe: Run, folder: Path, quiet: bool = False, tell: Callable[[str], None] = lambda line: None
) -> nn.Module:
    """Train `task.module` in place through all stages of `recipe`; returns it with its averaged weights.

    folder: of the run; an earlier, unfinished run there is continued. tell: hears of what went wrong and was survived.
    Raises TrainingError if no loss is finite any more, CheckpointError if the last checkpoint cannot be written or none
    of the earlier ones is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = _accelerator(recipe, folder)
    if not accelerator.is_main_process:
        tell = lambda line: None  # noqa: E731
    optimizer = make_optimizer(task.module, recipe, task.lr_scales)
    module, optimizer = accelerator.prepare(task.module, optimizer)
    trained = [p for p in module.parameters() if p.requires_grad]
    average = Average(trained, recipe.ema_decay)
    accelerator.register_for_checkpointing(average)
    progress = _resume(accelerator, recipe, folder, tell)
    speed = Speedometer(peak_flops(accelerator.device, recipe.mixed_precision) * accelerator.num_processes)
    if accelerator.log_with:
        accelerator.init_trackers("tracker")
    saved_step, saved_at = progress["step"], time.monotonic()
    bad_steps = 0

    first_step = 0
    with _bar(quiet or not accelerator.is_main_process) as bar:
        for number, stage in enumerate(recipe.stages):
            first_step, last_step = first_step + stage.steps, first_step + stage.steps
            start = last_step - stage.steps
            if progress["step"] >= last_step:
                continue
            title = f"{stage.name} ({number + 1}/{len(recipe.stages)})"
            line = bar.add_task(title, total=stage.steps, completed=progress["step"] - start, note="")
            dataset = task.dataset(stage)
            batches = global_batches(dataset, stage, progress["position"], recipe.num_workers, accelerator)
            while progress["step"] < last_step:
                with speed.waiting():
                    batch = next(batches)
                lr = stage.lr_at(progress["step"] - start)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["lr_scale"]
                results, operations = _backward(accelerator, task, module, batch)
                norm = _clip(accelerator, trained, recipe.clip_norm)
                progress["step"] += 1
                progress["position"] = batch.position
                if math.isfinite(norm):
                    optimizer.step()
                    average.update(trained)
                    bad_steps = 0
                else:
                    bad_steps += 1
                optimizer.zero_grad()
                figures = _record(accelerator, folder, progress, stage, batch, results, lr, norm)
                speed.add(batch.tokens, batch.num_samples, operations * accelerator.num_processes)
                note = f"loss {figures.get('loss', math.nan):.4f}  {speed.note()}"
                bar.update(line, advance=1, note=note + _skip_note(progress))
                if progress["step"] % SPEED_EVERY == 0:
                    figures |= speed.figures()
                    if accelerator.is_main_process:
                        _append(folder / SPEED, {"step": progress["step"]} | speed.figures())
                    speed.restart()
                if accelerator.log_with:
                    accelerator.log(figures, step=progress["step"])
                if bad_steps == MANY_BAD_STEPS:
                    raise TrainingError(f"no finite loss for {bad_steps} steps: lower lr, see {folder.name}/{SKIPPED}")
                wanted = recipe.preview_steps and progress["step"] % recipe.preview_steps == 0
                if task.preview and wanted and not accelerator.is_fsdp2:  # a shard cannot draw
                    average.exchange(trained)
                    if accelerator.is_main_process:
                        task.preview(progress["step"])
                    average.exchange(trained)
                by_steps = recipe.save_steps and progress["step"] - saved_step >= recipe.save_steps
                by_time = not recipe.save_steps and time.monotonic() - saved_at > 60 * recipe.save_minutes
                if _agreed(accelerator, by_steps or by_time):
                    saved_at = time.monotonic()
                    try:
                        save_checkpoint(accelerator, folder, progress, recipe.keep_checkpoints)
                        saved_step = progress["step"]
                    except CheckpointError as error:  # the disk may have room again the next time
                        tell(f"{error}; training goes on, the last one is of step {saved_step}")
            batches.close()
    if saved_step < progress["step"]:
        save_checkpoint(accelerator, folder, progress, recipe.keep_checkpoints)
    if accelerator.log_with:
        accelerator.end_training()
    average.copy_to(trained)
    if accelerator.is_fsdp2 and task.rebuild is not None:
        state = accelerator.get_state_dict(module)  # all processes give, the main one gets
        module = task.rebuild()
        if accelerator.is_main_process:
            module.load_state_dict(state)
    return accelerator.unwrap_model(module)


def _backward(
    accelerator: Accelerator, task: Task, module: nn.Module, batch: GlobalBatch
) -> tuple[list[tuple[Item, float]], int]:
    """Gradients of the global batch's mean loss, piece by piece; returns this process's losses and operations.

    Processes average their gradients, so each counts its own sum as a share of the whole times their number."""
    results: list[tuple[Item, float]] = []
    operations = 0
    for number, part in enumerate(batch.parts):
        stand_in = not part  # another process has more pieces: take part with weight zero
        items = part or (batch.stand_in,)
        collated = task.collate(items)
        last = number == len(batch.parts) - 1
        with nullcontext() if last else accelerator.no_sync(module):
            with accelerator.autocast():
                losses = task.losses(module, collated)
            share = losses.float().sum() * (0.0 if stand_in else accelerator.num_processes / batch.num_samples)
            accelerator.backward(share)
        if not stand_in:
            results += zip(items, losses.detach().tolist(), strict=True)
            operations += 3 * task.operations(collated)  # the way back costs twice the way there
    return results, operations


def _accelerator(recipe: Run, folder: Path) -> Accelerator:
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        cpu=not torch.cuda.is_available(),
        log_with=None if recipe.tracker == "none" else recipe.tracker,
        project_dir=str(folder),
    )
    if accelerator.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate takes its sharding settings on GPUs only; the code behind them works on CPUs as well
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(fsdp_version=2)
    return accelerator


def _clip(accelerator: Accelerator, trained: list[nn.Parameter], most: float) -> float:
    """Clip the gradients' norm and return what it was (0 where DeepSpeed does both by itself)."""
    norm = accelerator.clip_grad_norm_(trained, most or math.inf)
    return 0.0 if norm is None else float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _agreed(accelerator: Accelerator, wish: bool) -> bool:
    """What the main process wishes, on all of them: their clocks differ."""
    if accelerator.num_processes == 1:
        return wish
    flag = torch.tensor(int(wish and accelerator.is_main_process), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item())


def _record(
    accelerator: Accelerator,
    folder: Path,
    progress: dict[str, Any],
    stage: Stage,
    batch: GlobalBatch,
    results: list[tuple[Item, float]],
    lr: float,
    norm: float,
) -> dict[str, float]:
    """Write the step's line of the log and name what was left out; returns the finite figures."""
    missed = [{"position": s.number, "name": s.name, "reason": s.reason} for s in batch.skipped]
    if not math.isfinite(norm):
        guilty = [item for item, value in results if not math.isfinite(value)]
        missed += [{"position": i.number, "name": i.name, "reason": "its loss is not finite"} for i in guilty]
    values = [(item.task.split("/")[0], value) for item, value in results]
    if accelerator.num_processes > 1:
        values, missed = gather_object(values), gather_object(missed)
    if not math.isfinite(norm) and not any(entry["reason"].startswith("its loss") for entry in missed):
        missed.append({"position": progress["position"], "name": "the step", "reason": "its gradient is not finite"})
    progress["skipped"] += len(missed)
    by_family: dict[str, list[float]] = {}
    for family, value in values:
        by_family.setdefault(f"loss/{family}", []).append(value)
    figures = {"loss": sum(value for _, value in values) / len(values), "norm": norm, "lr": lr}
    figures |= {family: sum(own) / len(own) for family, own in sorted(by_family.items())}
    line = {"step": progress["step"], "stage": stage.name, "samples": batch.num_samples, "tokens": batch.tokens}
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    if accelerator.is_main_process:
        _append(folder / LOG, line | finite)
        for entry in missed:
            _append(folder / SKIPPED, {"step": progress["step"]} | entry)
    return {name: value for name, value in finite.items() if value is not None}


def _resume(accelerator: Accelerator, recipe: Run, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Progress of the last whole checkpoint, or of a new run; what was logged after it is cut off."""
    progress = load_checkpoint(accelerator, folder, tell) or {"step": 0}
    if "position" not in progress:  # written before batches could be of any length
        progress["position"], first = 0, 0
        for stage in recipe.stages:
            progress["position"] += max(0, min(progress["step"] - first, stage.steps)) * stage.batch_size
            first += stage.steps
    progress.setdefault("skipped", 0)
    if accelerator.is_main_process:
        for name in (LOG, SPEED, SKIPPED):
            _cut_off(folder / name, progress["step"])
    accelerator.wait_for_everyone()
    return progress


def _cut_off(path: Path, step: int) -> None:
    """Keep the lines up to a step; a line that a kill left unfinished goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        kept.append(line + "\n")
    new = path.with_suffix(".new")
    new.write_text("".join(kept), encoding="utf-8")
    new.replace(path)


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _skip_note(progress: dict[str, Any]) -> str:
    return f"  {progress['skipped']} left out" if progress["skipped"] else ""


def _bar(disable: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    return Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), disable=disable
    )
