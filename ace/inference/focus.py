"""Work where the mask is: the part of a photograph around its mask, at the model's full working size, and back.

A small mask in a large photograph, worked at the whole picture's budget, comes back blurred. `focus_box` finds the
mask's box with context around it; a family makes its picture of `crop_opened(...)` and `crop_mask(...)` as of any other
photograph, and `uncrop` lays the answer into the whole scene, ready for `paste_back`. Geometry only.

Not here: when a request wants it (`ImageRules.focus`), pasting (`preserve.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ace.conditions.images import OpenedImage
from ace.errors import ShapeError

MAX_BOX_ASPECT = 2.0  # of the part that is worked on, where the photograph has room for it
_LEAST_GAIN = 0.8  # of the picture's area: a larger box is not worth the lost surroundings


@dataclass(frozen=True)
class Box:
    """A part of a picture in its own px, upright: left and top included, right and bottom not."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in px."""
        return self.right - self.left, self.bottom - self.top

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """As Pillow has boxes."""
        return self.left, self.top, self.right, self.bottom

    def __str__(self) -> str:
        """As recipes have it: "left,top,right,bottom"."""
        return ",".join(map(str, self.corners))


def focus_box(mask: Image.Image, *, below: float, margin: float, working_px: int) -> Box | None:
    """The part of a picture to work on, None for all of it.

    mask: "L" of the picture's size, weights above 0 may change. below: share of the picture under which it is worth it
    (`ImageRules.focus_below`). margin: context on each side, in shares of the mask's longer side. working_px: pixels
    that the model works at, width times height: a smaller box is not enlarged but gets more context, and a picture
    that fits as it is needs none."""
    width, height = mask.size
    change = np.asarray(mask.convert("L")) > 0
    if width * height <= working_px or not change.any() or change.mean() >= below:
        return None
    columns, rows = np.flatnonzero(change.any(axis=0)), np.flatnonzero(change.any(axis=1))
    left, right, top, bottom = int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
    context = margin * max(right - left, bottom - top)
    wide, high = right - left + 2 * context, bottom - top + 2 * context
    wide, high = max(wide, high / MAX_BOX_ASPECT), max(high, wide / MAX_BOX_ASPECT)
    grow = max(1.0, math.sqrt(working_px / (wide * high)))
    wide, high = min(width, round(wide * grow)), min(height, round(high * grow))
    if wide * high < working_px:  # the picture is narrow: more of its long side
        wide, high = min(width, max(wide, working_px // high)), min(height, max(high, working_px // wide))
    if wide * high > _LEAST_GAIN * width * height:
        return None
    x, y = _around((left + right) / 2, wide, width), _around((top + bottom) / 2, high, height)
    return Box(x, y, x + wide, y + high)


def _around(middle: float, length: int, limit: int) -> int:
    """Where a stretch of that length around the middle begins, within 0 to `limit`."""
    return min(max(round(middle - length / 2), 0), limit - length)


def crop_opened(picture: OpenedImage, box: Box) -> OpenedImage:
    """The part of a picture with everything that belongs to it."""
    image = picture.image.crop(box.corners)
    return replace(
        picture,
        image=image,
        stored=image if picture.stored is picture.image else picture.stored.crop(box.corners),
        alpha=None if picture.alpha is None else picture.alpha.crop(box.corners),
        deep=None if picture.deep is None else picture.deep[box.top : box.bottom, box.left : box.right],
    )


def crop_mask(mask: Image.Image, box: Box) -> Image.Image:
    """The part of a mask."""
    return mask.crop(box.corners)


def uncrop(picture: OpenedImage, answer: Image.Image, box: Box) -> Image.Image:
    """The whole scene (RGB, sRGB, the picture's size) with an answer of any size where its part was.

    Raises ShapeError for a box outside the picture."""
    width, height = picture.size
    if not (0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height):
        raise ShapeError(f"the part {box} lies outside a picture of {width}x{height} px")
    fitted = answer.convert("RGB")
    if fitted.size != box.size:
        fitted = fitted.resize(box.size, Image.Resampling.BICUBIC)
    scene = picture.image.copy()
    scene.paste(fitted, (box.left, box.top))
    return scene
