"""LoRA through PEFT: which layers, where to go on from, and the two formats in which adapters are handed on.

An adapter folder holds PEFT's own pair of files and `comfyui.safetensors`, with ComfyUI's names and the alpha beside
every pair. Not here: using adapters for inference; names of FLUX (`adapters_plus.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from ace.errors import CheckpointError, ConfigError
from ace.model.lora import read_adapter
from ace.model.transformer import ACETransformer
from ace.training.config import Lora
from ace.weights.adapters import find_adapter

ACE_TARGETS = ("to_q", "to_k", "to_v", "to_out", "mlp.up", "mlp.down")
PEFT_PREFIX = "base_model.model."
PEFT_FILE, COMFYUI_FILE = "adapter_model.safetensors", "comfyui.safetensors"


def read_lora(start: str, transformer: nn.Module) -> dict[str, Tensor]:
    """An adapter of ACE, a file or folder in any format that inference reads, as `lora_state` gives it; its alpha is
    worked in, so that it adds with a scale of 1. Raises ConfigError or CheckpointError."""
    return read_adapter(find_adapter(Path(start)), cast(ACETransformer, transformer)).state_dict(torch.float32)


def add_lora(
    model: nn.Module,
    lora: Lora,
    targets: tuple[str, ...] | str = ACE_TARGETS,
    read: Callable[[str, nn.Module], dict[str, Tensor]] = read_lora,
) -> None:
    """Freeze a diffusers model and put trainable adapters on its layers, started from `lora.start` if it says so.

    targets: where the recipe names none; one string is a regular expression of whole names. read: what `read_lora` is,
    for another model. Raises ConfigError if no layer matches, CheckpointError for a start that does not fit."""
    model.requires_grad_(False)
    names = list(lora.targets) or (targets if isinstance(targets, str) else list(targets))
    alpha: Any = lora.scale_alpha  # PEFT takes fractions too
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=names)
    try:
        model.add_adapter(config)
    except ValueError as error:
        raise ConfigError(f"lora: no layer matches {', '.join(lora.targets)}: {str(error).splitlines()[0]}") from None
    if lora.start:
        _start_from(model, lora, read(lora.start, model))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            parameter.data = parameter.data.float()  # trained in float32 whatever the base is


def _start_from(model: nn.Module, lora: Lora, start: dict[str, Tensor]) -> None:
    """Put an adapter with a scale of 1 where one with the recipe's scale is trained."""
    shapes, wanted = ({n: v.shape for n, v in part.items()} for part in (start, get_peft_model_state_dict(model)))
    if unfit := sorted(dict(shapes.items() ^ wanted.items())):
        where = Path(lora.start).name
        raise CheckpointError(f"{where} does not fit rank {lora.rank} and these targets: {unfit[0]}")
    scale = lora.scale_alpha / lora.rank
    set_peft_model_state_dict(model, {n: v / scale if "lora_B" in n else v for n, v in start.items()})


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights by `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    return {name: value.detach().cpu().contiguous() for name, value in get_peft_model_state_dict(model).items()}


def save_lora(model: nn.Module, lora: Lora, folder: Path) -> None:
    """Write the adapter in PEFT's and ComfyUI's formats; PEFT's file holds its settings too, as diffusers writes them,
    so that it keeps its alpha when it is moved on its own."""
    folder.mkdir(parents=True, exist_ok=True)
    state = lora_state(model)
    configs: Any = model.peft_config
    settings = {PEFT_PREFIX + key: _plain(value) for key, value in configs["default"].to_dict().items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
    save_file({PEFT_PREFIX + name: value for name, value in state.items()}, folder / PEFT_FILE, metadata)
    configs["default"].save_pretrained(str(folder))
    save_file(to_comfyui(state, lora.scale_alpha), folder / COMFYUI_FILE, {"format": "pt"})


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def to_comfyui(state: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """ComfyUI's names: `lora_unet_<layer with _>.lora_down.weight`, `.lora_up.weight`, `.alpha`."""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        stem = f"lora_unet_{layer.replace('.', '_')}"
        converted[f"{stem}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = value
        converted[f"{stem}.alpha"] = torch.tensor(alpha)
    return converted
