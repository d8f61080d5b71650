"""The one training loop, on accelerate: one device or many, killable at any moment.

A run is its folder. Sample number n of a run is the same whatever happened before, and so is everything drawn for it,
so a run that was killed goes on from its last checkpoint exactly as if nothing had happened; `log.jsonl`, one line per
step without any times, is then the same file to the byte. The loss is the mean over the samples of the global batch,
however many processes share it. Weights averaged over the last steps (EMA) are what a finished run hands on.

Not here: what is trained and its loss (`autoencoder.py`, `denoiser.py`, `plus.py`), sharing the work among devices
(`processes.py`), the record (`log.py`), reading recipes.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import Dataset

from ace.errors import CheckpointError, ConfigError
from ace.training.average import Average
from ace.training.checkpoint import load_checkpoint, save_checkpoint
from ace.training.config import TrainingRecipe, TrainingStage
from ace.training.lock import held
from ace.training.log import SKIPPED, Log
from ace.training.optimizers import make_optimizer, set_lr
from ace.training.processes import agreed, clip, piece, start_accelerator
from ace.training.speed import Speedometer, peak_flops
from ace.training.state import TrainingState
from ace.training.stream import GlobalBatch, Item, TrainingError, global_batches

SPEED_EVERY = 20
MANY_BAD_STEPS = 20  # in a row without a finite loss: then something is wrong with the model


# told (steps done, all steps) after each; whether training goes on
OnStep = Callable[[int, int], bool]


@dataclass(frozen=True)
class Task:
    """What is trained.

    module: holds all that is trained. dataset: a stage's samples by number, each an `Item`. collate: items → what the
    module takes. losses: (module, batch) → one loss per item, (B,). operations: forward multiplications and additions
    of a batch, for the share of peak. lr_scales: parameter name prefix → factor on the learning rate.
    preview: draws with the module as it is, or with the last one rebuilt; gets the step and says where the picture is.
    rebuild: a module like the one at the start, for the whole weights of one that was sharded (FSDP2), which cannot be
    put together in place."""

    module: nn.Module
    dataset: Callable[[TrainingStage], Dataset]
    collate: Callable[[tuple[Item, ...]], Any]
    losses: Callable[[nn.Module, Any], Tensor]
    operations: Callable[[Any], int] = lambda batch: 0
    lr_scales: dict[str, float] = dataclasses.field(default_factory=dict)
    preview: Callable[[int], Path] | None = None
    rebuild: Callable[[], nn.Module] | None = None


@dataclass
class _Training:
    """A run under way.

    progress: step, position in the data, samples left out; what a checkpoint says beside the weights. saved_step,
    saved_at: of the last checkpoint. bad_steps: in a row, without a finite gradient. stopped: `on_step` wanted it."""

    task: Task
    recipe: TrainingRecipe
    folder: Path
    on_warning: Callable[[str], None]
    accelerator: Accelerator
    state: TrainingState
    trained: list[nn.Parameter]
    log: Log
    speed: Speedometer
    progress: dict[str, Any]
    saved_step: int
    saved_at: float
    on_step: OnStep
    bad_steps: int = 0
    stopped: bool = False


def train(
    task: Task,
    recipe: TrainingRecipe,
    folder: Path,
    quiet: bool = False,
    on_warning: Callable[[str], None] = lambda line: None,
    on_step: OnStep = lambda done, total: True,
) -> nn.Module:
    """Train `task.module` in place through all stages of `recipe`; returns it with its averaged weights.

    folder: of the run; an earlier, unfinished run there is continued. on_warning: called with each recoverable error.
    on_step: told (steps done, all steps) after each step; where it answers False, training ends there as if it were
    done.
    Raises ConfigError if another process trains there or the optimiser cannot be shared, TrainingError if no loss is
    finite any more, CheckpointError if the last checkpoint cannot be written or none of the earlier ones is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = start_accelerator(recipe, folder)
    is_main = accelerator.is_main_process
    with held(folder):
        run = _begin(accelerator, task, recipe, folder, on_warning if is_main else lambda line: None, on_step)
        with _bar(quiet or not is_main) as bar:
            _run_stages(run, bar)
        if run.saved_step < run.progress["step"]:
            save_checkpoint(accelerator, run.state, folder, run.progress, recipe.keep_checkpoints)
        if accelerator.log_with:
            accelerator.end_training()
    return _averaged_module(run)


