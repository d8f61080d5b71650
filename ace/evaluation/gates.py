"""The gates of ace-world: what the small model has to reach before a person who sees it recognises what it draws.

Each is one figure of a run with its bound. Where something has to be drawn from its name, only things that training
drew count; where the picture says what to do, everything does. `gates.md` and `gates.json` lie beside the report, apart
from it, since two of them are times.

Not here: measuring (`things.py`, `facts.py`, `turns.py`, `timing.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ace.data.sample import TASKS
from ace.evaluation.metrics import NUM_RESAMPLES, Interval, bootstrap
from ace.evaluation.scores import Row
from ace.evaluation.summary import WorldReport
from ace.evaluation.timing import Times
from ace.evaluation.turns import RepeatedEdit

LONGEST_WORD = 5  # letters of the words that are counted


@dataclass(frozen=True)
class Gate:
    """One gate. value: None = not measured. bound: what it must reach, from below if `larger`, else from above."""

    name: str
    value: Interval | None
    bound: float
    larger: bool = True

    @property
    def is_met(self) -> bool | None:
        """Whether the mean has reached the bound; None = not measured."""
        if self.value is None:
            return None
        return self.value.mean >= self.bound if self.larger else self.value.mean <= self.bound


def gates(report: WorldReport, rows: Sequence[Row], times: Times | None) -> tuple[Gate, ...]:
    """All gates of a run, those that it did not measure included."""
    element = "element_editing/"

    def fact(name: str, task: str, counts: Callable[[Row], bool]) -> Interval | None:
        return bootstrap([[r.facts[name] for r in rows if r.task == task and name in r.facts and counts(r)]])

    identity, repeated = report.identity, report.repeated
    return (
        Gate("add: the right thing is there, seen things", fact("thing_right", f"{element}object_add", _seen), 0.8),
        Gate(
            "replace: the right thing is there, seen things",
            fact("thing_right", f"{element}object_replace", _seen),
            0.8,
        ),
        Gate(
            "text to image: each thing known among sixteen, seen things",
            fact("all_known", "text_guided_generation/text_to_image", _seen),
            0.85,
        ),
        Gate("removal: the thing is gone", fact("object_success", f"{element}object_remove", lambda row: True), 0.9),
        Gate(
            f"words of 1 to {LONGEST_WORD} letters, read by OCR",
            fact("text_read", f"{element}text_add", lambda row: _num_letters(row) <= LONGEST_WORD),
            0.7,
        ),
        Gate("the style asked for, seen names", fact("style_known", "semantic_editing/style", _seen), 0.85),
        Gate("the thing kept over five turns", None if identity is None else bootstrap([identity.kept]), 0.85),
        Gate(
            "ten equal edits: error of turn 10 over turn 1", None if repeated is None else growth(repeated), 1.15, False
        ),
        Gate("tasks better than copying", _better(report), len(TASKS)),
        Gate("an edit, seconds beyond loading", None if times is None else times.edit, 0.6, False),
        Gate("turn ten over text to image, time", None if times is None else times.turn_ten, 1.3, False),
    )


def growth(repeated: RepeatedEdit) -> Interval:
    """The mean error of the last turn over that of the first, with the 95 % bootstrap interval over chains."""
    first, last = np.array(repeated.first), np.array(repeated.last)
    chosen = np.random.default_rng(0).integers(len(first), size=(NUM_RESAMPLES, len(first)))
    ratios = last[chosen].sum(axis=1) / np.maximum(first[chosen].sum(axis=1), 1e-9)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Interval(float(last.sum() / max(first.sum(), 1e-9)), float(low), float(high), len(first))


def markdown(found: Sequence[Gate], report: WorldReport) -> str:
    """The table of gates as a page."""
    met, measured = (sum(gate.is_met is wanted for gate in found) for wanted in (True, None))
    lines = [
        f"# Gates{f': {report.model_name}' if report.model_name else ''}",
        "",
        f"{met} of {len(found)} met, {measured} not measured; {report.count} samples at "
        f"{report.settings['size_px']} px. "
        "A gate is met if the mean is; the interval is 95 % bootstrap, of times the fastest and slowest.",
        "",
        "| | value | samples | gate | met |",
        "|---|--:|--:|--:|:--|",
    ]
    for gate in found:
        value, count = ("–", "0") if gate.value is None else (str(gate.value), str(gate.value.count))
        sign = "at least" if gate.larger else "at most"
        word = {True: "yes", False: "no", None: "not measured"}[gate.is_met]
        lines.append(f"| {gate.name} | {value} | {count} | {sign} {gate.bound:g} | {word} |")
    return "\n".join(lines) + "\n"


def as_json(found: Sequence[Gate]) -> str:
    """The gates for programs."""
    return json.dumps([{**asdict(gate), "is_met": gate.is_met} for gate in found], indent=1) + "\n"


def _seen(row: Row) -> bool:
    return not row.unseen


def _num_letters(row: Row) -> int:
    word = re.search(r'"([^"]+)"', row.instruction)
    return len(word[1]) if word else 0


def _better(report: WorldReport) -> Interval | None:
    """How many tasks are better than copying; None if not all tasks were measured."""
    if {group.name for group in report.tasks} != set(TASKS):
        return None
    sure = [group for group in report.tasks if group.beats_copying]
    firm = [group for group in sure if group.verdict == "yes"]
    likely = [group for group in report.tasks if group.verdict != "no"]
    return Interval(len(sure), len(firm), len(likely), len(report.tasks))
