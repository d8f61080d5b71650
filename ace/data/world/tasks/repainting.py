"""Repainting:

what is hidden behind a mask, with or without words for it, and what lies beyond the edges of a picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ace.data.sample import EditSample
from ace.data.world.chance import Chance, without
from ace.data.world.scene import Scene, draw, object_alpha
from ace.data.world.tasks.common import blanked, draw_scene, mask_around, random_mask, sample
from ace.data.world.tasks.element import exchanged


def inpainting(chance: Chance) -> EditSample:
    """A painted-over region, nothing said about its content."""
    task = "repainting/inpainting"
    scene = chance.puppet_scene() if chance.chance(0.1) else chance.scene()[0]
    image = draw(scene, chance.library, chance.size_px)
    for _ in range(8):  # enough of each object must be left to know it by
        mask = random_mask(chance, 0.08, 0.35)
        left = ~mask
        alphas = [object_alpha(item, chance.library, chance.size_px) for item in scene.objects]
        if all(alpha[left].sum() > 0.4 * alpha.sum() for alpha in alphas):
            break
    return sample(task, chance.say(task), (blanked(chance, image, mask),), image, mask)


def text_guided_inpainting(chance: Chance) -> EditSample:
    """A region and what to paint there: an object, or everything around the objects that stay."""
    task = "repainting/text_guided_inpainting"
    scene, slots = chance.scene()
    if chance.chance(0.25):
        return _new_surroundings(chance, task, scene)
    index = chance.rng.randrange(len(slots))
    after, item = exchanged(chance, scene, index)
    target, bare = draw_scene(chance, after), draw_scene(chance, without(after, index))
    mask = mask_around(chance, (item,), bare, target, after)
    # mostly the region is painted over, so that the object that was there is lost
    given = blanked(chance, target, mask) if chance.chance(0.7) else bare
    return sample(task, chance.say(task, a=chance.a(item)), (given,), target, mask)


def outpainting(chance: Chance) -> EditSample:
    """A canvas with empty borders."""
    task = "repainting/outpainting"
    scene, slots = chance.scene()
    size = chance.size_px
    kept = np.ones((size, size), bool)
    sides = chance.choice(
        (("left",), ("right",), ("top",), ("bottom",), ("left", "right"), ("top", "bottom"), ("all",), ("all",))
    )
    for side in ("left", "right", "top", "bottom") if sides == ("all",) else sides:
        width = round(
            size * chance.choice((0.15, 0.2, 0.28) if len(sides) > 1 or sides == ("all",) else (0.2, 0.28, 0.36))
        )
        if side in ("left", "right"):
            kept[:, slice(0, width) if side == "left" else slice(size - width, size)] = False
        else:
            kept[slice(0, width) if side == "top" else slice(size - width, size)] = False
    for index in reversed(range(len(scene.objects))):  # what would be mostly hidden cannot be guessed
        alpha = object_alpha(scene.objects[index], chance.library, size)
        if alpha[kept].sum() < 0.6 * alpha.sum():
            scene, slots = without(scene, index), slots[:index] + slots[index + 1 :]
    image = draw(scene, chance.library, size)
    key = f"{task}#caption" if chance.chance(0.35) else task
    words = chance.say(key, caption=chance.caption(scene, slots))
    return sample(task, words, (blanked(chance, image, ~kept),), image, ~kept)


def _new_surroundings(chance: Chance, task: str, scene: Scene) -> EditSample:
    """Everything but the objects is masked, and the words are for the background."""
    size = chance.size_px
    new = replace(scene, background=chance.new_background(scene))
    stays = np.zeros((size, size), bool)
    for item in scene.objects:
        stays |= object_alpha(item, chance.library, size) >= 1
    target = draw(new, chance.library, size)
    given = draw(scene, chance.library, size)
    source = blanked(chance, given, ~stays) if chance.chance(0.5) else given
    words = chance.say(f"{task}#background", background=new.background.words, prep=new.background.preposition)
    return sample(task, words, (source,), target, ~stays)
