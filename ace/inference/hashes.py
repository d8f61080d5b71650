"""Hashes of large files, taken once: a model of 34 GB is not read again for every picture's recipe.

They are kept in the cache folder by path, size and time of change. A cache that cannot be read or written is done
without.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ace.errors import OutputError
from ace.inference.recipe import hash_file, hash_model, write_atomically

LARGE = 50_000_000  # bytes: smaller files are read in less time than the cache


def hash_once(path: Path, cache: Path) -> str:
    """SHA-256 of a file as `hash_file` gives it. cache: folder of the file `hashes.json`. Raises InputError."""
    try:
        stat = os.stat(path)
    except OSError:
        return hash_file(path)  # says what is wrong
    if stat.st_size < LARGE:
        return hash_file(path)
    key = f"{os.path.realpath(path)}|{stat.st_size}|{stat.st_mtime_ns}"
    known = _read(cache)
    if key not in known:
        known[key] = hash_file(path)
        _write(cache, known)
    return known[key]


def hash_model_once(folder: Path, cache: Path) -> str:
    """A model folder's hash as `hash_model` gives it, its large weights read once. Raises InputError."""
    weights = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.safetensors")}
    return hash_model(folder, {name: hash_once(path, cache) for name, path in weights.items()})


def _read(cache: Path) -> dict[str, str]:
    try:
        known = json.loads((cache / "hashes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(cache: Path, known: dict[str, str]) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(cache / "hashes.json", json.dumps(known, indent=1).encode())
    except (OSError, OutputError):
        return
