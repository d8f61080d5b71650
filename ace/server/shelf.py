"""The adapters that requests may name: folders and files below one folder. No name from outside becomes part of a path.

Imports nothing heavy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ace.adapter_files import WEIGHT_FILES
from ace.conversation.job import Job, Settings
from ace.errors import ConfigError, InputError
from ace.files import hash_file
from ace.lesson import Lesson, read_lesson

_NAME = re.compile(r"[^\W_][\w.-]{0,79}")
_MOST = 8  # adapters of one request


@dataclass(frozen=True)
class Shelved:
    """An adapter. name: what requests call it; file: its weights; lesson: how it was taught, if it was taught here."""

    name: str
    file: Path
    lesson: Lesson | None = None

    @property
    def path(self) -> Path:
        """What is named to load it: its folder, or its file."""
        return self.file.parent if self.file.name in WEIGHT_FILES else self.file


class Shelf:
    """The adapters in a folder; None = there are none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def all(self) -> list[Shelved]:
        """Those that are there now, by name."""
        if self.folder is None or not self.folder.is_dir():
            return []
        found: dict[str, Shelved] = {}
        for entry in sorted(self.folder.iterdir()):
            if entry.is_symlink() or not _NAME.fullmatch(entry.name):
                continue
            if entry.is_file() and entry.suffix == ".safetensors":
                found.setdefault(entry.stem, Shelved(entry.stem, entry))
            elif entry.is_dir():
                files = [entry / name for name in WEIGHT_FILES if (entry / name).is_file()]
                if files:
                    found[entry.name] = Shelved(entry.name, files[0], read_lesson(entry))
        return list(found.values())

    def find(self, name: str) -> Shelved:
        """The adapter of a name. Raises ConfigError."""
        there = self.all()
        for one in there:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in there) or "there are none yet"
        raise ConfigError(f"there is no adapter {name[:80]!r} here: {known}")

    def choose(self, text: str) -> tuple[tuple[Path, float], ...]:
        """From "sepia,old:0.5": files and strengths. Raises ConfigError."""
        chosen: list[tuple[Path, float]] = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, colon, weight = part.partition(":")
            try:
                strength = float(weight) if colon else 1.0
            except ValueError:
                strength = float("nan")
            if not -100 <= strength <= 100:
                raise ConfigError(f"adapter {part[:80]!r}: write NAME:STRENGTH, for example sepia:0.8")
            chosen.append((self.find(name.strip()).path, strength))
        if len(chosen) > _MOST:
            raise ConfigError(f"{len(chosen)} adapters: at most {_MOST} at once")
        return tuple(chosen)

    def again(self, job: Job, recorded: str, fixed: Sequence[object]) -> Job:
        """A job made again from a recipe, with the adapters that the recipe records beyond the fixed ones, by hash.

        recorded: as recipes hold them; fixed: the same as a list. Raises InputError naming those that are not here."""
        try:
            wanted = json.loads(recorded or "[]")
            for one in fixed:
                if one in wanted:
                    wanted.remove(one)
            needed = [(str(one["name"]), str(one["sha256"]), float(one["weight"])) for one in wanted]
        except (ValueError, KeyError, TypeError):
            raise InputError("the recipe's adapters cannot be read: it was changed since") from None
        if not needed:
            return job
        there = {hash_file(one.file): one.path for one in self.all()}
        if missing := [name for name, sha256, _ in needed if sha256 not in there]:
            raise InputError(f"it was made with {', '.join(missing)}: put each adapter back where it was, unchanged")
        settings: Settings = replace(job.settings, adapters=tuple((there[sha], weight) for _, sha, weight in needed))
        return replace(job, settings=settings)
