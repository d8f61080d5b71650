"""Objects that can be taken out of a picture: chosen by area and box, removed by filling, and checked for leftovers
(B.5.2). Used by object removal, addition and replacement, and by layer editing.

The paper names objects with RAM; no package carries it, so an object is called by its colour, by what a classifier is
sure that it is or what the caption says and it finds likely, and by its place ("the brown dog on the left"); one that
it cannot name is an "object".
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import cv2
import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import pixels
from ace.data.tasks.describe import name_color, name_place_of
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import PERSON, UNNAMED, Tools
from ace.extract.faces import Face
from ace.extract.objects import Object

SMALLEST, LARGEST = 0.01, 0.3  # share of the picture
LEAST_FILL = 0.35  # share of its box: less is a tangle or a frame
LEAST_SOLID = 0.65  # share of its convex outline: less is a rim or what something else left over
MOST_BORDER = 0.04  # share of the picture's border that it may lie on
MOST_LEFT = 0.5  # overlap with the object above which what was filled in counts as the object again
MOST_SEAM = 1.6  # step across the filled border, in steps that the picture itself has there
MOST_ALIKE = 0.5  # of the certainty of its name that may be left after a removal
LEAST_VISIBLE = 14.0  # mean difference of the blurred pictures, of 255: below it nobody sees that something went
BLUR = 40  # the shorter side is so many times as long as the blur is wide: what is finer is texture


@dataclass(frozen=True)
class Removal:
    """object: what was taken out. hole: (H, W) bool, it and a margin. without: (H, W, 3) uint8, filled. words: what it
    is called, such as "red cup on the left"."""

    object: Object
    hole: np.ndarray
    without: np.ndarray
    words: str


def candidates(image: np.ndarray, tools: Tools, smallest: float = SMALLEST, largest: float = LARGEST) -> list[Object]:
    """Whole objects of a reasonable area, box, shape and place, largest first.

    Left out are rims and remnants (a small share of their convex outline), parts that lie inside another object, and
    pieces of a face."""
    found = tools.objects(image)
    faces = tools.faces(image)
    return [
        thing
        for thing in found
        if smallest <= thing.share <= largest
        and thing.box_fill >= LEAST_FILL
        and _on_border(thing.mask) <= MOST_BORDER
        and solidity(thing.mask) >= LEAST_SOLID
        and not any(is_part(thing.mask, other.mask) for other in found if other is not thing)
        and not any(_is_of_face(thing.mask, face) for face in faces)
    ]


def solidity(mask: np.ndarray) -> float:
    """Area of a mask (H, W) bool over that of its convex outline: 1 for a disc, little for a ring or a crescent."""
    hull = cv2.convexHull(np.argwhere(mask).astype(np.int32))
    return float(mask.sum() / max(cv2.contourArea(hull), 1.0))


def is_part(mask: np.ndarray, other: np.ndarray) -> bool:
    """Whether most of a mask lies inside the outer border of a larger one, such as coffee inside a cup's rim."""
    if other.sum() > 0.6 * other.size:  # that is the background
        return False
    borders, _ = cv2.findContours(other.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    whole = cv2.drawContours(np.zeros(mask.shape, np.uint8), borders, -1, 1, cv2.FILLED) > 0
    return bool(whole.sum() > 1.1 * mask.sum() and (mask & whole).sum() > 0.85 * mask.sum())


def _is_of_face(mask: np.ndarray, face: Face) -> bool:
    """Whether a mask is a face or a piece of one, and not a whole person."""
    left, top, right, bottom = (max(0, round(v)) for v in face.box)
    area = (right - left) * (bottom - top)
    return bool(mask.sum() < 3 * area and mask[top:bottom, left:right].sum() > 0.3 * mask.sum())


def remove_one(
    source: Source, rng: Random, tools: Tools, smallest: float = SMALLEST, largest: float = LARGEST
) -> Removal | Rejected:
    """Take a random object out of a picture."""
    image = pixels(source.image)
    found = candidates(image, tools, smallest, largest)
    if not found:
        return Rejected("no object of a fitting size and place")
    thing = rng.choice(found)
    hole = widen(thing.mask)
    without, reason = take_out(image, (thing.mask,), hole, tools)
    if reason:
        return Rejected(reason)
    return Removal(thing, hole, without, describe(image, thing.mask, tools, source.caption))


def take_out(
    image: np.ndarray, masks: tuple[np.ndarray, ...], hole: np.ndarray, tools: Tools
) -> tuple[np.ndarray, str | None]:
    """The picture with the hole (H, W) bool filled, (H, W, 3) uint8, and why that is no good removal of the objects
    under the masks; None if it is. Found once, because several tasks take the same object out."""

    def find() -> tuple[np.ndarray, str | None]:
        without = tools.fill(image, hole)
        reasons = (find_artifact(image, without, mask, hole, tools) for mask in masks)
        return without, next((reason for reason in reasons if reason), None)

    return tools.once("removal", (image, hole, *masks), find)


def describe(image: np.ndarray, mask: np.ndarray, tools: Tools, caption: str) -> str:
    """An object's colour, if it has one, name and place: "red cup on the left"."""
    return f"{color_and_name(image, mask, tools, caption)} {name_place_of(mask)}"


def color_and_name(image: np.ndarray, mask: np.ndarray, tools: Tools, caption: str) -> str:
    """An object's colour, if it has one and is no person, and name: "red cup", "object". caption: the picture's."""
    word = tools.word(image, mask, caption)
    color = None if word == PERSON else name_color(image, mask)
    return f"{color} {word}" if color else word


def widen(mask: np.ndarray) -> np.ndarray:
    """A mask with a margin of a 60th of the shorter side, so that no seam of the object stays; (H, W) bool."""
    reach = max(3, min(mask.shape) // 60)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel) > 0


def find_artifact(
    image: np.ndarray, without: np.ndarray, mask: np.ndarray, hole: np.ndarray, tools: Tools
) -> str | None:
    """Why a removal is no good, None if it is: too little changed, a visible seam, or the object still there.

    The last is asked of the segmenter, which must not find the object's outline at the middle of where it was, and of
    the namer, which must not be nearly as sure as before that the object's name is there."""
    if visible_change(image, without, mask) < LEAST_VISIBLE:
        return "hardly anything was removed"
    if seam(without, hole) > MOST_SEAM:
        return "the filling has a seam"
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(distance.argmax()), mask.shape)
    again = tools.segmenter.mask_at(without, [(float(x), float(y))]).mask
    overlap = (again & mask).sum() / max((again | mask).sum(), 1)
    if overlap > MOST_LEFT:
        return "something of the same outline came back"
    word = tools.word(image, mask)
    if word in (PERSON, UNNAMED):
        return None
    before, after = (tools.namer.certainty(picture, mask, word) for picture in (image, without))
    return "something of the same name came back" if after > MOST_ALIKE * before else None


def visible_change(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    """Mean difference, 0 … 255, under a mask (H, W) bool of two pictures that are blurred first: one texture in place
    of a like one differs in every pixel, and shows no one that something is gone."""
    sigma = max(2.0, min(mask.shape) / BLUR)
    soft = [cv2.GaussianBlur(picture, (0, 0), sigma).astype(np.int16) for picture in (before, after)]
    return float(np.abs(soft[0] - soft[1]).max(2)[mask].mean())


def check_visible(sample: EditSample, tools: Tools) -> str | None:
    """The check of removal and addition: who compares the two pictures sees it."""
    before, after = pixels(sample.request.current.images[0]), pixels(sample.target)
    changed = (before != after).any(2)
    seen = changed.any() and visible_change(before, after, changed) >= 0.7 * LEAST_VISIBLE  # margin and all
    return None if seen else "hardly anything changed"


def seam(image: np.ndarray, hole: np.ndarray) -> float:
    """How hard the border of a filled hole is: the mean step across it, relative to steps just outside."""
    light = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    steps = np.hypot(cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1))
    small = hole.astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    border = (cv2.dilate(small, kernel) - cv2.erode(small, kernel)) > 0
    outside = (cv2.dilate(small, np.ones((25, 25), np.uint8)) - cv2.dilate(small, np.ones((7, 7), np.uint8))) > 0
    if not border.any() or not outside.any():
        return 0.0
    return float((steps[border].mean() + 4) / (steps[outside].mean() + 4))


def _on_border(mask: np.ndarray) -> float:
    edge = np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    return float(edge.mean())
