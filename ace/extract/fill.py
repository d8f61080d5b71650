"""Filling in what a mask removes: MI-GAN (Sargsyan et al. 2023), LaMa where its weights are given, or OpenCV.

All take image (H, W, 3) uint8 and mask (H, W) bool, True = fill, and return (H, W, 3) uint8 equal to the image outside
the mask.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ace.errors import ImageError, MissingDependencyError
from ace.extract.onnx import open_onnx
from ace.extract.weights import find_weights

LAMA_PX = 512  # LaMa's ONNX exports take this side


class MIGAN:
    """MI-GAN's whole pipeline in one ONNX file. Raises MissingDependencyError where it or onnxruntime is missing."""

    name = "MI-GAN"

    def __init__(self, num_threads: int = 1) -> None:
        self._session = open_onnx(find_weights("migan"), num_threads)

    def fill(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Raises ImageError for a mask of another size."""
        _check(image, mask)
        if not mask.any():
            return image.copy()
        keep = np.where(mask, np.uint8(0), np.uint8(255))  # 0 = hole
        (made,) = self._session.run(
            None, {"image": image.transpose(2, 0, 1)[None].copy(), "mask": keep[None, None].copy()}
        )
        return np.where(mask[..., None], made[0].transpose(1, 2, 0), image)


class LaMa:
    """LaMa (Suvorov et al. 2022) from an ONNX export of big-lama with inputs image and mask, as Carve/LaMa-ONNX has it.

    Raises MissingDependencyError if the file is not there."""

    name = "LaMa"

    def __init__(self, path: Path, num_threads: int = 1) -> None:
        if not path.is_file():
            raise MissingDependencyError(
                f"LaMa's weights are not at {path}: get lama_fp32.onnx of Carve/LaMa-ONNX (Apache-2.0) from the hub"
            )
        self._session = open_onnx(path, num_threads)

    def fill(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Raises ImageError for a mask of another size."""
        _check(image, mask)
        height, width = mask.shape
        small = cv2.resize(image, (LAMA_PX, LAMA_PX), interpolation=cv2.INTER_AREA)
        hole = cv2.resize(mask.astype(np.uint8), (LAMA_PX, LAMA_PX), interpolation=cv2.INTER_NEAREST)
        first, second = (value.name for value in self._session.get_inputs())
        (made,) = self._session.run(
            None,
            {
                first: (small.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32),
                second: hole[None, None].astype(np.float32),
            },
        )
        made = made[0].transpose(1, 2, 0)
        made = (made if made.max() > 2 else made * 255).clip(0, 255).astype(np.uint8)
        return np.where(mask[..., None], cv2.resize(made, (width, height), interpolation=cv2.INTER_CUBIC), image)


def smear(image: np.ndarray, mask: np.ndarray, radius_px: float = 3.0) -> np.ndarray:
    """OpenCV's filling (Telea 2004): for thin masks; needs no weights. Raises ImageError for a mask of another size."""
    _check(image, mask)
    made = cv2.inpaint(image, mask.astype(np.uint8), radius_px, cv2.INPAINT_TELEA)
    return np.where(mask[..., None], made, image)


def _check(image: np.ndarray, mask: np.ndarray) -> None:
    if mask.shape != image.shape[:2]:
        raise ImageError(f"the mask is {mask.shape[1]}x{mask.shape[0]} px, not the picture's size: resize it")
