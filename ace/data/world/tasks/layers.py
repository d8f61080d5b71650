"""Layer editing: pictures taken apart into object and background, and put together again."""

from __future__ import annotations

from dataclasses import replace

from ace.data.sample import EditSample
from ace.data.world.backgrounds import Background
from ace.data.world.chance import Chance
from ace.data.world.scene import Scene, SceneObject
from ace.data.world.tasks.common import draw_scene, sample
from ace.data.world.tasks.element import referring

WHITE = Background("plain", ("white",))


def decouple(chance: Chance) -> EditSample:
    """One object alone on white, or the background without objects."""
    task = "layer_editing/decouple"
    kind = chance.weighted({"objects": 0.85, "puppet": 0.08, "face": 0.07})
    slots: tuple[str, ...] = ("middle",)
    if kind == "objects":
        before, slots = chance.scene()
    else:
        before = chance.puppet_scene() if kind == "puppet" else chance.face_scene()
    image = draw_scene(chance, before)
    if chance.chance(0.4):
        return sample(task, chance.say(f"{task}#background"), (image,), draw_scene(chance, replace(before, objects=())))
    index = chance.rng.randrange(len(before.objects))
    item = before.objects[index]
    target = draw_scene(chance, Scene(WHITE, (item,)))
    the = referring(chance, item, slots[index], len(slots)) if kind == "objects" else chance.the(item)
    return sample(task, chance.say(f"{task}#object", the=the), (image,), target)


def fusion(chance: Chance) -> EditSample:
    """Objects on white and a background become one picture."""
    task = "layer_editing/fusion"
    count = chance.weighted({1: 0.7, 2: 0.3})
    after, slots = chance.scene(count, vary=False)
    place = draw_scene(chance, replace(after, objects=()))
    target = draw_scene(chance, after)
    if count == 2:
        layers = tuple(draw_scene(chance, Scene(WHITE, (item,))) for item in after.objects)
        return sample(task, chance.say(f"{task}#two"), (place, *layers), target)
    item = after.objects[0]
    if chance.chance(0.4):  # the object comes from somewhere else, and is told where to go
        layer = draw_scene(chance, Scene(WHITE, (_centred(item),)))
        words = chance.say(f"{task}#placed", where=chance.where(slots[0]), noun=chance.noun(item))
        return sample(task, words, (place, layer), target)
    layer = draw_scene(chance, Scene(WHITE, (item,)))
    if chance.chance(0.5):
        return sample(task, chance.say(f"{task}#object_first", noun=chance.noun(item)), (layer, place), target)
    return sample(task, chance.say(task, noun=chance.noun(item)), (place, layer), target)


def _centred(item: SceneObject) -> SceneObject:
    return replace(item, x=0.5, y=0.5)
