"""LoRA through PEFT: which layers, where to go on from, and the two formats in which adapters are handed on.

An adapter folder holds PEFT's own pair of files and `comfyui.safetensors`, with ComfyUI's names and the alpha beside
every pair. Not here: using adapters for inference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ace.errors import CheckpointError, ConfigError
from ace.training.config import Lora

ACE_TARGETS = ("to_q", "to_k", "to_v", "to_out", "mlp.up", "mlp.down")
PEFT_PREFIX = "base_model.model."
PEFT_FILE, COMFYUI_FILE = "adapter_model.safetensors", "comfyui.safetensors"
_COMFYUI = re.compile(r"lora_unet_(.+)\.(lora_down\.weight|lora_up\.weight|alpha)")
_SWIFT = re.compile(r"model\.(.+)\.lora_([AB])\.0_SwiftLoRA\.weight")


def add_lora(model: nn.Module, lora: Lora, targets: tuple[str, ...] | str = ACE_TARGETS) -> None:
    """Freeze a diffusers model and put trainable adapters on its layers, started from `lora.start` if it says so.

    targets: where the recipe names none; one string is a regular expression of whole names. Raises ConfigError if no
    layer matches, CheckpointError for a start that does not fit."""
    model.requires_grad_(False)
    names = list(lora.targets) or (targets if isinstance(targets, str) else list(targets))
    alpha: Any = lora.scale_alpha  # PEFT takes fractions too
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=names)
    try:
        model.add_adapter(config)
    except ValueError as error:
        raise ConfigError(f"lora: no layer matches {', '.join(lora.targets)}: {str(error).splitlines()[0]}") from None
    if lora.start:
        start = read_lora(Path(lora.start), model)
        own = get_peft_model_state_dict(model)
        shapes, wanted = ({name: value.shape for name, value in part.items()} for part in (start, own))
        if unfit := sorted(dict(shapes.items() ^ wanted.items())):
            where = Path(lora.start).name
            raise CheckpointError(f"{where} does not fit rank {lora.rank} and these targets: {unfit[0]}")
        set_peft_model_state_dict(model, start)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            parameter.data = parameter.data.float()  # trained in float32 whatever the base is


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights by `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    return {name: value.detach().cpu().contiguous() for name, value in get_peft_model_state_dict(model).items()}


def save_lora(model: nn.Module, lora: Lora, folder: Path) -> None:
    """Write the adapter in PEFT's and ComfyUI's formats."""
    folder.mkdir(parents=True, exist_ok=True)
    state = lora_state(model)
    save_file({PEFT_PREFIX + name: value for name, value in state.items()}, folder / PEFT_FILE, {"format": "pt"})
    configs: Any = model.peft_config
    configs["default"].save_pretrained(str(folder))
    save_file(to_comfyui(state, lora.scale_alpha), folder / COMFYUI_FILE, {"format": "pt"})


def to_comfyui(state: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """ComfyUI's names: `lora_unet_<layer with _>.lora_down.weight`, `.lora_up.weight`, `.alpha`."""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        stem = f"lora_unet_{layer.replace('.', '_')}"
        converted[f"{stem}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = value
        converted[f"{stem}.alpha"] = torch.tensor(alpha)
    return converted


def read_lora(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """An adapter for `model` in PEFT's, ComfyUI's or the published trainer's (Swift) names, as `lora_state` gives it.

    path: a file, or a folder that holds one. ComfyUI's alpha is worked into the up weights where it is not the rank.
    Raises CheckpointError if it cannot be read or names layers that the model does not have."""
    if path.is_dir():
        path = next((path / name for name in (PEFT_FILE, COMFYUI_FILE) if (path / name).is_file()), path)
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the adapter {path.name} cannot be read: {str(error).splitlines()[0]}") from None
    names = [n.replace(".base_layer", "") for n, _ in model.named_modules() if "lora_" not in n]
    layers = {name.replace(".", "_"): name for name in names}
    state: dict[str, Tensor] = {}
    for name, value in stored.items():
        if match := _COMFYUI.fullmatch(name):
            layer = layers.get(match[1])
            if layer is None:
                raise CheckpointError(f"{path.name} has {match[1]}, the model does not: it is for another model")
            if match[2] == "alpha":
                continue
            if match[2] == "lora_up.weight":
                alpha = stored.get(f"lora_unet_{match[1]}.alpha")
                scale = 1.0 if alpha is None else float(alpha) / value.shape[1]
                value = value * scale if scale != 1 else value
            state[f"{layer}.lora_{'A' if 'down' in match[2] else 'B'}.weight"] = value
        elif match := _SWIFT.fullmatch(name):
            state[f"{match[1]}.lora_{match[2]}.weight"] = value
        else:
            state[name.removeprefix(PEFT_PREFIX).removeprefix("transformer.")] = value
    return state
