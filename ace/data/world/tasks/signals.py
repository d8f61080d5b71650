"""Low-level analysis and controllable generation: a picture and its signal map, each way round.

The ten signals are exact: from masks, depth and joints of the scene, or computed from the picture. Some samples
concern only a marked region, the rest of the picture stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ace.data.sample import EditSample
from ace.data.world.backgrounds import PATTERNS
from ace.data.world.chance import LINE_STYLE, Chance
from ace.data.world.levels import DEFAULT_STYLE
from ace.data.world.puppet import keypoints
from ace.data.world.scene import PuppetObject, Scene, draw, object_alpha, render
from ace.data.world.sprites import HELD_OUT_STYLE
from ace.data.world.tasks.common import random_mask, sample
from ace.extract import draw_depth, draw_edges, draw_segments, draw_skeleton
from ace.extract.degrade import blur, gray, jpeg, low_resolution, mosaic, noise
from ace.extract.lines import doodle, draw_contours, scribble
from ace.extract.segments import CLASSES

REGIONAL_SHARE = 0.15
# words for a signal in instructions; the degradations have names of their own
SIGNAL_WORDS: dict[str, tuple[str, ...]] = {
    "segmentation": ("segmentation map", "segmentation", "class map"),
    "depth": ("depth map", "depth image", "map of distances"),
    "pose": ("pose map", "human pose skeleton", "pose skeleton"),
    "mosaic": ("mosaic", "mosaic of blocks"),
    "gray": ("grayscale image", "gray image", "black and white image"),
    "edge": ("edge map", "canny edge map", "edge image"),
    "doodle": ("doodle", "simple ink doodle"),
    "contour": ("contour map", "contour drawing", "outline drawing"),
    "scribble": ("scribble", "rough scribble"),
}
DEGRADATIONS = ("blur", "noise", "jpeg", "low resolution")
# how often each degradation is asked for; noise cannot be predicted pixel by pixel
_MADE_WORSE = {"blur": 0.4, "noise": 0.12, "jpeg": 0.2, "low resolution": 0.28}
_PUT_RIGHT = {"blur": 0.3, "noise": 0.3, "jpeg": 0.15, "low resolution": 0.25}


@dataclass(frozen=True)
class Signal:
    """picture, map:

    (H, W, 3) uint8. caption: what the picture shows. kind: the degradation's name, else the signal's."""

    picture: np.ndarray
    map: np.ndarray
    caption: str
    kind: str


def analyse(chance: Chance, name: str) -> EditSample:
    """low_level_analysis/<name>: the signal map of a picture."""
    signal = make_signal(chance, name, made=False)
    return _asked(chance, f"low_level_analysis/{name}", signal, signal.picture, signal.map)


def control(chance: Chance, name: str) -> EditSample:
    """controllable_generation/<name>: the picture of a signal map and a caption."""
    signal = make_signal(chance, name, made=True)
    return _asked(chance, f"controllable_generation/{name}", signal, signal.map, signal.picture)


def make_signal(chance: Chance, name: str, *, made: bool) -> Signal:
    """A scene's picture with its map. made: the picture will have to be drawn from the map and the caption."""
    scene, caption = _scene_for(chance, name, made=made)
    size = chance.size_px
    image = draw(scene, chance.library, size)
    kind = name
    if name == "degradation":
        kind = chance.weighted(_PUT_RIGHT if made else _MADE_WORSE)
    return Signal(image, signal_map(chance, scene, image, kind), caption, kind)


