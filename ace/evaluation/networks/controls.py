"""What a control task takes out of an answer: its depth, by DPT (Ranftl et al. 2021), and its pose.

Depth is relative, 0 … 255 from the farthest to the nearest point of the picture. The pose is BlazePose's, drawn by this
package; ICE-Bench uses OpenPose, so its pose scores and ours are not the same scale.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import DPTForDepthEstimation

from ace.errors import CheckpointError, MissingDependencyError
from ace.extract.people import PoseFinder, draw_person

DEPTH = "dpt-hybrid-midas"  # Intel's weights in transformers' format
DEPTH_SIDE_PX = 384

Annotator = Callable[[Image.Image], np.ndarray]  # a picture → its map, (H, W) gray, 0 … 255


def load_depth(folder: Path) -> Annotator:
    """Depth by the network in a folder of that name. Raises MissingDependencyError, CheckpointError."""
    if not (folder / DEPTH).is_dir():
        raise MissingDependencyError(f"no {DEPTH}/ in {folder.name}")
    try:
        model = DPTForDepthEstimation.from_pretrained(folder / DEPTH, use_safetensors=True, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{DEPTH} is no DPT in transformers' format: {error}") from error
    return depth_annotator(model)


def depth_annotator(model: DPTForDepthEstimation) -> Annotator:
    """Depth by a network, at the picture's own size."""

    @torch.no_grad()
    def annotate(picture: Image.Image) -> np.ndarray:
        small = picture.convert("RGB").resize((DEPTH_SIDE_PX, DEPTH_SIDE_PX), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(small, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        depth = model(pixel_values=pixels).predicted_depth[:, None]
        size = picture.height, picture.width
        depth = torch.nn.functional.interpolate(depth, size, mode="bicubic", align_corners=False)[0, 0]
        spread = (depth.max() - depth.min()).clamp_min(1e-12)
        return ((depth - depth.min()) / spread * 255).double().numpy()

    return annotate


def load_pose() -> Annotator:
    """Poses by BlazePose. Raises MissingDependencyError where its weights are missing."""
    finder = PoseFinder()

    def annotate(picture: Image.Image) -> np.ndarray:
        person = finder.find(np.asarray(picture.convert("RGB")))
        if person is None:
            return np.zeros((picture.height, picture.width))
        drawn = draw_person(person, picture.height, picture.width)
        return np.asarray(Image.fromarray(drawn).convert("L"), dtype=np.float64)

    return annotate
