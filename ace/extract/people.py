"""Human pose: BlazePose (Bazarevsky et al. 2020), whose two networks find a person and 33 points of it.

Only the 17 of COCO leave this file, for `pose.draw_skeleton`. One person per picture: the one it is surest of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ace.extract.onnx import open_tflite
from ace.extract.pose import draw_skeleton
from ace.extract.weights import find_weights

FINDER_PX, POSE_PX = 224, 256
# BlazePose's numbers of COCO's nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles (left before right)
COCO = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
_MARGIN = 1.25  # of the square that the second network sees
# (cells a side, boxes per cell) of the finder's three maps
_MAPS = ((28, 2), (14, 2), (7, 6))


@dataclass(frozen=True)
class Person:
    """keypoints: (17, 2) x, y in px, COCO's order. visible: (17,) 0 … 1. score: 0 … 1. mask: (H, W) bool, the body."""

    keypoints: np.ndarray
    visible: np.ndarray
    score: float
    mask: np.ndarray


class PoseFinder:
    """BlazePose. Raises MissingDependencyError where its weights or ai-edge-litert are missing."""

    name = "BlazePose"

    def __init__(self) -> None:
        self._finder = open_tflite(find_weights("pose-detector"))
        self._pose = open_tflite(find_weights("pose-landmarks"))
        cells = [np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n] * 2), -1).reshape(-1, 2) for n, _ in _MAPS]
        self._anchors = np.concatenate([np.repeat(c, count, 0) for c, (_, count) in zip(cells, _MAPS, strict=True)])

    def find(self, image: np.ndarray, min_score: float = 0.5) -> Person | None:
        """The person of image (H, W, 3) uint8, None without one."""
        height, width = image.shape[:2]
        side = max(height, width)
        square = np.zeros((side, side, 3), np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = image
        small = cv2.resize(square, (FINDER_PX, FINDER_PX), interpolation=cv2.INTER_AREA)
        boxes, scores = _run(self._finder, small / np.float32(127.5) - 1)
        best = int(scores[0, :, 0].argmax())
        if 1 / (1 + math.exp(-float(scores[0, best, 0].clip(-80, 80)))) < min_score:
            return None
        marks = boxes[0, best, 4:8].reshape(2, 2) / FINDER_PX + self._anchors[best]  # hips, and the reach of the body
        hips, end = marks * side
        reach = end - hips
        size = 2 * float(np.linalg.norm(reach)) * _MARGIN
        angle = math.degrees(math.atan2(reach[1], reach[0])) + 90  # 0 = upright
        matrix = cv2.getRotationMatrix2D((float(hips[0]), float(hips[1])), angle, POSE_PX / size)
        matrix[:, 2] += POSE_PX / 2 - hips
        crop = cv2.warpAffine(square, matrix, (POSE_PX, POSE_PX))
        values, seen, silhouette, *_ = _run(self._pose, crop / np.float32(255))
        if float(seen.ravel()[0]) < min_score:
            return None
        points = values.reshape(39, 5)[list(COCO)]
        back = cv2.invertAffineTransform(matrix)
        keypoints = cv2.transform(points[None, :, :2].copy(), back)[0] - (left, top)
        body = cv2.warpAffine(silhouette[0, ..., 0], back, (side, side), borderValue=-10.0) > 0
        return Person(
            keypoints.astype(np.float32),
            1 / (1 + np.exp(-points[:, 3].clip(-80, 80))),
            float(seen.ravel()[0]),
            body[top : top + height, left : left + width],
        )


def draw_person(person: Person, height_px: int, width_px: int, min_visible: float = 0.5) -> np.ndarray:
    """The skeleton on black, (height_px, width_px, 3) uint8; what is hidden or outside the picture is left out."""
    side = max(height_px, width_px)
    points = person.keypoints / side
    points = np.where((person.visible >= min_visible)[:, None], points, np.nan).astype(np.float32)
    return draw_skeleton(points, side)[:height_px, :width_px]


def _run(net, picture: np.ndarray) -> list[np.ndarray]:
    net.set_tensor(net.get_input_details()[0]["index"], picture[None].astype(np.float32))
    net.invoke()
    return [net.get_tensor(output["index"]) for output in net.get_output_details()]
