"""Settings from TOML files and keyword arguments, checked by pydantic; every fault is one line. Imports: errors.

`settings` makes a frozen dataclass whose fields are checked strictly: wrong types, unknown keys, numbers that are not
finite and values out of range raise ConfigError, both in Python (`TrainingStage("a", lr=-1)`) and from a file
(`read_toml`, then `build`). The message names the file, the key, its value and what is allowed. Loads pydantic, nothing
else that takes time.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from ace.errors import ConfigError

T = TypeVar("T")

LARGEST_FILE = 2**20  # bytes of a TOML file
_SHOWN = 60  # characters of a value in a message


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters and line breaks are not allowed")
    return text


Text = Annotated[str, Field(max_length=1024), AfterValidator(_printable)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Positive = Annotated[int, Field(ge=1, le=10**12)]
Share = Annotated[float, Field(ge=0, le=1)]

_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)

# pydantic's kinds of errors → what is allowed, in our words
_ALLOWED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": 'text in "quotes"',
    "bool_type": "true or false",
    "tuple_type": "a list in [ ]",
    "dict_type": "a table",
    "dataclass_type": "a table",
    "dataclass_exact_type": "a table",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "{le:g} or less",
    "multiple_of": "a multiple of {multiple_of:g}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} values",
    "too_long": "at most {max_length} values",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
}


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def settings(kind: type[T]) -> type[T]:
    """Class decorator: a frozen pydantic dataclass, strict, without unknown keys, that raises ConfigError."""
    made: Any = pydantic_dataclass(frozen=True, config=_CONFIG)(kind)
    checked = made.__init__

    @functools.wraps(checked)
    def init(self: Any, *values: Any, **named: Any) -> None:
        try:
            checked(self, *values, **named)
        except ValidationError as error:
            raise ConfigError(explain(error, made, made.__name__)) from None

    made.__init__ = init
    return made


def read_toml(file: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises ConfigError for a file that is missing, too large, too deep or no TOML."""
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL in its name
        raise ConfigError(f"{str(file)!r} is no file name") from None
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"{file.name} has more than {LARGEST_FILE:,} bytes: that is no recipe")
    try:
        return tomllib.loads(data.decode())
    except RecursionError:
        raise ConfigError(f"{file.name} is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError, too
        raise ConfigError(f"{file.name} is not valid TOML: {' '.join(str(error).split())[:200]}") from None


def build(kind: type[T], table: Mapping[str, Any], where: str, names: Mapping[str, str] | None = None) -> T:
    """Settings of a kind from a table, its inner tables too.

    where: begins the message, usually the file's name. names: field → its key in the table, where they differ.
    Raises ConfigError for an unknown or missing key and a wrong value."""
    names = names or {}
    by_field = {key: field for field, key in names.items()}
    table = {by_field.get(key, key): value for key, value in table.items()}
    try:
        text = json.dumps(table, default=_refuse)
    except (RecursionError, ValueError):
        raise ConfigError(f"{where}: a table or number in it is too large") from None
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    try:
        # strict JSON takes lists for tuples and objects for dataclasses, as TOML writes them, and nothing else for them
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, where, names)) from None


def _refuse(value: object) -> str:
    raise TypeError(f"{value} is a date or time, which no setting takes: put it in quotes if it is text")


def explain(error: ValidationError, kind: type, where: str, names: Mapping[str, str] | None = None) -> str:
    """One line on the first fault that pydantic found: where, key, value, what is allowed."""
    faults = error.errors(include_url=False)
    fault, names = faults[0], names or {}
    loc = fault["loc"]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{where}: {_sentence(fault, kind, loc, names)}{more}"


def _sentence(fault: Any, kind: type, loc: Sequence[int | str], names: Mapping[str, str]) -> str:
    key, found = _key(loc, names), fault["type"]
    context = fault.get("ctx", {})
    if found == "value_error":
        value = fault["input"]
        here = f" is {shown(value)}" if isinstance(value, str | int | float) else ""
        return f"{key}{here}: {context['error']}" if key else str(context["error"])
    if found in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [names.get(f.name, f.name) for f in dataclasses.fields(_kind_at(kind, loc[:-1]))]
        return f"unknown key {shown(key)}: use {', '.join(known)}"
    if found == "missing":
        if loc and isinstance(loc[-1], int):  # of a list of a fixed length
            return f"{_key(loc[:-1], names)} has too few values"
        return f"{key} is missing"
    allowed = _ALLOWED.get(found)
    use = f"use {allowed.format(**context)}" if allowed else fault["msg"]
    return f"{key} is {shown(fault['input'])}: {use}" if key else use


def _key(loc: Sequence[int | str], names: Mapping[str, str]) -> str:
    """("stages", 1, "lr") → "stage.2.lr"."""
    parts = [str(part + 1) if isinstance(part, int) else names.get(part, part) for part in loc]
    return ".".join(part if part.isprintable() else repr(part) for part in parts)


def shown(value: object) -> str:
    """A value for a message: as Python writes it, cut short."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _kind_at(kind: Any, loc: Sequence[int | str]) -> Any:
    """The dataclass that stands at a place within another."""
    for part in loc:
        kind = get_type_hints(kind)[part] if isinstance(part, str) else get_args(kind)[0]
        if get_origin(kind) in (Union, UnionType):
            kind = next(option for option in get_args(kind) if option is not NoneType)
    return kind
