"""Files: hashes, and writing whole or not at all. Imports: errors.

`write_atomically` is the one way in which anything that must not be half-written reaches the disk. Hashes of large
files are taken once and kept in the cache folder by path, size and time of change, so that a model of 34 GB is not
read again for every image's recipe; a cache that cannot be read or written is done without.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from ace.errors import InputError, OutputError

LARGE = 50_000_000  # bytes: smaller files are read in less time than the cache


def cache_folder() -> Path:
    """Where everything is kept that can be had again: `$ACE_CACHE`, else `~/.cache/ace`."""
    root = os.environ.get("ACE_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "ace"


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises InputError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{Path(path).name} cannot be read ({reason_of(error)}): check the path") from None


def hash_model(folder: str | Path, known: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the names and contents of a model folder's weights, settings and vocabularies, in order of name.

    Notes, pictures and hidden files do not count. known: hashes of files that need not be read again, by their path in
    the folder. Raises InputError if there is no such file in it."""
    folder = Path(folder)
    suffixes = {".safetensors", ".json", ".txt", ".model"}
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.parts)]
    if not files:
        raise InputError(f"{folder.name} holds no model files: check the path")
    digest = hashlib.sha256()
    for file in files:
        name = file.as_posix()
        digest.update(f"{name}\0{(known or {}).get(name) or hash_file(folder / file)}\n".encode())
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a hidden neighbour first, flushed to the disk, then renamed into place.

    Raises OutputError; nothing is left behind then. A symbolic link is followed."""
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name[:120]}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
    except OSError as error:
        remedy = "free space and run it again" if error.errno == errno.ENOSPC else "choose another place"
        raise OutputError(f"{path.name} cannot be written ({reason_of(error)}): {remedy}") from None


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems cannot; the rename itself has happened
    finally:
        os.close(descriptor)


def reason_of(error: Exception) -> str:
    """The system's words for an error, without the path."""
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()


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
