"""LoRA for ACE++: the published layers of FLUX, the formats an adapter can be gone on from, and the names of ComfyUI,
where queries, keys and values are one layer.

Not here: putting adapters on a model and PEFT's format (`adapters.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ace.plus.layouts import FluxSizes, flux_sizes, pieces
from ace.plus.sources import find_plus
from ace.plus.weights import load_adapter
from ace.training.adapters import COMFYUI_FILE, lora_state, save_lora, to_comfyui
from ace.training.config import Lora, PlusRecipe
from ace.weights.adapters import find_adapter

# the published list, as diffusers names the layers: of double blocks modulation, attention and MLP of both streams, of
# single blocks both linears and the modulation; not the embedders, not the final layer
PLUS_TARGETS = (
    r"transformer_blocks\.\d+\.(norm1(_context)?\.linear|attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2))|single_transformer_blocks\.\d+\.(norm\.linear|attn\.to_[qkv]|proj_mlp|proj_out)"
)


def plain_sizes(transformer: nn.Module) -> FluxSizes:
    """The sizes of a FLUX transformer, with adapters on it or without."""
    state = transformer.state_dict()
    return flux_sizes({n.replace(".base_layer", ""): tuple(v.shape) for n, v in state.items() if "lora_" not in n})


def read_plus_lora(recipe: PlusRecipe) -> dict[str, Tensor]:
    """The adapter that a recipe goes on from: a released one by its name or address, a file, or a folder, in any format
    that inference reads; by `<layer>.lora_A.weight`, adding with a scale of 1.

    Raises ConfigError, CheckpointError or ModelNotFoundError."""
    assert recipe.lora is not None
    start = recipe.lora.start
    files = find_plus(recipe.init, [(str(find_adapter(Path(start))) if Path(start).is_dir() else start, 1.0)])
    state = load_adapter(files.adapters[-1].path, files.sizes).peft_state()
    for name, up in state.items():
        if "lora_B" in name and up.shape[1] > recipe.lora.rank:
            down = name.replace("lora_B", "lora_A")
            state[down], state[name] = _without_zeros(state[down], up)
    return state


def _without_zeros(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """A part of a fused layer without the columns that belong to its neighbours."""
    own = up.abs().amax(dim=0) > 0
    return down[own].contiguous(), up[:, own].contiguous()


def save_plus_lora(transformer: nn.Module, lora: Lora, sizes: FluxSizes, folder: Path) -> None:
    """Write the adapter in PEFT's format with diffusers' names, and in ComfyUI's with the published ones."""
    save_lora(transformer, lora, folder)
    save_file(to_comfyui(fused_lora(lora_state(transformer), sizes), lora.scale_alpha), folder / COMFYUI_FILE)


def fused_lora(state: Mapping[str, Tensor], sizes: FluxSizes) -> dict[str, Tensor]:
    """diffusers' layers of an adapter as the published ones: queries, keys and values are one layer there.

    Their pairs stand one above the other, and side by side in a block diagonal: exact, at the sum of their ranks. The
    alpha that goes with it must grow alike, so the strength of alpha / rank is kept by scaling the up weights."""
    groups: dict[str, list[tuple[int, int, Tensor, Tensor]]] = {}
    for parameter, piece in pieces(sizes).items():
        layer = parameter.removesuffix(".weight")
        if f"{layer}.lora_A.weight" in state:
            down, up = state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"]
            start = piece.start or 0
            groups.setdefault(piece.source.removesuffix(".weight"), []).append((start, len(up), down, up))
    sources = {piece.source: 0 for piece in pieces(sizes).values()}
    for piece in pieces(sizes).values():
        sources[piece.source] = max(sources[piece.source], piece.stop or 0)
    fused: dict[str, Tensor] = {}
    for layer, parts in groups.items():
        rows = sources[f"{layer}.weight"] or parts[0][1]
        rank = sum(len(down) for _, _, down, _ in parts)
        up = torch.zeros(rows, rank, dtype=parts[0][3].dtype)
        column = 0
        for start, count, down, own in parts:
            up[start : start + count, column : column + len(down)] = own * (rank / len(down))
            column += len(down)
        fused[f"{layer}.lora_A.weight"] = torch.cat([down for _, _, down, _ in parts])
        fused[f"{layer}.lora_B.weight"] = up
    return fused
