"""Facial editing (B.4.1): preservation (same person, other picture) and transformation (smile, beard, makeup, hair).

Preservation takes two pictures of a person out of a set whose members show one face each; with a face embedder their
similarity must lie between 0.8 and 0.9. With a portrait generator (InstantID) it makes the pair. Transformation moves,
darkens or tints what the face mesh marks: a stand-in for the service the paper called, honest about it in `made_by`.
"""

from __future__ import annotations

from random import Random

import cv2
import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, caption_of, finish, pixels, say, within
from ace.data.tasks.object_replace import dye
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import ALIGNED_SIMILARITY, FACE_SIMILARITY, Tools
from ace.extract.faces import BROWS, FACE_OVAL, JAW, LIPS_INNER, LIPS_OUTER, NOSE_BASE, UPPER_EYELIDS, Face

TASK = "semantic_editing/face"
MASK_SHARE, PRESERVATION_SHARE = 0.4, 0.7
SMALLEST_PX = 40  # of a face's shorter side: less shows no attribute
HAIR_COLORS: dict[str, tuple[int, int, int]] = {
    "red": (190, 50, 40),
    "blue": (50, 80, 200),
    "pink": (240, 110, 170),
    "purple": (130, 60, 170),
    "green": (60, 150, 80),
}
LIP_COLORS: dict[str, tuple[int, int, int]] = {
    "red": (185, 20, 45),
    "pink": (225, 80, 130),
    "dark red": (120, 15, 40),
    "coral": (230, 90, 75),
}
KEEP = (
    "show the same person: <caption>",
    "keep the face of {image} and show <caption>",
    "a new picture of the person in {image}: <caption>",
    "show the person in {image} in another picture, the same face",
)
TEMPLATES: dict[str, tuple[str, ...]] = {
    "smile": ("let the person in {image} smile", "make the face in {image} smile", "add a smile to {image}"),
    "beard": (
        "give the person in {image} a beard",
        "add a stubble beard to the face in {image}",
        "grow a beard in {image}",
    ),
    "makeup": (
        "put <color> lipstick and eye shadow on the face in {image}",
        "add makeup with <color> lips to {image}",
        "make up the person in {image} with <color> lipstick",
    ),
    "hair": (
        "dye the hair of the person in {image} <color>",
        "give the person in {image} <color> hair",
        "change the hair color in {image} to <color>",
    ),
}
REGION = ("in the marked region: {instruction}", "{instruction}, change only what is marked")


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`semantic_editing/face`."""
    image = pixels(source.image)
    faces = tools.faces(image)
    if not faces:
        return Rejected("no face found")
    if len(faces) == 1 and (can_keep(source) or tools.can_portray) and rng.random() < PRESERVATION_SHARE:
        return (_portray if tools.can_portray else _preserve)(source, image, faces[0], rng, tools)
    face = faces[0]
    if min(face.box[2] - face.box[0], face.box[3] - face.box[1]) < SMALLEST_PX:
        return Rejected("the face is too small")
    mesh = tools.face_mesh(image, face)
    if mesh is None:
        return Rejected("the face cannot be measured")
    kinds = ["smile", "beard", "makeup"] + (["hair"] if tools.can_segment else [])
    kind = rng.choice(kinds)
    slots: dict[str, str] = {}
    if kind == "smile":
        after = smile(image, mesh)
    elif kind == "beard":
        after = grow_beard(image, mesh, rng.getrandbits(32))
    elif kind == "makeup":
        slots["color"] = rng.choice(list(LIP_COLORS))
        after = make_up(image, mesh, LIP_COLORS[slots["color"]])
    else:
        hair = find_hair(image, face, mesh, tools)
        if hair is None:
            return Rejected("no hair found")
        slots["color"] = rng.choice(list(HAIR_COLORS))
        soft = cv2.GaussianBlur(hair.astype(np.float32), (0, 0), 1.5)[..., None]
        after = (dye(image, HAIR_COLORS[slots["color"]]) * soft + image * (1 - soft)).round().astype(np.uint8)
    changed = (after != image).any(2)
    region = cv2.dilate(changed.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    regional = rng.random() < MASK_SHARE
    instruction = say(TEMPLATES[kind], slots, rng)
    if regional:
        instruction = rng.choice(REGION).replace("{instruction}", instruction)
    return finish(
        TASK,
        source,
        instruction,
        after,
        images=(image,),
        masks=(region if regional else None,),
        slots=slots,
        variant=REGIONAL if regional else GLOBAL,
        made_by="MTCNN, face mesh" + (", SAM 2" if kind == "hair" else ""),
    )


def check(sample: EditSample, tools: Tools) -> str | None:
    """Before and after show a face in the same place, or one face each where the pictures differ."""
    before, after = tools.faces(pixels(sample.request.current.images[0])), tools.faces(pixels(sample.target))
    return None if before and after else "the face is lost"


def can_keep(source: Source) -> bool:
    """Whether a source has other pictures of its person."""
    return source.relation == "face" and bool(source.others)


def _portray(source: Source, image: np.ndarray, face: Face, rng: Random, tools: Tools) -> EditSample | Rejected:
    """The same person in a picture that InstantID makes, the face in the same place."""
    assert tools.generators is not None and tools.embedder is not None
    caption = caption_of(source)
    slots = {"caption": caption} if caption else {}
    identity = tools.embedder.embed(image, face)
    made = tools.generators.portray(image, face, identity, caption, rng.getrandbits(32))
    found = tools.faces(made)
    if len(found) != 1:
        return Rejected("not one face in the generated picture", str(len(found)))
    similarity = float(identity @ tools.embedder.embed(made, found[0]))
    if similarity <= ALIGNED_SIMILARITY:
        return Rejected("the generated face is another one", f"{similarity:.2f}")
    return finish(TASK, source, say(KEEP, slots, rng), made, images=(image,), slots=slots, made_by="InstantID")


def _preserve(source: Source, image: np.ndarray, face: Face, rng: Random, tools: Tools) -> EditSample | Rejected:
    """The same person in another picture of the set."""
    other = rng.choice(source.others)
    after = pixels(other.image)
    found = tools.faces(after)
    if len(found) != 1:
        return Rejected("not one face in the other picture", other.id)
    if tools.embedder is not None:
        similarity = float(tools.embedder.embed(image, face) @ tools.embedder.embed(after, found[0]))
        if not FACE_SIMILARITY[0] <= similarity <= FACE_SIMILARITY[1]:
            return Rejected("the faces are not similar enough or too similar", f"{similarity:.2f}")
    caption = caption_of(other)
    slots = {"caption": caption} if caption else {}
    return finish(TASK, source, say(KEEP, slots, rng), after, images=(image,), slots=slots, made_by="MTCNN")


def smile(image: np.ndarray, mesh: np.ndarray, strength: float = 0.14) -> np.ndarray:
    """The mouth's corners moved up and outwards by `strength` of its width, what is around them pulled along."""
    left, right = mesh[61], mesh[291]
    across = (right - left) / max(float(np.linalg.norm(right - left)), 1e-6)
    up = np.array((across[1], -across[0]))
    width = float(np.linalg.norm(right - left))
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    map_x, map_y = columns.copy(), rows.copy()
    for corner, side in ((left, -1), (right, 1)):
        shift = width * strength * (up * 1.0 + across * side * 0.45)
        near = np.exp(-((columns - corner[0]) ** 2 + (rows - corner[1]) ** 2) / (2 * (0.3 * width) ** 2))
        near[near < 0.02] = 0
        map_x -= (near * shift[0]).astype(np.float32)
        map_y -= (near * shift[1]).astype(np.float32)
    moved = cv2.remap(image, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    still = (map_x == columns) & (map_y == rows)
    return within(still, image, moved)


def grow_beard(image: np.ndarray, mesh: np.ndarray, seed: int) -> np.ndarray:
    """Short dark hairs on chin, jaw and upper lip."""
    height, width = image.shape[:2]
    jaw = mesh[list(JAW)]
    lips = mesh[list(LIPS_OUTER)]
    nose = mesh[NOSE_BASE]
    middle = lips.mean(0)
    upper = jaw + (middle - jaw) * 0.42  # how far the beard reaches in from the jaw
    region = _area(np.concatenate((jaw[4:-4], upper[4:-4][::-1])), height, width)
    corner_l, corner_r = mesh[61], mesh[291]
    out = (corner_r - corner_l) * 0.16
    lip_top = nose + (middle - nose) * 0.3
    half = (corner_r - corner_l) * 0.36
    moustache = np.stack((lip_top - half, lip_top + half, corner_r + out, corner_l - out))
    region = np.maximum(region, _area(moustache, height, width))
    chin = np.stack((corner_l - out, corner_r + out, mesh[378], mesh[152], mesh[149]))
    region = np.maximum(region, _area(chin, height, width))
    size = float(np.linalg.norm(corner_r - corner_l))
    soft = cv2.GaussianBlur(region, (0, 0), size * 0.1)
    lips_area = cv2.GaussianBlur(_area(lips, height, width), (0, 0), size * 0.03)
    soft = np.where(soft > 0.04, soft, 0) * (1 - lips_area)
    grain = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    down = np.zeros((7, 7), np.float32)
    down[:, 3] = 1 / 7
    hairs = cv2.filter2D(grain, -1, down) * 1.6 if size > 60 else cv2.GaussianBlur(grain, (0, 0), 0.7)
    weight = (soft * (0.5 + 0.16 * hairs)).clip(0, 0.85)[..., None]
    made = image * (1 - weight) + np.array((42, 32, 26), np.float32) * weight
    return np.where(soft[..., None] > 0, made.round().clip(0, 255), image).astype(np.uint8)


def make_up(image: np.ndarray, mesh: np.ndarray, lips: tuple[int, int, int]) -> np.ndarray:
    """Coloured lips and shaded eyelids."""
    height, width = image.shape[:2]
    size = float(np.linalg.norm(mesh[61] - mesh[291]))
    mouth = _area(mesh[list(LIPS_OUTER)], height, width) - _area(mesh[list(LIPS_INNER)], height, width)
    mouth = cv2.GaussianBlur(mouth.clip(0, 1), (0, 0), max(0.6, size * 0.025))
    light = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None] / 255
    tint = np.array(lips, np.float32) * (0.35 + 0.95 * light)
    made = image * (1 - 0.75 * mouth[..., None]) + tint * 0.75 * mouth[..., None]
    lids = np.zeros((height, width), np.float32)
    for lid, brow in zip(UPPER_EYELIDS, BROWS, strict=True):
        line, above = mesh[list(lid)], mesh[list(brow)]
        toward = above[np.abs(above[:, None] - line[None]).sum(2).argmin(0)]
        lids = np.maximum(lids, _area(np.concatenate((line, (line + (toward - line) * 0.6)[::-1])), height, width))
    lids = cv2.GaussianBlur(lids, (0, 0), max(0.8, size * 0.05))[..., None] * 0.45
    made = made * (1 - lids) + np.array((95, 55, 105), np.float32) * lids
    touched = (mouth[..., None] > 0.004) | (lids > 0.004)
    return np.where(touched, made.round().clip(0, 255), image).astype(np.uint8)


