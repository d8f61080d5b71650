"""Checkpoints that are whole or not there: weights, averages, optimiser, random states, and the place in the data.

A checkpoint is a folder `checkpoints/<step>` with a manifest of SHA-256 hashes. It is written beside its place, forced
to disk and renamed, so that a kill at any moment leaves the ones before it untouched. When a run resumes, every hash is
checked; a damaged checkpoint is set aside, by name, and the one before it is taken. So is one that holds code: a run
folder from elsewhere is as safe to resume as a picture is to open.

Not here: when to save (`loop.py`), the files of the state (`state.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from ace.errors import CheckpointError
from ace.settings import Count
from ace.training.state import HoldsCode, TrainingState, read_state, write_state

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
BEFORE_MANIFESTS = ("checkpoint", "checkpoint.old")  # folders of earlier versions: one checkpoint, no hashes


Progress = dict[str, int]  # step, position, skipped
_PROGRESS = TypeAdapter(dict[str, Count])


def save_checkpoint(accelerator: Accelerator, state: TrainingState, run: Path, progress: Progress, keep: int) -> None:
    """Write the checkpoint of `progress["step"]` and remove all but the newest `keep`.

    Called by all processes. Raises CheckpointError if it cannot be written (disk full, say); the earlier ones are then
    as they were."""
    parent = run / FOLDER
    new, place = parent / ".writing", parent / f"{progress['step']:08d}"
    failure = None
    try:
        if accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
        accelerator.wait_for_everyone()
        write_state(accelerator, state, new)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (new / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            _seal(new)
            if place.exists():
                shutil.rmtree(place)
            os.rename(new, place)
            _sync(parent)
            for old in _folders(run)[keep:]:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save reports a full disk as a RuntimeError
        failure = " ".join(str(error).split())[:200] or type(error).__name__
    failures = [failure] if accelerator.num_processes == 1 else gather_object([failure])
    if any(failures):
        if accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)
        why = next(filter(None, failures))
        raise CheckpointError(f"the checkpoint of step {progress['step']} could not be written: {why}")


def load_checkpoint(
    accelerator: Accelerator, state: TrainingState, run: Path, on_warning: Callable[[str], None]
) -> Progress | None:
    """Load the newest checkpoint that is whole; returns its progress, or None where there is none yet.

    on_warning: called with a line about each damaged one. Raises CheckpointError if there are some and none is whole,
    or if the newest whole one belongs to another recipe."""
    found, damaged = _folders(run), 0
    for folder in found:
        fault = _fault(folder)
        if not fault:
            try:
                read_state(accelerator, state, folder)
            except HoldsCode as error:
                fault = str(error)
        if fault:
            damaged += 1
            on_warning(f"checkpoint {folder.name} is damaged ({fault}): taking the one before it")
            continue
        _set_aside(accelerator, found[:damaged])
        return _progress(folder)
    for name in BEFORE_MANIFESTS:
        if (run / name / PROGRESS).exists():
            read_state(accelerator, state, run / name)
            return _progress(run / name)
    if damaged:
        raise CheckpointError(f"every checkpoint in {run.name}/{FOLDER} is damaged: delete the folder to start over")
    return None


def _progress(folder: Path) -> Progress:
    try:
        return _PROGRESS.validate_json((folder / PROGRESS).read_bytes())
    except ValidationError:
        raise CheckpointError(
            f"{folder.name}/{PROGRESS} does not say how far the run is: delete {folder.name}"
        ) from None


def _folders(run: Path) -> list[Path]:
    """Finished checkpoints, the newest first."""
    parent = run / FOLDER
    names = [path for path in parent.iterdir() if path.name.isdigit()] if parent.is_dir() else []
    return sorted(names, key=lambda path: int(path.name), reverse=True)


def _seal(folder: Path) -> None:
    """Write the manifest and force everything to disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(folder)): _digest(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (*files, folder / MANIFEST, folder):
        _sync(path)


def _fault(folder: Path) -> str:
    """What is wrong with a checkpoint, in words, or nothing."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        for name, digest in manifest.items():
            if name not in files:
                return f"{name} is missing"
            if _digest(files[name]) != digest:
                return f"{name} has changed"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read: {type(error).__name__}"
    return "" if PROGRESS in manifest else f"{PROGRESS} is missing"


def _set_aside(accelerator: Accelerator, folders: list[Path]) -> None:
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for folder in folders:
            kept = folder.with_suffix(".damaged")
            shutil.rmtree(kept, ignore_errors=True)
            os.rename(folder, kept)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
