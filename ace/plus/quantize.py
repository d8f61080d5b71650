"""Weights in fewer bits by name: "fp8", "int8", "4bit", or any configuration of diffusers' quantizers.

int8 (torchao), 4bit (bitsandbytes, NF4) and GGUF files go through diffusers' quantizers, one tensor after the other as
they are read, so that the whole network is never there in full; T5 through transformers' own. "fp8" is ours
(`plus/fp8.py`): it needs no package and keeps an 8-bit file's bytes as they are.

Not here: reading files and what is quantized in them (`plus/weights.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from diffusers import BitsAndBytesConfig, FluxTransformer2DModel, GGUFQuantizationConfig, TorchAoConfig
from diffusers.quantizers.auto import DiffusersAutoQuantizer
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from ace.errors import ConfigError, MissingDependencyError
from ace.extras import install_command
from ace.plus.fp8 import Fp8Linear, to_fp8

QUANTIZATIONS = ("fp8", "int8", "4bit")
Quantization = str | QuantizationConfigMixin

_PACKAGES = {"int8": "torchao", "4bit": "bitsandbytes"}
_NF4_BLOCK = 64  # weights that share a scale
_OUTER_LAYERS = ("x_embedder", "context_embedder", "time_text_embed", "norm_out")


def check_quantization(quantization: Quantization | None) -> None:
    """Raise ConfigError for an unknown name, MissingDependencyError where its package is not installed."""
    if not isinstance(quantization, str):
        return
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization {quantization!r}: use {', '.join(QUANTIZATIONS)}")
    package = _PACKAGES.get(quantization)
    if package and find_spec(package) is None:
        raise MissingDependencyError(f"{quantization} weights need {package}: {install_command('quant')}")


def check_rows(file: str, widths: Iterable[int], quantization: Quantization | None, device: str) -> None:
    """Raise ConfigError, naming the file, for matrices that bitsandbytes cannot pack on a CPU: each row of `widths`
    weights must be whole blocks."""
    odd = [width for width in widths if width % _NF4_BLOCK]
    if quantization == "4bit" and device == "cpu" and odd:
        raise ConfigError(
            f"{file} has rows of {odd[0]} weights, 4 bits on a CPU need multiples of {_NF4_BLOCK}: use fp8 or int8"
        )


class Quantizer:
    """A diffusers quantizer at work on a network that is still on the meta device: it takes over weight after weight.

    packed: of a GGUF file, the weights that stay as they are in it."""

    def __init__(
        self,
        model: FluxTransformer2DModel,
        quantization: Quantization | None,
        dtype: torch.dtype,
        packed: Mapping[str, Tensor],
    ) -> None:
        self.model = model
        config = GGUFQuantizationConfig(compute_dtype=dtype) if packed else _config_of(quantization, dtype)
        self._quantizer: DiffusersQuantizer = DiffusersAutoQuantizer.from_config(config, pre_quantized=bool(packed))
        last = model.proj_out
        self._quantizer.preprocess_model(model=model, device_map=None, state_dict=packed)
        model.proj_out = last  # diffusers tells layers by their last name, and the blocks have a proj_out as well

    def take(self, name: str, value: Tensor, device: str) -> None:
        """Put a weight where it belongs, in fewer bits, on a device."""
        self._quantizer.create_quantized_param(
            model=self.model,
            param_value=value,
            param_name=name,
            target_device=torch.device(device),
            state_dict={},
            unexpected_keys=[],
        )

    def finish(self) -> None:
        """Say to diffusers what the network is, after the last weight: how it may be moved and saved."""
        self._quantizer.postprocess_model(self.model)
        self.model.hf_quantizer = self._quantizer  # type: ignore[assignment]


def _config_of(quantization: Quantization | None, dtype: torch.dtype) -> QuantizationConfigMixin:
    if isinstance(quantization, QuantizationConfigMixin):
        return quantization
    if quantization == "int8":
        from torchao.quantization import Int8WeightOnlyConfig  # type: ignore[import]

        return TorchAoConfig(Int8WeightOnlyConfig(version=2), modules_to_not_convert=list(_OUTER_LAYERS))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(_OUTER_LAYERS),
    )


# T5, as large as a third of the transformer


def text_options(quantization: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """What `T5EncoderModel.from_pretrained` is told for these weights; "fp8" is `shrink_text` afterwards."""
    if quantization == "int8":
        from torchao.quantization import Int8WeightOnlyConfig  # type: ignore[import]
        from transformers import TorchAoConfig as TextTorchAoConfig

        return {"quantization_config": TextTorchAoConfig(Int8WeightOnlyConfig(version=2))}
    if quantization == "4bit":
        from transformers import BitsAndBytesConfig as TextBitsAndBytesConfig

        config = TextBitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        return {"quantization_config": config}
    return {}


def shrink_text(encoder: nn.Module) -> None:
    """Keep T5's matrices in 8-bit floats, in place; the last of each feed-forward, whose values are large, stays."""
    for name, layer in list(encoder.named_modules()):
        if isinstance(layer, nn.Linear) and not name.endswith(".wo"):
            small = Fp8Linear(*to_fp8(layer.weight.data), None if layer.bias is None else layer.bias.data)
            parent, _, leaf = name.rpartition(".")
            encoder.get_submodule(parent).register_module(leaf, small)
