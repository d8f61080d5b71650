"""The user study (ACE, table 2): people score anonymised answers for prompt following and image quality, 1 to 5.

Every rating is one line of `ratings.jsonl`, on the disk before the page says so; the page holds no state, so the study
survives restarts. Which answer comes next is decided by the file alone: the least rated ones first, none twice for the
same rater, in an order that is shuffled per rater and never shows a system's name.

Here: what is asked next, what is kept, what is reported. Not here: the page (`study_page.py`).
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from ace.errors import ConfigError, DataError
from ace.evaluation.cases import read_cases, run_name
from ace.evaluation.lines import append_lines, read_lines
from ace.evaluation.metrics import NUM_RESAMPLES, Interval, bootstrap

QUESTIONS = ("prompt_following", "image_quality")
MIN_RATERS = 3
MAX_RATER_LETTERS = 60


@dataclass(frozen=True)
class Answered:
    """One answer of one system to one item. inputs, answer: picture files; mask: of the place that may change, white,
    None = anywhere. key: without a trace of the system."""

    system: str
    item: str
    instruction: str
    inputs: tuple[Path, ...]
    answer: Path
    mask: Path | None = None

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
    """alpha: Krippendorff's, interval data, by question; None if no answer has two ratings. num_left_out: ratings of
    answers that are not in this study (of a run that is missing now, or has another name)."""

    systems: tuple[SystemScores, ...]
    wins: tuple[WinRate, ...]
    alpha: dict[str, float | None]
    num_raters: int
    num_left_out: int = 0


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
            append_lines(self.file, [asdict(rating)])
            self.ratings.append(rating)

    def report(self) -> StudyReport:
        """What the ratings say so far."""
        with self._lock:
            ratings = [rating for rating in self.ratings if rating.key in self.answers]
            left_out = len(self.ratings) - len(ratings)
        return replace(make_report(list(self.answers.values()), ratings), num_left_out=left_out)


def make_report(answers: Sequence[Answered], ratings: Sequence[Rating]) -> StudyReport:
    """Means with intervals, agreement and win rates."""
    given: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        given[rating.key].append(rating)
    names = list(dict.fromkeys(answer.system for answer in answers))
    systems = [_scores(name, [given[answer.key] for answer in answers if answer.system == name]) for name in names]
    by_system: dict[str, dict[str, list[Rating]]] = {name: {} for name in names}
    for answer in answers:
        by_system[answer.system][answer.item] = given[answer.key]
    wins = [
        won
        for first, second in combinations(names, 2)
        for question in QUESTIONS
        if (won := _win_rate(first, second, question, by_system)) is not None
    ]
    units = [[[getattr(r, q) for r in found] for found in given.values()] for q in QUESTIONS]
    alpha = {q: krippendorff_alpha(own) for q, own in zip(QUESTIONS, units, strict=True)}
    return StudyReport(tuple(systems), tuple(wins), alpha, len({rating.rater for rating in ratings}))


def _scores(name: str, rated: Sequence[list[Rating]]) -> SystemScores:
    """A system's means over its answers, each with its ratings."""
    means = {q: bootstrap([[_mean(found, q) for found in rated if found]]) for q in QUESTIONS}
    return SystemScores(
        name,
        {q: interval for q, interval in means.items() if interval is not None},
        sum(map(len, rated)),
        sum(len(found) < MIN_RATERS for found in rated),
    )


def _win_rate(first: str, second: str, question: str, rated: dict[str, dict[str, list[Rating]]]) -> WinRate | None:
    """How the first fares against the second, over the items that both have ratings for; None if there are none."""
    both = [(own, rated[second].get(item)) for item, own in rated[first].items()]
    rate = bootstrap(
        [[0.5 + 0.5 * float(np.sign(_mean(a, question) - _mean(b, question))) for a, b in both if a and b]]
    )
    return None if rate is None else WinRate(first, second, question, rate)


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
    lines += ["", "| | against | question | wins (ties half) | items |", "|---|---|---|--:|--:|"]
    lines += [
        f"| {w.first} | {w.second} | {w.question.replace('_', ' ')} | {w.rate} | {w.rate.count} |" for w in report.wins
    ]
    return "\n".join([*lines, "", agreement(report), ""])


def agreement(report: StudyReport) -> str:
    """How far the raters agree, and what was left out, in a sentence each."""
    agreed = [f"{q.replace('_', ' ')} {'–' if a is None else f'{a:.3f}'}" for q, a in report.alpha.items()]
    told = f"Agreement (Krippendorff's alpha, interval): {', '.join(agreed)}."
    if report.num_left_out:
        told += f" PARTIAL: {report.num_left_out} ratings are left out, of answers that are not in this study."
    return told


def _mean(ratings: Sequence[Rating], question: str) -> float:
    return sum(getattr(rating, question) for rating in ratings) / len(ratings)


def _shuffled(rater: str, key: str) -> str:
    return hashlib.sha256(f"{rater}\0{key}".encode()).hexdigest()


def _read_ratings(file: Path) -> list[Rating]:
    try:
        return [Rating(**row) for row in read_lines(file)]
    except (ValueError, TypeError, ConfigError) as error:
        raise DataError(f"{file.name} holds a line that is no rating: move it away, or mend it") from error


def answers_of_runs(runs: Sequence[Path], count: int) -> list[Answered]:
    """The answers to `count` requests that every one of these finished runs has answered, of any benchmark.

    The requests are spread over the tasks: the first of each, then the second. Raises DataError if a run cannot be
    read, ConfigError if two have one name."""
    names = [run_name(run) for run in runs]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ConfigError(f"two runs are called {twice[0]}: rename a folder, so that the report can tell them apart")
    finished = [{case.asked_sha256: case for case in read_cases(run) if case.answer is not None} for run in runs]
    common = [key for key in finished[0] if all(key in cases for cases in finished)]
    place: Counter[str] = Counter()
    order: dict[str, tuple[int, str]] = {}
    for key in common:
        task = finished[0][key].item.rpartition("/")[0]
        order[key] = place[task], task
        place[task] += 1
    chosen = sorted(common, key=lambda key: order[key])[:count]
    return [
        Answered(name, case.item, case.instruction, case.inputs, case.answer, case.mask)
        for key in chosen
        for name, cases in zip(names, finished, strict=True)
        if (case := cases[key]).answer is not None
    ]
