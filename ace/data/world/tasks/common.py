"""What every task file needs: pictures of scenes, masks around a change, and the record."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from ace.conditions import ConditionUnit, LongContextConditionUnit
from ace.data.sample import EditSample
from ace.data.world.chance import Chance
from ace.data.world.scene import Scene, SceneObject, SpriteObject, corner, draw, object_alpha, side_px

MaskShape = Literal["box", "ellipse", "blob"]
Picture = np.ndarray | Image.Image  # (H, W, 3) uint8, or RGB


def draw_scene(chance: Chance, scene: Scene) -> np.ndarray:
    """A scene drawn at this sample's size, (H, W, 3) uint8."""
    return draw(scene, chance.library, chance.size_px)


def picture(chance: Chance, scene: Scene) -> Image.Image:
    """A scene drawn at this sample's size."""
    return Image.fromarray(draw_scene(chance, scene))


def sample(
    task: str, instruction: str, images: tuple[Picture, ...], target: Picture, mask: np.ndarray | None = None
) -> EditSample:
    """A request of one round; a mask, (H, W) bool, belongs to the first image."""
    masks = (as_mask(mask), *(None for _ in images[1:])) if mask is not None else ()
    unit = ConditionUnit(instruction, tuple(map(_image, images)), masks)
    return EditSample(LongContextConditionUnit(unit), _image(target), task)


def scene_edit(chance: Chance, task: str, instruction: str, before: Scene, after: Scene) -> EditSample:
    """An edit of a whole scene without a mask."""
    return sample(task, instruction, (draw_scene(chance, before),), draw_scene(chance, after))


def in_style(made: EditSample, scene: Scene) -> EditSample:
    """The sample, its provenance saying in which style or look the sprites of its answer are drawn."""
    drawn = [item.style for item in scene.objects if isinstance(item, SpriteObject)]
    return replace(made, provenance={**made.provenance, "style": scene.look or drawn[0]})


def as_mask(mask: np.ndarray) -> Image.Image:
    """A (H, W) bool mask as a picture, white = change."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def mask_around(
    chance: Chance, items: tuple[SceneObject, ...], before: np.ndarray, after: np.ndarray, scene: Scene
) -> np.ndarray:
    """A mask (H, W) bool, True = change, around objects:

    their box, an ellipse or their shape made thicker. It covers every pixel that changes."""
    size = chance.size_px
    shape: MaskShape = chance.choice(("box", "ellipse", "blob"))
    mask = np.zeros((size, size), bool)
    pad = chance.choice((0.01, 0.03, 0.06)) * size
    for item in items:
        top, left = corner(item, size, scene.camera)
        side = side_px(item, size, scene.camera)
        if shape == "box":
            low, high = (tuple(max(0, round(v)) for v in (p - pad, p + side + pad)) for p in (top, left))
            mask[low[0] : low[1], high[0] : high[1]] = True
        elif shape == "ellipse":
            radius = side * 0.62 + pad
            mask |= _ellipse(size, left + side / 2, top + side / 2, radius, radius)
        else:
            mask |= _thicker(object_alpha(item, chance.library, size, scene.camera) > 0, max(1, round(size / 32)))
    return covering(mask, before, after)


def changed_box(chance: Chance, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The box of all changed pixels, a little larger, as a mask (H, W) bool."""
    rows, columns = np.nonzero((before != after).any(2))
    mask = np.zeros(before.shape[:2], bool)
    if rows.size:
        pad = round(chance.choice((0.02, 0.05, 0.08)) * chance.size_px)
        mask[max(0, rows.min() - pad) : rows.max() + pad + 1, max(0, columns.min() - pad) : columns.max() + pad + 1] = (
            True
        )
    return mask


def covering(mask: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The mask with every changed pixel added, so that nothing differs outside it."""
    changed = before != after
    return mask | changed[..., 0] | changed[..., 1] | changed[..., 2]


def random_mask(chance: Chance, low: float = 0.12, high: float = 0.45) -> np.ndarray:
    """A mask (H, W) bool of one box, ellipse or thick stroke, covering about `low` to `high` of the picture."""
    size = chance.size_px
    while True:
        mask = np.zeros((size, size), bool)
        shape = chance.choice(("box", "box", "ellipse", "stroke"))
        if shape == "stroke":
            drawn = Image.new("L", (size, size), 0)
            pen = ImageDraw.Draw(drawn)
            points = [(chance.rng.random() * size, chance.rng.random() * size) for _ in range(chance.choice((3, 4)))]
            width = round(size * chance.choice((0.16, 0.22, 0.28)))
            pen.line(points, fill=255, width=width, joint="curve")
            for x, y in points:
                pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
            mask = np.asarray(drawn) > 0
        else:
            w, h = (size * (0.3 + 0.5 * chance.rng.random()) for _ in range(2))
            left, top = chance.rng.random() * (size - w), chance.rng.random() * (size - h)
            if shape == "box":
                mask[round(top) : round(top + h), round(left) : round(left + w)] = True
            else:
                mask = _ellipse(size, left + w / 2, top + h / 2, w / 2, h / 2)
        if low <= mask.mean() <= high:
            return mask


def blanked(chance: Chance, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with its masked pixels painted over, mostly in grey. image: (H, W, 3) uint8; mask: (H, W) bool."""
    level = chance.choice((127, 127, 127, 255, 0))
    return np.where(mask[..., None], np.uint8(level), image)


def _image(made: Picture) -> Image.Image:
    return Image.fromarray(made) if isinstance(made, np.ndarray) else made


def _ellipse(size: int, x: float, y: float, across: float, down: float) -> np.ndarray:
    """(size, size) bool, True inside; centre and radii in pixels."""
    steps = np.arange(size, dtype=np.float32) + 0.5
    return ((steps - x) / across)[None, :] ** 2 + ((steps - y) / down)[:, None] ** 2 <= 1


def _thicker(mask: np.ndarray, reach: int) -> np.ndarray:
    """A square mask grown by so many pixels in all eight directions."""
    size, width = len(mask), 2 * reach + 1
    for _ in range(2):  # along rows, then along columns
        grown = np.zeros((size, size + 2 * reach), bool)
        grown[:, :size] = mask
        done = 1
        while done < width:  # each turn doubles how far every pixel reaches
            step = min(done, width - done)
            grown[:, step:] |= grown[:, :-step].copy()
            done += step
        mask = np.ascontiguousarray(grown[:, reach : reach + size].T)
    return mask
