"""Emu Edit's test set (Sheynin et al. 2023): instructions without true answers, judged against input and captions.

Data: the hub's set, or a folder of Parquet files in its columns (instruction, image, task, idx, input_caption,
output_caption). Finished pictures are `{idx}.png`. Rows whose two captions are equal have no direction: they count as 0
and the mean without them stands beside (the protocol leaves it open).

Not here: what a score is (`pairs.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ace.conditions.images import open_image
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.evaluation.benchmarks.hub import hub_rows
from ace.evaluation.metrics import bootstrap
from ace.evaluation.pairs import Pair, ScoredPair, is_picture, resized_note
from ace.evaluation.run import answer_seed
from ace.evaluation.systems import Editor, png_bytes
from ace.evaluation.tables import Table, TableRow
from ace.files import write_atomically

NUM_TEST = 3589  # rows of the test split; the hub's set of generations has the names of its splits exchanged
HUB_COLUMNS = ("idx", "image", "task", "instruction", "input_caption", "output_caption")
COLUMNS = ("CLIPdir ↑", "CLIPout ↑", "L1 ↓", "CLIPimg ↑", "DINO ↑")
METRICS = ("clip_dir", "clip_t", "l1", "clip_i", "dino")
# ACE, table 5
PUBLISHED = {
    "InstructPix2Pix": (0.0739, 0.2681, 0.1240, 0.8508, 0.7647),
    "MagicBrush": (0.0831, 0.2701, 0.0995, 0.8664, 0.7927),
    "Emu Edit": (0.1073, 0.2791, 0.0893, 0.8743, 0.8398),
    "UltraEdit": (0.0888, 0.2783, 0.0532, 0.8814, 0.8524),
    "CosXL": (0.0901, 0.2775, 0.0940, 0.8686, 0.8340),
    "ACE": (0.0855, 0.2746, 0.0761, 0.8952, 0.8620),
}


@dataclass(frozen=True)
class EmuItem:
    """One edit. source: file of the input."""

    id: str
    task: str
    source: Path
    instruction: str
    input_caption: str
    output_caption: str


def read_items(source: str, split: str, folder: Path) -> list[EmuItem]:
    """The rows of the set, by idx; the inputs are written as PNG into `folder`, once.

    source: hub name, or a folder of Parquet files. Raises as `hub_rows`."""
    items: dict[str, EmuItem] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for row in hub_rows(source, split, HUB_COLUMNS, ("idx",)):
        key = str(int(row["idx"]))
        path = folder / f"{key}.png"
        if not path.is_file():
            write_atomically(path, png_bytes(row["image"].convert("RGB")))
        items[key] = EmuItem(
            key, row["task"], path, row["instruction"], row["input_caption"] or "", row["output_caption"] or ""
        )
    return [items[key] for key in sorted(items, key=int)]


def make_answers(
    items: Sequence[EmuItem],
    edit: Editor,
    results: Path,
    seed: int,
    batch: int = 8,
    advance: Callable[[int], object] = lambda done: None,
) -> None:
    """Answer every row that has no readable picture yet, `batch` at a time."""
    results.mkdir(parents=True, exist_ok=True)
    todo = [item for item in items if not is_picture(made_file(results, item.id))]
    advance(len(items) - len(todo))
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        units = [
            LongContextConditionUnit(ConditionUnit(item.instruction, (open_image(item.source).image,))) for item in part
        ]
        seeds = [answer_seed(seed, "emu_edit", int(item.id)) for item in part]
        for item, picture in zip(part, edit(units, seeds), strict=True):
            write_atomically(made_file(results, item.id), png_bytes(picture))
        advance(len(part))


def made_file(results: Path, key: str) -> Path:
    """Where the answer to a row lies."""
    return results / f"{key}.png"


def list_pairs(items: Sequence[EmuItem], results: Path) -> tuple[list[Pair], list[str]]:
    """The pairs that can be scored, and the ids without a finished picture that can be read."""
    pairs = [
        Pair(i.id, i.task, made_file(results, i.id), i.source, i.output_caption, i.input_caption)
        for i in items
        if is_picture(made_file(results, i.id))
    ]
    there = {pair.key for pair in pairs}
    return pairs, [item.id for item in items if item.id not in there]


def list_copies(items: Sequence[EmuItem]) -> list[Pair]:
    """The baseline: every input left as it is."""
    return [Pair(i.id, i.task, i.source, i.source, i.output_caption, i.input_caption) for i in items]


def make_tables(
    name: str, rows: Sequence[ScoredPair], copies: Sequence[ScoredPair], missing: Sequence[str]
) -> list[Table]:
    """All rows beside ACE's table 5, and one line per task."""
    measured = [_row(name, rows), _row("copy of the input", copies)]
    published = [TableRow(label, values, "ACE, table 5") for label, values in PUBLISHED.items()]
    flat = sum(row.scores.no_direction for row in rows)
    directions = [(row.scores.clip_dir, row.scores.no_direction) for row in rows]
    moving = bootstrap([[value for value, none in directions if value is not None and not none]])
    notes = [f"Rows: {len(rows)} of {len(rows) + len(missing)}; the published ones are of {NUM_TEST}."]
    if missing:
        notes.append(f"PARTIAL: {len(missing)} pictures are missing or damaged, such as {', '.join(missing[:5])}.")
    notes += resized_note(rows)
    notes.append(f"{flat} rows have two equal captions and count as 0 in CLIPdir; without them: {moving or '–'}.")
    notes.append("CLIPdir: features normalised before the differences. Intervals: 95 % bootstrap.")
    tasks = tuple(_row(task, [row for row in rows if row.group == task]) for task in sorted({r.group for r in rows}))
    return [
        Table("Emu Edit test set", COLUMNS, (*measured, *published), tuple(notes)),
        Table(f"{name}, by task", COLUMNS, tasks),
    ]


def _row(name: str, rows: Sequence[ScoredPair]) -> TableRow:
    values = tuple(
        bootstrap([[value for row in rows if (value := getattr(row.scores, metric)) is not None]]) for metric in METRICS
    )
    return TableRow(name, values, "measured", len(rows))