def find_hair(image: np.ndarray, face: Face, mesh: np.ndarray, tools: Tools) -> np.ndarray | None:
    """(H, W) bool: what the segmenter finds above the forehead, without the face; None if that is not hair-sized."""
    top, chin = mesh[10], mesh[152]
    above = top + (top - chin) * 0.16
    height, width = image.shape[:2]
    if not (0 <= above[0] < width and 0 <= above[1] < height):
        return None
    skin = mesh[[1, 50, 280, 152]]
    hair = tools.segmenter.mask_at(
        image, [(float(above[0]), float(above[1]))], not_points=[(float(x), float(y)) for x, y in skin]
    ).mask & ~(_area(mesh[list(FACE_OVAL)], height, width) > 0.5)
    face_area = (face.box[2] - face.box[0]) * (face.box[3] - face.box[1])
    return hair if 0.1 * face_area < hair.sum() < 2.5 * face_area else None


def face_area(mesh: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """(H, W) bool: the inside of a face's outline."""
    return _area(mesh[list(FACE_OVAL)], height_px, width_px) > 0.5


def _area(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The inside of a closed line as (H, W) float32, 1 inside."""
    canvas = np.zeros((height, width), np.float32)
    cv2.fillPoly(canvas, [points.round().astype(np.int32)], 1.0)
    return canvas
