"""Checkpoints that are whole or not there: weights, averages, optimiser, random states, and the place in the data.

A checkpoint is a folder `checkpoints/<step>` with a manifest of SHA-256 hashes. It is written beside its place, forced
to disk and renamed, so that a kill at any moment leaves the ones before it untouched. On the way back every hash is
checked; a damaged checkpoint is set aside, by name, and the one before it is taken.

Not here: when to save, and what the state means (`loop.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from ace.errors import CheckpointError

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
BEFORE_MANIFESTS = ("checkpoint", "checkpoint.old")  # folders of earlier versions: one checkpoint, no hashes


def save_checkpoint(accelerator: Accelerator, run: Path, progress: dict[str, Any], keep: int) -> None:
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
        accelerator.save_state(str(new), safe_serialization=True)
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


def load_checkpoint(accelerator: Accelerator, run: Path, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """Load the newest checkpoint that is whole; returns its progress, or None where there is none yet.

    tell: hears of damaged ones. Raises CheckpointError if there are some and none is whole."""
    found, damaged = _folders(run), 0
    for folder in found:
        if fault := _fault(folder):
            damaged += 1
            tell(f"checkpoint {folder.name} is damaged ({fault}): taking the one before it")
            continue
        accelerator.load_state(str(folder))
        _set_aside(accelerator, found[:damaged])
        return json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    for name in BEFORE_MANIFESTS:
        if (run / name / PROGRESS).exists():
            accelerator.load_state(str(run / name))
            return json.loads((run / name / PROGRESS).read_text(encoding="utf-8"))
    if damaged:
        raise CheckpointError(f"every checkpoint in {run.name}/{FOLDER} is damaged: delete the folder to start over")
    return None


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
        for name, digest in manifest.items():
            if _digest(folder / name) != digest:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
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


class Average:
    """Exponential moving average of parameters, with a short memory at the start (decay grows to its full value).

    Without decay the parameters stand for themselves and nothing is kept. Sharded parameters have sharded averages; a
    checkpoint holds them whole."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        # a small step would vanish in bfloat16
        self.values = [p.detach().float().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self, parameters: list[torch.nn.Parameter]) -> None:
        """Move towards the parameters' values of now."""
        self.updates += 1
        if not self.values:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [p.detach().float() for p in parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: list[torch.nn.Parameter]) -> None:
        """Write the averages into the parameters."""
        for parameter, value in zip(parameters, self.values, strict=bool(self.values)):
            parameter.copy_(value)

    @contextmanager
    def shown_in(self, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
        """The parameters are the averages for a while, for a look at what those draw."""
        kept = [p.detach().clone() for p in parameters] if self.values else []
        self.copy_to(parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=bool(kept)):
                    parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"updates": self.updates, "values": [getattr(v, "full_tensor", lambda v=v: v)() for v in self.values]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.updates = state["updates"]
        for value, saved in zip(self.values, state["values"], strict=bool(self.values)):
            if hasattr(value, "device_mesh"):
                saved = torch.distributed.tensor.distribute_tensor(
                    saved.to(value.device), value.device_mesh, value.placements
                )
            value.copy_(saved)
