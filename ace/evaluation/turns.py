"""What many turns do to a picture: the same edit ten times, and a thing that should keep looking the same.

Both go on from the system's own answers, as a person would, so errors add up; the true pictures of every turn are
known. The first is ConvergeBench's question on the world's backgrounds: an ideal editor stops changing after the first
turn. In the second everything around one thing is edited for five turns. The thing is known again if, in its place, the
answer is nearer to it than to any of fifteen other things drawn there instead; pixels that show neither do not count.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.data.world import World
from ace.data.world.chance import Chance, Material
from ace.data.world.scene import Scene, SpriteObject, draw, object_alpha
from ace.data.world.tasks.chain import edits_around
from ace.evaluation.metrics import changed_pixels, l1_error, l1_error_where, levels
from ace.evaluation.run import answer_seed
from ace.evaluation.scores import DIGITS, edited_input
from ace.evaluation.systems import Editor

REPEATED_TASK = "semantic_editing/background"
BACKGROUND_WORDS = "another background"
IDENTITY_TASK = "multi_turn/chain"
NUM_OTHERS = 15  # things that one is told apart from
_SOLID = 0.9  # opacity from which a pixel belongs to the thing itself
Over = Callable[[range], Iterable[int]]  # goes through the turns, perhaps with a progress bar


@dataclass(frozen=True)
class RepeatedEdit:
    """The same instruction again and again, each turn on the answer before it: an ideal editor stops changing.

    unchanged: per turn, mean L1 to the first input where nothing should change; target: to the true answer, all pixels;
    copy: of the input left alone to the true answer. count: chains; first, last: of each, target at both ends."""

    unchanged: tuple[float, ...]
    target: tuple[float, ...]
    copy: float
    count: int
    first: tuple[float, ...]
    last: tuple[float, ...]


@dataclass(frozen=True)
class Identity:
    """One thing over the turns of a conversation about everything else. All per turn, over `count` conversations.

    known: share of answers in which it is taken for itself and not for one of `NUM_OTHERS` others (by chance 1 in 16);
    error: mean L1 on its own pixels to the true picture; from_first: to the answer of the first turn. with_history: the
    system was given the conversation; else only its last answer. kept: of each conversation, known at its end."""

    known: tuple[float, ...]
    error: tuple[float, ...]
    from_first: tuple[float, ...]
    count: int
    with_history: bool
    kept: tuple[float, ...]


def repeat_edits(
    edit: Editor, world: World, seed: int, count: int = 8, turns: int = 10, over: Over = iter
) -> RepeatedEdit:
    """Give the same edit `turns` times, each on the answer before it, for the first `count` samples of a task."""
    samples = [world.sample(number, REPEATED_TASK) for number in range(count)]
    first = [levels(edited_input(sample)[0]) for sample in samples]
    targets = [levels(sample.target) for sample in samples]
    still = [~changed_pixels(a, b) for a, b in zip(first, targets, strict=True)]
    shown = [sample.request.current.images[0] for sample in samples]
    unchanged: list[float] = []
    to_target: list[tuple[float, ...]] = []
    for turn in over(range(turns)):
        units = [
            LongContextConditionUnit(ConditionUnit(sample.request.current.instruction, (image,)))
            for sample, image in zip(samples, shown, strict=True)
        ]
        shown = edit(units, [answer_seed(seed, f"{REPEATED_TASK}:{turn}", number) for number in range(count)])
        made = [levels(_fitted(answer, s.target.size)) for answer, s in zip(shown, samples, strict=True)]
        kept = [l1_error_where(m, f, where) for m, f, where in zip(made, first, still, strict=True)]
        unchanged.append(_mean([value for value in kept if value is not None]))
        to_target.append(tuple(round(l1_error(m, t), DIGITS) for m, t in zip(made, targets, strict=True)))
    copy = _mean([l1_error(f, t) for f, t in zip(first, targets, strict=True)])
    return RepeatedEdit(tuple(unchanged), tuple(map(_mean, to_target)), copy, count, to_target[0], to_target[-1])


@dataclass(frozen=True)
class _Conversation:
    """A scene, what is asked turn by turn, the true scene after each turn, and what the thing could be taken for."""

    first: Image.Image
    words: tuple[str, ...]
    scenes: tuple[Scene, ...]
    others: tuple[str, ...]


def follow_things(
    edit: Editor,
    world: World,
    seed: int,
    count: int = 24,
    turns: int = 5,
    *,
    with_history: bool = True,
    over: Over = iter,
) -> Identity:
    """Hold `count` conversations of `turns` turns and look at the thing that none of them is about.

    with_history: give the system the whole conversation; False = its last answer alone, for those that take no more."""
    material = Material(world.library)
    talks = [_conversation(material, world.size_px, number, turns) for number in range(count)]
    answers: list[list[Image.Image]] = [[] for _ in talks]
    known, error, from_first = [], [], []
    kept: tuple[float, ...] = ()
    for turn in over(range(turns)):
        units = [_unit(talk, own, with_history) for talk, own in zip(talks, answers, strict=True)]
        seeds = [answer_seed(seed, f"{IDENTITY_TASK}:identity:{turn}", number) for number in range(count)]
        for own, answer in zip(answers, edit(units, seeds), strict=True):
            own.append(answer)
        found = [_looked_at(talk, turn, own, world) for talk, own in zip(talks, answers, strict=True)]
        for values, column in zip((known, error, from_first), zip(*found, strict=True), strict=True):
            values.append(_mean(column))
        kept = tuple(values[0] for values in found)
    return Identity(tuple(known), tuple(error), tuple(from_first), count, with_history, kept)


def _conversation(material: Material, size_px: int, number: int, turns: int) -> _Conversation:
    chance = Chance(material, "held_out", random.Random(f"identity:{number}"), size_px)
    scene, steps = edits_around(chance, turns)
    thing = scene.objects[0]
    assert isinstance(thing, SpriteObject)
    drawn = [c.slug for c in material.library.concepts if thing.style in material.library.styles_of(c.slug)]
    others = chance.rng.sample([slug for slug in drawn if slug != thing.slug], NUM_OTHERS)
    first = Image.fromarray(draw(scene, material.library, size_px))
    return _Conversation(first, tuple(s.words for s in steps), tuple(s.state.scene for s in steps), tuple(others))


def _unit(talk: _Conversation, answers: Sequence[Image.Image], with_history: bool) -> LongContextConditionUnit:
    """The next request, after these answers."""
    words = talk.words[len(answers)]
    if not with_history:
        return LongContextConditionUnit(ConditionUnit(words, (answers[-1] if answers else talk.first,)))
    units = [ConditionUnit(w, (talk.first,) if n == 0 else ()) for n, w in enumerate(talk.words[: len(answers) + 1])]
    return LongContextConditionUnit(units[-1], tuple(map(Turn, units[:-1], answers)))


def _looked_at(talk: _Conversation, turn: int, answers: Sequence[Image.Image], world: World) -> tuple[float, ...]:
    """1 if the thing is known again in the answer of a turn, its error, and its distance from the first answer."""
    scene, size = talk.scenes[turn], (world.size_px, world.size_px)
    thing = scene.objects[0]
    assert isinstance(thing, SpriteObject)
    made, first = (levels(_fitted(answer, size)) for answer in (answers[turn], answers[0]))
    own = object_alpha(thing, world.library, world.size_px) > _SOLID
    distances = []
    for slug in (thing.slug, *talk.others):
        other = replace(thing, slug=slug)
        shown = replace(scene, objects=(other, *scene.objects[1:]))
        true = draw(shown, world.library, world.size_px).astype(np.int16)
        either = own | (object_alpha(other, world.library, world.size_px) > _SOLID)  # the background says nothing
        distances.append(l1_error(made[either], true[either]))
    return float(np.argmin(distances) == 0), distances[0], l1_error(made[own], first[own])


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(1, len(values)), DIGITS)
