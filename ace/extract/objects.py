"""Objects and their masks: Segment Anything 2 (Ravi et al. 2024, hiera tiny), run in onnxruntime.

`Segmenter.find_objects` asks it about a grid of points and keeps what it is sure of, once each;
`Segmenter.mask_at` asks about one place. The last picture's features are kept, they are most of the work.

Not here: names of objects (`naming.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ace.errors import ImageError
from ace.extract.onnx import open_onnx
from ace.extract.weights import find_weights

SIDE_PX = 1024  # of the encoder's input
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_STD = np.array((0.229, 0.224, 0.225), np.float32)
_LOW_PX = 256  # of the decoder's masks
_BATCH = 4  # points asked about at once: more is no faster and takes gigabytes


@dataclass(frozen=True)
class Object:
    """Something in a picture. mask: (H, W) bool. score: how good the model thinks the mask is, 0 … 1."""

    mask: np.ndarray
    score: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom in px, the last two outside."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def share(self) -> float:
        """Of the picture."""
        return float(self.mask.mean())

    @property
    def box_fill(self) -> float:
        """How much of its box it fills."""
        left, top, right, bottom = self.box
        return float(self.mask.sum() / ((right - left) * (bottom - top)))


class Segmenter:
    """SAM 2 with its published weights. Raises MissingDependencyError where they or onnxruntime are missing."""

    def __init__(self, num_threads: int = 1) -> None:
        self._encoder = open_onnx(find_weights("sam2-encoder"), num_threads)
        self._decoder = open_onnx(find_weights("sam2-decoder"), num_threads)
        self._key: int | None = None
        self._features: dict[str, np.ndarray] = {}

    def find_objects(
        self, image: np.ndarray, grid: int = 6, min_score: float = 0.8, min_stability: float = 0.85
    ) -> list[Object]:
        """What can be told apart in image (H, W, 3) uint8, largest first.

        grid: points a side that are asked about. min_score: lowest score. min_stability: how much a mask may depend on
        where exactly it is cut, as overlap of a generous and a strict cut."""
        height, width = image.shape[:2]
        centres = (np.arange(grid) + 0.5) / grid * SIDE_PX
        points = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 1, 2).astype(np.float32)
        found: list[tuple[float, np.ndarray]] = []
        for start in range(0, len(points), _BATCH):
            part = points[start : start + _BATCH]
            masks, scores = self._decode(image, part, np.ones(part.shape[:2], np.float32))
            stable = (masks > 1).sum((2, 3)) / np.maximum((masks > -1).sum((2, 3)), 1)
            share = (masks > 0).mean((2, 3))
            good = (scores >= min_score) & (stable >= min_stability) & (share > 0.001) & (share < 0.95)
            found += [(float(scores[n, k]), masks[n, k]) for n, k in zip(*np.nonzero(good), strict=True)]
        kept: list[tuple[float, np.ndarray, np.ndarray]] = []
        for score, logits in sorted(found, key=lambda item: -item[0]):
            low = logits > 0
            if all((low & other).sum() < 0.7 * (low | other).sum() for _, other, _ in kept):
                kept.append((score, low, logits))
        objects = [Object(_enlarge(logits, height, width), score) for score, _, logits in kept]
        return sorted((o for o in objects if o.mask.any()), key=lambda o: -o.share)

    def mask_at(
        self,
        image: np.ndarray,
        points: list[tuple[float, float]] | None = None,
        box: tuple[float, float, float, float] | None = None,
        not_points: list[tuple[float, float]] | None = None,
    ) -> Object:
        """What lies at these points (x, y in px) or in a box (left, top, right, bottom), without `not_points`.

        Raises ImageError if nothing is asked about."""
        height, width = image.shape[:2]
        asked = [*(points or []), *(not_points or [])]
        labels = [1] * len(points or []) + [0] * len(not_points or [])
        if box is not None:
            asked += [box[:2], box[2:]]
            labels += [2, 3]
        if not labels:
            raise ImageError("no place is given: give points or a box")
        scaled = np.array([asked], np.float32) * (SIDE_PX / width, SIDE_PX / height)
        masks, scores = self._decode(image, scaled.astype(np.float32), np.array([labels], np.float32))
        best = int(scores[0].argmax())
        return Object(_enlarge(masks[0, best], height, width), float(scores[0, best]))

    def _decode(self, image: np.ndarray, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mask logits (N, 3, 256, 256) and scores (N, 3) for points (N, P, 2) in the encoder's px."""
        masks, scores = self._decoder.run(
            None,
            {
                **self._encode(image),
                "point_coords": points,
                "point_labels": labels,
                "mask_input": np.zeros((len(points), 1, _LOW_PX, _LOW_PX), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
            },
        )
        return masks, scores

    def _encode(self, image: np.ndarray) -> dict[str, np.ndarray]:
        key = hash((image.shape, image.tobytes()))
        if key != self._key:
            resized = cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_LINEAR)
            batch = ((resized / np.float32(255) - _MEAN) / _STD).transpose(2, 0, 1)[None]
            names = [output.name for output in self._encoder.get_outputs()]
            self._features = dict(zip(names, self._encoder.run(None, {"image": batch.copy()}), strict=True))
            self._key = key
        return self._features


def _enlarge(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask (256, 256) of logits at the picture's size; (H, W) bool."""
    return cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR) > 0
