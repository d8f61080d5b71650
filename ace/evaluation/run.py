"""Generate, score, resume: a list of samples in fixed chunks, one row of scores for each.

The folder is the state. `answers/` holds the pictures, `rows.jsonl` the scores; both are written whole or not at all,
chunk by chunk, so a run that was killed goes on where it stopped and ends with the same bytes. An answer counts as done
only while its sample and its pictures are still those that its row was computed from. `run.json` says what made the
answers; a folder never mixes two models. Times are in `timings.json`, apart from everything that must be repeatable.

What is scored is a function from samples and seeds to answers: a pipeline here, anything else as well.
Not here: which samples (`benchmarks/`), tables and pictures (`report.py`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ace.conditions.images import open_image
from ace.data.sample import TASKS, EditSample, family_of
from ace.errors import ConfigError, InputError, OutputError
from ace.evaluation.facts import task_scores
from ace.evaluation.lpips import LPIPS, as_tensor
from ace.evaluation.metrics import changed_pixels, l1_error, l1_error_where, levels
from ace.evaluation.systems import png_bytes
from ace.extract.text import TextReader
from ace.inference.preserve import drift_report
from ace.inference.recipe import write_atomically

FORMAT_VERSION = 2
DIGITS = 7  # of a stored score: well below what 8-bit pictures can tell, well above float noise
NO_INPUT_GREY = (128, 128, 128)  # what stands for the input where there is none


@dataclass(frozen=True)
class Answer:
    """What a system made of one sample.

    picture: the answer as a user gets it. unpreserved: for a masked edit, the model's own picture before the input's
    pixels outside the mask were put back; None if there is no such thing."""

    picture: Image.Image
    unpreserved: Image.Image | None = None


System = Callable[[Sequence[EditSample], Sequence[int]], list[Answer]]  # samples, one seed for each


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

    @property
    def family(self) -> str:
        """The task's family."""
        return family_of(self.task)

    @property
    def key(self) -> tuple[str, int]:
        """Which sample this is."""
        return self.task, self.number


# What a sample is compared with


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


