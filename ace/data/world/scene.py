"""Scenes: what a picture of the world shows, and how it is drawn.

A `Scene` is a background, objects from back to front, texts, a camera and a look, all frozen and in fractions of the
side, so that one scene can be drawn at any size and an edit is a `dataclasses.replace`. `draw` makes the picture,
`render` the picture and its exact facts (masks, depth, labels). numpy and Pillow only. Not here: what scenes there
are, instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from ace.data.world.backgrounds import COLORS, Background, paint, paint_image
from ace.data.world.landscapes import near
from ace.data.world.puppet import Puppet, draw_puppet
from ace.data.world.sprites import Layer, SpriteFace, SpriteLibrary, as_layer
from ace.errors import ConfigError
from ace.extract.degrade import mosaic
from ace.extract.lines import line_drawing

GRID_FONT = "mono"  # its letters stand in cells twice as high as wide
LOOKS = ("", "black and white", "sepia", "pixel art", "negative", "line drawing")


@dataclass(frozen=True)
class SpriteObject:
    """A drawing of a concept. x, y: centre; size: side of its square; all fractions of the picture's side."""

    slug: str
    style: str
    x: float
    y: float
    size: float
    flip: bool = False


@dataclass(frozen=True)
class FaceObject:
    """An avatar; x, y, size as in `SpriteObject`."""

    face: SpriteFace
    x: float
    y: float
    size: float
    flip: bool = False


@dataclass(frozen=True)
class PuppetObject:
    """A jointed person; x, y, size as in `SpriteObject`."""

    puppet: Puppet
    x: float
    y: float
    size: float
    flip: bool = False


SceneObject = SpriteObject | FaceObject | PuppetObject


@dataclass(frozen=True)
class TextObject:
    """A word.

    x, y: centre; height: of the font (of a letter's cell in `GRID_FONT`), as a fraction of the side; color: a name of
    `COLORS`; font: of the library."""

    text: str
    color: str
    x: float
    y: float
    height: float
    font: str


@dataclass(frozen=True)
class Camera:
    """The window that is seen:

    its centre in scene coordinates, and how much it enlarges. mirrored: left and right swapped."""

    x: float = 0.5
    y: float = 0.5
    zoom: float = 1.0
    mirrored: bool = False

    @property
    def window(self) -> tuple[float, float, float]:
        """Left, top and side in scene coordinates."""
        return self.x - 0.5 / self.zoom, self.y - 0.5 / self.zoom, 1 / self.zoom


@dataclass(frozen=True)
class Scene:
    """objects and texts: back to front, texts before all objects. look: of `LOOKS`, applied to the finished picture."""

    background: Background
    objects: tuple[SceneObject, ...] = ()
    texts: tuple[TextObject, ...] = ()
    camera: Camera = Camera()
    look: str = ""


@dataclass(frozen=True)
class Rendered:
    """image:

    (H, W, 3) uint8. object_masks: per object (H, W) float32 0..1, its visible part. depth: (H, W) float32, 0 far … 1
    near.

    classes: (H, W) uint8, the background's pixel classes. labels: per object its group ("animals", …; "people" for
    avatars and puppets)."""

    image: np.ndarray
    object_masks: tuple[np.ndarray, ...]
    depth: np.ndarray
    classes: np.ndarray
    labels: tuple[str, ...]


def draw(scene: Scene, library: SpriteLibrary, size_px: int) -> np.ndarray:
    """The picture of a scene, (size_px, size_px, 3) uint8."""
    canvas = paint_image(scene.background, size_px, scene.camera.window).copy()
    for item in scene.objects:
        lay(canvas, layer_of(item, library, size_px, scene.camera), *corner(item, size_px, scene.camera))
    for text in scene.texts:
        layer = text_layer(text, library, size_px, scene.camera.zoom)
        lay(canvas, layer, *text_corner(text, layer, size_px, scene.camera))
    if scene.camera.mirrored:
        canvas = np.ascontiguousarray(canvas[:, ::-1])
    return apply_look(canvas, scene.look)


