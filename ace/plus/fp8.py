"""8-bit floats with one scale per layer: a linear layer that keeps its weight so, on any device and without a package.

The published cast has no scales: weights below 0.016 then fall into the format's subnormal range and lose digits.

Not here: files in 8 bits (`plus/convert.py`), other kinds of fewer bits (`plus/quantize.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
FP8_LARGEST = 448.0


class Fp8Linear(nn.Module):
    """A linear layer whose weight (R, C) is kept in 8-bit floats with one scale, and computes in its input's type.

    The bytes are a buffer of integers, so that a change of the model's number type leaves them alone."""

    bytes: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: float, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("bytes", weight.contiguous().view(torch.uint8))
        self.register_buffer("bias", bias)
        self.scale = scale

    @property
    def weight(self) -> Tensor:
        """The weight as it counts, float32."""
        return self.bytes.view(FP8).float() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, C) → (…, R)."""
        product = F.linear(x, self.bytes.view(FP8).to(x.dtype)) * self.scale
        return product if self.bias is None else product + self.bias.to(x.dtype)


def to_fp8(weight: Tensor, scaled: bool = True) -> tuple[Tensor, float]:
    """(8-bit floats, scale): scale so that the largest value is the format's largest; unscaled is the published cast.

    Values beyond the range are cut at its end."""
    weight = weight.float()
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    scale = largest / FP8_LARGEST if scaled and largest > 0 else 1.0
    return (weight / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8), scale
