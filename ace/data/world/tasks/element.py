"""Element editing:

objects added, removed and replaced, words written and wiped off. Nothing else in the picture changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ace.data.sample import EditSample
from ace.data.world.chance import Chance, with_object, without
from ace.data.world.scene import Scene, SceneObject, SpriteObject, text_corner, text_layer
from ace.data.world.tasks.common import covering, draw_scene, mask_around, sample

MASKED_SHARE = 0.33


def object_add(chance: Chance) -> EditSample:
    """One object more, where the words or the mask say."""
    task = "element_editing/object_add"
    count = chance.weighted({1: 0.35, 2: 0.45, 3: 0.2})
    masked = chance.chance(MASKED_SHARE)
    after, slots = chance.scene(count, vary=masked)
    index = chance.rng.randrange(len(slots))
    after, item = exchanged(chance, after, index)
    before = without(after, index)
    images = draw_scene(chance, before), draw_scene(chance, after)
    if masked:
        mask = mask_around(chance, (item,), *images, after)
        return sample(task, chance.say(f"{task}#masked", a=chance.a(item)), images[:1], images[1], mask)
    return sample(task, chance.say(task, a=chance.a(item), where=chance.where(slots[index])), images[:1], images[1])


def object_remove(chance: Chance) -> EditSample:
    """One object less."""
    task = "element_editing/object_remove"
    before, slots = chance.scene()
    index = chance.rng.randrange(len(slots))
    item = before.objects[index]
    images = draw_scene(chance, before), draw_scene(chance, without(before, index))
    if chance.chance(MASKED_SHARE):
        mask = mask_around(chance, (item,), *images, before)
        words = chance.say(f"{task}#masked", the=chance.the(item), noun=chance.noun(item))
        return sample(task, words, images[:1], images[1], mask)
    the = referring(chance, item, slots[index], len(slots))
    return sample(task, chance.say(task, the=the, noun=chance.noun(item)), images[:1], images[1])


def object_replace(chance: Chance) -> EditSample:
    """Another object in the place of one."""
    task = "element_editing/object_replace"
    before, slots = chance.scene()
    index = chance.rng.randrange(len(slots))
    item = before.objects[index]
    after, new = exchanged(chance, before, index)
    images = draw_scene(chance, before), draw_scene(chance, after)
    if chance.chance(MASKED_SHARE):
        mask = mask_around(chance, (item, new), *images, before)
        words = chance.say(f"{task}#masked", the=chance.the(item), a=chance.a(new))
        return sample(task, words, images[:1], images[1], mask)
    the = referring(chance, item, slots[index], len(slots))
    return sample(task, chance.say(task, the=the, a=chance.a(new)), images[:1], images[1])


def exchanged(chance: Chance, scene: Scene, index: int) -> tuple[Scene, SpriteObject]:
    """The scene with another thing, which has to be drawn from its name, in the place of one; and that thing."""
    item = scene.objects[index]
    assert isinstance(item, SpriteObject)
    others = [o.slug for o in scene.objects if isinstance(o, SpriteObject)]
    new = replace(item, slug=chance.concept(item.style, made=True, avoid=others).slug)
    after = with_object(scene, index, new)
    chance.draws(after, index)
    return after, new


def text_add(chance: Chance) -> EditSample:
    """A word written on the picture."""
    task = "element_editing/text_add"
    after, slot = chance.text_scene()
    return _text_edit(chance, task, replace(after, texts=()), after, slot)


def text_remove(chance: Chance) -> EditSample:
    """The word of a picture wiped off."""
    task = "element_editing/text_remove"
    before, slot = chance.text_scene(any_font=True)
    return _text_edit(chance, task, before, replace(before, texts=()), slot)


def referring(chance: Chance, item: SceneObject, slot: str, count: int) -> str:
    """Words for one object: "the cat", sometimes with its place, or among several only "the object on the left"."""
    way = chance.weighted({"name": 0.7, "both": 0.15, "place": 0.15 if count > 1 else 0.0})
    if way == "name":
        return chance.the(item)
    return f"{chance.the(item) if way == 'both' else 'the object'} {chance.where(slot)}"


def _text_edit(chance: Chance, task: str, before: Scene, after: Scene, slot: str) -> EditSample:
    text = (before.texts or after.texts)[0]
    images = draw_scene(chance, before), draw_scene(chance, after)
    words = {"text": text.text, "color": text.color, "where": chance.where(slot)}
    if not chance.chance(MASKED_SHARE):
        return sample(task, chance.say(task, **words), images[:1], images[1])
    size = chance.size_px
    layer = text_layer(text, chance.library, size)
    top, left = text_corner(text, layer, size)
    height, width = layer.veil.shape[:2]
    pad = round(chance.choice((1, 2, 3)) * size / 64)
    mask = np.zeros((size, size), bool)
    mask[max(0, top - pad) : top + height + pad, max(0, left - pad) : left + width + pad] = True
    return sample(task, chance.say(f"{task}#masked", **words), images[:1], images[1], covering(mask, *images))
