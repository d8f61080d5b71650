"""The blocks of the MobileNetV2 family (Sandler et al. 2018) as TensorFlow trained them: EfficientNet-Lite2 in
`naming.py`, MobileNetV2 in `safety.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-3  # of the batch norms


def inverted_blocks(channels: int, stages: Sequence[tuple[int, int, int, int, int]]) -> nn.Sequential:
    """The blocks of stages (how many, kernel px, stride of the first, expansion, channels out), one after the other."""
    blocks = []
    for count, kernel, stride, expand, out in stages:
        for number in range(count):
            blocks.append(InvertedBlock(channels, out, kernel, stride if number == 0 else 1, expand))
            channels = out
    return nn.Sequential(*blocks)


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does ("same"): an odd pixel goes to the right and below."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        missing = [
            max((-(-size // step) - 1) * step + kernel - size, 0)
            for size, kernel, step in zip(input.shape[2:], self.kernel_size, self.stride, strict=True)
        ]
        (top, left) = (n // 2 for n in missing)
        return super().forward(F.pad(input, (left, missing[1] - left, top, missing[0] - top)))


class InvertedBlock(nn.Module):
    """An inverted bottleneck: widen, look around in each channel, narrow; added to its input where the sizes agree."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = channels_in * expand
        self.widens, self.adds = expand > 1, stride == 1 and channels_in == channels_out
        if self.widens:
            self.expand_conv, self.bn0 = SameConv(channels_in, wide, 1, 1), nn.BatchNorm2d(wide, EPSILON)
        self.depthwise_conv, self.bn1 = SameConv(wide, wide, kernel, stride, wide), nn.BatchNorm2d(wide, EPSILON)
        self.project_conv, self.bn2 = SameConv(wide, channels_out, 1, 1), nn.BatchNorm2d(channels_out, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.widens else x
        y = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(y)))))
        return x + y if self.adds else y
