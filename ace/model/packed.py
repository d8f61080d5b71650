"""Linear layers with their weights laid out for the CPU's own matrix kernels: the same sums, faster.

`pack_linears` replaces the linears of a network's blocks by oneDNN's, whose weights are laid out once instead of in
every call, and joins the GELU of an MLP to the product before it. Results differ in the order of summation only. A
packed network runs as before and can be saved (its state has the plain weights), but not trained, moved to another
device, cast or given adapters: do that first, or `unpack_linears`.

Not here: quantisation, other devices, `torch.compile` (`ace/inference/accelerate.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from ace.errors import ConfigError
from ace.model.transformer import ACETransformer, Mlp

Kind = TypeVar("Kind", bound=nn.Module)
ROWS = 2048  # tokens that the layout is chosen for; any number can be multiplied


class PackedLinear(nn.Module):
    """x ↦ gelu?(x Wᵀ + b) with W in oneDNN's layout. gelu: None, "none" (exact) or "tanh"."""

    def __init__(self, linear: nn.Linear, gelu: str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.gelu = gelu
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        activation = ("none", "") if self.gelu is None else ("gelu", self.gelu)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, activation[0], [], activation[1])

    def plain(self) -> nn.Linear:
        """The layer as it was, without its GELU."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features)
        linear.weight = nn.Parameter(self.packed.to_dense(), requires_grad=False)
        linear.bias = self.bias
        return linear

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.packed.to_dense()

    def _load_from_state_dict(self, *args: object) -> None:
        raise ConfigError("a packed network cannot load weights: call unpack_linears first")


def can_pack(model: ACETransformer) -> bool:
    """True for a network on the CPU, in float32 or bfloat16, in a torch that has oneDNN, without adapters."""
    right = model.device.type == "cpu" and model.dtype in (torch.float32, torch.bfloat16)
    return right and torch.backends.mkldnn.is_available() and not any("lora_" in n for n, _ in model.named_modules())


def pack_linears(model: ACETransformer) -> None:
    """Pack all linears of the blocks, in place, one after the other; the plain weights are freed.

    Raises ConfigError where `can_pack` is false."""
    if not can_pack(model):
        raise ConfigError(
            f"weights in {str(model.dtype).removeprefix('torch.')} on {model.device.type} cannot be packed: "
            "this is for float32 and bfloat16 on CPUs, without adapters (fuse them first)"
        )
    for module, name, child in _linears(model, nn.Linear):
        if isinstance(module, Mlp) and name == "up":
            setattr(module, name, PackedLinear(child, module.gelu))
            module.activation = nn.Identity()
        else:
            setattr(module, name, PackedLinear(child))
    model.requires_grad_(False)


def unpack_linears(model: ACETransformer) -> None:
    """Undo `pack_linears`; the weights are exactly what they were. Gradients stay off."""
    for module, name, child in _linears(model, PackedLinear):
        setattr(module, name, child.plain())
        if isinstance(module, Mlp) and name == "up":
            module.activation = nn.GELU(module.gelu)


def _linears(model: ACETransformer, kind: type[Kind]) -> Iterator[tuple[nn.Module, str, Kind]]:
    """(owner, name, layer) of every layer of this very class in the blocks."""
    for module in list(model.blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, kind) and type(child) is kind:
                yield module, name, child
