"""How long requests take: one edit alone, and the tenth turn of a conversation beside a text-to-image request.

Every request is asked alone, in this process, with the model loaded; the first one warms up and does not count. Times
depend on the machine and on what else it does: they are kept apart from the report.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.data.world import World
from ace.evaluation.metrics import Interval
from ace.evaluation.run import answer_seed
from ace.evaluation.systems import Editor

EDIT_TASK = "element_editing/object_add"
WORDS_TASK = "text_guided_generation/text_to_image"
NUM_TURNS = 10


@dataclass(frozen=True)
class Times:
    """edit: seconds of an edit alone, the median with the fastest and slowest. turn_ten: time of a conversation's tenth
    turn over that of text to image, alike."""

    edit: Interval
    turn_ten: Interval


def time_requests(edit: Editor, world: World, seed: int, count: int = 3) -> dict[str, list[float]]:
    """Seconds of `count` edits, text-to-image requests and tenth turns: edit, text_to_image, turn_ten."""
    found: dict[str, list[float]] = {"edit": [], "text_to_image": [], "turn_ten": []}
    clock = _Clock(edit, seed)
    clock.ask(world.sample(count, EDIT_TASK).request)
    for number in range(count):
        found["edit"].append(clock.ask(world.sample(number, EDIT_TASK).request))
        found["text_to_image"].append(clock.ask(world.sample(number, WORDS_TASK).request))
        *_, last = (clock.ask(unit) for unit in _conversation(clock, world, number))
        found["turn_ten"].append(last)
    return found


def summary(found: dict[str, list[float]]) -> Times:
    """The medians of what `time_requests` gave."""
    beside = float(np.median(found["text_to_image"]))
    return Times(_spread(found["edit"]), _spread([seconds / beside for seconds in found["turn_ten"]]))


class _Clock:
    """Asks an editor one request at a time. answer: the last one."""

    def __init__(self, edit: Editor, seed: int) -> None:
        self._edit, self._seed, self._asked = edit, seed, 0

    def ask(self, unit: LongContextConditionUnit) -> float:
        """Seconds that the answer took."""
        self._asked += 1
        start = time.perf_counter()
        (self.answer,) = self._edit([unit], [answer_seed(self._seed, "timing", self._asked)])
        return time.perf_counter() - start


def _conversation(clock: _Clock, world: World, number: int) -> Iterator[LongContextConditionUnit]:
    """The requests of a conversation, each on all earlier answers; they add and remove things without a mask."""
    words = [world.sample(number * NUM_TURNS + n, EDIT_TASK).request.current.instruction for n in range(NUM_TURNS)]
    units = [ConditionUnit(words[0], (world.sample(number, EDIT_TASK).request.current.images[0],))]
    history: list[Turn] = []
    for n in range(NUM_TURNS):
        yield LongContextConditionUnit(units[n], tuple(history))
        history.append(Turn(units[n], clock.answer))
        units += [ConditionUnit(words[n + 1], ())] if n + 1 < NUM_TURNS else []


def _spread(values: Sequence[float]) -> Interval:
    return Interval(float(np.median(values)), min(values), max(values), len(values))
