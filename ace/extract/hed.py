"""Soft edges: holistically-nested edge detection (Xie and Tu 2015), a VGG-16 with five side outputs, in plain torch.

The weights (trained on BSDS500) are read out of a Keras file with h5py; TensorFlow is not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ace.errors import CheckpointError, MissingDependencyError
from ace.extract.weights import find_weights
from ace.extras import install_command

_BLOCKS = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))  # in, out, convolutions
_MEAN_BGR = np.array((104.00699, 116.66877, 122.67892), np.float32)
LARGEST_SIDE_PX = 1024  # larger pictures are reduced


class HED(nn.Module):
    """The network. forward: pictures (N, 3, H, W), BGR less the mean, to edge probabilities (N, 1, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(*(nn.Conv2d(c_in if k == 0 else c_out, c_out, 3, padding=1) for k in range(count)))
            for c_in, c_out, count in _BLOCKS
        )
        self.sides = nn.ModuleList(nn.Conv2d(c_out, 1, 1) for _, c_out, _ in _BLOCKS)
        self.fuse = nn.Conv2d(5, 1, 1)
        self.requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        x, sides = pictures, []
        for number, (block, side) in enumerate(zip(self.blocks, self.sides, strict=True)):
            if number:
                x = F.max_pool2d(x, 2, ceil_mode=True)
            for convolution in block.children():
                x = F.relu(convolution(x))
            sides.append(F.interpolate(side(x), size=pictures.shape[-2:], mode="bilinear", align_corners=False))
        return torch.sigmoid(self.fuse(torch.cat(sides, 1)))


class SoftEdges:
    """HED with its published weights. Raises MissingDependencyError where they or h5py are missing."""

    name = "HED"

    def __init__(self, path: Path | None = None) -> None:
        self.net = load_hed(path or find_weights("hed"))

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Edge probabilities (H, W) float32 0 … 1 of image (H, W, 3) uint8."""
        height, width = image.shape[:2]
        factor = min(1.0, LARGEST_SIDE_PX / max(height, width))
        small = image
        if factor < 1:
            small = cv2.resize(image, (round(width * factor), round(height * factor)), interpolation=cv2.INTER_AREA)
        batch = torch.from_numpy((small[..., ::-1] - _MEAN_BGR).transpose(2, 0, 1)[None].astype(np.float32))
        edges = self.net(batch)[0, 0].numpy()
        return edges if factor == 1 else cv2.resize(edges, (width, height), interpolation=cv2.INTER_LINEAR)


def load_hed(path: Path) -> HED:
    """The network with weights in Keras' layout, kernels (height, width, in, out).

    Raises MissingDependencyError without h5py, CheckpointError for a file that does not fit."""
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(f"HED needs h5py: {install_command('data')}") from error
    net = HED()
    try:
        with h5py.File(path) as file:
            for number, block in enumerate(net.blocks, 1):
                names = [name for name in sorted(_group(file, f"block{number}/layers"), key=_order) if "conv" in name]
                for convolution, name in zip(block.children(), names, strict=True):
                    _copy(convolution, file[f"block{number}/layers/{name}/vars"])
            for number, side in enumerate(net.sides, 1):
                _copy(side, file[f"dsn{number}/vars"])
            _copy(net.fuse, file["fuse/vars"])
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} does not hold the weights of HED ({error})") from error
    return net.eval()


def _order(name: str) -> int:
    """Keras numbers layers of one kind: conv2d, conv2d_1, conv2d_2."""
    last = name.rsplit("_", 1)[-1]
    return int(last) if last.isdigit() else 0


def _group(file: Any, path: str) -> list[str]:
    """The names in a group of an HDF5 file."""
    return list(file[path])


def _copy(convolution: nn.Module, values: Any) -> None:
    assert isinstance(convolution, nn.Conv2d)
    convolution.weight.data.copy_(torch.from_numpy(values["0"][()].transpose(3, 2, 0, 1).copy()))
    assert convolution.bias is not None
    convolution.bias.data.copy_(torch.from_numpy(values["1"][()]))
