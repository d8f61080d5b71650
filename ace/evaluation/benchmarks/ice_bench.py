"""ICE-Bench: 31 tasks, raw metrics per item, one score per task, and their mean.

Files are the benchmark's own: `data.jsonl`, `gen_info.json` ({ItemID: picture}), `eval_result.txt` (a line
`ItemID#;#Task#;#{json}` per item). Raw metrics that need no rare weights are computed here; those of other models
(aesthetic, MUSIQ, faces, style, depth, pose) are read from an `eval_result.txt` that somebody else's tool wrote, and
merged. A task whose score lacks a raw metric is absent, and the overall score says of how many tasks it is.

Not here: the judge's endpoint (`judge.py`), the encoders (`encoders.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ace.conditions.images import open_image
from ace.errors import DataError, MissingDependencyError
from ace.evaluation.encoders import ClipEncoder, DinoEncoder
from ace.evaluation.facts import ssim
from ace.evaluation.metrics import levels
from ace.evaluation.pairs import cosines, pixel_errors
from ace.evaluation.tables import Table, TableRow
from ace.inference.recipe import write_atomically

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
MASK_LEVEL = 128  # above it a pixel belongs to the mask


@dataclass(frozen=True)
class IceItem:
    """One line of data.jsonl; files that are not given are None. Only the first reference is scored."""

    id: str
    task: str
    instruction: str
    caption: str
    source: Path | None
    mask: Path | None
    reference: Path | None


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
    items: dict[str, IceItem] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {file.name}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            references = row["ReferenceImages"] or []
            item = IceItem(
                str(row["ItemID"]),
                row["Task"],
                row["Instruction"],
                row["TargetCaption"],
                *(_below(base, name) for name in (row["SourceImage"], row["SourceMask"], (references or [""])[0])),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file.name}, line {number} is no item: {error}") from error
        raw_metrics(item.task)
        if item.id in items or "#;#" in item.id:
            raise DataError(f"{file.name}, line {number}: id {item.id!r} occurs twice, or holds the separator #;#")
        items[item.id] = item
    return list(items.values())


def pixel_metrics(item: IceItem, made: Image.Image) -> dict[str, float]:
    """The raw metrics of a finished picture that need no network, of those its task is scored with.

    `l1_raw` is a distance, the other L1 are 1 − distance. Raises DataError for a mask of another size than the source,
    or one that covers everything."""
    wanted = raw_metrics(item.task)
    scores: dict[str, float] = {}
    if item.source is None:
        return scores
    source = open_image(item.source).stored
    shown = made.convert("RGB")
    if shown.size != source.size:
        shown = shown.resize(source.size, Image.Resampling.BICUBIC)
    if "l1_raw" in wanted:
        scores["l1_raw"] = _l1_raw(item, shown, source)
    if "ssim" in wanted:
        scores["ssim"] = ssim(levels(shown), levels(source))
    if "colorfulness" in wanted:
        scores["colorfulness"] = colorfulness(shown)
    true = np.asarray(source.convert("L"), dtype=np.float64)
    if "l1_colorize" in wanted:
        scores["l1_colorize"] = 1 - float(np.abs(np.asarray(shown.convert("L"), np.float64) - true).mean()) / 255
    if "l1_canny" in wanted:
        try:
            import cv2
        except ImportError as error:
            raise MissingDependencyError("l1_canny needs OpenCV: pip install 'ace-allround[data]'") from error
        edges = cv2.Canny(np.asarray(shown), 100, 200).astype(np.float64)
        scores["l1_canny"] = 1 - float(np.abs(edges - true).mean()) / 255
    return scores


def colorfulness(picture: Image.Image) -> float:
    """Colourfulness with absolute opponents, pictures in [0, 1]."""
    r, g, b = np.moveaxis(levels(picture).astype(np.float64) / 255, 2, 0)
    red_green, yellow_blue = np.abs(r - g), np.abs((r + g) / 2 - b)
    spread = np.sqrt(red_green.std() ** 2 + yellow_blue.std() ** 2)
    return float(spread + 0.3 * np.sqrt(red_green.mean() ** 2 + yellow_blue.mean() ** 2))


def feature_metrics(item: IceItem, made: Image.Image, clip: ClipEncoder | None, dino: DinoEncoder | None) -> dict:
    """clip_cap, clip_src, clip_ref and dino_ref, those that the encoders and files at hand allow.

    dino: DINOv2 with the mean of all tokens (`load_dinov2`)."""
    scores: dict[str, float] = {}
    if clip is not None:
        own = clip.images([made])
        scores["clip_cap"] = cosines(own, clip.texts([item.caption]))[0]
        for name, path in (("clip_src", item.source), ("clip_ref", item.reference)):
            if path is not None:
                scores[name] = cosines(own, clip.images([open_image(path).stored]))[0]
    if dino is not None and item.reference is not None and "dino_ref" in raw_metrics(item.task):
        scores["dino_ref"] = cosines(
            dino.images([_only_masked(item, made)]), dino.images([open_image(item.reference).stored])
        )[0]
    return scores


def write_raw(path: Path, items: Sequence[IceItem], scores: Mapping[str, Mapping[str, float]]) -> None:
    """Write eval_result.txt as the benchmark's own scorer does."""
    lines = [f"{item.id}#;#{item.task}#;#{json.dumps(dict(scores[item.id]))}\n" for item in items if item.id in scores]
    write_atomically(path, "".join(lines).encode())


