"""The examples gallery: one request for every task of the paper, with pictures from the procedural world.

The pictures and `examples.json` beside this file are drawn by `recipes/studio_examples.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ace.errors import ConfigError

FOLDER = Path(__file__).parent / "examples"


@dataclass(frozen=True)
class Example:
    """A request to try. task: "family/subtask"; texts: one per round; pictures, mask: files of the first round."""

    task: str
    texts: tuple[str, ...]
    pictures: tuple[str, ...]
    mask: str | None

    def picture_paths(self) -> tuple[Path, ...]:
        """The files of the pictures, in order."""
        return tuple(FOLDER / name for name in self.pictures)

    def mask_path(self) -> Path:
        """The file of the mask."""
        return FOLDER / (self.mask or "")


def _read() -> tuple[Example, ...]:
    listed = json.loads((FOLDER / "examples.json").read_text(encoding="utf-8"))
    return tuple(Example(e["task"], tuple(e["texts"]), tuple(e["pictures"]), e["mask"]) for e in listed)


EXAMPLES = _read()


def example(task: str) -> Example:
    """The example of a task. Raises ConfigError if there is none."""
    for one in EXAMPLES:
        if one.task == task:
            return one
    raise ConfigError(f"there is no example {task[:60]!r}: choose one of the gallery")
