"""Rows → the files of a report: one JSON file, one Markdown page, one table in LaTeX, one Parquet file, one HTML
gallery, one grid of unselected samples.

Not here: what is in them (`summary.py`, `report_text.py`, `report_page.py`, `pictures.py`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict

from PIL import Image

from ace.data.sample import FAMILIES, TASKS
from ace.evaluation.folder import RunFolder
from ace.evaluation.pictures import draw_grid
from ace.evaluation.report_page import SampleOf, page
from ace.evaluation.report_text import markdown, wording
from ace.evaluation.scores import Row
from ace.evaluation.summary import QUESTIONS, WorldReport
from ace.evaluation.tables import Table, TableRow, as_latex, write_parquet

ROWS_PER_FAMILY = 4  # of the grid


def write_report(report: WorldReport, rows: Sequence[Row], folder: RunFolder, sample_of: SampleOf) -> None:
    """Write report.json, report.md, report.tex, report.html, rows.parquet and grid.png into the folder."""

    def answer_of(row: Row) -> Image.Image:
        answer = folder.answer(row.task, row.number)
        assert answer is not None, f"{row.key} was scored a moment ago"
        return answer.picture

    folder.write("report.json", (json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n").encode())
    folder.write("report.md", markdown(report).encode())
    folder.write("report.tex", as_latex(family_scores(report)).encode())
    write_parquet(folder.path / "rows.parquet", [flat_row(row) for row in rows])
    shown = [row for family in FAMILIES for row in first_of_family(rows, family)]
    grid = draw_grid([(row, sample_of(*row.key), answer_of(row)) for row in shown])
    stream = io.BytesIO()
    grid.save(stream, "PNG", optimize=True)
    folder.write("grid.png", stream.getvalue())
    folder.write("report.html", page(report, rows, answer_of, sample_of, stream.getvalue()).encode())


def family_scores(report: WorldReport) -> Table:
    """The main figures by family, for a paper."""
    rows = []
    for group in (*report.families, report.overall):
        changed, still, lpips = group.l1_changed, group.l1_unchanged, group.lpips
        values = (
            changed and changed.model,
            changed and changed.copy.mean,
            still and still.model,
            lpips and lpips.model,
        )
        rows.append(TableRow(group.name.replace("_", " "), values, count=group.count))
    columns = ("L1 where it should change ↓", "of the copied input ↓", "L1 elsewhere ↓", "LPIPS ↓")
    return Table(f"{wording(report).name}, {report.count} samples", columns, tuple(rows))


def flat_row(row: Row) -> dict[str, object]:
    """A row of scores as one flat table row, the same columns for every task; absent scores are None."""
    flat: dict[str, object] = {
        "task": row.task,
        "number": row.number,
        "instruction": row.instruction,
        "held_out": ",".join(row.held_out),
        "sample_sha256": row.sample_sha256,
        "answer_sha256": row.answer_sha256,
        "changed_share": row.changed_share,
    }
    for name, score in (("model", row.model), ("copy", row.copy), ("mean_colour", row.mean_colour)):
        flat |= {f"{name}_{key}": value for key, value in asdict(score).items()}
    flat |= {f"drift_{key}": value for key, value in _drift_values(row).items()}
    return flat | {name: row.facts.get(name) for name in ("ssim", "ssim_copy", *QUESTIONS)}


def _drift_values(row: Row) -> dict[str, float | None]:
    names = ("mean_levels", "max_levels", "changed_share")
    return {name: None if row.drift is None else float(getattr(row.drift, name)) for name in names}


def first_of_family(rows: Sequence[Row], family: str, count: int = ROWS_PER_FAMILY) -> list[Row]:
    """The first samples of a family in the order of the held-out list: number 0 of each task, then number 1."""
    own = [row for row in rows if row.family == family]
    return sorted(own, key=lambda row: (row.number, TASKS.index(row.task)))[:count]
