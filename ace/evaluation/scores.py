"""Rows of scores: one answer against the true one, beside what two plain answers would score on the same sample.

Not here: what a task asks (`facts.py`), the folder (`folder.py`), which samples (`benchmarks/`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ace.data.sample import EditSample, family_of
from ace.evaluation.facts import NO_JUDGES, Judges, task_scores
from ace.evaluation.lpips import LPIPS, as_tensor
from ace.evaluation.metrics import changed_pixels, l1_error, l1_error_where, levels
from ace.inference.preserve import drift_report

DIGITS = 7  # of a stored score: well below what 8-bit pictures can tell, well above float noise
NO_INPUT_GREY = (128, 128, 128)  # what stands for the input where there is none


@dataclass(frozen=True)
class EditAnswer:
    """What a system made of one sample.

    picture: the answer as a user gets it. unpreserved: for a masked edit, the model's own picture before the input's
    pixels outside the mask were put back; None if there is no such thing."""

    picture: Image.Image
    unpreserved: Image.Image | None = None


@dataclass(frozen=True)
class Score:
    """One picture against the true target. Errors 0 to 1; None: no such pixels, or the metric is absent.

    l1: all pixels; l1_changed, l1_unchanged: those that should change, and the others."""

    l1: float
    l1_changed: float | None
    l1_unchanged: float | None
    lpips: float | None


@dataclass(frozen=True)
class Drift:
    """What happened outside the mask: differences from the input in levels of 255, share of pixels with any."""

    mean_levels: float
    max_levels: int
    changed_share: float


@dataclass(frozen=True)
class Row:
    """Everything measured on one sample.

    number: place in its task's held-out list. held_out: which kinds of material it shows that training never saw.
    unseen: the answer has to draw something from words that training never drew.
    changed_share: share of the pixels that should change. resized: the answer was not of the target's size. model,
    copy, mean_colour: the answer, the edited input as it was (mid-grey without one), a constant picture of the target's
    mean colour. drift, unpreserved_drift: masked edits only. facts: scores of the task's own (`facts.py`)."""

    task: str
    number: int
    instruction: str
    sample_sha256: str
    answer_sha256: str
    held_out: tuple[str, ...]
    changed_share: float
    resized: bool
    model: Score
    copy: Score
    mean_colour: Score
    drift: Drift | None
    unpreserved_drift: Drift | None
    facts: dict[str, float]
    unseen: bool = False

    @property
    def family(self) -> str:
        """The task's family."""
        return family_of(self.task)

    @property
    def key(self) -> tuple[str, int]:
        """Which sample this is."""
        return self.task, self.number


def edited_input(sample: EditSample) -> tuple[Image.Image, Image.Image | None]:
    """The picture that the answer starts from, at the target's size, and its mask; mid-grey and None without one."""
    source = sample.request.source_index
    if source is None:
        return Image.new("RGB", sample.target.size, NO_INPUT_GREY), None
    frame = sample.request.frames()[source]
    return _fitted(frame.image, sample.target.size), _fitted_mask(frame.mask, sample.target.size)


def mean_colour_picture(picture: Image.Image) -> Image.Image:
    """A constant picture of the mean colour."""
    colour = levels(picture).reshape(-1, 3).mean(axis=0)
    return Image.new("RGB", picture.size, (round(colour[0]), round(colour[1]), round(colour[2])))


def sample_sha256(sample: EditSample) -> str:
    """A hash of everything in a sample: task, instructions, pictures, masks, target."""
    digest = hashlib.sha256(f"{sample.task}\0{sample.request.instruction}".encode())
    for frame in sample.request.frames():
        digest.update(f"\0{frame.round}\0{frame.instruction}\0{frame.image.size}".encode())
        digest.update(frame.image.convert("RGB").tobytes())
        digest.update(b"" if frame.mask is None else frame.mask.tobytes())
    digest.update(sample.target.convert("RGB").tobytes())
    return digest.hexdigest()