def render(scene: Scene, library: SpriteLibrary, size_px: int) -> Rendered:
    """The picture of a scene and its exact facts.

    Objects have one depth each: that of the ground they stand on, and a little."""
    painted = paint(scene.background, size_px, scene.camera.window)
    depth = painted.depth.copy()
    masks: list[np.ndarray] = []
    labels: list[str] = []
    for item in scene.objects:
        alpha = object_alpha(item, library, size_px, scene.camera)
        for mask in masks:
            mask *= 1 - alpha
        masks.append(alpha)
        foot = _seen(item.x, item.y, scene.camera)[1] + item.size * scene.camera.zoom / 2
        depth += (min(1.0, float(near(foot)) + 0.28) - depth) * alpha
        labels.append(
            _concept_groups(library).get(item.slug, "objects") if isinstance(item, SpriteObject) else "people"
        )
    classes = painted.classes
    if scene.camera.mirrored:
        masks = [np.ascontiguousarray(m[:, ::-1]) for m in masks]
        depth, classes = np.ascontiguousarray(depth[:, ::-1]), np.ascontiguousarray(classes[:, ::-1])
    return Rendered(draw(scene, library, size_px), tuple(masks), depth, classes, tuple(labels))


def object_alpha(item: SceneObject, library: SpriteLibrary, size_px: int, camera: Camera = Camera()) -> np.ndarray:
    """Where an object is, (size_px, size_px) float32 0..1, as if nothing were in front of it."""
    alpha = np.zeros((size_px, size_px), np.float32)
    layer = layer_of(item, library, size_px, camera)
    into, out_of = _overlap(size_px, layer.veil.shape, *corner(item, size_px, camera))
    alpha[into] = layer.alpha[out_of]
    return alpha


def layer_of(item: SceneObject, library: SpriteLibrary, size_px: int, camera: Camera = Camera()) -> Layer:
    """The drawing of one object, n x n; n = its side in pixels as the camera sees it."""
    side = side_px(item, size_px, camera)
    if isinstance(item, SpriteObject):
        layer = library.layer(item.slug, item.style, side)
    elif isinstance(item, FaceObject):
        layer = library.face_layer(item.face, side)
    else:
        layer = _puppet_layer(item.puppet, side)
    return Layer(*(array[:, ::-1] for array in layer)) if item.flip else layer


def side_px(item: SceneObject, size_px: int, camera: Camera = Camera()) -> int:
    """The side of an object's square in pixels."""
    return max(1, round(item.size * camera.zoom * size_px))


def corner(item: SceneObject, size_px: int, camera: Camera = Camera()) -> tuple[int, int]:
    """Top and left pixel of an object's square, before mirroring; may lie outside the picture."""
    side = side_px(item, size_px, camera)
    x, y = _seen(item.x, item.y, camera)
    return round(y * size_px - side / 2), round(x * size_px - side / 2)


def lay(canvas: np.ndarray, layer: Layer, top: int, left: int) -> None:
    """Lay a drawing over canvas (H, W, 3) uint8, square, in place; what falls outside is cut off."""
    height, width = canvas.shape[:2]
    if height != width:
        raise ConfigError(f"scenes are square, this canvas is {width}x{height} px")
    into, out_of = _overlap(height, layer.veil.shape, top, left)
    mixed = canvas[into] * layer.veil[out_of]  # uint16: at most 255 * 255 + 127 with what follows
    mixed += layer.ink[out_of]
    mixed //= 255
    canvas[into] = mixed


def text_layer(text: TextObject, library: SpriteLibrary, size_px: int, zoom: float = 1.0) -> Layer:
    """A word, filled with its colour, outlined in black or white, whichever contrasts."""
    height_px = max(6, round(text.height * zoom * size_px))
    glyphs = [_glyph(letter, text.font, height_px, library) for letter in text.text]
    whole, inner = (np.concatenate(parts, axis=1)[..., None] for parts in zip(*glyphs, strict=True))
    fill = np.array(COLORS[text.color], np.uint16)
    outline = np.array((20, 20, 24) if fill @ np.array((299, 587, 114)) > 120_000 else (250, 250, 250), np.uint16)
    return Layer(fill * inner + outline * (whole - inner) + np.uint16(127), (255 - whole).repeat(3, axis=2))


