"""Tables of scores: Markdown, LaTeX, JSON and Parquet, with counts, and published rows beside measured ones."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ace.errors import MissingDependencyError
from ace.evaluation.metrics import Interval
from ace.extras import install_command
from ace.files import write_atomically


@dataclass(frozen=True)
class TableRow:
    """name: of the system. values: one per column, None = absent. source: "measured", or where it was published.

    count: pictures behind the means; None for published rows."""

    name: str
    values: tuple[Interval | float | None, ...]
    source: str = "measured"
    count: int | None = None


@dataclass(frozen=True)
class Table:
    """title; columns: names with ↓ or ↑ for which way is better; rows; notes: one line each."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()


def as_markdown(table: Table) -> str:
    """The table as Markdown, notes below."""
    lines = [
        f"## {table.title}",
        "",
        "| | " + " | ".join(table.columns) + " | pictures | source |",
        "|---|" + "--:|" * (len(table.columns) + 1) + "---|",
    ]
    for row in table.rows:
        cells = " | ".join(_cell(value) for value in row.values)
        lines.append(f"| {row.name} | {cells} | {'' if row.count is None else row.count} | {row.source} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)]).rstrip() + "\n"


def as_latex(table: Table) -> str:
    """The table as LaTeX for the booktabs package."""
    columns = [c.replace("↓", r"$\downarrow$").replace("↑", r"$\uparrow$") for c in table.columns]
    lines = [
        r"\begin{tabular}{l" + "r" * len(columns) + "}",
        r"\toprule",
        " & ".join(["", *columns]) + r" \\",
        r"\midrule",
        *(" & ".join([_latex(row.name), *(_short(value) for value in row.values)]) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return f"% {table.title}\n" + "\n".join(lines) + "\n"


def write_tables(folder: Path, tables: Sequence[Table]) -> None:
    """Write table.md, table.tex and table.json."""
    write_atomically(folder / "table.md", "\n".join(as_markdown(table) for table in tables).encode())
    write_atomically(folder / "table.tex", "\n".join(as_latex(table) for table in tables).encode())
    whole = json.dumps([asdict(table) for table in tables], indent=1, ensure_ascii=False)
    write_atomically(folder / "table.json", (whole + "\n").encode())


def write_parquet(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write rows (flat, all with the same keys) as one Parquet file. Raises MissingDependencyError without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(f"rows are written as Parquet: {install_command('eval')}") from error
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), stream)
    write_atomically(path, stream.getvalue())


def _cell(value: Interval | float | None) -> str:
    if isinstance(value, Interval):
        return f"{value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]"
    return _short(value)


def _short(value: Interval | float | None) -> str:
    if value is None:
        return "–"
    return f"{value.mean if isinstance(value, Interval) else value:.4f}"


def _latex(text: str) -> str:
    return "".join("\\" + c if c in "&%$#_{}" else c for c in text)