def answer_sha256(answer: EditAnswer) -> str:
    """A hash of an answer's pixels."""
    digest = hashlib.sha256()
    for picture in (answer.picture, answer.unpreserved):
        digest.update(b"none" if picture is None else f"{picture.size}".encode() + picture.convert("RGB").tobytes())
    return digest.hexdigest()


def score_chunk(
    samples: Sequence[EditSample],
    numbers: Sequence[int],
    answers: Sequence[EditAnswer],
    lpips: LPIPS | None,
    judges: Judges = NO_JUDGES,
) -> list[Row]:
    """Rows of answered samples, in order; their targets are of one size."""
    prepared = []
    for sample, answer in zip(samples, answers, strict=True):
        given, mask = edited_input(sample)
        target = levels(sample.target)
        changed = changed_pixels(levels(given), target, mask)
        candidates = (_fitted(answer.picture, sample.target.size), given, mean_colour_picture(sample.target))
        prepared.append((given, mask, target, changed, candidates))
    distances = _distances(lpips, [s.target for s in samples], [candidates for *_, candidates in prepared])
    rows = []
    for sample, number, answer, own, distance in zip(samples, numbers, answers, prepared, distances, strict=True):
        given, mask, target, changed, candidates = own
        scores = [_score(levels(c), target, changed, value) for c, value in zip(candidates, distance, strict=True)]
        rows.append(
            Row(
                task=sample.task,
                number=number,
                instruction=sample.request.instruction,
                sample_sha256=sample_sha256(sample),
                answer_sha256=answer_sha256(answer),
                held_out=_held_out(sample),
                changed_share=round(float(changed.mean()), DIGITS),
                resized=answer.picture.size != sample.target.size,
                model=scores[0],
                copy=scores[1],
                mean_colour=scores[2],
                drift=None if mask is None else _drift(given, answer.picture, mask),
                unpreserved_drift=(
                    None if mask is None or answer.unpreserved is None else _drift(given, answer.unpreserved, mask)
                ),
                facts={
                    name: round(value, DIGITS)
                    for name, value in task_scores(sample, given, candidates[0], changed, judges).items()
                },
                unseen=bool(sample.provenance.get("unseen")),
            )
        )
    return rows


def _score(shown: np.ndarray, target: np.ndarray, changed: np.ndarray, lpips: float | None) -> Score:
    still = l1_error_where(shown, target, ~changed)
    where = l1_error_where(shown, target, changed)
    return Score(
        l1=round(l1_error(shown, target), DIGITS),
        l1_changed=None if where is None else round(where, DIGITS),
        l1_unchanged=None if still is None else round(still, DIGITS),
        lpips=None if lpips is None else round(lpips, DIGITS),
    )


def _distances(
    lpips: LPIPS | None, targets: Sequence[Image.Image], candidates: Sequence[tuple[Image.Image, ...]]
) -> list[tuple[float | None, ...]]:
    """LPIPS of every candidate to its target; the targets' features are computed once."""
    if lpips is None:
        return [(None,) * len(row) for row in candidates]
    with torch.no_grad():
        true = lpips.features(as_tensor(targets))
        columns = [
            lpips.compare(true, lpips.features(as_tensor(column))).tolist() for column in zip(*candidates, strict=True)
        ]
    return [tuple(row) for row in zip(*columns, strict=True)]


def _drift(given: Image.Image, answer: Image.Image, mask: Image.Image) -> Drift:
    report = drift_report(given, _fitted(answer, given.size), mask)
    return Drift(round(report.mean_difference, DIGITS), report.max_difference, round(report.changed_share, DIGITS))


def _held_out(sample: EditSample) -> tuple[str, ...]:
    prefix = "held_out_"
    return tuple(
        key.removeprefix(prefix) for key, value in sample.provenance.items() if key.startswith(prefix) and value
    )


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    picture = picture.convert("RGB")
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def _fitted_mask(mask: Image.Image | None, size: tuple[int, int]) -> Image.Image | None:
    return mask if mask is None or mask.size == size else mask.resize(size, Image.Resampling.NEAREST)
