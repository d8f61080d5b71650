"""The record of a run: one line per step, how fast it went, and what was left out, in three files of JSON lines.

`log.jsonl` holds no times, so that two runs can be compared as files. After a kill the lines past the last checkpoint
are cut off again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from ace.lists import lines_of
from ace.training.config import TrainingStage
from ace.training.stream import GlobalBatch, Item

LOG, SPEED, SKIPPED = "log.jsonl", "speed.jsonl", "skipped.jsonl"


class Log:
    """Writes a run's record, from its main process only."""

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self.accelerator = accelerator
        self.folder = folder

    def cut_off(self, step: int) -> None:
        """Forget what was written after a step."""
        if self.accelerator.is_main_process:
            for name in (LOG, SPEED, SKIPPED):
                _cut_off(self.folder / name, step)
        self.accelerator.wait_for_everyone()

    def step(
        self,
        progress: dict[str, Any],
        stage: TrainingStage,
        batch: GlobalBatch,
        results: list[tuple[Item, float]],
        lr: float,
        norm: float,
    ) -> dict[str, float]:
        """Write a step's line, name and count what was left out; returns the finite figures.

        results: this process's losses."""
        values = [(item.task.split("/")[0], value) for item, value in results]
        missed = _missed(batch, results, norm)
        if self.accelerator.num_processes > 1:
            values, missed = gather_object(values), gather_object(missed)
        if not math.isfinite(norm) and not any(entry["reason"].startswith("its loss") for entry in missed):
            missed.append(_entry(progress["position"], "the step", "its gradient is not finite"))
        progress["skipped"] += len(missed)
        figures = {"loss": sum(value for _, value in values) / len(values), "norm": norm, "lr": lr} | _by_family(values)
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        start = {"step": progress["step"]}
        self._append(LOG, start | {"stage": stage.name, "samples": batch.num_samples, "tokens": batch.tokens} | finite)
        for entry in missed:
            self._append(SKIPPED, start | entry)
        return {name: value for name, value in finite.items() if value is not None}

    def speed(self, step: int, figures: dict[str, float]) -> None:
        """Write how fast the last steps were."""
        self._append(SPEED, {"step": step} | figures)

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _missed(batch: GlobalBatch, results: list[tuple[Item, float]], norm: float) -> list[dict[str, Any]]:
    missed = [_entry(sample.number, sample.name, sample.reason) for sample in batch.skipped]
    if not math.isfinite(norm):
        guilty = [item for item, value in results if not math.isfinite(value)]
        missed += [_entry(item.number, item.name, "its loss is not finite") for item in guilty]
    return missed


def _entry(position: int, name: str, reason: str) -> dict[str, Any]:
    return {"position": position, "name": name, "reason": reason}


def _by_family(values: list[tuple[str, float]]) -> dict[str, float]:
    """Mean loss of every task family."""
    families: dict[str, list[float]] = {}
    for family, value in values:
        families.setdefault(f"loss/{family}", []).append(value)
    return {family: sum(own) / len(own) for family, own in sorted(families.items())}


def _cut_off(path: Path, step: int) -> None:
    """Keep the lines up to a step; a line that a kill left unfinished goes too."""
    if not path.exists():
        return
    kept = []
    for line in lines_of(path.read_text(encoding="utf-8")):
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, RecursionError):
            break
        kept.append(line + "\n")
    new = path.with_suffix(".new")
    new.write_text("".join(kept), encoding="utf-8")
    new.replace(path)
