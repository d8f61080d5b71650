"""JSON lines that grow: what a run has measured so far, a row per line.

Lines are only ever added at the end, in one write each time, so a run of any length writes every row once; a process
that is killed in the middle of a line loses that line and nothing else.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ace.errors import DataError
from ace.lists import lines_of


def append_lines(path: Path, rows: Iterable[object]) -> None:
    """Add rows at the end; on the disk when this returns."""
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[Any]:
    """All rows, [] without a file; a last line that was cut off is dropped from the file, so that it can grow on.

    Raises ValueError for a line that is not JSON, OSError for a file that cannot be read."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in lines_of(whole.decode())]


def check_unique(ids: Iterable[str], where: str) -> None:
    """Raises DataError that counts and names the ids that occur more than once."""
    twice = [key for key, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{where}: {len(twice)} ids occur twice, such as {', '.join(twice[:5])}; each may occur once")


def unique_keys(where: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """For `json.loads`' object_pairs_hook: an object whose keys occur twice raises DataError instead of losing some."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        check_unique((key for key, _ in pairs), where)
        return dict(pairs)

    return once