def measure_steps(task: Task, recipe: TrainingRecipe, folder: Path, seconds: float = 1.0) -> tuple[float, ...]:
    """Seconds of one step of each stage, data included, on this machine: after a first one, as many as fit into the
    time, at least one. folder: for what a run writes. The module is trained meanwhile and no good afterwards."""
    run = _begin(start_accelerator(recipe, folder), task, recipe, folder, lambda line: None, lambda done, total: True)
    found, first_step = [], 0
    for stage in recipe.stages:
        batches = global_batches(task.dataset(stage), stage, 0, recipe.num_workers, run.accelerator)
        _step(run, stage, first_step, next(batches))
        begin, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - begin < seconds:
            _step(run, stage, first_step, next(batches))
            steps += 1
        found.append((time.perf_counter() - begin) / steps)
        batches.close()
        first_step = run.progress["step"]
    return tuple(found)


def _begin(
    accelerator: Accelerator,
    task: Task,
    recipe: TrainingRecipe,
    folder: Path,
    on_warning: Callable[[str], None],
    on_step: OnStep,
) -> _Training:
    """Put everything on its device and go to the last checkpoint, if there is one."""
    shared = accelerator.is_fsdp2 or accelerator.distributed_type == DistributedType.DEEPSPEED
    if recipe.optimizer == "muon" and shared:
        raise ConfigError("muon turns whole matrices: use it on one device or with DDP, or adamw on shards")
    optimizer = make_optimizer(task.module, recipe, task.lr_scales)
    module, optimizer = accelerator.prepare(task.module, optimizer)
    trained = [p for p in module.parameters() if p.requires_grad]
    average = Average(trained, recipe.ema_decay)
    state = TrainingState(module, optimizer, average)
    progress = load_checkpoint(accelerator, state, folder, on_warning) or {"step": 0}
    _add_missing(progress, recipe)
    log = Log(accelerator, folder)
    log.cut_off(progress["step"])
    speed = Speedometer(peak_flops(accelerator.device, recipe.mixed_precision) * accelerator.num_processes)
    if accelerator.log_with:
        accelerator.init_trackers("tracker")
    now = progress["step"], time.monotonic()
    return _Training(task, recipe, folder, on_warning, accelerator, state, trained, log, speed, progress, *now, on_step)


def _run_stages(run: _Training, bar: Progress) -> None:
    """All stages that are left, each with its line in the bar, and one of all together where there are several."""
    stages, first_step = run.recipe.stages, 0
    lines = []
    if len(stages) > 1:
        total = sum(stage.steps for stage in stages)
        lines.append(bar.add_task("all stages", total=total, completed=run.progress["step"], note=""))
    for number, stage in enumerate(stages):
        if run.progress["step"] < first_step + stage.steps and not run.stopped:
            done = run.progress["step"] - first_step
            title = f"{stage.name} ({number + 1}/{len(stages)})"
            line = bar.add_task(title, total=stage.steps, completed=done, note="")
            _run_stage(run, stage, first_step, bar, [*lines, line])
        first_step += stage.steps


def _run_stage(run: _Training, stage: TrainingStage, first_step: int, bar: Progress, lines: list[TaskID]) -> None:
    """All steps of a stage that are left. first_step: of the run, at which the stage begins. lines: of the bar, the
    stage's own last."""
    dataset = run.task.dataset(stage)
    batches = global_batches(dataset, stage, run.progress["position"], run.recipe.num_workers, run.accelerator)
    total = sum(stage.steps for stage in run.recipe.stages)
    while run.progress["step"] < first_step + stage.steps and not run.stopped:
        with run.speed.waiting():
            batch = next(batches)
        figures = _step(run, stage, first_step, batch)
        for line in lines:
            bar.update(line, advance=1, note=_note(run, figures) if line == lines[-1] else "")
        _report(run, figures)
        if run.bad_steps == MANY_BAD_STEPS:
            why = f"no finite loss for {run.bad_steps} steps: lower lr, see {run.folder.name}/{SKIPPED}"
            raise TrainingError(why)
        _preview(run)
        _save(run)
        run.stopped = agreed(run.accelerator, not run.on_step(run.progress["step"], total))
    batches.close()


