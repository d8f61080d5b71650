"""A linear layer that takes the CPU's faster matrix kernel where there is one: the same sums, rounded differently.

torch multiplies on CPUs with MKL, which on some processors (AMD's above all) is slower than oneDNN. `Linear` calls
oneDNN with the layer's own, unchanged weight whenever nothing speaks against it, and lets it apply an MLP's GELU on the
way. Everything else sees a plain `nn.Linear`: saving, adapters, casts, offloading and quantising need no care.

Not here: weights in other formats (torchao's and diffusers' own).
"""

from __future__ import annotations

import platform
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_FEATURES = 512  # below, the kernel gains little, and sums would depend on how many rows are multiplied at once
_X86 = platform.machine().lower() in ("x86_64", "amd64")


@cache
def onednn_has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor: without AVX-512 its kernel fails."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Linear(nn.Linear):
    """x ↦ gelu?(x Wᵀ + b)."""

    def forward(self, x: Tensor, gelu: str | None = None) -> Tensor:
        """(…, in_features) → (…, out_features). gelu: None, "none" (exact) or "tanh"."""
        if self._suits_onednn(x):
            kind, how = ("none", "") if gelu is None else ("gelu", gelu)
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, kind, [], how)
        out = super().forward(x)
        return out if gelu is None else F.gelu(out, approximate=gelu)

    def _suits_onednn(self, x: Tensor) -> bool:
        """True for inference on an x86 CPU with a plain weight in the precision of x; compiled code has its own."""
        weight = self.weight
        return (
            _X86
            and min(self.in_features, self.out_features) >= MIN_FEATURES
            and type(weight) is nn.Parameter  # torchao's and other libraries' tensors are classes of their own
            and weight.device.type == "cpu" == x.device.type
            and x.dtype == weight.dtype
            and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and onednn_has_bfloat16()))
            and weight.is_contiguous()  # oneDNN falls back to plain loops otherwise
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and torch.backends.mkldnn.is_available()
        )
