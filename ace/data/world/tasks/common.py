"""What every task file needs: pictures of scenes, masks around a change, and the record."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ace.conditions import ConditionUnit, LongContextConditionUnit
from ace.data.sample import EditSample
from ace.data.world.chance import Chance
from ace.data.world.scene import Scene, SceneObject, SpriteObject, corner, draw, object_alpha, patch

MaskShape = Literal["box", "ellipse", "blob"]


def picture(chance: Chance, scene: Scene) -> Image.Image:
    """A scene drawn at this sample's size."""
    return Image.fromarray(draw(scene, chance.library, chance.size_px))


def sample(
    task: str,
    instruction: str,
    images: tuple[Image.Image, ...],
    target: Image.Image,
    mask: Image.Image | None = None,
) -> EditSample:
    """A request of one round; a mask belongs to the first image."""
    masks = (mask, *(None for _ in images[1:])) if mask is not None else ()
    return EditSample(LongContextConditionUnit(ConditionUnit(instruction, images, masks)), target, task)


def scene_edit(chance: Chance, task: str, instruction: str, before: Scene, after: Scene) -> EditSample:
    """An edit of a whole scene without a mask."""
    return sample(task, instruction, (picture(chance, before),), picture(chance, after))


def in_style(made: EditSample, scene: Scene) -> EditSample:
    """The sample, its provenance saying in which style or look the sprites of its answer are drawn."""
    drawn = [item.style for item in scene.objects if isinstance(item, SpriteObject)]
    return replace(made, provenance={**made.provenance, "style": scene.look or drawn[0]})


def mask_around(
    chance: Chance, items: tuple[SceneObject, ...], before: Image.Image, after: Image.Image, scene: Scene
) -> Image.Image:
    """A mask (white = change) around objects:

    their box, an ellipse or their shape made thicker. It covers every pixel that changes."""
    size = chance.size_px
    shape: MaskShape = chance.choice(("box", "ellipse", "blob"))
    mask = Image.new("L", (size, size), 0)
    pen = ImageDraw.Draw(mask)
    pad = chance.choice((0.01, 0.03, 0.06)) * size
    for item in items:
        top, left = corner(item, size, scene.camera)
        side = patch(item, chance.library, size, scene.camera).shape[0]
        box = (left - pad, top - pad, left + side - 1 + pad, top + side - 1 + pad)
        if shape == "box":
            pen.rectangle(box, fill=255)
        elif shape == "ellipse":
            grow = side * 0.12
            pen.ellipse((box[0] - grow, box[1] - grow, box[2] + grow, box[3] + grow), fill=255)
        else:
            alpha = Image.fromarray((object_alpha(item, chance.library, size, scene.camera) > 0).astype(np.uint8) * 255)
            reach = 2 * max(1, round(size / 32)) + 1
            mask.paste(255, (0, 0), alpha.filter(ImageFilter.MaxFilter(reach)))
    return covering(mask, before, after)


def changed_box(chance: Chance, before: Image.Image, after: Image.Image) -> Image.Image:
    """The box of all changed pixels, a little larger, as a mask."""
    rows, columns = np.nonzero((np.asarray(before) != np.asarray(after)).any(2))
    mask = Image.new("L", before.size, 0)
    if rows.size:
        pad = round(chance.choice((0.02, 0.05, 0.08)) * chance.size_px)
        box = columns.min() - pad, rows.min() - pad, columns.max() + pad, rows.max() + pad
        ImageDraw.Draw(mask).rectangle(tuple(int(v) for v in box), fill=255)
    return mask


def covering(mask: Image.Image, before: Image.Image, after: Image.Image) -> Image.Image:
    """The mask with every changed pixel added, so that nothing differs outside it."""
    changed = (np.asarray(before) != np.asarray(after)).any(2)
    return Image.fromarray(np.where(changed, np.uint8(255), np.asarray(mask)))


def random_mask(chance: Chance, low: float = 0.12, high: float = 0.45) -> Image.Image:
    """A mask of one box, ellipse or thick stroke, covering about `low` to `high` of the picture."""
    size = chance.size_px
    while True:
        mask = Image.new("L", (size, size), 0)
        pen = ImageDraw.Draw(mask)
        shape = chance.choice(("box", "box", "ellipse", "stroke"))
        if shape == "stroke":
            points = [(chance.rng.random() * size, chance.rng.random() * size) for _ in range(chance.choice((3, 4)))]
            width = round(size * chance.choice((0.16, 0.22, 0.28)))
            pen.line(points, fill=255, width=width, joint="curve")
            for x, y in points:
                pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
        else:
            w, h = (size * (0.3 + 0.5 * chance.rng.random()) for _ in range(2))
            left, top = chance.rng.random() * (size - w), chance.rng.random() * (size - h)
            box = tuple(round(v) for v in (left, top, left + w, top + h))
            if shape == "box":
                pen.rectangle(box, fill=255)
            else:
                pen.ellipse(box, fill=255)
        if low <= np.asarray(mask).mean() / 255 <= high:
            return mask


def blanked(chance: Chance, image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The picture with its masked pixels painted over, mostly in grey. image: (H, W, 3) uint8; mask: (H, W) bool."""
    level = chance.choice((127, 127, 127, 255, 0))
    return Image.fromarray(np.where(mask[..., None], np.uint8(level), image))
