"""ICE-Bench: 31 tasks, raw metrics per item, one score per task, and their mean.

Files are the benchmark's own: `data.jsonl`, `gen_info.json` ({ItemID: picture}), `eval_result.txt` (a line
`ItemID#;#Task#;#{json}` per item; one that another tool wrote can be merged). A task whose score lacks a raw metric is
absent, and the overall score says of how many tasks it is.

Not here: raw metrics (`ice_metrics.py`), making answers and scoring them (`../ice.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ace.errors import DataError
from ace.evaluation.lines import check_unique, unique_keys
from ace.evaluation.tables import Table, TableRow
from ace.files import write_atomically
from ace.lists import numbered_lines

_EDITS = (
    *("Color Editing", "Face Editing", "Style Editing", "Texture Editing", "Motion Editing", "Scene Editing"),
    *("Subject Addition", "Subject Change", "Subject Removal", "Text Removal", "Text Render", "Composite Editing"),
    *("Inpainting", "Outpainting", "Local Subject Addition", "Local Subject Removal"),
    *("Local Text Render", "Local Text Removal"),
)
_REFERENCES = {
    "Face Reference Generation": "face_ref",
    "Subject Reference Generation": "dino_ref",
    "Style Reference Generation": "style_ref",
}
_REFERENCE_EDITS = {
    "Virtual Try On": "dino_ref",
    "Subject-guided Inpainting": "dino_ref",
    "Face Swap": "face_ref",
    "Style Reference Editing": "style_ref",
}
_CONTROLS = {
    "Pose-guided Generation": "l1_pose",
    "Depth-guided Generation": "l1_depth",
    "Edge-guided Generation": "l1_canny",
}
TASKS = ("Text2Image", *_REFERENCES, *_EDITS, *_REFERENCE_EDITS, *_CONTROLS, "Image Deblur", "Image Colorize")
AESTHETIC, IMAGING = "aes_v2.5", "musiq_koniq"
RESIZED = "resized"  # 1: the picture was not of its source's size; stands among the raw metrics, enters no score


@dataclass(frozen=True)
class IceItem:
    """One line of data.jsonl; files that are not given are None. Only the first reference is scored, all are shown."""

    id: str
    task: str
    instruction: str
    caption: str
    source: Path | None
    mask: Path | None
    references: tuple[Path, ...] = ()

    @property
    def reference(self) -> Path | None:
        """The reference that is scored."""
        return self.references[0] if self.references else None


def raw_metrics(task: str) -> tuple[str, ...]:
    """The raw metrics that a task is scored with, besides those that enter no score. Raises DataError."""
    if task == "Text2Image":
        own: tuple[str, ...] = ("clip_cap",)
    elif task in _REFERENCES:
        own = ("clip_cap", _REFERENCES[task])
    elif task in _EDITS:
        own = ("clip_cap", "clip_src", "l1_raw", "vllmqa")
    elif task in _REFERENCE_EDITS:
        own = ("clip_cap", "clip_src", "l1_raw", "vllmqa", _REFERENCE_EDITS[task])
    elif task in _CONTROLS:
        own = ("clip_cap", _CONTROLS[task])
    elif task == "Image Deblur":
        own = ("ssim",)
    elif task == "Image Colorize":
        own = ("clip_cap", "l1_colorize", "colorfulness")
    else:
        raise DataError(f"{task!r} is not a task of ICE-Bench: write it as the benchmark does")
    return (AESTHETIC, IMAGING, *own)


def task_score(task: str, means: Mapping[str, float]) -> float | None:
    """A task's score from the means of its raw metrics; None if one is missing. Nothing is clamped."""
    if any(name not in means for name in raw_metrics(task)):
        return None
    aes, iqa = means[AESTHETIC] / 10, means[IMAGING] / 100
    if task == "Image Deblur":
        pf = iqa
    elif task == "Image Colorize":
        pf = 0.75 * 2 * means["clip_cap"] + 0.25 * means["colorfulness"]
    elif "vllmqa" in raw_metrics(task):
        pf = (2 * means["clip_cap"] + means["vllmqa"]) / 2
    else:
        pf = 2 * means["clip_cap"]
    if task == "Text2Image":
        return (aes + iqa + pf) / 3
    if task in _REFERENCES:
        return (aes + iqa + pf + means[_REFERENCES[task]]) / 4
    if task in _EDITS or task in _REFERENCE_EDITS:
        sc = (means["clip_src"] + 1 - means["l1_raw"]) / 2
        if task in _EDITS:
            return 0.3 * aes + 0.3 * iqa + 0.3 * pf + 0.1 * sc
        return 0.25 * aes + 0.25 * iqa + 0.2 * pf + 0.2 * means[_REFERENCE_EDITS[task]] + 0.1 * sc
    control = {**_CONTROLS, "Image Deblur": "ssim", "Image Colorize": "l1_colorize"}[task]
    return 0.3 * aes + 0.3 * iqa + 0.2 * pf + 0.2 * means[control]


