"""Rows of sets in a hub's layout: a hub name, or a folder of Parquet files with the same columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ace.errors import DataError, MissingDependencyError
from ace.evaluation.lines import check_unique
from ace.extras import install_command


def hub_rows(source: str, split: str, columns: Iterable[str], id_columns: Sequence[str]) -> Iterable[dict[str, Any]]:
    """The rows of one split, pictures decoded as they are asked for. id_columns: those that together name a row.

    Raises MissingDependencyError without `datasets`, DataError for a set that is not there, lacks a column or has two
    rows of one id."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(f"hub sets need datasets: {install_command('eval')}") from error
    try:
        rows = datasets.load_dataset(source, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot read split {split!r} of {source!r}: {reason}") from error
    if absent := sorted(set(columns) - set(rows.column_names or ())):
        raise DataError(f"{source!r} has no column {', '.join(absent)}: it is another set, or another layout")
    ids = rows.select_columns(list(id_columns))
    check_unique((" turn ".join(map(str, row)) for row in zip(*ids.to_dict().values(), strict=True)), repr(source))
    return rows  # pyright: ignore[reportReturnType]  (a Dataset yields dicts; its annotations do not say so)
