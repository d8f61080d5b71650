"""Scores that ask what a task asks: is the class map right, is the word written, is the thing gone?

Each needs the sample and the answer only. Where a score does not apply to a task it is absent; where its judge is not
installed the report says so. SSIM is Wang et al. 2004 with their Gaussian window, over RGB.

Not here: pixel errors (`metrics.py`), learned distances (`lpips.py`), tables (`report.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from ace.data.sample import EditSample
from ace.evaluation.metrics import levels
from ace.evaluation.styles import STYLES, StyleClassifier
from ace.evaluation.things import ThingJudge
from ace.extract.pose import LIMBS
from ace.extract.segments import PALETTE
from ace.extract.text import TextReader

READING_PX = 96  # height to which a line is enlarged before it is read
SUCCESS_RATIO = 0.5  # an object edit succeeded if the answer is at least twice as near to the target as to the input …
SUCCESS_MATCH = 0.5  # … and correlates with the target like this where it changes
_LIMB_COLORS = {color: number for number, (_, _, color) in enumerate(LIMBS)}
_SEGMENT_COLORS = np.array(list(PALETTE.values()), dtype=np.int16)
_ALIKE = str.maketrans("01", "OI")
_STYLE_TASKS = ("semantic_editing/style", "reference_generation/style_reference")
_OBJECT_TASKS = ("element_editing/object_add", "element_editing/object_replace", "element_editing/object_remove")


@dataclass(frozen=True)
class Judges:
    """What is at hand to read an answer; None = its scores are absent."""

    reader: TextReader | None = None
    styles: StyleClassifier | None = None
    things: ThingJudge | None = None


NO_JUDGES = Judges()


def task_scores(
    sample: EditSample, given: Image.Image, answer: Image.Image, changed: np.ndarray, judges: Judges
) -> dict[str, float]:
    """The scores that apply, by name; `_true` and `_copy` after a name: of the true answer, of the input left as it is.

    given, answer: at the target's size. changed: bool (H, W), the pixels that should change. ssim: 1 = equal.
    iou: mean over classes. depth_error: mean, 0 to 1. limb_distance: of limbs' centres, in sides of the picture, 1 for
    a limb that is not there. thing_right, things_known, all_known, style_known: see `ThingJudge`. text_read, text_gone,
    object_success, style_right: 0 or 1. text_similarity: 1 = the same word."""
    made, target, before = levels(answer), levels(sample.target), levels(given)
    scores = {"ssim": ssim(made, target), "ssim_copy": ssim(before, target)}
    task = sample.task
    if judges.things is not None:
        scores |= judges.things.scores(sample, before, made)
    if task == "low_level_analysis/segmentation":
        scores["iou"] = mean_iou(_classes(made), _classes(target))
    elif task == "low_level_analysis/depth":
        scores["depth_error"] = float(np.abs(made.mean(2) - target.mean(2)).mean()) / 255
    elif task == "low_level_analysis/pose":
        scores["limb_distance"] = limb_distance(made, target)
    elif task in _OBJECT_TASKS and changed.any():
        scores["object_success"] = float(object_success(made, target, before, changed))
    elif task in _STYLE_TASKS and judges.styles is not None and sample.provenance.get("style") in STYLES:
        found = judges.styles.classify([answer, sample.target])
        scores |= {
            name: float(style == sample.provenance["style"])
            for name, style in zip(("style_right", "style_right_true"), found, strict=True)
        }
    elif task.startswith("element_editing/text_") and (reader := judges.reader) is not None and changed.any():
        box = _box(changed)
        if task == "element_editing/text_remove":
            scores["text_gone"] = float(not any(letter.isalnum() for letter in _read(answer, box, reader)))
        elif word := re.search(r'"([^"]+)"', sample.request.current.instruction):
            read, true = _read(answer, box, reader), _read(sample.target, box, reader)
            asked = _letters(word[1])
            scores["text_read"] = float(_letters(read) == asked)
            scores["text_read_true"] = float(_letters(true) == asked)
            scores["text_similarity"] = text_similarity(_letters(read), asked)
    return scores


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Mean structural similarity of two pictures, levels (H, W, C): the product of `ssim_terms`."""
    luminance, structure = ssim_terms(first, second)
    return float((luminance * structure).mean())


