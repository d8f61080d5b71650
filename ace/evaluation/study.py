"""The user study (ACE, table 2): people score anonymised answers for prompt following and image quality, 1 to 5.

Every rating is one line of `ratings.jsonl`, on the disk before the page says so; the page holds no state, so the study
survives restarts. Which answer comes next is decided by the file alone: the least rated ones first, none twice for the
same rater, in an order that is shuffled per rater and never shows a system's name.

Here: what is asked next, what is kept, what is reported. Not here: the page (`study_page.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ace.errors import ConfigError, DataError
from ace.evaluation.metrics import NUM_RESAMPLES, Interval, bootstrap

QUESTIONS = ("prompt_following", "image_quality")
MIN_RATERS = 3
MAX_RATER_LETTERS = 60


@dataclass(frozen=True)
class Answered:
    """One answer of one system to one item. inputs, answer: picture files. key: without a trace of the system."""

    system: str
    item: str
    instruction: str
    inputs: tuple[Path, ...]
    answer: Path

    @property
    def key(self) -> str:
        """What the page and the file of ratings call this answer."""
        return hashlib.sha256(f"{self.system}\0{self.item}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Rating:
    """What one person said of one answer, 1 (bad) to 5 (good)."""

    rater: str
    key: str
    prompt_following: int
    image_quality: int

    def __post_init__(self) -> None:
        if not self.rater.strip() or len(self.rater) > MAX_RATER_LETTERS or not self.rater.isprintable():
            raise ConfigError(f"a rater's name has 1 to {MAX_RATER_LETTERS} printable letters")
        for name in QUESTIONS:
            if getattr(self, name) not in (1, 2, 3, 4, 5):
                raise ConfigError(f"{name.replace('_', ' ')} is a whole number from 1 to 5")


@dataclass(frozen=True)
class SystemScores:
    """Means over answers (each the mean of its raters). ratings: how many; thin: answers with fewer than three."""

    system: str
    means: dict[str, Interval]
    ratings: int
    thin: int


@dataclass(frozen=True)
class WinRate:
    """How often the first system's answer to an item scored higher than the second's, ties counting half."""

    first: str
    second: str
    question: str
    rate: Interval


@dataclass(frozen=True)
class StudyReport:
    """alpha: Krippendorff's, interval data, by question; None if no answer has two ratings."""

    systems: tuple[SystemScores, ...]
    wins: tuple[WinRate, ...]
    alpha: dict[str, float | None]
    num_raters: int


class Study:
    """The answers of several systems and the ratings given so far, in a folder. Safe to use from several threads.

    Raises DataError for ratings that cannot be read, ConfigError without answers."""

    def __init__(self, answers: Sequence[Answered], folder: Path) -> None:
        if not answers:
            raise ConfigError("the study has no answers: the systems have no item in common")
        self.answers = {answer.key: answer for answer in answers}
        self.file = folder / "ratings.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self.ratings = _read_ratings(self.file)

    def next_for(self, rater: str) -> Answered | None:
        """The answer this rater should see now; None if there is none left."""
        with self._lock:
            count = Counter(rating.key for rating in self.ratings)
            seen = {rating.key for rating in self.ratings if rating.rater == rater}
        left = [answer for key, answer in self.answers.items() if key not in seen]
        return min(left, key=lambda answer: (count[answer.key], _shuffled(rater, answer.key)), default=None)

    def progress_of(self, rater: str) -> tuple[int, int]:
        """How many answers this rater has scored, and how many there are."""
        with self._lock:
            return sum(r.rater == rater and r.key in self.answers for r in self.ratings), len(self.answers)

    def add(self, rating: Rating) -> None:
        """Keep a rating: on the disk first. Raises ConfigError for an unknown answer or a second rating of one."""
        with self._lock:
            if rating.key not in self.answers:
                raise ConfigError("this answer is not part of the study")
            if any(r.rater == rating.rater and r.key == rating.key for r in self.ratings):
                raise ConfigError("you have scored this answer already")
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(rating), ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.ratings.append(rating)

    def report(self) -> StudyReport:
        """What the ratings say so far."""
        with self._lock:
            ratings = [rating for rating in self.ratings if rating.key in self.answers]
        return make_report(list(self.answers.values()), ratings)


def make_report(answers: Sequence[Answered], ratings: Sequence[Rating]) -> StudyReport:
    """Means with intervals, agreement and win rates."""
    given: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        given[rating.key].append(rating)
    names = list(dict.fromkeys(answer.system for answer in answers))
    systems = []
    for name in names:
        own = [given[answer.key] for answer in answers if answer.system == name]
        means = {q: bootstrap([[_mean(found, q) for found in own if found]]) for q in QUESTIONS}
        systems.append(
            SystemScores(
                name,
                {q: interval for q, interval in means.items() if interval is not None},
                sum(map(len, own)),
                sum(len(found) < MIN_RATERS for found in own),
            )
        )
    by_item = {(answer.system, answer.item): given[answer.key] for answer in answers}
    items = list(dict.fromkeys(answer.item for answer in answers))
    wins = []
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            for question in QUESTIONS:
                both = [(by_item.get((first, i)), by_item.get((second, i))) for i in items]
                points = [
                    0.5 + 0.5 * float(np.sign(_mean(a, question) - _mean(b, question))) for a, b in both if a and b
                ]
                rate = bootstrap([points])
                if rate is not None:
                    wins.append(WinRate(first, second, question, rate))
    units = [[[getattr(r, q) for r in found] for found in given.values()] for q in QUESTIONS]
    alpha = {q: krippendorff_alpha(own) for q, own in zip(QUESTIONS, units, strict=True)}
    return StudyReport(tuple(systems), tuple(wins), alpha, len({rating.rater for rating in ratings}))


