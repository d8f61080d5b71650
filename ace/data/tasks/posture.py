"""Posture (B.4.3): the same person in another pose, out of a set that shares it, or turned to the other side.

In a set, both pictures must show a person and their skeletons must differ; the words say what can be read off the
skeleton. Else the person is cut out, the gap filled, and their mirror image put in the same place. Always global: where
the person will be is not known before.
"""

from __future__ import annotations

from random import Random

import cv2
import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import finish, pixels, say
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.things import widen
from ace.data.tasks.tools import Tools
from ace.extract.people import Person

TASK = "semantic_editing/pose"
LEAST_MOVED = 0.12  # mean distance of the joints, in torso lengths of the aligned skeletons
SMALLEST, LARGEST = 0.04, 0.45  # share of the picture that a mirrored person may take
TEMPLATES = (
    "show the same person <posture>",
    "let the person in {image} pose <posture>",
    "change the posture of the person in {image}: <posture>",
)
TEMPLATES_TURN = (
    "let the person in {image} face the other way",
    "turn the person in {image} to the other side",
    "mirror only the person in {image}, not the scene",
)
SHOULDERS, WRISTS, HIPS = (5, 6), (9, 10), (11, 12)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`semantic_editing/pose`."""
    image = pixels(source.image)
    person = tools.person(image)
    if person is None:
        return Rejected("no person found")
    if source.relation in ("content", "face", "series"):
        for other in rng.sample(source.others, len(source.others)):
            after = pixels(other.image)
            moved = tools.person(after)
            if moved is None or after.shape != image.shape:
                continue
            posture = describe_posture(moved)
            if posture and difference(person, moved) >= LEAST_MOVED:
                slots = {"posture": posture}
                return finish(
                    TASK, source, say(TEMPLATES, slots, rng), after, images=(image,), slots=slots, made_by="BlazePose"
                )
    if not SMALLEST <= person.mask.mean() <= LARGEST:
        return Rejected("the person is too small or too large to be turned")
    if person.mask[0].any() or person.mask[:, 0].any() or person.mask[:, -1].any():
        return Rejected("the person is cut off by the border")
    return finish(
        TASK,
        source,
        say(TEMPLATES_TURN, {}, rng),
        turn(image, person.mask, tools),
        images=(image,),
        made_by=f"BlazePose, {tools.filler.name}",
    )


def turn(image: np.ndarray, mask: np.ndarray, tools: Tools) -> np.ndarray:
    """The subject under a mask mirrored about its own middle, the gap filled."""
    without = tools.fill(image, widen(mask))
    columns = np.flatnonzero(mask.any(0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.0)[:, left:right][:, ::-1, None]
    flipped = image[:, left:right][:, ::-1]
    target = without.copy()
    under = without[:, left:right]
    target[:, left:right] = (flipped * alpha + under * (1 - alpha)).round().astype(np.uint8)
    return target


def difference(first: Person, second: Person) -> float:
    """Mean distance of the joints seen in both, in torso lengths, the skeletons laid over each other."""
    both = (first.visible >= 0.5) & (second.visible >= 0.5)
    if both.sum() < 5:
        return 0.0
    placed = []
    for person in (first, second):
        shoulders, hips = person.keypoints[list(SHOULDERS)].mean(0), person.keypoints[list(HIPS)].mean(0)
        torso = max(float(np.linalg.norm(shoulders - hips)), 1.0)
        placed.append((person.keypoints - shoulders) / torso)
    return float(np.linalg.norm(placed[0] - placed[1], axis=1)[both].mean())


def describe_posture(person: Person) -> str:
    """What the skeleton says about arms and bearing; "" if little is seen."""
    points, seen = person.keypoints, person.visible >= 0.5
    if not seen[list(SHOULDERS)].all():
        return ""
    raised = [
        bool(seen[wrist] and points[wrist, 1] < points[shoulder, 1])
        for wrist, shoulder in zip(WRISTS, SHOULDERS, strict=True)
    ]
    if all(raised):
        return "with both arms raised"
    if any(raised):
        return "with one arm raised"
    if seen[list(WRISTS)].all():
        width = abs(float(points[5, 0] - points[6, 0]))
        spread = abs(float(points[9, 0] - points[10, 0]))
        return "with the arms spread" if spread > 2.5 * max(width, 1) else "with the arms down"
    return ""
