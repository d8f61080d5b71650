"""Depth of a photograph: FastDepth (Wofk et al. 2019) in onnxruntime, or a better model of the hub.

Depth here is nearness, (H, W) float32, 0 = farthest and 1 = nearest of this picture, ready for `depth.draw_depth`.
FastDepth is small and was trained on rooms: it is the default because its weights can always be had, not because it is
good. `HubDepth` takes any depth model of transformers (MiDaS' DPT, Depth Anything) from the hub or a folder.
"""

from __future__ import annotations

import os

import cv2
import numpy as np

from ace.errors import MissingDependencyError
from ace.extract.onnx import open_onnx
from ace.extract.weights import find_weights

SIDE_PX = 224
DEPTH_ANYTHING = "depth-anything/Depth-Anything-V2-Small-hf"  # Apache-2.0
MIDAS = "Intel/dpt-hybrid-midas"  # Apache-2.0, what the paper used


class FastDepth:
    """FastDepth. Raises MissingDependencyError where its weights or onnxruntime are missing."""

    name = "FastDepth"

    def __init__(self, num_threads: int = 1) -> None:
        self._session = open_onnx(find_weights("fastdepth"), num_threads)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Nearness (H, W) of image (H, W, 3) uint8, its borders drawn to those of the picture."""
        return _stretch(self.near(image))

    def near(self, image: np.ndarray) -> np.ndarray:
        """The same in 1/m, not brought to the picture's own range: what the frames of a clip are compared in."""
        height, width = image.shape[:2]
        small = cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
        batch = (small.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32)
        (metres,) = self._session.run(None, {self._input: batch})
        near = 1 / np.maximum(metres[0, 0], 0.1)
        near = cv2.resize(near, (width, height), interpolation=cv2.INTER_LINEAR)
        guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) / np.float32(255)
        return _guided(near, guide, radius_px=max(2, max(height, width) // 32))


class HubDepth:
    """A depth model of transformers. where: hub id or folder; only files that are on disk are used unless `online`.

    Raises MissingDependencyError, naming the model, if its files are not there."""

    def __init__(self, where: str = DEPTH_ANYTHING, online: bool = False) -> None:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        self.name = where
        try:
            self._processor = AutoImageProcessor.from_pretrained(where, local_files_only=not online, backend="pil")
            self._model = AutoModelForDepthEstimation.from_pretrained(where, local_files_only=not online).eval()
        except OSError as error:
            raise MissingDependencyError(
                f"the depth model {os.path.basename(where)} is not on disk: fetch it with: hf download {where}"
            ) from error

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Nearness (H, W) of image (H, W, 3) uint8."""
        import torch

        inputs = self._processor(images=image, return_tensors="pt")
        with torch.inference_mode():
            near = self._model(**inputs).predicted_depth[0].float().numpy()
        return _stretch(cv2.resize(near, image.shape[1::-1], interpolation=cv2.INTER_CUBIC))


def _stretch(near: np.ndarray) -> np.ndarray:
    low, high = np.percentile(near, (1, 99))
    return ((near - low) / max(high - low, 1e-12)).clip(0, 1).astype(np.float32)


def _guided(values: np.ndarray, guide: np.ndarray, radius_px: int, epsilon: float = 1e-3) -> np.ndarray:
    """The guided filter (He et al. 2010): `values` smoothed, but with the edges of `guide`; both (H, W) float32."""
    size = (2 * radius_px + 1, 2 * radius_px + 1)
    mean_g, mean_v = cv2.boxFilter(guide, -1, size), cv2.boxFilter(values, -1, size)
    variance = cv2.boxFilter(guide * guide, -1, size) - mean_g * mean_g
    covariance = cv2.boxFilter(guide * values, -1, size) - mean_g * mean_v
    a = covariance / (variance + epsilon)
    b = mean_v - a * mean_g
    return cv2.boxFilter(a, -1, size) * guide + cv2.boxFilter(b, -1, size)
