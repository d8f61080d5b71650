"""`cases.jsonl`: what a finished run was asked and where its answers are, the same for every benchmark.

The user study reads it, and so can anything else that looks at answers without knowing the benchmark. Files inside the
run's folder are named relative to it, so that a run can be moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ace.errors import DataError
from ace.evaluation.lines import read_lines
from ace.files import write_atomically

FILE = "cases.jsonl"


@dataclass(frozen=True)
class RunCase:
    """One request of a run. item: its id in the benchmark; inputs, mask (white = change, None = anywhere): what it
    came with; answer: None = there is none. instruction: of all turns, if there were several."""

    item: str
    instruction: str
    inputs: tuple[Path, ...]
    mask: Path | None
    answer: Path | None

    @property
    def asked_sha256(self) -> str:
        """A hash of what was asked: two runs with the same one answered the same request."""
        digest = hashlib.sha256(f"{self.item}\0{self.instruction}".encode())
        for path in (*self.inputs, self.mask):
            digest.update(b"\0" if path is None else hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def write_cases(folder: Path, cases: Iterable[RunCase]) -> None:
    """Write `cases.jsonl` into a run's folder."""

    def name(path: Path | None) -> str | None:
        if path is None:
            return None
        whole, root = path.resolve(), folder.resolve()
        return str(whole.relative_to(root) if whole.is_relative_to(root) else whole)

    rows = [
        {
            "item": case.item,
            "instruction": case.instruction,
            "inputs": [name(path) for path in case.inputs],
            "mask": name(case.mask),
            "answer": name(case.answer),
        }
        for case in cases
    ]
    write_atomically(folder / FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def read_cases(folder: Path) -> list[RunCase]:
    """The cases of a finished run. Raises DataError."""

    def files(names: Sequence[str | None]) -> list[Path | None]:
        return [None if name is None else folder / name for name in names]

    try:
        rows = read_lines(folder / FILE)
        cases = [
            RunCase(
                row["item"],
                row["instruction"],
                tuple(folder / name for name in row["inputs"]),
                *files((row["mask"], row["answer"])),
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder.name}/{FILE} cannot be read: run that benchmark again on the folder") from error
    if not cases:
        raise DataError(f"{folder.name} is no finished run of `ace eval`: name its --output")
    return cases


def run_name(folder: Path) -> str:
    """What the run's system is called: its name, and the folder's if that is another. Raises DataError."""
    try:
        name = json.loads((folder / "run.json").read_bytes()).get("name", "")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder.name} is no finished run of `ace eval`: name its --output") from error
    return folder.name if name in ("", folder.name) else f"{name} ({folder.name})"