def ssim_terms(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of SSIM for each pixel and channel, of pictures (H, W, C) in levels: luminance, and contrast with
    structure. Gaussian window of 1.5 px, 11 px wide, constants 0.01 and 0.03 of 255; borders of 5 px are left out where
    the picture is larger than that."""
    a, b = first.astype(np.float64), second.astype(np.float64)

    def blurred(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, sigma=(1.5, 1.5, 0), truncate=3.5, mode="reflect")

    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    inner = slice(5, -5) if min(a.shape[:2]) > 10 else slice(None)
    return luminance[inner, inner], structure[inner, inner]


def mean_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over the classes of `second` of intersection over union; class maps (H, W) int."""
    ious = []
    for name in np.unique(second):
        a, b = first == name, second == name
        ious.append((a & b).sum() / (a | b).sum())
    return float(np.mean(ious))


def limb_distance(made: np.ndarray, target: np.ndarray) -> float:
    """Mean distance of the limbs' centres in two pose maps, in sides of the picture; 1 for a limb that is missing."""
    own, true = _limb_centres(made), _limb_centres(target)
    if not true:
        return 0.0
    side = max(target.shape[:2])
    far = [float(np.hypot(*(own[limb] - centre))) / side if limb in own else 1.0 for limb, centre in true.items()]
    return float(np.mean(far))


def object_success(made: np.ndarray, target: np.ndarray, before: np.ndarray, changed: np.ndarray) -> bool:
    """True if, where it changes, the answer matches the true answer as a template and has left the input.

    (H, W, 3) levels each; changed: bool (H, W). A flat true patch (an object gone from a plain ground) has nothing to
    correlate with: there the distances decide. The right silhouette in one colour is no match."""
    to_target = np.abs(made[changed] - target[changed]).mean()
    to_input = np.abs(made[changed] - before[changed]).mean()
    near = to_target <= SUCCESS_RATIO * to_input
    a, b = (x[changed].astype(np.float64) - x[changed].mean(axis=0) for x in (made, target))
    if b.std() < 8:
        return bool(near)
    return bool(near and (a * b).sum() / (np.sqrt((a * a).sum() * (b * b).sum()) + 1e-9) >= SUCCESS_MATCH)


def text_similarity(first: str, second: str) -> float:
    """1 − edit distance / longer length, as AnyText computes it: 1 = equal; two empty texts are equal."""
    previous = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        row = [i]
        for j, b in enumerate(second, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b)))
        previous = row
    return 1 - previous[-1] / (max(len(first), len(second)) + 1e-5)


def _letters(text: str) -> str:
    """What counts of a word that was read: letters and digits in capitals, O as 0 and I as 1, which look alike."""
    return "".join(c for c in text.upper() if c.isalnum()).translate(_ALIKE)


def _classes(picture: np.ndarray) -> np.ndarray:
    distances = np.abs(picture[:, :, None, :] - _SEGMENT_COLORS).sum(axis=3)
    return distances.argmin(axis=2)


def _limb_centres(picture: np.ndarray) -> dict[int, np.ndarray]:
    colors = np.array([(0, 0, 0), *_LIMB_COLORS], dtype=np.int16)
    nearest = np.abs(picture[:, :, None, :] - colors).sum(axis=3).argmin(axis=2)
    centres = {}
    for number in range(1, len(colors)):
        rows, columns = np.nonzero(nearest == number)
        if len(rows) >= 3:
            centres[number] = np.array([rows.mean(), columns.mean()])
    return centres


def _box(where: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(where)
    return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1


def _read(picture: Image.Image, box: tuple[int, int, int, int], reader: TextReader) -> str:
    """What is written in a box (top, bottom, left, right), enlarged; "" if nothing is."""
    top, bottom, left, right = box
    pad = max(2, (bottom - top) // 4)
    crop = picture.crop((left - pad, top - pad, right + pad, bottom + pad)).convert("RGB")
    scale = READING_PX / crop.height
    large = crop.resize((max(READING_PX, round(crop.width * scale)), READING_PX), Image.Resampling.BICUBIC)
    return reader.read_line(np.asarray(large))
