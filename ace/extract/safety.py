"""Unsafe pictures: NSFWJS's MobileNetV2 (Infinite Red, MIT; 224 px), which tells drawings, hentai, neutral,
pornographic and sexy pictures apart.

Its makers give 90 % right answers over the five classes; so it is a filter that lets some through, and no judge. The
weights are 8-bit numbers in base64 inside a script of the npm package `nsfwjs`; the scripts are read, never run.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ace.errors import CheckpointError
from ace.extract.mobile import EPSILON, SameConv, inverted_blocks
from ace.extract.weights import find_weights

SIDE_PX = 224
CLASSES = ("drawing", "hentai", "neutral", "porn", "sexy")
UNSAFE = ("hentai", "porn", "sexy")
_AT_ONCE = 32
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (3, 3, 2, 6, 32),
    (4, 3, 2, 6, 64),
    (3, 3, 1, 6, 96),
    (3, 3, 2, 6, 160),
    (1, 3, 1, 6, 320),
)


class SafetyNet:
    """The classifier with its published weights. Raises MissingDependencyError where they are missing."""

    def __init__(self) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._net = load_safety_net(find_weights("nsfwjs-model"), find_weights("nsfwjs-weights")).to(self._device)

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N,) float32: how likely images (H, W, 3) uint8 are unsafe, 0 … 1."""
        return self.classify(images)[:, [CLASSES.index(name) for name in UNSAFE]].sum(1)

    @torch.inference_mode()
    def classify(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N, 5) float32: how likely each of `CLASSES` is, rows sum to 1."""
        found = []
        for start in range(0, len(images), _AT_ONCE):
            batch = torch.cat([_resized(image) for image in images[start : start + _AT_ONCE]])
            found.append(self._net(batch.to(self._device)).softmax(1).cpu().numpy())
        return np.concatenate(found) if found else np.empty((0, len(CLASSES)), np.float32)


class MobileNetV2(nn.Module):
    """(N, 3, 224, 224), values 0 … 1, to logits (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = SameConv(3, 32, 3, 2), nn.BatchNorm2d(32, EPSILON)
        self.blocks = inverted_blocks(32, _STAGES)
        self.conv_head, self.bn1 = SameConv(320, 1280, 1, 1), nn.BatchNorm2d(1280, EPSILON)
        self.dense_1, self.dense_2, self.dense_3 = nn.Linear(1280, 256), nn.Linear(256, 128), nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn0(self.conv_stem(x)))  # (N, 32, 112, 112)
        x = self.blocks(x)  # (N, 320, 7, 7)
        x = F.relu6(self.bn1(self.conv_head(x))).mean((2, 3))  # (N, 1280)
        return self.dense_3(F.relu(self.dense_2(F.relu(self.dense_1(x)))))


def load_safety_net(model: Path, weights: Path) -> MobileNetV2:
    """The network out of the package's two scripts. Raises CheckpointError if they hold another one."""
    net = MobileNetV2()
    try:
        net.load_state_dict(read_weights(model.read_text("ascii"), weights.read_text("ascii")))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{weights.name} does not hold the weights of MobileNetV2 ({error})") from error
    return net.eval().requires_grad_(False)


def read_weights(model: str, weights: str) -> dict[str, Tensor]:
    """Tensors by our names: `model` lists names, shapes, minima and steps of 8-bit numbers, `weights` is one long
    base64 text of them, in that order."""
    listed = re.findall(
        r'{name:"([^"]+)",shape:\[([0-9e,]+)\],dtype:"float32",quantization:{min:([^,]+),scale:([^,]+),dtype:"uint8"}}',
        model,
    )
    longest = max(re.findall(r'"([A-Za-z0-9+/=]+)"', weights), key=len, default="")
    numbers = np.frombuffer(base64.b64decode(longest), np.uint8)
    shapes = [[round(float(side)) for side in shape.split(",")] for _, shape, _, _ in listed]
    if sum(map(prod, shapes)) != len(numbers):
        raise ValueError(f"{len(numbers)} numbers for {len(listed)} tensors")
    found, start = {}, 0
    for (name, _, low, step), shape in zip(listed, shapes, strict=True):
        part = numbers[start : start + prod(shape)].reshape(shape).astype(np.float32)
        start += part.size
        layer, _, what = name.rpartition("/")
        found[f"{_layer(layer)}.{_PARAMETERS[what]}"] = torch.from_numpy(
            _as_torch(part * float(step) + float(low), what)
        )
    return found


_PARAMETERS = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_PARTS = {
    "expand": "expand_conv",
    "expand_BN": "bn0",
    "depthwise": "depthwise_conv",
    "depthwise_BN": "bn1",
    "project": "project_conv",
    "project_BN": "bn2",
}
_ENDS = {"Conv1": "conv_stem", "bn_Conv1": "bn0", "Conv_1": "conv_head", "Conv_1_bn": "bn1"}


def _layer(name: str) -> str:
    """Our name of a layer of Keras' MobileNetV2."""
    found = re.fullmatch(r"(?:expanded_conv|block_(\d+))_(\w+)", name)
    if found:
        return f"blocks.{found[1] or 0}.{_PARTS[found[2]]}"
    return _ENDS.get(name, name)


def _as_torch(values: np.ndarray, what: str) -> np.ndarray:
    """TensorFlow's order of axes as torch's."""
    if what == "depthwise_kernel":  # (H, W, C, 1)
        return np.ascontiguousarray(values.transpose(2, 3, 0, 1))
    if what == "kernel":  # (H, W, in, out) or (in, out)
        return np.ascontiguousarray(values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T)
    return values


def _resized(image: np.ndarray) -> Tensor:
    """(1, 3, 224, 224), values 0 … 1, stretched as NSFWJS does it (bilinear, corners kept, nothing smoothed)."""
    x = torch.tensor(np.asarray(image, np.float32).transpose(2, 0, 1)[None]) / 255
    return F.interpolate(x, (SIDE_PX, SIDE_PX), mode="bilinear", align_corners=True)
