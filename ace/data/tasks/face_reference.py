"""Face-reference editing (B.8.2): a portrait whose face is erased, and another picture of the same person.

Needs a set of one person's pictures with one face each; with a face embedder their similarity must lie between 0.8 and
0.9. The face is erased wholly, so that the edit picture tells nothing of it.
"""

from __future__ import annotations

from random import Random

import cv2
import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, as_bool, finish, pixels, say
from ace.data.tasks.face import SMALLEST_PX, face_area
from ace.data.tasks.inpainting import empty
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import FACE_SIMILARITY, Tools
from ace.extract.faces import Face

TASK = "reference_generation/face_reference"
MASK_SHARE = 0.6
TEMPLATES = (
    "put the face of {image1} into {image}",
    "the person in {image} is the one in {image1}: restore the face",
    "complete {image} with the face of the person in {image1}",
    "fill the erased face of {image}, it is the person of {image1}",
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`reference_generation/face_reference`."""
    if source.relation != "face" or not source.others:
        return Rejected("no other picture of the person")
    image, other = pixels(source.image), rng.choice(source.others)
    reference = pixels(other.image)
    here, there = tools.faces(image), tools.faces(reference)
    if len(here) != 1 or len(there) != 1:
        return Rejected("not one face in each picture", f"{len(here)} and {len(there)}")
    if min(here[0].box[2] - here[0].box[0], here[0].box[3] - here[0].box[1]) < SMALLEST_PX:
        return Rejected("the face is too small")
    if tools.embedder is not None:
        similarity = float(tools.embedder.embed(image, here[0]) @ tools.embedder.embed(reference, there[0]))
        if not FACE_SIMILARITY[0] <= similarity <= FACE_SIMILARITY[1]:
            return Rejected("the faces are not similar enough or too similar", f"{similarity:.2f}")
    mask = erased_area(image, here[0], tools)
    emptied = empty(image, mask, rng)
    regional = rng.random() < MASK_SHARE
    return finish(
        TASK,
        source,
        say(TEMPLATES, {}, rng),
        image,
        images=(emptied, reference),
        masks=(mask if regional else None, None),
        variant=REGIONAL if regional else GLOBAL,
        made_by="MTCNN, face mesh",
    )


def erased_area(image: np.ndarray, face: Face, tools: Tools) -> np.ndarray:
    """(H, W) bool: the face with a margin; its outline where it can be measured, else its box."""
    height, width = image.shape[:2]
    mesh = tools.face_mesh(image, face)
    if mesh is not None:
        area = face_area(mesh, height, width)
    else:
        left, top, right, bottom = (round(v) for v in face.box)
        area = np.zeros((height, width), bool)
        area[top:bottom, left:right] = True
    reach = max(3, round((face.box[2] - face.box[0]) * 0.08))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(area.astype(np.uint8), kernel) > 0


def check(sample: EditSample, tools: Tools) -> str | None:
    """The target and the reference show one face each, the edit picture none where it was."""
    edit, reference = (pixels(image) for image in sample.request.current.images)
    if len(tools.faces(reference)) != 1 or len(tools.faces(pixels(sample.target))) != 1:
        return "not one face in reference and target"
    mask = sample.request.current.masks[0]
    left = tools.faces(edit)
    if mask is None:
        return "the face was not erased" if left else None
    erased = as_bool(mask)
    return "the face was not erased" if any(erased[_middle(face, erased.shape)] for face in left) else None


def _middle(face: Face, shape: tuple[int, ...]) -> tuple[int, int]:
    x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    return min(int(y), shape[0] - 1), min(int(x), shape[1] - 1)
