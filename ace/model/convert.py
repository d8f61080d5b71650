"""Published ACE transformer weights → ours, strict, key by key (published names live only here).

Upstream has one norm for queries and keys in use (`norm_q`) and one that is never applied (`norm_k`): the first becomes
`norm_qk`, the second must be present and is left out. PixArt-alpha checkpoints are first brought to ACE's names, with a
zero column for the mask channel and norms of one.

Not here: reading files, autoencoders, adapters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ace.errors import CheckpointError
from ace.model.config import ACEConfig

_TOP = {
    "x_embedder.proj": "patch_embed",
    "t_embedder.mlp.0": "time_embed.up",
    "t_embedder.mlp.2": "time_embed.down",
    "t_block.1": "time_modulation",
    "y_embedder.fc1": "text_embed.up",
    "y_embedder.fc2": "text_embed.down",
    "final_layer.linear": "final.linear",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out"}
_WRAPPERS = ("state_dict", "model", "module")


def unwrap(state: Mapping) -> Mapping[str, Tensor]:
    """A bare state dict from one that may sit under a `state_dict` key. Raises CheckpointError if there are no tensors."""
    for name in _WRAPPERS:
        if name in state and isinstance(state[name], Mapping):
            state = state[name]
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError("this file holds no state dict of tensors")
    return state


def key_map(config: ACEConfig) -> dict[str, str]:
    """Published parameter name → ours, for every parameter that is used."""
    names = {f"{old}.{part}": f"{new}.{part}" for old, new in _TOP.items() for part in ("weight", "bias")}
    names["final_layer.scale_shift_table"] = "final.modulation"
    for n in range(config.depth):
        old, new = f"blocks.{n}", f"blocks.{n}"
        names[f"{old}.scale_shift_table"] = f"{new}.modulation"
        for old_attention, new_attention in (("attn", "self_attn"), ("cross_attn", "cross_attn")):
            for old_linear, new_linear in _ATTENTION.items():
                for part in ("weight", "bias"):
                    names[f"{old}.{old_attention}.{old_linear}.{part}"] = f"{new}.{new_attention}.{new_linear}.{part}"
            if config.qk_norm:
                names[f"{old}.{old_attention}.norm_q.weight"] = f"{new}.{new_attention}.norm_qk.weight"
        for old_linear, new_linear in (("fc1", "up"), ("fc2", "down")):
            for part in ("weight", "bias"):
                names[f"{old}.mlp.{old_linear}.{part}"] = f"{new}.mlp.{new_linear}.{part}"
    return names


def from_published(state: Mapping[str, Tensor], config: ACEConfig) -> dict[str, Tensor]:
    """Convert a published ACE state dict. Raises CheckpointError naming every missing, unknown or misshapen key."""
    names = key_map(config)
    unused = {f"blocks.{n}.{a}.norm_k.weight" for n in range(config.depth) for a in ("attn", "cross_attn")}
    missing = sorted(names.keys() - state.keys())
    unknown = sorted(state.keys() - names.keys() - unused)
    if missing or unknown:
        raise CheckpointError(f"not an ACE checkpoint of this size: missing {_few(missing)}, unknown {_few(unknown)}")
    converted = {new: state[old] for old, new in names.items()}
    kernel = converted["patch_embed.weight"]
    expected = (config.hidden_size, config.in_channels, config.patch_size, config.patch_size)
    if tuple(kernel.shape) != expected:
        raise CheckpointError(f"x_embedder.proj.weight has shape {tuple(kernel.shape)}, expected {expected}")
    converted["patch_embed.weight"] = kernel.flatten(1)
    return converted


def from_pixart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring PixArt-alpha names and shapes to published ACE names (PUBLISHED_MODELS 2.1); other checkpoints pass unchanged."""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in ("pos_embed", "y_embedder.y_embedding"):
            continue
        name = name.replace("y_embedder.y_proj.", "y_embedder.")
        stem, _, part = name.rpartition(".")
        if stem.endswith(".attn.qkv"):
            targets = [stem.removesuffix("qkv") + letter for letter in "qkv"]
        elif stem.endswith(".cross_attn.kv_linear"):
            targets = [stem.removesuffix("kv_linear") + letter for letter in "kv"]
        elif stem.endswith(".cross_attn.q_linear"):
            targets = [stem.removesuffix("_linear")]
        elif stem.endswith("attn.proj"):
            targets = [stem.removesuffix("proj") + "o"]
        else:
            targets = [stem] if part in ("weight", "bias") else []
        if not targets:
            converted[name] = value
            continue
        for target, piece in zip(targets, value.chunk(len(targets)), strict=True):
            converted[f"{target}.{part}"] = piece
    kernel = converted.get("x_embedder.proj.weight")
    if kernel is not None and kernel.ndim == 4 and kernel.shape[1] == 4:
        converted["x_embedder.proj.weight"] = torch.cat([kernel, torch.zeros_like(kernel[:, :1])], dim=1)
    for name, value in list(converted.items()):
        if name.endswith("attn.q.weight"):
            for norm in ("norm_q", "norm_k"):
                converted.setdefault(name.replace("q.weight", f"{norm}.weight"), torch.ones_like(value[:, 0]))
    return converted


def _few(names: list[str]) -> str:
    return "nothing" if not names else ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
