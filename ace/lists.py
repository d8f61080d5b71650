"""Lists as files: JSONL and the rows of ACE++'s tables, read one way for data sets, training and evaluation.

A line ends at a line feed, with or without a carriage return before it, and nowhere else: a caption may hold any other
character that Unicode calls a line break. Files are UTF-8, or UTF-16 with a byte order mark (as spreadsheets write
them). Paths may be written with `/` or `\\`, on every system.

Not here: what rows mean.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ace.errors import DataError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path: Path, errors: str = "strict") -> str:
    """A text file, its byte order mark taken off. errors: as `bytes.decode` has it.

    Raises DataError if it is not there or in no known encoding."""
    try:
        data = path.read_bytes()
        encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
        return data.decode(encoding, errors)
    except OSError as error:
        raise DataError(f"the list {path.name} cannot be read: {error.strerror or error}") from None
    except UnicodeError:
        raise DataError(f"the list {path.name} is not UTF-8: save it as UTF-8, or as UTF-16 with a mark") from None


def lines_of(text: str) -> list[str]:
    """The lines of a text, cut at line feeds only; an end of the last one makes no further line."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def numbered_lines(path: Path, errors: str = "strict") -> list[tuple[int, str]]:
    """(number from 1, line) of every line of a file that is not empty. Raises DataError."""
    return [(number, line) for number, line in enumerate(lines_of(read_text(path, errors)), 1) if line.strip()]


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of a JSONL file's lines. Raises DataError naming the first line that is no JSON object."""
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path.name} line {number} is not a JSON object")
        yield number, row


def read_table(path: Path, fields: Sequence[str], delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, row) of a table with a delimiter of one or more characters; values without the spaces around them.

    A first row that holds the fields' names says their order. A value in double quotes may hold the delimiter, and a
    quote doubled. Raises DataError naming the first line with another number of fields."""
    order: Sequence[str] = fields
    for position, (number, line) in enumerate(numbered_lines(path)):
        values = [value.strip() for value in _split(line, delimiter)]
        names = [value.lower() for value in values]
        if position == 0 and sorted(names) == sorted(fields):
            order = names
            continue
        if len(values) != len(fields):
            wanted = f"{', '.join(fields)} are {len(fields)}"
            raise DataError(f"{path.name} line {number} has {len(values)} fields: {wanted}")
        yield number, dict(zip(order, values, strict=True))


def local_path(name: str) -> Path:
    """A path as a list has it, for this system: `\\` separates folders too."""
    return Path(PurePosixPath(name.replace("\\", "/")))


def _split(line: str, delimiter: str) -> list[str]:
    """The values of a line. A quote that does not open a whole value is a character like others."""
    values, rest = [], line
    while True:
        plain = rest.lstrip(" \t")
        end = _closing_quote(plain, delimiter) if plain.startswith('"') else None
        if end is not None:
            values.append(plain[1:end].replace('""', '"'))
            rest = plain[end + 1 :].lstrip(" \t")
            if not rest:
                return values
            rest = rest[len(delimiter) :]
        else:
            value, found, rest = rest.partition(delimiter)
            values.append(value)
            if not found:
                return values


def _closing_quote(text: str, delimiter: str) -> int | None:
    """Where the value that begins with a quote ends: a single quote before a delimiter or the end of the line."""
    place = 1
    while (place := text.find('"', place)) != -1:
        if text.startswith('""', place):
            place += 2
            continue
        after = text[place + 1 :].lstrip(" \t")
        return place if not after or after.startswith(delimiter) else None
    return None
