"""A diffusers pipeline as a folder, or in the hub (`hf://owner/name`): its parts, their hash, where they fit in memory.

Not here: what kinds of pipelines there are, loading their classes (`library.py`, `video.py`).
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from ace.conversation.family import OnNote
from ace.errors import ConfigError, ModelNotFoundError
from ace.files import cache_folder, hash_file, hash_model_once
from ace.model.sizes import BYTES, GB, LIBRARIES, free_memory, weight_bytes
from ace.weights.hub import fetch_files, licence_of

HUB = "hf://"
_SMALL_FILES = ("model_index.json", "README.md", "*/config.json")
_PART_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_OTHER_WEIGHTS = ("*.fp16.*", "*.bf16.*", "*.non_ema.*")  # beside the ones that diffusers takes by default
_WORK = 3 * GB  # activations at the largest usual size, roughly


def read_index(folder: Path) -> dict[str, Any]:
    """A pipeline's model_index.json. Raises ModelNotFoundError."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        if isinstance(index["_class_name"], str) and all(name.isidentifier() for name in index):
            return index
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ModelNotFoundError(f"model_index.json of {folder.name} is missing or damaged: copy the whole folder again")


class PipelineFolder:
    """Where a pipeline's files are. asked: a folder or a hub address; download: whether what is not on this machine may
    be fetched from the hub."""

    def __init__(self, asked: str, *, download: bool = True) -> None:
        self._asked = asked
        self._download = download

    @property
    def name(self) -> str:
        """The model as recipes name it: the address, or the folder's name."""
        return self._asked if self.is_on_hub else Path(self._asked).expanduser().resolve().name

    @cached_property
    def sha256(self) -> str:
        """Hash of the settings and of all parts, names and contents."""
        digest = hashlib.sha256(hash_file(self.folder / "model_index.json").encode())
        for part in self.parts:
            digest.update(f"{part}\0{hash_model_once(self.folder / part, cache_folder())}\n".encode())
        return digest.hexdigest()

    @cached_property
    def folder(self) -> Path:
        """Where its files are; of a hub address the small ones only until it is loaded. Raises ModelNotFoundError."""
        if not self.is_on_hub:
            return Path(self._asked).expanduser()
        return fetch_files(self._asked.removeprefix(HUB), _SMALL_FILES, cached_only=not self._download)

    @cached_property
    def index(self) -> dict[str, Any]:
        """Its model_index.json."""
        return read_index(self.folder)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The names of its parts."""
        return tuple(sorted(k for k, v in self.index.items() if isinstance(v, list) and v and v[0] is not None))

    @property
    def is_on_hub(self) -> bool:
        return self._asked.startswith(HUB)

    def fetch(self, on_note: OnNote) -> None:
        """See to it that all files are here. Raises ModelNotFoundError."""
        if self.is_on_hub and self.missing() and self._download:
            hub_id = self._asked.removeprefix(HUB)
            on_note(f"{self.name}: licence {licence_of(self.folder)}")
            patterns = [f"{part}/{kind}" for part in self.parts for kind in _PART_FILES]
            self.folder = fetch_files(hub_id, [*_SMALL_FILES, *patterns], _OTHER_WEIGHTS)
        if missing := self.missing():
            raise ModelNotFoundError(f"{self.name} lacks {', '.join(missing)}: fetch or copy it whole")

    def missing(self) -> list[str]:
        """Parts that are not here, or whose weights are not."""
        missing = []
        for part in self.parts:
            folder = self.folder / part
            needed = ["*.safetensors"] if (folder / "config.json").is_file() else ["*"]
            try:
                for index in folder.glob("*.safetensors.index.json"):
                    needed += set(json.loads(index.read_bytes())["weight_map"].values())
                if not all(any(folder.glob(name)) for name in needed):
                    missing.append(part)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RecursionError):
                missing.append(part)
        return missing

    def place(self, mode: str, device: str, dtype: str) -> str:
        """Where the weights are: "full", "offload" or "lean". Raises ConfigError for what does not fit or cannot be."""
        sizes = [weight_bytes(self.folder / part, BYTES[dtype]) for part in self.parts]
        total, free = sum(sizes), free_memory()
        if device != "cuda":
            if mode in ("offload", "lean"):
                raise ConfigError(f"memory {mode} moves parts to a GPU, and there is none: use full")
            needed = total + LIBRARIES + (_WORK if total > _WORK else 0)
        else:
            import torch

            needed, free = total + LIBRARIES, free + float(torch.cuda.mem_get_info()[0])
            on_gpu = float(torch.cuda.mem_get_info()[0]) - _WORK
            if mode == "auto":
                mode = "full" if total < on_gpu else "offload" if max(sizes, default=0) < on_gpu else "lean"
        if needed > free:
            raise ConfigError(
                f"{self.name} needs about {needed / GB:.1f} GB of memory, {free / GB:.1f} GB are free: close other "
                "programs, or use a smaller model"
            )
        return "full" if mode == "auto" else mode

    def settings_of(self, part: str) -> dict[str, Any]:
        try:
            settings = json.loads((self.folder / part / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return settings if isinstance(settings, dict) else {}
