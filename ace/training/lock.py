"""One run at a time in a folder. The lock goes with its process, however that ends, and data workers do not inherit it;
where the system has no such locks (Windows), nothing is checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ace.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder is this process's meanwhile. Raises ConfigError if another process has it."""
    with (folder / ".lock").open("wb") as file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                why = f"another process trains in {folder.name}: stop it, or choose another folder"
                raise ConfigError(why) from None
        yield
