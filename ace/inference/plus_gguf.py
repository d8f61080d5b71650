"""GGUF files of a FLUX Fill transformer (2 to 8 bits per weight, as they are shared for ComfyUI).

The gguf package reads the file, diffusers' kernels unpack the weights; a layer keeps the file's bytes and unpacks them
while it works. Rows of a packed matrix are independent, so that fused layers can be split without unpacking.

Not here: other formats and the loading itself (`plus_weights.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ace.errors import CheckpointError, MissingDependencyError


class GgufFile:
    """A GGUF file's tensors, mapped, by name. Raises CheckpointError for another file, MissingDependencyError."""

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader  # type: ignore[import]
        except ImportError:
            raise MissingDependencyError(
                f"{path.name} needs the gguf package: pip install 'ace-allround[quant]'"
            ) from None
        try:
            self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise CheckpointError(
                f"{path.name} is damaged or no GGUF file ({str(error)[:80]}): get the file again"
            ) from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor; the file counts dimensions from the fastest."""
        return {name: tuple(int(side) for side in tensor.shape[::-1]) for name, tensor in self.tensors.items()}

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is quantized."""
        return self.tensors[name].tensor_type.name not in ("F32", "F16", "BF16", "F64")

    def packed(self, name: str) -> tuple[Tensor, Any]:
        """A quantized tensor's bytes (R, bytes of a row), and their kind."""
        tensor = self.tensors[name]
        return torch.from_numpy(tensor.data.copy()), tensor.tensor_type

    def unpacked(self, name: str) -> Tensor:
        """A tensor as floats: float32, or as it is stored."""
        tensor = self.tensors[name]
        if self.is_packed(name):
            return _unpack(*self.packed(name)).float()
        values = torch.from_numpy(tensor.data.copy())
        if tensor.tensor_type.name == "BF16":
            values = values.view(torch.bfloat16)
        return values.reshape(self.shapes()[name])


class GgufLinear(nn.Module):
    """A linear layer (R, C) that keeps a GGUF file's bytes and computes in its input's number type."""

    bytes: Tensor
    bias: Tensor | None

    def __init__(self, packed: Tensor, kind: object, in_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, packed.shape[0]
        self.register_buffer("bytes", packed.contiguous())
        self.register_buffer("bias", None)
        self.kind = kind

    @property
    def weight(self) -> Tensor:
        """The weight as it counts, float32."""
        return _unpack(self.bytes, self.kind).float()

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, C) → (…, R)."""
        weight = _unpack(self.bytes, self.kind).to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


def _unpack(packed: Tensor, kind: object) -> Tensor:
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor  # needs the gguf package

    return dequantize_gguf_tensor(GGUFParameter(packed, quant_type=kind))