def signal_map(chance: Chance, scene: Scene, image: np.ndarray, kind: str) -> np.ndarray:
    """The map of one kind (a signal, or a degradation's name) of a scene and its picture."""
    size = chance.size_px
    if kind == "segmentation":
        drawn = render(scene, chance.library, size)
        classes = drawn.classes.astype(int)
        for mask, label in zip(drawn.object_masks, drawn.labels, strict=True):
            classes[mask > 0.5] = CLASSES.index(label)
        return draw_segments(classes)
    if kind == "depth":
        return draw_depth(render(scene, chance.library, size).depth)
    if kind == "pose":
        return skeleton(scene, size)
    if kind == "contour":
        return draw_contours(render(scene, chance.library, size).object_masks, size)
    if kind == "doodle":
        return line_art(chance, scene)
    if kind == "edge":
        return draw_edges(image)
    if kind == "scribble":
        return scribble(image)
    if kind == "gray":
        return gray(image)
    if kind == "mosaic":
        return mosaic(image, max(2, size // 16))
    if kind == "blur":
        return blur(image, size * chance.choice((0.018, 0.025, 0.035)))
    if kind == "noise":
        return noise(image, chance.choice((18.0, 28.0, 40.0)), chance.rng.getrandbits(32))
    if kind == "jpeg":
        return jpeg(image, chance.choice((6, 10, 15)))
    return low_resolution(image, max(2, size // chance.choice((32, 21))))


def skeleton(scene: Scene, size_px: int) -> np.ndarray:
    """The pose map of the puppet of a scene, (size_px, size_px, 3) uint8."""
    item = next(o for o in scene.objects if isinstance(o, PuppetObject))
    points = (keypoints(item.puppet) - 0.5) * item.size + (item.x, item.y)
    return draw_skeleton(points.astype(np.float32), size_px)


def line_art(chance: Chance, scene: Scene) -> np.ndarray:
    """The sprites of a scene in line art on white, (H, W, 3) uint8."""
    size = chance.size_px
    ink = np.zeros((size, size), np.float32)
    for item in scene.objects:
        ink = np.maximum(ink, object_alpha(replace(item, style=LINE_STYLE), chance.library, size))
    return doodle(np.dstack([np.zeros((size, size, 3), np.uint8), (ink * 255).round().astype(np.uint8)]))


def _scene_for(chance: Chance, name: str, *, made: bool) -> tuple[Scene, str]:
    """A scene that a signal suits, with its caption."""
    if name == "pose":
        scene = chance.puppet_scene()
        return scene, f"{scene.objects[0].puppet.all_words}, {scene.background.preposition} {scene.background.words}"
    if name == "doodle":
        style = chance.choice((DEFAULT_STYLE, DEFAULT_STYLE, "fluent-flat")) if not made else DEFAULT_STYLE
        scene, slots = chance.scene(made=made, style=style, also=LINE_STYLE)
        return scene, chance.caption(scene, slots)
    background = None
    if name in ("depth", "segmentation") and chance.chance(0.6):
        background = chance.landscape()
    elif name in ("edge", "scribble"):  # lines of a pattern would drown those of the objects
        while (background := chance.background()).kind in PATTERNS[2:]:
            pass
    style = None
    if made:
        style = HELD_OUT_STYLE if chance.held_out_style else DEFAULT_STYLE
    scene, slots = chance.scene(made=made, style=style, background=background)
    return scene, chance.caption(scene, slots)


def _asked(chance: Chance, task: str, signal: Signal, given: np.ndarray, wanted: np.ndarray) -> EditSample:
    mask = None
    if chance.chance(REGIONAL_SHARE):
        mask = random_mask(chance)
        inside = mask[..., None]
        picture = signal.picture
        given, wanted = np.where(inside, given, picture), np.where(inside, wanted, picture)
    kind = "degradation" if signal.kind in DEGRADATIONS else signal.kind
    family = task.split("/")[0]
    words = {"caption": signal.caption, "signal": chance.choice(SIGNAL_WORDS.get(kind, ("degraded image",)))}
    key = f"{family}#{'regional' if mask is not None else 'whole'}"
    own = f"{task}#{signal.kind}" if kind == "degradation" else task
    if mask is None and chance.chance(0.65):
        key = own
    elif mask is not None and kind == "degradation":
        key = f"{own}#regional"
    instruction = chance.say(key, **words)
    return sample(task, instruction, (given,), wanted, mask)
