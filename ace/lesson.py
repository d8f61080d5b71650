"""How a lesson stands: the record that `ace teach` keeps in an adapter's folder, for whoever follows it. No torch.

Imports: errors, files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from ace.errors import ConfigError
from ace.files import write_atomically

STATE, PREVIEW, SHEET = "lesson.json", "preview.png", "lesson.png"
_NAME = re.compile(r"[^\W_][\w-]{0,59}")  # of a folder, on every system

Status = Literal["running", "done", "stopped", "failed"]


def check_name(name: str) -> str:
    """The name of an edit, which becomes its folder's. Raises ConfigError."""
    if not _NAME.fullmatch(name := name.strip().replace(" ", "-")):
        raise ConfigError(f"{name[:40]!r} is no name for an edit: use letters, digits and -, at most 60")
    return name


def instruction_of(name: str) -> str:
    """The words that ask for an edit that has only a name."""
    return name.replace("-", " ").replace("_", " ")


@dataclass(frozen=True)
class Lesson:
    """How a lesson stands.

    name, instruction, model, pairs: what is taught, in which words, to what, from how many. step, steps: done, and in
    all. eta_s: remaining seconds, None before anything is known. error_before, error_after: mean absolute error (0 to
    1) to the answer of the pair kept apart, as it was and as the adapter makes it; None without one. message: why it
    failed. sha256: of the adapter's file, once there is one. pid: the process that teaches."""

    name: str
    instruction: str
    model: str
    pairs: int
    status: Status = "running"
    step: int = 0
    steps: int = 0
    eta_s: float | None = None
    error_before: float | None = None
    error_after: float | None = None
    message: str = ""
    sha256: str = ""
    pid: int = dataclasses.field(default_factory=os.getpid)

    def as_json(self) -> dict[str, Any]:
        """Its fields as plain JSON."""
        return dataclasses.asdict(self)

    def write(self, folder: Path) -> Lesson:
        """Keep it in the lesson's folder; returns itself. Raises OutputError."""
        write_atomically(folder / STATE, (json.dumps(self.as_json(), indent=1) + "\n").encode())
        return self

    def verdict(self) -> str | None:
        """What was learnt, measured on the pair kept apart; None without one."""
        if self.error_before is None or self.error_after is None:
            return None
        change = 1 - self.error_after / max(self.error_before, 1e-9)
        if change <= 0.1:
            return (
                "on the pair kept apart the error to your answer did not fall: give more steps, more pairs, or pairs "
                "that show the same edit"
            )
        return f"on the pair kept apart the error to your answer fell by {100 * change:.0f} %"


def read_lesson(folder: Path) -> Lesson | None:
    """How the lesson in a folder stands; None if there is none that can be read. One that says it is running, but whose
    process is gone, has failed."""
    try:
        written = json.loads((folder / STATE).read_text(encoding="utf-8"))
        lesson = Lesson(**{field.name: written[field.name] for field in dataclasses.fields(Lesson)})
        if lesson.status == "running" and not psutil.pid_exists(lesson.pid):
            return dataclasses.replace(lesson, status="failed", message="it was ended before it was done")
        return lesson
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
