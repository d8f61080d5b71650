"""Multi-turn chains (B.9), of two kinds.

Homogeneous: pictures of one set follow each other, each asked for by its caption. Task-mixed: single-picture tasks are
applied one after the other, each to the answer of the one before. The last turn is the request, the others its history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np

from ace.conditions import ConditionUnit, LongContextConditionUnit
from ace.conditions.units import Turn
from ace.data.sample import EditSample
from ace.data.tasks import camera, degradation, gray, mosaic, style, text_add, time_of_day
from ace.data.tasks.common import caption_of, check_sample, pixels, say
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools

TASK = "multi_turn/chain"
FEWEST, MOST = 2, 4  # rounds, the last one included
TRIES = 12  # single tasks tried for one chain
RELATIONS = ("content", "face", "series")
TEMPLATES = (
    "now show <caption>",
    "change it to <caption>",
    "the next one: <caption>",
    "go on with <caption>",
)
FIRST = ("based on {image}, show <caption>", "change {image} to <caption>", "after {image} comes <caption>")
# single-picture tasks that start from the picture itself and leave something to go on with
STEPS: tuple[Callable[[Source, Random, Tools], EditSample | Rejected], ...] = (
    camera.make,
    style.make,
    text_add.make,
    time_of_day.make,
    gray.analyse,
    mosaic.analyse,
    degradation.analyse,
)


def make(source: Source, dice: Random, tools: Tools) -> EditSample | Rejected:
    """`multi_turn/chain`."""
    with_words = [other for other in source.others if caption_of(other)]
    if source.relation in RELATIONS and len(with_words) >= FEWEST and dice.random() < 0.6:
        return _homogeneous(source, with_words, dice)
    return _mixed(source, dice, tools)


def check(sample: EditSample, tools: Tools) -> str | None:
    """At least two rounds; each answer differs from what its round started from."""
    turns = sample.request.history
    if len(turns) + 1 < FEWEST:
        return "only one round"
    pictures = [turns[0].unit.images[0], *(turn.answer for turn in turns), sample.target]
    for before, after in pairwise(pictures):
        if before.size == after.size and not np.any(pixels(before) != pixels(after)):
            return "a round changed nothing"
    return None


def _homogeneous(source: Source, others: list[Source], dice: Random) -> EditSample:
    """A walk through the set."""
    walk = dice.sample(others, dice.randint(FEWEST, min(MOST, len(others))))
    turns: list[Turn] = []
    picture = source.image
    for number, other in enumerate(walk):
        slots = {"caption": caption_of(other)}
        unit = ConditionUnit(say(TEMPLATES if number else FIRST, slots, dice), (picture,))
        turns.append(Turn(unit, other.image))
        picture = other.image
    return _finish(source, turns, {"kind": "homogeneous", "slot.caption": caption_of(walk[-1])})


def _mixed(source: Source, dice: Random, tools: Tools) -> EditSample | Rejected:
    """Tasks one after the other, none twice."""
    wanted = dice.randint(FEWEST, MOST)
    turns: list[Turn] = []
    tasks: list[str] = []
    slots: dict[str, str | int | float] = {}
    picture = source.image.convert("RGB")
    steps = [dice.choice(STEPS) for _ in range(TRIES)]
    for step in steps:
        made = step(replace(source, image=picture, others=(), relation=""), dice, tools)
        if isinstance(made, Rejected) or made.task in tasks:
            continue
        unit = made.request.current
        if len(unit.images) != 1 or np.any(pixels(unit.images[0]) != pixels(picture)) or check_sample(made):
            continue  # it starts from something else than the picture
        turns.append(Turn(replace(unit, images=(picture,)), made.target))
        tasks.append(made.task)
        slots = {name: value for name, value in made.provenance.items() if name.startswith("slot.")}
        picture = made.target
        if len(turns) == wanted:
            break
    if len(turns) < FEWEST:
        return Rejected("too few tasks fit to make a chain", str(len(turns)))
    return _finish(source, turns, {"kind": "mixed", "tasks": " ".join(tasks), **slots})


def _finish(source: Source, turns: list[Turn], provenance: dict[str, str | int | float]) -> EditSample:
    """The last turn becomes the request."""
    *history, last = turns
    return EditSample(
        LongContextConditionUnit(last.unit, tuple(history)),
        last.answer,
        TASK,
        {"source": source.id, "variant": "global", "rounds": len(turns), **provenance},
    )