def answer_seed(seed: int, task: str, number: int) -> int:
    """The seed of one answer's noise: that of the run, the task and the number alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{task}:{number}".encode()).digest()[:7], "big")


# Scoring


def score_chunk(
    samples: Sequence[EditSample],
    numbers: Sequence[int],
    answers: Sequence[Answer],
    lpips: LPIPS | None,
    reader: TextReader | None = None,
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
                answer_sha256=_answer_sha256(answer),
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
                    for name, value in task_scores(sample, given, candidates[0], changed, reader).items()
                },
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


# The folder


class RunFolder:
    """The folder of one run: answers, rows, and what made them.

    settings: what makes the answers what they are (model hash, seed, steps, …). Raises OutputError if the folder cannot
    be used or its rows cannot be read, ConfigError if it holds answers of other settings."""

    def __init__(self, path: Path, settings: dict[str, object]) -> None:
        self.path = Path(path)
        try:
            (self.path / "answers").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to {self.path.name}: {error.strerror}; choose another folder") from error
        self._check_settings({"format_version": FORMAT_VERSION, **settings})
        self.rows: dict[tuple[str, int], Row] = {row.key: row for row in self._read_rows()}

    def answer(self, task: str, number: int) -> Answer | None:
        """The answer on disk, or None."""
        path, unpreserved = self._files(task, number)
        if not path.is_file():
            return None
        try:
            whole = open_image(unpreserved).image if unpreserved.is_file() else None
            return Answer(open_image(path).image, whole)
        except InputError:
            return None  # a damaged file counts as missing: it is made again

    def add(self, answers: Sequence[Answer], rows: Sequence[Row]) -> None:
        """Keep a chunk: its pictures first, then its rows, so that a row never lacks its picture."""
        for answer, row in zip(answers, rows, strict=True):
            path, unpreserved = self._files(row.task, row.number)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, png_bytes(answer.picture))
            if answer.unpreserved is not None:
                write_atomically(unpreserved, png_bytes(answer.unpreserved))
        self.keep(rows)

    def keep(self, rows: Sequence[Row]) -> None:
        """Add or replace rows."""
        self.rows.update({row.key: row for row in rows})
        ordered = sorted(self.rows.values(), key=lambda row: (TASKS.index(row.task), row.number))
        lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in ordered)
        self.write("rows.jsonl", lines.encode())

    def is_made(self, sample: EditSample, number: int) -> bool:
        """True if the answer on disk is the one that was scored, and was made for exactly this sample."""
        row, answer = self.rows.get((sample.task, number)), self.answer(sample.task, number)
        return (
            row is not None
            and answer is not None
            and row.sample_sha256 == sample_sha256(sample)
            and row.answer_sha256 == _answer_sha256(answer)
        )

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the report, whole or not at all."""
        write_atomically(self.path / name, data)

    def _files(self, task: str, number: int) -> tuple[Path, Path]:
        folder = self.path / "answers" / task
        return folder / f"{number:05d}.png", folder / f"{number:05d}-unpreserved.png"

    def _check_settings(self, settings: dict[str, object]) -> None:
        path = self.path / "run.json"
        if path.is_file():
            try:
                earlier = json.loads(path.read_bytes())
            except (OSError, ValueError) as error:
                raise OutputError(f"{path.name} cannot be read: choose another folder, or delete this one") from error
            if earlier != settings:
                other = sorted(key for key in {*settings, *earlier} if settings.get(key) != earlier.get(key))
                raise ConfigError(
                    f"{self.path.name} holds a run with another {', '.join(other)}: choose another folder, or delete it"
                )
            return
        write_atomically(path, (json.dumps(settings, indent=1) + "\n").encode())

    def _read_rows(self) -> list[Row]:
        path = self.path / "rows.jsonl"
        if not path.is_file():
            return []
        try:
            return [_row(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise OutputError(f"{path.name} cannot be read: delete it, and the answers are scored again") from error


def run(
    chunks: Sequence[Sequence[tuple[str, int]]],
    sample_of: Callable[[str, int], EditSample],
    system: System,
    folder: RunFolder,
    seed: int,
    lpips: LPIPS | None,
    reader: TextReader | None = None,
    quiet: bool = False,
) -> list[Row]:
    """Answer and score every entry (task, number) that is not done yet; returns the rows of all entries, in order.

    A chunk is answered as a whole or not at all: the last bits of a batch's numbers may depend on its members."""
    made, seconds = 0, 0.0
    for chunk in _with_progress(chunks, quiet):
        samples = [sample_of(task, number) for task, number in chunk]
        numbers = [number for _, number in chunk]
        if all(folder.is_made(sample, number) for sample, number in zip(samples, numbers, strict=True)):
            if any(_lacks(folder.rows[entry], lpips, reader) for entry in chunk):
                kept = [answer for entry in chunk if (answer := folder.answer(*entry)) is not None]
                folder.keep(score_chunk(samples, numbers, kept, lpips, reader))
            continue
        start = time.perf_counter()
        answers = system(samples, [answer_seed(seed, task, number) for task, number in chunk])
        seconds += time.perf_counter() - start
        made += len(chunk)
        folder.add(answers, score_chunk(samples, numbers, answers, lpips, reader))
    if made:
        speed = {"pictures": made, "seconds": round(seconds, 2), "pictures_per_second": round(made / seconds, 2)}
        folder.write("timings.json", (json.dumps(speed) + "\n").encode())
    return [folder.rows[entry] for chunk in chunks for entry in chunk]


def _lacks(row: Row, lpips: LPIPS | None, reader: TextReader | None) -> bool:
    """True if a row has no score that could be had now, such as after LPIPS or OCR was installed."""
    is_text = row.task in ("element_editing/text_add", "element_editing/text_remove") and row.changed_share > 0
    unread = reader is not None and is_text and not {"text_read", "text_gone"} & row.facts.keys()
    return unread or (lpips is not None and row.model.lpips is None)


def _with_progress(chunks: Sequence[Sequence[tuple[str, int]]], quiet: bool) -> Iterable[Sequence[tuple[str, int]]]:
    columns = (
        TextColumn("evaluating"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        job = bar.add_task("", total=sum(len(chunk) for chunk in chunks))
        for chunk in chunks:
            yield chunk
            bar.advance(job, len(chunk))


def _row(table: dict) -> Row:
    """A row from its JSON. Raises TypeError or KeyError for anything else."""
    scores = {name: Score(**table[name]) for name in ("model", "copy", "mean_colour")}
    drifts = {name: table[name] and Drift(**table[name]) for name in ("drift", "unpreserved_drift")}
    return Row(**{**table, **scores, **drifts, "held_out": tuple(table["held_out"])})


def _answer_sha256(answer: Answer) -> str:
    digest = hashlib.sha256()
    for picture in (answer.picture, answer.unpreserved):
        digest.update(b"none" if picture is None else f"{picture.size}".encode() + picture.convert("RGB").tobytes())
    return digest.hexdigest()