def _step(run: _Training, stage: TrainingStage, first_step: int, batch: GlobalBatch) -> dict[str, float]:
    """One step of the optimiser, left out where the gradient is not finite; returns the step's figures."""
    accelerator = run.accelerator
    lr = stage.lr_at(run.progress["step"] - first_step)
    set_lr(run.state.optimizer, lr)
    results, operations = _backward(accelerator, run.task, run.state.module, batch)
    norm = clip(accelerator, run.trained, run.recipe.clip_norm)
    run.progress["step"] += 1
    run.progress["position"] = batch.position
    if math.isfinite(norm):
        run.state.optimizer.step()
        run.state.average.update(run.trained)
        run.bad_steps = 0
    else:
        run.bad_steps += 1
    run.state.optimizer.zero_grad()
    run.speed.add(batch.tokens, batch.num_samples, operations * accelerator.num_processes)
    return run.log.step(run.progress, stage, batch, results, lr, norm)


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
        with piece(accelerator, module, last):
            with accelerator.autocast():
                losses = task.losses(module, collated)
            share = losses.float().sum() * (0.0 if stand_in else accelerator.num_processes / batch.num_samples)
            accelerator.backward(share)
        if not stand_in:
            results += zip(items, losses.detach().tolist(), strict=True)
            operations += 3 * task.operations(collated)  # the way back costs twice the way there
    return results, operations


def _report(run: _Training, figures: dict[str, float]) -> None:
    """Speed to its file now and then, everything to the tracker."""
    step = run.progress["step"]
    if step % SPEED_EVERY == 0:
        speed = run.speed.figures()
        run.log.speed(step, speed)
        run.speed.restart()
        figures = figures | speed
    if run.accelerator.log_with:
        run.accelerator.log(figures, step=step)


def _preview(run: _Training) -> None:
    """Draw with the averaged weights if it is time."""
    every = run.recipe.preview_steps
    if run.task.preview and every and run.progress["step"] % every == 0:
        with run.state.average.shown_in(run.trained):
            _whole_module(run)  # what draws is the task's newest module, and a shard cannot draw
            if run.accelerator.is_main_process:
                run.task.preview(run.progress["step"])


def _save(run: _Training) -> None:
    """Write a checkpoint if it is time; one that finds no room is told of and tried again the next time."""
    recipe, step = run.recipe, run.progress["step"]
    if recipe.save_steps:
        due = step - run.saved_step >= recipe.save_steps
    else:
        due = time.monotonic() - run.saved_at > 60 * recipe.save_minutes
    if not agreed(run.accelerator, due):
        return
    run.saved_at = time.monotonic()
    try:
        save_checkpoint(run.accelerator, run.state, run.folder, run.progress, recipe.keep_checkpoints)
        run.saved_step = step
    except CheckpointError as error:
        run.on_warning(f"{error}; training goes on, the last one is of step {run.saved_step}")


def _averaged_module(run: _Training) -> nn.Module:
    """The trained module with its averages as weights."""
    run.state.average.copy_to(run.trained)
    return _whole_module(run)


def _whole_module(run: _Training) -> nn.Module:
    """The module as it is, put together anew in the main process if it is sharded."""
    accelerator, module = run.accelerator, run.state.module
    if accelerator.is_fsdp2 and run.task.rebuild is not None:
        state = accelerator.get_state_dict(module)  # all processes give, the main one gets
        module = run.task.rebuild()
        if accelerator.is_main_process:
            module.load_state_dict(state)
    return accelerator.unwrap_model(module)


def _add_missing(progress: dict[str, Any], recipe: TrainingRecipe) -> None:
    """What a new run has not yet, and checkpoints from before batches could be of any length do not say."""
    if "position" not in progress:
        progress["position"], first = 0, 0
        for stage in recipe.stages:
            progress["position"] += max(0, min(progress["step"] - first, stage.steps)) * stage.batch_size
            first += stage.steps
    progress.setdefault("skipped", 0)


def _note(run: _Training, figures: dict[str, float]) -> str:
    skipped = run.progress["skipped"]
    note = f"loss {figures.get('loss', math.nan):.4f}  {run.speed.note()}"
    return f"{note}  {skipped} left out" if skipped else note


def _bar(disable: bool) -> Progress:
    # a stage may be called anything: its name is no markup
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    return Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), disable=disable
    )
