"""One run at a time in a folder. The lock goes with its process, however that ends, and data workers do not inherit it;
where the system has no such locks (Windows), nothing is checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ace.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # as accelerate reads them
_held: set[Path] = set()  # by this process


def is_main_process() -> bool:
    """Whether this is the first process of a run, or its only one; known before any of them talk to each other."""
    return next((os.environ[name] for name in _RANKS if name in os.environ), "0") in ("0", "-1")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder belongs to this process meanwhile; a second `held` within is part of the first.

    Only the main process of a run asks for it. Raises ConfigError if another run has it."""
    place = folder.resolve()
    if place in _held or not is_main_process():
        yield
        return
    with (folder / ".lock").open("wb") as file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                why = f"another process trains in {folder.name}: stop it, or choose another folder"
                raise ConfigError(why) from None
        _held.add(place)
        try:
            yield
        finally:
            _held.discard(place)
