"""Is the thing, or the style, that was asked for there? Template match against the truth and all that it could be.

The world knows which thing an answer had to draw, and where. The answer shows it if, at that place, it is nearer to the
true picture than to the same picture with any other thing there instead, and than to what the input shows there. Two
things are compared where either is opaque, so the background says nothing. A style is known if the answer is nearer to
the truth than to the same scene in any other style or look. Nothing is learnt or tuned.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ace.data.sample import EditSample
from ace.data.world import World
from ace.data.world.chance import Drawn, Split
from ace.data.world.scene import LOOKS, Scene, SpriteObject, corner, draw, layer_of, side_px
from ace.data.world.sprites import STYLES, SpriteLibrary

NUM_OTHERS = 15  # things that one is told apart from in text to image
EDIT_TASKS = ("element_editing/object_add", "element_editing/object_replace")
WORDS_TASK = "text_guided_generation/text_to_image"
STYLE_TASK = "semantic_editing/style"
_SOLID = 0.9  # opacity from which a pixel belongs to the thing itself


@dataclass(frozen=True)
class ThingJudge:
    """Looks for the things of the world in answers. library: the one that the samples were drawn with."""

    library: SpriteLibrary

    def scores(self, sample: EditSample, given: np.ndarray, made: np.ndarray) -> dict[str, float]:
        """The scores that apply to a sample of the world; given: the edited input, made: the answer, (H, W, 3) levels.

        style_known: 1 if the style is the one that was asked for (style editing).
        thing_right: 1 if the thing is there, nearest of all core concepts and of what was there before (add, replace).
        things_known: share of the things that are known among sixteen; all_known: 1 if each is (text to image)."""
        if sample.task not in (*EDIT_TASKS, WORDS_TASK, STYLE_TASK) or not self._drew(sample):
            return {}
        world, seed = self._world_of(sample), int(sample.provenance["seed"])
        if sample.task == STYLE_TASK:
            return {"style_known": float(self._in_style(made, given, world.restyled(seed)))}
        drawn = world.drawn(seed, sample.task)
        if sample.task in EDIT_TASKS:
            others = [slug for slug in self._core if slug != _slug(drawn[0])]
            return {"thing_right": float(self.is_right(made, drawn[0], others, given))}
        if not drawn:
            return {}
        known = [self.is_right(made, one, self._some_others(one, sample)) for one in drawn]
        return {"things_known": sum(known) / len(known), "all_known": float(all(known))}

    def _drew(self, sample: EditSample) -> bool:
        """True if a sample is of the world and of a pack like this one."""
        at = sample.provenance
        return at.get("source") == "world" and "level" in at and at["num_concepts"] == len(self.library.concepts)

    def _world_of(self, sample: EditSample) -> World:
        """The world that a sample was drawn in."""
        at = sample.provenance
        split: Split = "held_out" if at["split"] == "held_out" else "train"
        key = int(at["size_px"]), split, self.library, str(at["level"]), float(at["free_share"]), bool(at["seen_only"])
        if key not in self._worlds:
            self._worlds[key] = World(*key)
        return self._worlds[key]

    def is_right(self, made: np.ndarray, drawn: Drawn, others: Sequence[str], given: np.ndarray | None = None) -> bool:
        """True if an answer is nearer to the true thing than to each of the others, drawn in its place and style.

        given: a picture that it must also be nearer to the truth than to, at that place; (H, W, 3) levels."""
        size, item = made.shape[0], drawn.scene.objects[drawn.index]
        assert isinstance(item, SpriteObject)
        top, left = corner(item, size)
        side = side_px(item, size)
        place = slice(max(0, top), top + side), slice(max(0, left), left + side)
        true = draw(drawn.scene, self.library, size)[place].astype(np.int16)
        own = layer_of(item, self.library, size).alpha > _SOLID
        to_true = np.abs(made[place] - true).sum(axis=2)
        if given is not None:
            where = own | (np.abs(given[place] - true).sum(axis=2) > 0)
            if not _nearer(to_true, np.abs(made[place] - given[place]).sum(axis=2), where):
                return False
        return all(
            _nearer(to_true, np.abs(made[place] - shown).sum(axis=2), own | solid)
            for shown, solid in self._instead(drawn, others, size, place)
        )

    def _in_style(self, made: np.ndarray, given: np.ndarray, true: Scene) -> bool:
        """True if an answer is nearer to the true scene than to the input and to it in every other style or look."""
        slugs = [item.slug for item in true.objects if isinstance(item, SpriteObject)]
        styles = [style for style in STYLES if all(style in self.library.styles_of(slug) for slug in slugs)]
        others = [
            replace(true, look="", objects=tuple(replace(item, style=style) for item in true.objects))  # type: ignore[call-arg]
            for style in styles
        ]
        others += [replace(true, look=look) for look in LOOKS[1:]]
        size = made.shape[0]
        to_true = np.abs(made - draw(true, self.library, size)).sum()
        shown = [given, *(draw(scene, self.library, size) for scene in others if scene != true)]
        return all(to_true < np.abs(made - picture).sum() for picture in shown)

    def _instead(
        self, drawn: Drawn, others: Sequence[str], size: int, place: tuple[slice, slice]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What the place shows with each of the other things in it, levels, and where that thing is opaque."""
        objects = drawn.scene.objects
        bare = replace(drawn.scene, objects=objects[: drawn.index] + objects[drawn.index + 1 :])
        ground = draw(bare, self.library, size)[place]
        item = objects[drawn.index]
        for slug in others:
            layer = layer_of(replace(item, slug=slug), self.library, size)
            shown = (ground * layer.veil + layer.ink) // 255
            yield shown.astype(np.int16), layer.alpha > _SOLID

    def _some_others(self, drawn: Drawn, sample: EditSample) -> list[str]:
        """The things that one is told apart from: always the same ones for a sample, none of those in its scene."""
        shown = {o.slug for o in drawn.scene.objects if isinstance(o, SpriteObject)}
        key = hashlib.sha256(f"{sample.request.instruction}:{drawn.index}".encode()).hexdigest()
        return random.Random(key).sample([slug for slug in self._core if slug not in shown], NUM_OTHERS)

    @cached_property
    def _core(self) -> tuple[str, ...]:
        return tuple(concept.slug for concept in self.library.concepts if concept.core)

    @cached_property
    def _worlds(self) -> dict[tuple, World]:
        return {}


def _nearer(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> bool:
    """True if the first distance is the smaller one, summed where it counts."""
    return int(first[where].sum()) < int(second[where].sum())


def _slug(drawn: Drawn) -> str:
    item = drawn.scene.objects[drawn.index]
    assert isinstance(item, SpriteObject)
    return item.slug