def read_items(file: Path, root: Path | None = None) -> list[IceItem]:
    """The items of data.jsonl; pictures are looked for under `root` (None = the file's folder), nowhere else.

    Raises DataError for a line that is no item, an unknown task, an id that occurs twice or a missing picture."""
    base = (root or file.parent).resolve()
    items: list[IceItem] = []
    for number, line in numbered_lines(file):
        try:
            row = json.loads(line)
            item = IceItem(
                str(row["ItemID"]),
                row["Task"],
                row["Instruction"],
                row["TargetCaption"],
                *(_below(base, name) for name in (row["SourceImage"], row["SourceMask"])),
                tuple(path for name in row["ReferenceImages"] or () if (path := _below(base, name))),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{file.name}, line {number} is no item: {error}") from error
        raw_metrics(item.task)
        if "#;#" in item.id:
            raise DataError(f"{file.name}, line {number}: id {item.id!r} holds the separator #;#")
        items.append(item)
    check_unique((item.id for item in items), file.name)
    return items


def write_raw(path: Path, items: Sequence[IceItem], scores: Mapping[str, Mapping[str, float]]) -> None:
    """Write eval_result.txt as the benchmark's own scorer does."""
    lines = [f"{item.id}#;#{item.task}#;#{json.dumps(dict(scores[item.id]))}\n" for item in items if item.id in scores]
    write_atomically(path, "".join(lines).encode())


def read_raw(path: Path) -> dict[str, dict[str, float]]:
    """Raw metrics by id from an eval_result.txt. Raises DataError, also for ids that occur twice."""
    found: list[tuple[str, dict[str, float]]] = []
    for number, line in numbered_lines(path):
        try:
            key, _, values = line.split("#;#", 2)
            found.append((key, {name: float(value) for name, value in json.loads(values).items()}))
        except (ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{path.name}, line {number}: expected ItemID#;#Task#;#{{json}}") from error
    return unique_keys(path.name)(found)


def make_table(name: str, items: Sequence[IceItem], scores: Mapping[str, Mapping[str, float]]) -> Table:
    """A row per task and the overall score, with what is missing."""
    rows, absent, empty, total = [], [], [], []
    for task in TASKS:
        own = [scores[item.id] for item in items if item.task == task and item.id in scores]
        if not any(item.task == task for item in items):
            empty.append(task)
            continue
        row, lacking = _task_row(task, own)
        rows.append(row)
        if lacking:
            absent.append(f"{task} (lacks {', '.join(lacking)})")
        total += [value for value in row.values if isinstance(value, float)]
    overall = float(np.mean(total)) if total else None
    rows.append(TableRow("overall", (overall,), f"mean of {len(total)} of {len(TASKS)} tasks", len(scores)))
    missing = [item.id for item in items if item.id not in scores]
    notes = [f"{name}: {len(scores)} of {len(items)} items scored."]
    notes += (
        [f"PARTIAL: {len(missing)} items have no picture that can be read, such as {', '.join(missing[:5])}."]
        if missing
        else []
    )
    resized = [item.id for item in items if scores.get(item.id, {}).get(RESIZED)]
    if resized:
        shown = ", ".join(resized[:5])
        notes.append(f"RESIZED to the source's size for the pixel metrics: {len(resized)} pictures, such as {shown}.")
    notes += [f"PARTIAL: absent from the overall score: {'; '.join(absent)}."] if absent else []
    notes += [f"PARTIAL: no items of {len(empty)} tasks: {', '.join(empty)}."] if empty else []
    return Table("ICE-Bench", ("score ↑",), tuple(rows), tuple(notes))


def _task_row(task: str, scores: Sequence[Mapping[str, float]]) -> tuple[TableRow, list[str]]:
    """A task's row, and the raw metrics that no item has, without which there is no score."""
    wanted = raw_metrics(task)
    means = {m: float(np.mean([s[m] for s in scores if m in s])) for m in wanted if any(m in s for s in scores)}
    partial = [m for m in wanted if m not in means or any(m not in s for s in scores)]
    note = f"measured; partial: {', '.join(partial)}" if partial else "measured"
    return TableRow(task, (task_score(task, means),), note, len(scores)), [m for m in wanted if m not in means]


def _below(base: Path, name: str) -> Path | None:
    if not name:
        return None
    path = (base / name).resolve()
    if not path.is_relative_to(base):
        raise DataError(f"{name!r} lies outside the benchmark's folder")
    if not path.is_file():
        raise DataError(f"{name!r} is missing: unpack the benchmark again")
    return path