def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float | None:
    """Krippendorff's alpha for interval data: 1 = raters agree, 0 = as by chance (Hayes and Krippendorff 2007).

    units: the ratings of each answer, any number each. None if no unit has two ratings; 1 if all ratings are equal."""
    paired = [np.asarray(unit, dtype=np.float64) for unit in units if len(unit) >= 2]
    if not paired:
        return None
    observed = sum(((u[:, None] - u[None, :]) ** 2).sum() / (len(u) - 1) for u in paired)
    values = np.concatenate(paired)
    expected = ((values[:, None] - values[None, :]) ** 2).sum() / (len(values) - 1)
    return 1.0 if expected == 0 else float(1 - observed / expected)


def as_markdown(report: StudyReport) -> str:
    """The report as a page."""
    titles = [q.replace("_", " ") for q in QUESTIONS]
    lines = [
        "# User study",
        "",
        f"{report.num_raters} raters. Scores 1 to 5, mean over answers with 95 % bootstrap intervals "
        f"({NUM_RESAMPLES} resamples).",
        "",
        f"| system | {' | '.join(titles)} | ratings | answers with fewer than {MIN_RATERS} |",
        "|---|" + "--:|" * (len(titles) + 2),
    ]
    for system in report.systems:
        cells = [str(system.means[q]) if q in system.means else "–" for q in QUESTIONS]
        lines.append(f"| {system.system} | {' | '.join(cells)} | {system.ratings} | {system.thin} |")
    lines += ["", "| | against | question | wins (ties half) |", "|---|---|---|--:|"]
    lines += [f"| {w.first} | {w.second} | {w.question.replace('_', ' ')} | {w.rate} |" for w in report.wins]
    agreed = [f"{q.replace('_', ' ')} {'–' if a is None else f'{a:.3f}'}" for q, a in report.alpha.items()]
    return "\n".join([*lines, "", f"Agreement (Krippendorff's alpha, interval): {', '.join(agreed)}.", ""])


def _mean(ratings: Sequence[Rating], question: str) -> float:
    return sum(getattr(rating, question) for rating in ratings) / len(ratings)


def _shuffled(rater: str, key: str) -> str:
    return hashlib.sha256(f"{rater}\0{key}".encode()).hexdigest()


def _read_ratings(file: Path) -> list[Rating]:
    """The ratings on disk; a last line that a crash cut off is dropped from the file."""
    if not file.is_file():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with file.open("r+b") as handle:
            handle.truncate(len(whole))
    try:
        return [Rating(**json.loads(line)) for line in whole.decode().splitlines()]
    except (ValueError, TypeError, ConfigError) as error:
        raise DataError(f"{file.name} holds a line that is no rating: move it away, or mend it") from error


def answers_of_runs(runs: Sequence[Path], folder: Path, count: int) -> list[Answered]:
    """The first `count` items that every run of `ace eval ace-world` has answered, spread over the tasks; inputs are
    drawn again into `folder/inputs`.

    Raises DataError if a run cannot be read."""
    from ace.data.world import SpriteLibrary, World
    from ace.data.world.sprites import SHIPPED_PACK
    from ace.evaluation.compare import read_run
    from ace.evaluation.systems import png_bytes
    from ace.inference.recipe import write_atomically

    finished = [read_run(run) for run in runs]
    names = [run.name for run in finished]
    if len(set(names)) != len(names):
        raise ConfigError(f"two runs are called {names[0]}: rename a folder, so that the report can tell them apart")
    common = set.intersection(*(set(run.samples.items()) for run in finished))
    chosen = sorted((key for key, _ in common), key=lambda key: (key[1], key[0]))[:count]
    size_px = json.loads((runs[0] / "run.json").read_bytes())["size_px"]
    world = World(size_px, "held_out", SpriteLibrary(SHIPPED_PACK))
    answers = []
    for task, number in chosen:
        sample = world.sample(number, task)
        inputs = []
        for place, frame in enumerate(sample.request.frames()):
            path = folder / "inputs" / task.replace("/", "-") / f"{number}-{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, png_bytes(frame.image))
            inputs.append(path)
        item = f"{task}/{number}"
        answers += [
            Answered(
                name, item, sample.request.instruction, tuple(inputs), run / "answers" / task / f"{number:05d}.png"
            )
            for name, run in zip(names, runs, strict=True)
        ]
    return answers
