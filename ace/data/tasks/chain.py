"""Multi-turn chains (B.9), of two kinds.

Homogeneous: pictures of one set follow each other, each asked for by its caption. Task-mixed: single-picture tasks are
applied one after the other, each to the answer of the one before; the first may begin with a damaged or emptied
picture, the last may end in a signal. The last turn is the request, the others its history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

import numpy as np

from ace.conditions import ConditionUnit, LongContextConditionUnit
from ace.conditions.units import Turn
from ace.data.sample import EditSample
from ace.data.tasks import (
    background,
    camera,
    degradation,
    depth,
    doodle,
    edge,
    face,
    gray,
    inpainting,
    mosaic,
    object_add,
    object_remove,
    object_replace,
    outpainting,
    style,
    text_add,
    text_remove,
    time_of_day,
)
from ace.data.tasks.common import caption_of, check_sample, pixels, say
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.things import check_visible
from ace.data.tasks.tools import Tools

TASK = "multi_turn/chain"
FEWEST, MOST = 2, 4  # rounds, the last one included
TRIES = 12  # single tasks tried for one chain
END_SHARE = 0.3  # of first and last rounds that are of a kind of their own
RELATIONS = ("content", "face", "series")
TEMPLATES = (
    "now show <caption>",
    "change it to <caption>",
    "the next one: <caption>",
    "go on with <caption>",
)
FIRST = ("based on {image}, show <caption>", "change {image} to <caption>", "after {image} comes <caption>")


@dataclass(frozen=True)
class ChainStep:
    """A single-picture task as a round. check: its own, None = none. of_objects: whether it has to find objects, which
    is slow, so that it is tried less often."""

    make: Callable[[Source, Random, Tools], EditSample | Rejected]
    check: Callable[[EditSample, Tools], str | None] | None = None
    of_objects: bool = False


STEPS = {
    "semantic_editing/camera": ChainStep(camera.make),
    "semantic_editing/style": ChainStep(style.make),
    "semantic_editing/time_of_day": ChainStep(time_of_day.make),
    "semantic_editing/face": ChainStep(face.make, face.check),
    "semantic_editing/background": ChainStep(background.make, of_objects=True),
    "element_editing/text_add": ChainStep(text_add.make, text_add.check),
    "element_editing/text_remove": ChainStep(text_remove.make, text_remove.check),
    "element_editing/object_remove": ChainStep(object_remove.make, check_visible, of_objects=True),
    "element_editing/object_replace": ChainStep(object_replace.make, of_objects=True),
    "low_level_analysis/gray": ChainStep(gray.SIGNAL.analyse),
    "low_level_analysis/mosaic": ChainStep(mosaic.SIGNAL.analyse),
    "low_level_analysis/degradation": ChainStep(degradation.SIGNAL.analyse),
}
# for the first round alone: what they begin with is no answer of another task
BEGINNINGS = {
    "repainting/inpainting": ChainStep(inpainting.make),
    "repainting/outpainting": ChainStep(outpainting.make),
    "controllable_generation/gray": ChainStep(gray.SIGNAL.control),
    "controllable_generation/mosaic": ChainStep(mosaic.SIGNAL.control),
    "controllable_generation/degradation": ChainStep(degradation.SIGNAL.control),
    "element_editing/object_add": ChainStep(object_add.make, check_visible, of_objects=True),
}
# for the last round alone: little can be done to what they end in
ENDINGS = {
    "low_level_analysis/edge": ChainStep(edge.SIGNAL.analyse),
    "low_level_analysis/depth": ChainStep(depth.SIGNAL.analyse),
    "low_level_analysis/doodle": ChainStep(doodle.SIGNAL.analyse),
}


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`multi_turn/chain`."""
    told_apart = {
        caption_of(other): other for other in source.others if caption_of(other) not in ("", caption_of(source))
    }
    if source.relation in RELATIONS and len(told_apart) >= FEWEST and rng.random() < 0.6:
        return _homogeneous(source, list(told_apart.values()), rng)
    return _mixed(source, rng, tools)


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


def _homogeneous(source: Source, others: list[Source], rng: Random) -> EditSample:
    """A walk through the set, whose captions differ: the same words again would ask for nothing."""
    walk = rng.sample(others, rng.randint(FEWEST, min(MOST, len(others))))
    turns: list[Turn] = []
    picture = source.image
    for number, other in enumerate(walk):
        slots = {"caption": caption_of(other)}
        unit = ConditionUnit(say(TEMPLATES if number else FIRST, slots, rng), (picture,))
        turns.append(Turn(unit, other.image))
        picture = other.image
    return _finish(source, turns, {"kind": "homogeneous", "slot.caption": caption_of(walk[-1])})


def _mixed(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """Tasks one after the other, none twice."""
    wanted = rng.randint(FEWEST, MOST)
    turns: list[Turn] = []
    tasks: list[str] = []
    slots: dict[str, str | int | float] = {}
    picture = source.image.convert("RGB")
    for _ in range(TRIES):
        name, step = _choose(tasks, wanted, rng, tools)
        made = step.make(replace(source, image=picture, others=(), relation=""), rng, tools)
        if name in tasks or isinstance(made, Rejected) or _fault(made, step, tools):
            continue
        unit = made.request.current
        if len(unit.images) != 1:
            continue
        if turns:
            if np.any(pixels(unit.images[0]) != pixels(picture)):
                continue  # it begins with something else than the last answer
            unit = replace(unit, images=(picture,))
        turns.append(Turn(unit, made.target))
        tasks.append(name)
        slots = {slot: value for slot, value in made.provenance.items() if slot.startswith("slot.")}
        picture = made.target
        if len(turns) == wanted:
            break
    if len(turns) < FEWEST:
        return Rejected("too few tasks fit to make a chain", str(len(turns)))
    return _finish(source, turns, {"kind": "mixed", "tasks": " ".join(tasks), **slots})


def _choose(done: list[str], wanted: int, rng: Random, tools: Tools) -> tuple[str, ChainStep]:
    """A task for the next of so many rounds, whose tools are there."""
    steps = STEPS
    if rng.random() < END_SHARE:
        steps = {0: BEGINNINGS, wanted - 1: ENDINGS}.get(len(done), STEPS)
    steps = {
        name: step
        for name, step in steps.items()
        if not tools.missing(name) and (tools.can_segment or not step.of_objects)
    }
    return rng.choices(list(steps.items()), [1 if step.of_objects else 4 for step in steps.values()])[0]


def _fault(made: EditSample, step: ChainStep, tools: Tools) -> str | None:
    """Why a round does not keep its promises, None if it does."""
    return check_sample(made) or (step.check(made, tools) if step.check else None)


def _finish(source: Source, turns: list[Turn], provenance: dict[str, str | int | float]) -> EditSample:
    """The last turn becomes the request."""
    *history, last = turns
    return EditSample(
        LongContextConditionUnit(last.unit, tuple(history)),
        last.answer,
        TASK,
        {"source": source.id, "variant": "global", "rounds": len(turns), **provenance},
    )
