"""GGUF files of a FLUX Fill transformer (2 to 8 bits per weight, as they are shared for ComfyUI).

The gguf package reads the file, diffusers' quantizer keeps a layer's bytes and unpacks them while it works. Rows of a
packed matrix are independent, so that fused layers can be split without unpacking.

Not here: other formats and the loading itself (`plus/weights.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ace.errors import CheckpointError, MissingDependencyError
from ace.extras import install_command
from ace.plus.layouts import Piece


class GgufFile:
    """A GGUF file's tensors, mapped, by name. Raises CheckpointError for another file, MissingDependencyError."""

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader  # type: ignore[import]
        except ImportError:
            raise MissingDependencyError(f"{path.name} needs the gguf package: {install_command('quant')}") from None
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

    def packed(self, name: str, piece: Piece) -> Tensor:
        """A piece of a quantized tensor as it is: bytes (R, bytes of a row) as diffusers' GGUFParameter."""
        from diffusers.quantizers.gguf.utils import GGUFParameter  # needs the gguf package

        tensor = self.tensors[name]
        return GGUFParameter(piece.of(torch.from_numpy(tensor.data.copy())).clone(), quant_type=tensor.tensor_type)

    def unpacked(self, name: str) -> Tensor:
        """A tensor as floats: float32, or as it is stored."""
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        tensor = self.tensors[name]
        if self.is_packed(name):
            return dequantize_gguf_tensor(self.packed(name, Piece(name))).float()
        values = torch.from_numpy(tensor.data.copy())
        if tensor.tensor_type.name == "BF16":
            values = values.view(torch.bfloat16)
        return values.reshape(self.shapes()[name])
