"""Multi-turn editing: two to five edits of one scene, each an exact render of the scene so far.

Later turns have no images of their own: they continue from the last answer. Only a turn with a mask brings an image,
the last answer itself. Some turns speak of earlier ones ("undo that", "put the cat back", "make it bigger").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ace.conditions import ConditionUnit, LongContextConditionUnit, Turn
from ace.data.sample import EditSample
from ace.data.world.backgrounds import TIMES, Background
from ace.data.world.chance import Chance, with_object, without
from ace.data.world.levels import DEFAULT_STYLE
from ace.data.world.places import CELLS, SLOTS, WORD_ROWS, snapped
from ace.data.world.scene import Camera, Scene, SceneObject, SpriteObject
from ace.data.world.tasks.common import as_mask, mask_around, picture
from ace.data.world.tasks.semantic import restyled, time_request

TASK = "multi_turn/chain"
MASKED_SHARE = 0.12
SMALLEST, LARGEST = 3, 6  # cells on a side, between which a thing may shrink and grow by one


@dataclass(frozen=True)
class ChainState:
    """A scene with the slots of its objects.

    scenes: the states before, oldest first. last: slug that the last turn was about; gone: the object that was
    removed last, and its slot."""

    scene: Scene
    slots: tuple[str, ...]
    before: tuple[ChainState, ...] = ()
    last: str | None = None
    gone: tuple[SceneObject, str] | None = None


@dataclass(frozen=True)
class Step:
    """One turn: what is asked, where it leads, and the objects that a mask would have to cover (none: no mask)."""

    words: str
    state: ChainState
    touched: tuple[SceneObject, ...] = ()


Edit = Callable[[Chance, ChainState], Step | None]


def chain(chance: Chance) -> EditSample:
    """Two to five turns on one scene; the last one is the request."""
    state, opening = _start(chance)
    count = chance.weighted({2: 0.4, 3: 0.35, 4: 0.15, 5: 0.1})
    homogeneous = chance.choice(_HOMOGENEOUS) if chance.chance(0.3) else None
    turns: list[Turn] = []
    answer = picture(chance, state.scene)
    first_image: tuple[Image.Image, ...] = (answer,)
    if opening is not None:
        turns.append(Turn(ConditionUnit(opening), answer))
        first_image = ()
    while True:
        step = _next(chance, state, homogeneous)
        following = picture(chance, step.state.scene)
        images = first_image if not turns else ()
        masks: tuple[Image.Image, ...] = ()
        if step.touched and chance.chance(MASKED_SHARE):
            images = (answer,)
            pixels = np.asarray(answer), np.asarray(following)
            masks = (as_mask(mask_around(chance, step.touched, *pixels, step.state.scene)),)
        unit = ConditionUnit(step.words, images, masks)
        if len(turns) == count - 1:
            return EditSample(LongContextConditionUnit(unit, tuple(turns)), following, TASK, {"turns": count})
        turns.append(Turn(unit, following))
        state, answer = step.state, following


def edits_around(chance: Chance, count: int) -> tuple[Scene, list[Step]]:
    """A scene of one sprite, and so many edits of everything but that sprite: things come and go, the background, the
    time of day and words change. It is the first object of every scene and is never covered."""
    scene, _ = chance.scene(1, vary=False)
    slot = chance.choice([name for name in SLOTS if SLOTS[name][0] != 1])  # at a side: there is room for others
    x, y, size = chance.place(slot)
    assert isinstance(scene.objects[0], SpriteObject)
    scene = with_object(scene, 0, replace(scene.objects[0], x=x, y=y, size=size))
    state, steps = ChainState(scene, (slot,)), []
    while len(steps) < count:
        step = _EDITS[chance.weighted(_AROUND)](chance, state)
        if step is not None and step.state.scene.objects[:1] == scene.objects:
            steps.append(step)
            state = step.state
    return scene, steps


def _start(chance: Chance) -> tuple[ChainState, str | None]:
    """The first scene, and the caption it was made from if the conversation begins with text to image."""
    if chance.chance(0.3):
        scene, slots = chance.scene(
            chance.weighted({1: 0.7, 2: 0.3}), made=True, style=None if chance.held_out_style else DEFAULT_STYLE
        )
        return ChainState(scene, slots), chance.say(
            "text_guided_generation/text_to_image", caption=chance.caption(scene, slots)
        )
    scene, slots = chance.scene(chance.weighted({1: 0.55, 2: 0.45}), vary=False)
    return ChainState(scene, slots), None


def _next(chance: Chance, state: ChainState, homogeneous: str | None) -> Step:
    """Some edit that the state allows."""
    for _ in range(500):  # under a look only mirroring and undoing are left, one draw in nine
        name = homogeneous or chance.weighted(_WEIGHTS)
        homogeneous = homogeneous if chance.chance(0.7) else None
        step = _EDITS[name](chance, state)
        if step is not None and step.state.scene != state.scene:
            return step
    raise AssertionError("no edit fits the scene")


def _goes_on(state: ChainState, scene: Scene, **known: object) -> ChainState:
    """The state after an edit."""
    new = ChainState(scene, state.slots, (*state.before, state), state.last, state.gone)
    return replace(new, **known)  # type: ignore[arg-type]


def _plain_view(state: ChainState) -> bool:
    """True if places still mean what they say: nothing mirrored, no look over it."""
    return state.scene.camera == Camera() and not state.scene.look


def _add(chance: Chance, state: ChainState) -> Step | None:
    scene = state.scene
    if not _plain_view(state) or len(scene.objects) > 2:
        return None
    style = next((o.style for o in scene.objects if isinstance(o, SpriteObject)), DEFAULT_STYLE)
    places = {slot: chance.place(slot) for slot in SLOTS}
    items = {slot: SpriteObject("", style, x, y, size) for slot, (x, y, size) in places.items()}
    free = [s for s, item in items.items() if not any(_overlap(item, o) for o in scene.objects) and _clear(scene, item)]
    if not free:
        return None
    slot = chance.choice(free)
    item = replace(items[slot], slug=chance.concept(style, made=True, avoid=_slugs(state)).slug)
    after = replace(scene, objects=(*scene.objects, item))
    words = chance.say("element_editing/object_add", a=chance.a(item), where=chance.where(slot))
    return Step(words, _goes_on(state, after, slots=(*state.slots, slot), last=item.slug), (item,))


def _remove(chance: Chance, state: ChainState) -> Step | None:
    if not state.scene.objects or state.scene.look:
        return None
    index = chance.rng.randrange(len(state.scene.objects))
    item = state.scene.objects[index]
    slots = state.slots[:index] + state.slots[index + 1 :]
    if item.slug == state.last and chance.chance(0.4):
        words = chance.say(f"{TASK}#remove it")
    else:
        words = chance.say("element_editing/object_remove", the=chance.the(item), noun=chance.noun(item))
    after = _goes_on(state, without(state.scene, index), slots=slots, gone=(item, state.slots[index]), last=None)
    return Step(words, after, (item,) if state.scene.camera == Camera() else ())


def _replace(chance: Chance, state: ChainState) -> Step | None:
    if not state.scene.objects or state.scene.look:
        return None
    index = chance.rng.randrange(len(state.scene.objects))
    item = state.scene.objects[index]
    concept = chance.concept(item.style, made=True, avoid=_slugs(state))
    new = replace(item, slug=concept.slug)
    key = f"{TASK}#replace it" if item.slug == state.last and chance.chance(0.4) else "element_editing/object_replace"
    words = chance.say(key, the=chance.the(item), a=chance.a(new))
    after = _goes_on(state, with_object(state.scene, index, new), last=concept.slug)
    return Step(words, after, (item, new) if state.scene.camera == Camera() else ())


def _background(chance: Chance, state: ChainState) -> Step | None:
    if state.scene.look or state.scene.camera != Camera():
        return None
    new = chance.new_background(state.scene)
    words = chance.say("semantic_editing/background", background=new.words, prep=new.preposition)
    return Step(words, _goes_on(state, replace(state.scene, background=new)))


def _time(chance: Chance, state: ChainState) -> Step | None:
    place = state.scene.background
    if not place.has_time or state.scene.look:
        return None
    time = chance.choice([t for t in TIMES if t != place.time_of_day])
    words = time_request(chance, time)
    return Step(words, _goes_on(state, replace(state.scene, background=Background(place.kind, (), time))))


def _style(chance: Chance, state: ChainState) -> Step | None:
    if not state.scene.objects or state.scene.look:
        return None
    after, style = restyled(chance, state.scene)
    return Step(chance.say("semantic_editing/style", style=style), _goes_on(state, after))


def _mirror(chance: Chance, state: ChainState) -> Step | None:
    camera = replace(state.scene.camera, mirrored=not state.scene.camera.mirrored)
    return Step(chance.say("semantic_editing/camera#mirror"), _goes_on(state, replace(state.scene, camera=camera)))


def _text(chance: Chance, state: ChainState) -> Step | None:
    scene = state.scene
    if not _plain_view(state) or not chance.library.fonts:
        return None
    if scene.texts:
        text = scene.texts[0]
        words = chance.say("element_editing/text_remove", text=text.text, color=text.color)
        return Step(words, _goes_on(state, replace(scene, texts=())))
    texts = (chance.text(scene.background, slot) for slot in ("top", "bottom"))
    fitting = [text for text in texts if all(_clear(replace(scene, texts=(text,)), o) for o in scene.objects)]
    if not fitting:
        return None
    text = fitting[0]
    slot = "top" if text.y < 0.5 else "bottom"
    words = chance.say("element_editing/text_add", text=text.text, color=text.color, where=chance.where(slot))
    return Step(words, _goes_on(state, replace(scene, texts=(text,))))


def _undo(chance: Chance, state: ChainState) -> Step | None:
    if not state.before:
        return None
    earlier = state.before[-1]
    return Step(chance.say(f"{TASK}#undo"), replace(earlier, before=(*state.before, state)))


def _put_back(chance: Chance, state: ChainState) -> Step | None:
    if state.gone is None or not _plain_view(state):
        return None
    item, slot = state.gone
    if item.slug in _slugs(state) or any(_overlap(item, o) for o in state.scene.objects):
        return None
    after = replace(state.scene, objects=(*state.scene.objects, item))
    words = chance.say(f"{TASK}#put back", the=chance.the(item))
    return Step(words, _goes_on(state, after, slots=(*state.slots, slot), last=item.slug, gone=None), (item,))


def _resize(chance: Chance, state: ChainState) -> Step | None:
    """Bigger or smaller by one cell; the last one spoken of, or the only one."""
    scene = state.scene
    about = [i for i, o in enumerate(scene.objects) if o.slug == state.last] or ([0] if len(scene.objects) == 1 else [])
    if not about or scene.look or scene.camera != Camera():
        return None
    index = about[0]
    item = scene.objects[index]
    grow = chance.chance(0.5)
    cells = round(item.size * CELLS) + (1 if grow else -1)
    if not SMALLEST <= cells <= LARGEST:
        return None
    x, y, size = snapped(item.x, item.y, cells)
    new = replace(item, size=size, x=x, y=y)
    if any(_overlap(new, o) for i, o in enumerate(scene.objects) if i != index) or not _clear(scene, new):
        return None
    it = "it" if item.slug == state.last and chance.chance(0.6) else chance.the(item)
    words = chance.say(f"{TASK}#{'bigger' if grow else 'smaller'}", it=it)
    return Step(words, _goes_on(state, with_object(scene, index, new), last=item.slug), (item, new))


def _slugs(state: ChainState) -> list[str]:
    return [o.slug for o in state.scene.objects if isinstance(o, SpriteObject)]


def _overlap(a: SceneObject, b: SceneObject) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) < (a.size + b.size) * 0.499


def _clear(scene: Scene, item: SceneObject) -> bool:
    """True if no word of the scene lies in the rows of an object."""
    return all(abs(item.y - t.y) >= (item.size + WORD_ROWS / CELLS) / 2 - 1e-6 for t in scene.texts)


_EDITS: dict[str, Edit] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "background": _background,
    "time": _time,
    "style": _style,
    "mirror": _mirror,
    "text": _text,
    "undo": _undo,
    "put back": _put_back,
    "resize": _resize,
}
_WEIGHTS: dict[str, float] = {
    "add": 0.2,
    "remove": 0.13,
    "replace": 0.15,
    "background": 0.15,
    "time": 0.08,
    "style": 0.05,
    "mirror": 0.04,
    "text": 0.06,
    "undo": 0.07,
    "put back": 0.15,
    "resize": 0.1,
}
_AROUND: dict[str, float] = {"add": 0.25, "remove": 0.2, "background": 0.25, "time": 0.15, "text": 0.15}
_HOMOGENEOUS = ("add", "replace", "background", "time")
