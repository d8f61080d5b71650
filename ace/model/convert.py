"""Published weights → ours, strict, key by key (published names live only here).

Transformer: upstream has one norm for queries and keys in use (`norm_q`) and one that is never applied (`norm_k`): the
first becomes `norm_qk`, the second must be present and is left out. PixArt-alpha checkpoints are first brought to ACE's
names, with a zero column for the mask channel and norms of one. Autoencoder: the original's LDM names become diffusers'
`AutoencoderKL`; diffusers' own names pass, as they are or in their older form (`query`, `proj_attn`).

Not here: files and folders (`weights/convert.py`), adapters.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ace.errors import CheckpointError
from ace.model.config import ACEConfig
from ace.model.transformer import ACETransformer

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


def unused_keys(config: ACEConfig) -> set[str]:
    """Published parameters that the published code loads and never applies."""
    return {f"blocks.{n}.{attn}.norm_k.weight" for n in range(config.depth) for attn in ("attn", "cross_attn")}


def from_published(state: Mapping[str, Tensor], config: ACEConfig) -> dict[str, Tensor]:
    """Convert a published ACE state dict. Raises CheckpointError naming every missing, unknown or misshapen key."""
    names, unused = key_map(config), unused_keys(config)
    missing = sorted(names.keys() - state.keys())
    unknown = sorted(state.keys() - names.keys() - unused)
    if missing or unknown:
        raise CheckpointError(f"not an ACE checkpoint of this size: missing {_few(missing)}, unknown {_few(unknown)}")
    converted = {new: state[old] for old, new in names.items()}
    converted["patch_embed.weight"] = converted["patch_embed.weight"].flatten(1)  # a convolution of whole patches
    with torch.device("meta"):
        expected = ACETransformer(**dataclasses.asdict(config)).state_dict()
    _check_shapes(converted, {new: tuple(expected[new].shape) for new in converted})
    return converted


def from_pixart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PixArt-alpha names and shapes as published ACE's; other checkpoints pass unchanged."""
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


_LDM_NAMES = (
    (r"^first_stage_model\.", ""),
    (r"^(conv1|quant_conv)\.", "quant_conv."),
    (r"^(conv2|post_quant_conv)\.", "post_quant_conv."),
    (r"\.down\.(\d+)\.block\.(\d+)\.", r".down_blocks.\1.resnets.\2."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.(\d+)\.", r".up_blocks.\1.resnets.\2."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)
_OLD_DIFFUSERS_NAMES = (
    (r"\.attentions\.0\.(query|key|value)\.", lambda m: f".attentions.0.to_{m[1][0]}."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)


def vae_from_published(state: Mapping[str, Tensor], like: nn.Module) -> dict[str, Tensor]:
    """The weights of an autoencoder in LDM names (bare or under `first_stage_model.`) or diffusers' names, as
    diffusers'.

    like: an `AutoencoderKL` of the expected sizes (levels of the decoder are counted the other
    way round there). Raises CheckpointError naming every missing, unknown or misshapen key."""
    expected = like.state_dict()
    state = {name.removeprefix("first_stage_model."): value for name, value in state.items()}
    ldm = any(re.match(r"(encoder\.down|decoder\.up|encoder\.mid)\.", name) for name in state)
    levels = 1 + max((int(m[1]) for name in state if (m := re.match(r"decoder\.up\.(\d+)\.", name))), default=0)
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        new = name
        for pattern, replacement in _LDM_NAMES if ldm else _OLD_DIFFUSERS_NAMES:
            new = re.sub(pattern, replacement, new)
        if ldm:
            new = re.sub(r"\.up_blocks\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", new)
        if ".attentions.0." in new and value.ndim == 4 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]  # a convolution of one pixel is a linear layer
        converted[new] = value
    missing, unknown = sorted(expected.keys() - converted.keys()), sorted(converted.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(f"not an autoencoder of this size: missing {_few(missing)}, unknown {_few(unknown)}")
    _check_shapes(converted, {name: tuple(value.shape) for name, value in expected.items()})
    return converted


def _check_shapes(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [f"{n} {tuple(state[n].shape)} instead of {s}" for n, s in expected.items() if tuple(state[n].shape) != s]
    if wrong:
        raise CheckpointError(f"weights of another size: {_few(wrong)}")


def _few(names: list[str]) -> str:
    return "nothing" if not names else ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
