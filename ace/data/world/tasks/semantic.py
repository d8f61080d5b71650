"""Semantic editing: the same content in another style, place, time, pose or view."""

from __future__ import annotations

from dataclasses import replace

from ace.data.sample import EditSample
from ace.data.wordings import FACE_OLD_WORDS, FACE_WORDS, LOOK_WORDS, TIME_WORDS
from ace.data.world.backgrounds import TIMES, Background
from ace.data.world.chance import Chance
from ace.data.world.puppet import POSE_REQUESTS, POSES
from ace.data.world.scene import LOOKS, Camera, PuppetObject, Scene, SpriteObject
from ace.data.world.sprites import STYLE_NAMES
from ace.data.world.tasks.common import changed_box, draw_scene, in_style, sample, scene_edit

ZOOM = 1.5
SHIFT = 0.2  # of the side


def style(chance: Chance) -> EditSample:
    """Another set of drawings, or a look over the whole picture."""
    task = "semantic_editing/style"
    before, _ = chance.scene()
    after, words = restyled(chance, before)
    chance.restyled = after
    return in_style(scene_edit(chance, task, chance.say(task, style=words), before, after), after)


def restyled(chance: Chance, scene: Scene) -> tuple[Scene, str]:
    """A scene of sprites in another style or look, and words for it."""
    slugs = [item.slug for item in scene.objects if isinstance(item, SpriteObject)]
    name = chance.other_style(scene.objects[0].style, slugs) if slugs and chance.chance(0.6) else None
    if name is None:
        look = chance.choice([look for look in LOOKS[1:] if look != scene.look])
        return replace(scene, look=look), chance.choice(LOOK_WORDS[look])
    objects = tuple(replace(o, style=name) if isinstance(o, SpriteObject) else o for o in scene.objects)
    return replace(scene, objects=objects), chance.choice(STYLE_NAMES[name])


def face(chance: Chance) -> EditSample:
    """One attribute of an avatar."""
    task = "semantic_editing/face"
    before = chance.face_scene()
    item = before.objects[0]
    attribute, other = chance.choice(chance.library.face_edits(item.face))
    after = replace(before, objects=(replace(item, face=other),))
    images = draw_scene(chance, before), draw_scene(chance, after)
    words = chance.say(
        task, change=face_request(chance, attribute, item.face.attributes[attribute], other.attributes[attribute])
    )
    mask = changed_box(chance, *images) if chance.chance(0.25) else None
    return sample(task, words, images[:1], images[1], mask)


def face_request(chance: Chance, attribute: str, old: str, value: str) -> str:
    """What to ask for so that an attribute changes from an old value to a new one: "add glasses"."""
    phrases = FACE_WORDS.get((attribute, value)) or FACE_WORDS[attribute, "*"]
    return (
        chance.choice(phrases)
        .replace("<value>", value)
        .replace("<old>", FACE_OLD_WORDS.get((attribute, old), attribute))
    )


def background(chance: Chance) -> EditSample:
    """Another background behind the same objects."""
    task = "semantic_editing/background"
    kind = chance.weighted({"objects": 0.8, "puppet": 0.1, "face": 0.1})
    if kind == "objects":
        before, _ = chance.scene()
    else:
        before = chance.puppet_scene() if kind == "puppet" else chance.face_scene()
    new = chance.new_background(before)
    words = chance.say(task, background=new.words, prep=new.preposition)
    return scene_edit(chance, task, words, before, replace(before, background=new))


def time_of_day(chance: Chance) -> EditSample:
    """The same place at another time of day."""
    task = "semantic_editing/time_of_day"
    place = chance.landscape()
    before, _ = chance.scene(background=place)
    time = chance.choice([t for t in TIMES if t != place.time_of_day])
    after = replace(before, background=Background(place.kind, (), time))
    return scene_edit(chance, task, time_request(chance, time), before, after)


def time_request(chance: Chance, time: str) -> str:
    """How to ask for a time of day."""
    names, moments = TIME_WORDS[time]
    return chance.say("semantic_editing/time_of_day", time=chance.choice(names), at=chance.choice(moments))


def pose(chance: Chance) -> EditSample:
    """The same person in another pose."""
    task = "semantic_editing/pose"
    before = chance.puppet_scene()
    after, request = posed(chance, before)
    return scene_edit(chance, task, chance.say(task, pose=request), before, after)


def posed(chance: Chance, scene: Scene) -> tuple[Scene, str]:
    """The puppet of a scene in another pose, and how to ask for it."""
    item = scene.objects[0]
    assert isinstance(item, PuppetObject)
    name = chance.choice([p for p in POSES if p != item.puppet.pose])
    puppet = replace(item.puppet, pose=name)
    return replace(scene, objects=(replace(item, puppet=puppet), *scene.objects[1:])), chance.choice(
        POSE_REQUESTS[name]
    )


def camera(chance: Chance) -> EditSample:
    """The same scene seen from nearer, further, beside or in a mirror."""
    task = "semantic_editing/camera"
    before, _ = chance.scene() if chance.chance(0.85) else (chance.puppet_scene(), ())
    move = chance.choice(("zoom in", "zoom out", "focus", "left", "right", "up", "down", "mirror", "mirror"))
    words = {"the": ""}
    if move == "focus":
        item = chance.choice(before.objects)
        seen = Camera(item.x, item.y, min(2.0, 0.9 / item.size))
        words["the"] = chance.the(item)
    else:
        seen = moved(move)
    return scene_edit(chance, task, chance.say(f"{task}#{move}", **words), before, replace(before, camera=seen))


def moved(move: str) -> Camera:
    """A camera after one move from the usual place."""
    if move == "mirror":
        return Camera(mirrored=True)
    if move.startswith("zoom"):
        return Camera(zoom=ZOOM if move == "zoom in" else 1 / ZOOM)
    dx, dy = {"left": (-SHIFT, 0.0), "right": (SHIFT, 0.0), "up": (0.0, -SHIFT), "down": (0.0, SHIFT)}[move]
    return Camera(0.5 + dx, 0.5 + dy)
