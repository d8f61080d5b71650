"""Reference generation: new pictures after other pictures: their lines, their subject, their style, their face."""

from __future__ import annotations

from dataclasses import replace

from ace.data.sample import EditSample
from ace.data.world.backgrounds import Background
from ace.data.world.chance import COLOR_STYLES, Chance
from ace.data.world.levels import DEFAULT_STYLE
from ace.data.world.scene import LOOKS, Scene, SpriteObject
from ace.data.world.sprites import HELD_OUT_STYLE
from ace.data.world.tasks.common import draw_scene, in_style, sample
from ace.data.world.tasks.signals import SIGNAL_WORDS, signal_map

WHITE = Background("plain", ("white",))


def multi_condition(chance: Chance) -> EditSample:
    """A map of the objects and a picture of the place: together they decide the picture, with words for the objects."""
    task = "reference_generation/multi_condition"
    kind = chance.choice(("edge", "contour", "segmentation", "depth", "scribble", "pose"))
    if kind == "pose":
        scene = chance.puppet_scene()
        things = scene.objects[0].puppet.all_words
    else:
        style = HELD_OUT_STYLE if chance.held_out_style else DEFAULT_STYLE
        scene, slots = chance.scene(chance.weighted({1: 0.7, 2: 0.3}), made=True, style=style)
        things = chance.things(scene, slots)
    bare = Scene(WHITE, scene.objects)
    condition = signal_map(chance, bare, draw_scene(chance, bare), kind)
    place = draw_scene(chance, replace(scene, objects=()))
    words = {"things": things, "signal": chance.choice(SIGNAL_WORDS[kind])}
    if chance.chance(0.5):
        return sample(task, chance.say(task, **words), (condition, place), draw_scene(chance, scene))
    return sample(task, chance.say(f"{task}#place_first", **words), (place, condition), draw_scene(chance, scene))


def series(chance: Chance) -> EditSample:
    """The thing of two or three pictures, once more in another place."""
    task = "reference_generation/series"
    style = chance.style()
    concept = chance.concept(style, made=False)
    count = chance.weighted({2: 0.7, 3: 0.3})
    background: Background | None = None
    scenes: list[Scene] = []
    for _ in range(count + 1):
        background = chance.background(avoid=background)
        (slot,) = chance.layout(1, background)
        x, y, size = chance.place(slot)
        scenes.append(Scene(background, (SpriteObject(concept.slug, style, x, y, size),)))
    key = f"{task}#{count}"
    place = scenes[-1].background
    words = {
        "noun": chance.called(concept.slug),
        "where": chance.where(slot),
        "background": place.words,
        "prep": place.preposition,
    }
    images = tuple(draw_scene(chance, s) for s in scenes[:-1])
    return sample(task, chance.say(key, **words), images, draw_scene(chance, scenes[-1]))


def style_reference(chance: Chance) -> EditSample:
    """A picture in the style of another one; or a caption in the style of one."""
    task = "reference_generation/style_reference"
    if chance.chance(0.3):  # looks: seen in the reference, not named
        look = chance.choice(LOOKS[1:])
        content, _ = chance.scene()
        reference, _ = chance.scene()
        images = draw_scene(chance, content), draw_scene(chance, replace(reference, look=look))
        after = replace(content, look=look)
        return in_style(sample(task, chance.say(task), images, draw_scene(chance, after)), after)
    style = chance.choice(COLOR_STYLES)
    if chance.held_out_style:
        style = HELD_OUT_STYLE
        chance.unseen.add("style")
    reference, _ = chance.scene(style=style)
    if chance.chance(0.35):
        scene, slots = chance.scene(made=True, style=style)
        words = chance.say(f"{task}#caption", caption=chance.caption(scene, slots))
        return in_style(sample(task, words, (draw_scene(chance, reference),), draw_scene(chance, scene)), scene)
    after, _ = chance.scene(style=style)
    slugs = [o.slug for o in after.objects]
    other = chance.choice([s for s in COLOR_STYLES if s != style])
    if not all(other in chance.library.styles_of(slug) for slug in slugs):
        other = chance.other_style(style, slugs) or style
    content = replace(after, objects=tuple(replace(o, style=other) for o in after.objects))
    images = draw_scene(chance, content), draw_scene(chance, reference)
    return in_style(sample(task, chance.say(task), images, draw_scene(chance, after)), after)


def face_reference(chance: Chance) -> EditSample:
    """The face of a picture in another place, large or small."""
    task = "reference_generation/face_reference"
    before = chance.face_scene()
    new = chance.background(avoid=before.background)
    slot = chance.choice(("left", "middle", "right"))
    item = before.objects[0]
    if chance.chance(0.4):
        moved, words = item, {"where": chance.where("middle")}
    else:
        x, y, size = chance.place(slot)
        moved, words = replace(item, x=x, y=y, size=size), {"where": chance.where(slot)}
    key = task if moved is item else f"{task}#small"
    words |= {"background": new.words, "prep": new.preposition}
    after = replace(before, background=new, objects=(moved,))
    return sample(task, chance.say(key, **words), (draw_scene(chance, before),), draw_scene(chance, after))
