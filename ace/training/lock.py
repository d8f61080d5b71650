"""One run at a time in a folder. The lock goes with its process, however that ends, and data workers do not inherit it;
where the system has no such locks (Windows), nothing is checked."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from ace.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def hold(folder: Path) -> IO[bytes]:
    """The folder is this process's until the result is closed. Raises ConfigError if another process has it."""
    file = (folder / ".lock").open("wb")
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ConfigError(f"another process trains in {folder.name}: stop it, or choose another folder") from None
    return file
