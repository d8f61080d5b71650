"""Adapters that a user names, and what a recipe says of them. Imports nothing heavy.

Not here: formats and layers (`model/lora.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ace.adapter_files import WEIGHT_FILES, check_file
from ace.errors import CheckpointError, ConfigError, InputError
from ace.files import hash_file

if TYPE_CHECKING:
    from ace.inference.pipeline import ACEPipeline

MOST_KEPT = 8  # adapters that are not in use, in memory


@dataclass(frozen=True)
class AdapterChoice:
    """A file or folder with an adapter, and how much of it to add (1 = as trained, 0 = nothing)."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> AdapterChoice:
        """From "path" or "path:weight", looked over as `check_adapter` does. Raises ConfigError."""
        path, colon, weight = text.rpartition(":")
        try:
            choice = cls(Path(path), float(weight)) if colon and path else cls(Path(text))
        except ValueError:
            choice = cls(Path(text))
        if abs(choice.weight) > 100:
            raise ConfigError(f"weight {choice.weight:g} of {choice.path.name}: use 0 to about 2")
        check_adapter(choice.path)
        return choice


def find_adapter(path: Path) -> Path:
    """The file of weights of an adapter, named itself or by its folder. Raises ConfigError if there is none."""
    if path.is_file():
        return path
    found = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if found is None:
        others = sorted(path.glob("*.safetensors")) if path.is_dir() else []
        if len(others) != 1:
            raise ConfigError(f"no adapter at {path.name}: name its .safetensors file or the folder that holds it")
        found = others[0]
    return found


def check_adapter(path: Path) -> tuple[str, ...]:
    """Look an adapter over before a model is loaded; what of it will be left out, a line each.

    Raises ConfigError if there is none, or for one that is damaged, of a kind that is no LoRA, or not finite."""
    try:
        return check_file(find_adapter(path))
    except CheckpointError as error:
        raise ConfigError(str(error)) from None


def attach_adapters(pipeline: ACEPipeline, choices: Sequence[AdapterChoice]) -> tuple[str, ...]:
    """Stack adapters on a pipeline's transformer; its recipes will say so. Returns the names they got.

    Raises ConfigError or CheckpointError."""
    from ace.model.lora import attach, read_adapter

    read = [
        (read_adapter(find_adapter(choice.path), pipeline.transformer, choice.path.stem), choice.weight)
        for choice in choices
    ]
    names = attach(pipeline.transformer, read)
    pipeline.adapters = describe(choices, pipeline.adapters)
    pipeline.adapter_notes += tuple(note for adapter, _ in read for note in adapter.notes)
    return names


class AdapterSwitch:
    """Adapters that come and go on a pipeline, on top of those that it was loaded with. Those that were used stay in
    memory, up to `MOST_KEPT`, and add nothing while they are not. fixed: the others, as recipes record them."""

    def __init__(self, pipeline: ACEPipeline) -> None:
        from ace.model.lora import attached

        self.pipeline = pipeline
        self._fixed = attached(pipeline.transformer)
        self.fixed, self._notes = pipeline.adapters, pipeline.adapter_notes
        self._names: dict[str, tuple[str, tuple[str, ...]]] = {}  # hash → name, notes; the last used at the end
        self._now: dict[str, float] = dict(self._fixed)

    def use(self, choices: Sequence[AdapterChoice]) -> None:
        """From now on these are added, and no others but the fixed ones. Raises ConfigError or CheckpointError."""
        from ace.model.lora import attach, choose, read_adapter

        transformer = self.pipeline.transformer
        wanted, notes = dict(self._fixed), self._notes
        for choice in choices:
            file = find_adapter(choice.path)
            key = hash_file(file)
            if key in self._names:
                self._names[key] = self._names.pop(key)
            else:
                check_adapter(choice.path)
                adapter = read_adapter(file, transformer, choice.path.stem)
                (name,) = attach(transformer, [(adapter, choice.weight)])
                self._names[key] = name, adapter.notes
                self._now = {}  # attaching has switched it on
            wanted[self._names[key][0]] = choice.weight
            notes += self._names[key][1]
        if wanted != self._now:
            choose(transformer, wanted)
        for key in list(self._names)[: max(0, len(self._names) - max(MOST_KEPT, len(choices)))]:
            transformer.delete_adapters(self._names.pop(key)[0])
        self._now = wanted
        self.pipeline.adapters = describe(choices, self.fixed)
        self.pipeline.adapter_notes = notes


def describe(choices: Iterable[AdapterChoice], before: str = "") -> str:
    """What a recipe records: JSON, a list of names, hashes and weights, after those in `before`."""
    found = json.loads(before) if before else []
    for choice in choices:
        file = find_adapter(choice.path)
        found.append({"name": choice.path.name, "sha256": hash_file(file), "weight": choice.weight})
    return json.dumps(found) if found else ""


def match_adapters(recorded: str, given: Iterable[Path]) -> tuple[AdapterChoice, ...]:
    """The adapters that a recipe records, by hash among those given. Raises InputError naming the missing ones."""
    if not recorded:
        return ()
    try:
        wanted = [(str(one["name"]), str(one["sha256"]), float(one["weight"])) for one in json.loads(recorded)]
    except (ValueError, KeyError, TypeError):
        raise InputError("the recipe's adapters cannot be read: it was changed since") from None
    there = {hash_file(find_adapter(path)): path for path in given}
    missing = [name for name, sha256, _ in wanted if sha256 not in there]
    if missing:
        raise InputError(f"the picture was made with {', '.join(missing)}: name each with --lora, unchanged")
    return tuple(AdapterChoice(there[sha256], weight) for _, sha256, weight in wanted)
