"""Element editing:

objects added, removed and replaced, words written and wiped off. Nothing else in the picture changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from ace.data.sample import EditSample
from ace.data.world.chance import Chance, with_article, with_object, without
from ace.data.world.scene import Scene, SceneObject, text_patch
from ace.data.world.tasks.common import covering, mask_around, picture, sample

MASKED_SHARE = 0.33


def object_add(chance: Chance) -> EditSample:
    """One object more, where the words or the mask say."""
    task = "element_editing/object_add"
    count = chance.weighted({1: 0.35, 2: 0.45, 3: 0.2})
    after, slots = chance.scene(count, vary=count > 1)
    index = chance.rng.randrange(len(slots))
    made = chance.concept(after.objects[0].style, made=True, avoid=[o.slug for o in after.objects])
    item = replace(after.objects[index], slug=made.slug)
    after = with_object(after, index, item)
    before = without(after, index)
    images = picture(chance, before), picture(chance, after)
    if chance.chance(MASKED_SHARE):
        mask = mask_around(chance, (item,), *images, after)
        return sample(task, chance.say(f"{task}#masked", a=chance.a(item)), images[:1], images[1], mask)
    return sample(task, chance.say(task, a=chance.a(item), where=chance.where(slots[index])), images[:1], images[1])


def object_remove(chance: Chance) -> EditSample:
    """One object less."""
    task = "element_editing/object_remove"
    before, slots = chance.scene()
    index = chance.rng.randrange(len(slots))
    item = before.objects[index]
    images = picture(chance, before), picture(chance, without(before, index))
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
    made = chance.concept(item.style, made=True, avoid=[o.slug for o in before.objects])
    new = replace(item, slug=made.slug)
    images = picture(chance, before), picture(chance, with_object(before, index, new))
    if chance.chance(MASKED_SHARE):
        mask = mask_around(chance, (item, new), *images, before)
        words = chance.say(f"{task}#masked", the=chance.the(item), a=with_article(made.name))
        return sample(task, words, images[:1], images[1], mask)
    the = referring(chance, item, slots[index], len(slots))
    return sample(task, chance.say(task, the=the, a=with_article(made.name)), images[:1], images[1])


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
    images = picture(chance, before), picture(chance, after)
    words = {"text": text.text, "color": text.color, "where": chance.where(slot)}
    if not chance.chance(MASKED_SHARE):
        return sample(task, chance.say(task, **words), images[:1], images[1])
    size = chance.size_px
    height, width = text_patch(text, chance.library, size).shape[:2]
    mask = Image.new("L", (size, size), 0)
    pad = chance.choice((1, 2, 3)) * size / 64
    box = (
        text.x * size - width / 2 - pad,
        text.y * size - height / 2 - pad,
        text.x * size + width / 2 + pad,
        text.y * size + height / 2 + pad,
    )
    ImageDraw.Draw(mask).rectangle(tuple(np.round(box)), fill=255)
    return sample(task, chance.say(f"{task}#masked", **words), images[:1], images[1], covering(mask, *images))
