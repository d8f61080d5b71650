"""Object consistency: whether two pictures show the same object, whatever is behind it.

Selective convolutional descriptors (SCDA, Wei et al. 2017, arXiv 1604.04994): of the places that the last convolution
of EfficientNet-Lite2 describes, those that answer more than average are taken for the object, of them the largest
connected part; their descriptors, averaged and maximised, are the object's. The paper names an object consistency score
for general editing (section 3.1) and does not say which; this is ours.

Not here: where the object is exactly (`objects.py`), what it is called (`naming.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from ace.extract.naming import load_efficientnet

SIDE_PX = 260
WIDTH = 2 * 1280
_MEAN, _STD = 127.0, 128.0


class ObjectFeatures:
    """Descriptors of the main object of pictures. Raises MissingDependencyError where the weights are missing."""

    def __init__(self) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._net = load_efficientnet().to(self._device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N, WIDTH) float32 of length 1 for images (H, W, 3) uint8 of any sizes; products of rows are consistencies,
        0 … 1."""
        small = np.stack([cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA) for image in images])
        batch = torch.from_numpy((small.transpose(0, 3, 1, 2) - np.float32(_MEAN)) / np.float32(_STD))
        maps = self._net.maps(batch.to(self._device)).cpu().numpy()  # (N, 1280, 9, 9)
        return np.stack([describe_object(one) for one in maps])


def describe_object(maps: np.ndarray) -> np.ndarray:
    """The descriptor (2 · C,) of length 1 of the object in maps (C, H, W): mean and maximum over its places."""
    inside = maps[:, object_places(maps)]  # (C, places)
    parts = [part / max(float(np.linalg.norm(part)), 1e-9) for part in (inside.mean(1), inside.max(1))]
    return (np.concatenate(parts) / np.sqrt(2)).astype(np.float32)


def object_places(maps: np.ndarray) -> np.ndarray:
    """(H, W) bool: the largest connected part of the places that answer more than average; all where none does."""
    total = maps.sum(0)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((total > total.mean()).astype(np.uint8), connectivity=8)
    if len(stats) < 2:
        return np.ones(total.shape, bool)
    return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
