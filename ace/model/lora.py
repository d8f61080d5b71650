"""Adapters (LoRA) of an ACE transformer: read from any of the formats in use, attached, weighted, fused, swapped.

Formats: PEFT's folder (`adapter_config.json`), diffusers' file (settings in its metadata), the published trainer's
(`model.blocks.0.attn.q.lora_A.0_SwiftLoRA.weight`) and its ComfyUI export (`lora_unet_blocks_0_attn_q.lora_down.weight`
with `.alpha`); names of layers may be ours or the published ones. An adapter adds alpha / rank · B · A to a layer's
weight (Hu et al. 2021, section 4.1); that factor is multiplied into B here, so that nothing later can forget it. PEFT
does the rest.

Not here: training (`ace/training`), adapters of FLUX (`plus/layouts.py`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ace.adapter_files import AdapterSettings, check_kind, is_of_text_encoder, left_out, read_settings
from ace.errors import CheckpointError, ConfigError
from ace.model.convert import key_map
from ace.model.transformer import ACETransformer

_PREFIXES = re.compile(r"^(base_model\.model\.|model\.|transformer\.|module\.|diffusion_model\.)+")
_KIND = re.compile(r"^(?P<layer>.+?)\.(?P<kind>lora_A|lora_B|lora_down|lora_up|alpha)(\.[^.]+)?(\.weight)?$")
_KINDS = {"lora_down": "lora_A", "lora_up": "lora_B"}


@dataclass(frozen=True)
class Adapter:
    """An adapter of a transformer. factors: our name of a layer → A (rank, in) and B (out, rank), B times the scale.
    notes: what of the file was left out."""

    name: str
    factors: Mapping[str, tuple[Tensor, Tensor]]
    notes: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(len(down) for down, _ in self.factors.values())

    def state_dict(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """In PEFT's names."""
        state = {}
        for layer, (down, up) in self.factors.items():
            state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"] = down.to(dtype), up.to(dtype)
        return state