def text_corner(text: TextObject, layer: Layer, size_px: int, camera: Camera = Camera()) -> tuple[int, int]:
    """Top and left pixel of a word, before mirroring."""
    x, y = _seen(text.x, text.y, camera)
    height, width = layer.veil.shape[:2]
    return round(y * size_px - height / 2), round(x * size_px - width / 2)


def apply_look(image: np.ndarray, look: str) -> np.ndarray:
    """A look over a whole picture (H, W, 3) uint8. Raises ConfigError for a look that is not in `LOOKS`."""
    if not look:
        return image
    if look == "negative":
        return 255 - image
    if look == "pixel art":
        blocks = mosaic(image, max(2, image.shape[0] // 32)).astype(np.int32)
        return ((blocks + 42) // 85 * 85).astype(np.uint8)
    luma = image @ np.array((0.299, 0.587, 0.114), np.float32)
    if look == "black and white":
        return np.repeat(luma.round().astype(np.uint8)[..., None], 3, 2)
    if look == "sepia":
        return (luma[..., None] * np.array((1.07, 0.87, 0.62), np.float32) + 8).clip(0, 255).astype(np.uint8)
    if look == "line drawing":
        return line_drawing(image)
    raise ConfigError(f"unknown look {look!r}: one of {', '.join(LOOKS[1:])}")


def _seen(x: float, y: float, camera: Camera) -> tuple[float, float]:
    """Scene coordinates to picture coordinates (before mirroring)."""
    return (x - camera.x) * camera.zoom + 0.5, (y - camera.y) * camera.zoom + 0.5


def _overlap(side: int, shape: tuple[int, ...], top: int, left: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The common part of a square canvas and a patch laid at (top, left), as slices of each."""
    t0, l0 = max(0, top), max(0, left)
    t1, l1 = max(t0, min(side, top + shape[0])), max(l0, min(side, left + shape[1]))
    return (slice(t0, t1), slice(l0, l1)), (slice(t0 - top, t1 - top), slice(l0 - left, l1 - left))


@lru_cache(maxsize=8)
def _concept_groups(library: SpriteLibrary) -> dict[str, str]:
    return {c.slug: c.group for c in library.concepts}


@lru_cache(maxsize=2000)
def _puppet_layer(puppet: Puppet, side: int) -> Layer:
    return as_layer(draw_puppet(puppet, side))


@lru_cache(maxsize=4000)
def _glyph(letter: str, font: str, height_px: int, library: SpriteLibrary) -> tuple[np.ndarray, np.ndarray]:
    """Opacity of a letter with its outline, and of its inside: (h, w) uint16, 0 to 255, read-only.

    In `GRID_FONT` it stands in the middle of a cell that is height_px high and half as wide."""
    factor = 3  # drawn so many times as large and reduced
    on_grid = font == GRID_FONT
    face = library.font(font, round(height_px * factor * (0.72 if on_grid else 1.0)))
    edge = max(1, round(height_px * factor * (0.04 if on_grid else 0.07)))
    _, top, _, bottom = face.getbbox("H", anchor="ls")
    if on_grid:
        size = max(1, round(height_px / 2)), height_px
        left = (size[0] * factor - face.getlength(letter)) / 2
    else:
        start, _, end, _ = face.getbbox(letter, stroke_width=edge, anchor="ls")
        size = max(1, -(-round(end - start) // factor)), -(-sum(face.getmetrics()) // factor) + 2
        left = -start
    at = (left, (size[1] * factor - (bottom - top)) / 2 - top)
    drawn = []
    for stroke in (edge, 0):
        canvas = Image.new("L", (size[0] * factor, size[1] * factor))
        ImageDraw.Draw(canvas).text(at, letter, fill=255, font=face, stroke_width=stroke, anchor="ls")
        drawn.append(np.asarray(canvas.resize(size, Image.Resampling.BOX)).astype(np.uint16))
    whole, inner = np.maximum(*drawn), drawn[1]
    whole.setflags(write=False)
    inner.setflags(write=False)
    return whole, inner