def read_raw(path: Path) -> dict[str, dict[str, float]]:
    """Raw metrics by id from an eval_result.txt. Raises DataError."""
    found: dict[str, dict[str, float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            key, _, values = line.split("#;#", 2)
            found[key] = {name: float(value) for name, value in json.loads(values).items()}
        except (ValueError, AttributeError) as error:
            raise DataError(f"{path.name}, line {number}: expected ItemID#;#Task#;#{{json}}") from error
    return found


def make_table(name: str, items: Sequence[IceItem], scores: Mapping[str, Mapping[str, float]]) -> Table:
    """A row per task and the overall score, with what is missing."""
    rows, absent, total = [], [], []
    for task in TASKS:
        own = [scores[item.id] for item in items if item.task == task and item.id in scores]
        listed = sum(item.task == task for item in items)
        if not listed:
            absent.append(f"{task} (no items)")
            continue
        wanted = raw_metrics(task)
        means = {m: float(np.mean([s[m] for s in own if m in s])) for m in wanted if any(m in s for s in own)}
        score = task_score(task, means)
        lacking = [m for m in wanted if m not in means or any(m not in s for s in own)]
        if score is None:
            absent.append(f"{task} (lacks {', '.join(m for m in wanted if m not in means)})")
        else:
            total.append(score)
        note = f"measured; partial: {', '.join(lacking)}" if lacking else "measured"
        rows.append(TableRow(task, (score,), note, len(own)))
    overall = float(np.mean(total)) if total else None
    rows.append(TableRow("overall", (overall,), f"mean of {len(total)} of {len(TASKS)} tasks", len(scores)))
    missing = [item.id for item in items if item.id not in scores]
    notes = [f"{name}: {len(scores)} of {len(items)} items scored."]
    notes += [f"PARTIAL: {len(missing)} items have no picture, such as {', '.join(missing[:5])}."] if missing else []
    notes += [f"PARTIAL: absent from the overall score: {'; '.join(absent)}."] if absent else []
    return Table("ICE-Bench", ("score ↑",), tuple(rows), tuple(notes))


def score_items(
    items: Sequence[IceItem],
    made: Mapping[str, Path],
    clip: ClipEncoder | None = None,
    dino: DinoEncoder | None = None,
    judge: Callable[[IceItem, Path], float] | None = None,
    more: Mapping[str, Mapping[str, float]] | None = None,
    advance: Callable[[int], object] = lambda done: None,
) -> dict[str, dict[str, float]]:
    """Raw metrics of every item with a finished picture. judge: the vision-language question, 0 to 1. more: metrics
    that other tools computed, by id; they do not replace ours."""
    scores: dict[str, dict[str, float]] = {}
    for item in items:
        path = made.get(item.id)
        if path is not None and path.is_file():
            picture = open_image(path).stored
            own = {**pixel_metrics(item, picture), **feature_metrics(item, picture, clip, dino)}
            if judge is not None and "vllmqa" in raw_metrics(item.task):
                own["vllmqa"] = judge(item, path)
            scores[item.id] = {**(more or {}).get(item.id, {}), **own}
        advance(1)
    return scores


def _l1_raw(item: IceItem, shown: Image.Image, source: Image.Image) -> float:
    if item.mask is None:
        return pixel_errors(shown, source)[0]
    mask = open_image(item.mask).stored.convert("L")
    if mask.size != source.size:
        raise DataError(f"{item.id}: the mask is {mask.size}, the source {source.size}; they must be equal")
    kept = np.asarray(mask) <= MASK_LEVEL
    if not kept.any():
        raise DataError(f"{item.id}: the mask covers everything, so l1_raw has nothing to compare")
    return float(np.abs(levels(shown)[kept] - levels(source)[kept]).mean()) / 255


def _only_masked(item: IceItem, made: Image.Image) -> Image.Image:
    if item.mask is None:
        return made
    mask = open_image(item.mask).stored.convert("L").resize(made.size)
    white = Image.new("RGB", made.size, "white")
    inside = Image.fromarray(np.where(np.asarray(mask) > MASK_LEVEL, np.uint8(255), np.uint8(0)))
    return Image.composite(made.convert("RGB"), white, inside)


def _below(base: Path, name: str) -> Path | None:
    if not name:
        return None
    path = (base / name).resolve()
    if not path.is_relative_to(base):
        raise DataError(f"{name!r} lies outside the benchmark's folder")
    if not path.is_file():
        raise DataError(f"{name!r} is missing: unpack the benchmark again")
    return path