def read_adapter(file: Path, transformer: ACETransformer, name: str | None = None) -> Adapter:
    """An adapter's file of weights; name: what it is called, by default as the file.

    Raises CheckpointError, naming the file, if it is damaged, partial, of a kind that is not LoRA, or for another
    model."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError):
        raise CheckpointError(f"{file.name} is no safetensors file, or damaged: get the adapter again") from None
    settings = read_settings(file, metadata)
    check_kind(file.name, tensors, settings)
    layers = _layer_names(transformer)
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        if is_of_text_encoder(key):
            continue
        if re.search(r"lora_(A|B|up|down)(\.[^.]+)?\.bias$", key):
            raise CheckpointError(f"{file.name} has biases ({key}), which cannot be attached: train it without")
        found = _KIND.match(key)
        layer = found and layers.get(_plain(found["layer"]))
        if not found or not layer:
            unknown.append(key)
            continue
        parts.setdefault(layer, {})[_KINDS.get(found["kind"], found["kind"])] = tensor
    if unknown or not parts:
        few = ", ".join(sorted(unknown)[:3]) or "nothing for its transformer"
        raise CheckpointError(f"{file.name} is no LoRA of this model: it holds {few}")
    factors = {layer: _factors(file.name, layer, own, transformer, settings) for layer, own in parts.items()}
    return Adapter(re.sub(r"\W+", "_", name or file.stem) or "adapter", factors, left_out(file.name, tensors))


def attach(transformer: ACETransformer, adapters: Sequence[tuple[Adapter, float]]) -> tuple[str, ...]:
    """Stack adapters with their weights on what is there; returns their names, which are made unique.

    PEFT's methods of the model go on from here: `set_adapters(names, weights)`, `disable_lora`, `fuse_lora`,
    `delete_adapters(names)`, `unload_lora`."""
    there = attached(transformer)
    for adapter, weight in adapters:
        name, number = adapter.name, 2
        while name in there:
            name, number = f"{adapter.name}_{number}", number + 1
        _load(transformer, name, adapter)
        there[name] = weight
    if there:
        transformer.set_adapters(list(there), list(there.values()))
    return tuple(there)[len(there) - len(adapters) :]


def swap(transformer: ACETransformer, name: str, adapter: Adapter, weight: float = 1.0) -> None:
    """Put an adapter in the place of an attached one, under its name.

    In place, without recompiling, if both change the same layers with the same ranks. Raises ConfigError if there is no
    adapter of that name."""
    there = attached(transformer)
    if name not in there:
        raise ConfigError(f"no adapter {name!r} is attached: use {', '.join(there) or 'attach'}")
    new = adapter.state_dict(transformer.dtype)
    old = {
        key.replace(f".{name}.", "."): value
        for key, value in transformer.named_parameters()
        if re.search(rf"\.lora_[AB]\.{name}\.", key)
    }
    if {key: value.shape for key, value in new.items()} == {key: value.shape for key, value in old.items()}:
        with torch.no_grad():
            for key, value in new.items():
                old[key].copy_(value)
    else:
        transformer.delete_adapters(name)
        _load(transformer, name, adapter)
    there[name] = weight
    transformer.set_adapters(list(there), list(there.values()))


def _load(transformer: ACETransformer, name: str, adapter: Adapter) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
        state = adapter.state_dict(transformer.dtype)
        transformer.load_lora_adapter(state, prefix=None, adapter_name=name)  # type: ignore[arg-type]


def choose(transformer: ACETransformer, wanted: Mapping[str, float]) -> None:
    """Use these of the attached adapters, by name with their weights, and no others; with none the layers compute what
    they would without any."""
    if wanted:
        transformer.enable_lora()
        transformer.set_adapters(list(wanted), list(wanted.values()))
    else:
        transformer.disable_lora()


def attached(transformer: ACETransformer) -> dict[str, float]:
    """Attached adapters and their weights."""
    from peft.tuners.lora import LoraLayer

    found: dict[str, float] = {}
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_A:
                found.setdefault(name, float(module.scaling[name]) if name in module.active_adapters else 0.0)
    return found


def _layer_names(transformer: ACETransformer) -> dict[str, str]:
    """Every way of writing a linear layer's name, without prefix and with `_` for `.` → ours."""
    ours = [
        name.replace(".base_layer", "")
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    ]
    names = {_plain(name): name for name in ours}
    for published, own in key_map(transformer.sizes).items():
        if own.endswith(".weight") and own.removesuffix(".weight") in ours:
            names[_plain(published.removesuffix(".weight"))] = own.removesuffix(".weight")
    return names


def _plain(layer: str) -> str:
    return _PREFIXES.sub("", layer.removeprefix("lora_unet_").removeprefix("lora_transformer_")).replace(".", "_")


def _factors(
    file: str, layer: str, parts: Mapping[str, Tensor], transformer: ACETransformer, settings: AdapterSettings
) -> tuple[Tensor, Tensor]:
    if "lora_A" not in parts or "lora_B" not in parts:
        raise CheckpointError(f"{file} holds one half of {layer} only: get the adapter again")
    down, up = parts["lora_A"].float().flatten(1), parts["lora_B"].float().flatten(1)
    module = transformer.get_submodule(layer)
    rank, wanted = len(down), (module.out_features, module.in_features)
    if up.shape != (wanted[0], rank) or down.shape[1] != wanted[1]:
        raise CheckpointError(
            f"{file} is for another model: {layer} is {tuple(up.shape)} x {tuple(down.shape)} there, "
            f"{wanted[0]} x {wanted[1]} here"
        )
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise CheckpointError(f"{file} holds values that are not finite, in {layer}: get the adapter again")
    return down, up * settings.strength(layer, rank, float(parts["alpha"]) if "alpha" in parts else None)
