"""Files of an ACE++ model → a pipeline, in as many bits and spread over as much memory as asked for.

Not here: which files (`plus/sources.py`), the transformer's weights (`plus/weights.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace.errors import CheckpointError, ConfigError
from ace.model.sizes import BYTES
from ace.plus.memory import WHOLE_PX, MappedWeights, sizes_of_plus
from ace.plus.sources import AUTOENCODER_FILE, PlusFiles

if TYPE_CHECKING:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import PreTrainedModel

    from ace.plus.pipeline import ACEPlusPipeline
    from ace.plus.quantize import Quantization

OFFLOADS = ("none", "model", "group", "sequential", "disk")

# the autoencoder in ae.safetensors
_AE_CONFIG: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def load_plus(
    model: PlusFiles,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantization: Quantization | None = None,
    text_quantization: str | None = None,
    offload: str = "none",
    tile_px: int = WHOLE_PX,
    attach: bool = False,
    max_seq_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ACEPlusPipeline:
    """Load a model, ready to use.

    dtype: "auto" is bfloat16 on GPUs, float32 on CPUs. quantization: of the transformer, see `load_transformer`;
    text_quantization: of T5, one of the same names. offload: "model" keeps the part that works on the GPU, "group"
    streams blocks, "sequential" single layers (slowest, least GPU memory); "disk", on a CPU, maps all weights of the
    transformer and of T5 from files, so that they are never in memory as a whole. tile_px: a canvas with a longer side
    goes through the autoencoder in tiles, 0 = never. attach: keep adapters beside the weights (peft) instead of merging
    them. max_seq_length: cells of the canvas, else 4096.
    Raises ConfigError, CheckpointError, OutputError or MissingDependencyError."""
    import torch

    from ace.files import cache_folder
    from ace.model.devices import find_device
    from ace.plus.inputs import LATENT_PX
    from ace.plus.quantize import check_quantization, check_rows
    from ace.plus.weights import load_adapter, load_transformer, read_weight_files

    check_quantization(quantization)
    check_quantization(text_quantization)
    device = find_device(device)
    _check_offload(offload, device, quantization, text_quantization)
    check_rows(model.transformer.name, (model.sizes.hidden_size, model.sizes.mlp_size), quantization, device)
    check_rows("text_encoder_2", _text_widths(model.base), text_quantization, device)
    dtype = find_plus_dtype(device, dtype)
    adapters = [(load_adapter(file.path, model.sizes), file.strength) for file in model.adapters]
    mapped = None
    if offload == "disk":
        num_bytes = sizes_of_plus(model, dtype, "fp8" if quantization else None, 0).transformer
        mapped = MappedWeights(cache_folder() / "mapped", num_bytes)
    transformer = load_transformer(
        read_weight_files(model.transformer),
        dtype=getattr(torch, dtype),
        adapters=() if attach else adapters,
        quantization=quantization,
        device=device if offload == "none" else "cpu",
        keep=None if mapped is None else mapped.keep,
        progress=progress,
    )
    text_encoder = _load_text_encoder(model.base, getattr(torch, dtype), text_quantization, streamed=mapped is not None)
    pipeline = _assemble(model, transformer, text_encoder, getattr(torch, dtype), max_seq_length)
    pipeline.mapped = mapped
    pipeline.quantization = _name_of(quantization)
    pipeline.text_quantization = text_quantization or ""
    if attach:
        for adapter, strength in adapters:
            pipeline.attach(adapter, strength)
    if tile_px:
        pipeline.vae.enable_tiling()
        pipeline.vae.tile_sample_min_size = tile_px
        pipeline.vae.tile_latent_min_size = tile_px // LATENT_PX
    return place(pipeline, device, offload)


def _name_of(quantization: Quantization | None) -> str:
    if quantization is None:
        return ""
    return quantization if isinstance(quantization, str) else type(quantization).__name__


def find_plus_dtype(device: str, dtype: str = "auto") -> str:
    """The number type by name; "auto" is bfloat16 on GPUs, float32 on CPUs. Raises ConfigError for an unknown one."""
    if dtype not in ("auto", *BYTES):
        raise ConfigError(f"dtype {dtype!r}: use one of auto, {', '.join(BYTES)}")
    return ("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype


def _text_widths(base: Path) -> tuple[int, int, int]:
    """How many weights the rows of T5's matrices have."""
    sizes = json.loads((base / "text_encoder_2" / "config.json").read_text(encoding="utf-8"))
    return sizes["d_model"], sizes["d_ff"], sizes["num_heads"] * sizes["d_kv"]


def _check_offload(offload: str, device: str, quantization: Quantization | None, text: str | None) -> None:
    if offload not in OFFLOADS:
        raise ConfigError(f"offload {offload!r}: use {', '.join(OFFLOADS)}")
    if offload == "none":
        return
    if (offload == "disk") != (device == "cpu"):
        raise ConfigError(f"offload {offload} is not for {device}: use none, " + _offloads_of(device))
    if offload == "disk" and (quantization not in (None, "fp8") or text is not None):
        raise ConfigError("offload disk takes whole or fp8 weights, and T5 as it is: it is read layer by layer anyhow")


def _offloads_of(device: str) -> str:
    return "or disk" if device == "cpu" else "model, group or sequential"


def _load_text_encoder(base: Path, dtype: torch.dtype, quantization: str | None, streamed: bool) -> PreTrainedModel:
    """T5. streamed: its layers are mapped from its files while they work. Raises CheckpointError."""
    import torch
    from transformers import T5EncoderModel

    from ace.model.text_on_disk import load_streamed
    from ace.plus.quantize import shrink_text, text_options

    with _loading(base):
        if streamed:
            return load_streamed(base / "text_encoder_2", torch.device("cpu"), dtype).eval()
        options = text_options(quantization, dtype)
        encoder = T5EncoderModel.from_pretrained(base / "text_encoder_2", dtype=dtype, **options).eval()
        if quantization == "fp8":
            shrink_text(encoder)
        return encoder


def _assemble(
    model: PlusFiles,
    transformer: FluxTransformer2DModel,
    text_encoder_2: PreTrainedModel,
    dtype: torch.dtype,
    max_seq_length: int | None,
) -> ACEPlusPipeline:
    """The pipeline of these and the other parts of the model's base. Raises CheckpointError."""
    from transformers import AutoTokenizer, CLIPTextModel

    from ace.plus.pipeline import ACEPlusPipeline

    base = model.base
    with _loading(base):
        return ACEPlusPipeline(
            scheduler=_load_scheduler(base),
            vae=_load_vae(base, dtype),
            text_encoder=CLIPTextModel.from_pretrained(base / "text_encoder", dtype=dtype).eval(),
            tokenizer=AutoTokenizer.from_pretrained(base / "tokenizer"),
            text_encoder_2=text_encoder_2,  # type: ignore[arg-type]
            tokenizer_2=AutoTokenizer.from_pretrained(base / "tokenizer_2"),
            transformer=transformer,
            repainting_scale=model.repainting_scale,
            **_own_settings(base, max_seq_length),
        )


@contextmanager
def _loading(base: Path) -> Iterator[None]:
    """What goes wrong within is a CheckpointError of this folder."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(f"{base.name} cannot be loaded ({reason}): fetch or copy it again") from error


def _load_scheduler(base: Path) -> FlowMatchEulerDiscreteScheduler:
    from diffusers import FlowMatchEulerDiscreteScheduler

    if (base / "scheduler").is_dir():
        return FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler")  # type: ignore[return-value]
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )


def _own_settings(base: Path, max_seq_length: int | None) -> dict:
    """What a saved ACE++ pipeline says of itself; nothing for FLUX.1-Fill's own folder."""
    settings: dict = {}
    index = base / "model_index.json"
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        if content.get("_class_name") == "ACEPlusPipeline":
            names = ("max_seq_length", "max_text_tokens", "num_inference_steps", "guidance_scale")
            settings = {name: content[name] for name in names if name in content}
    if max_seq_length is not None:
        settings["max_seq_length"] = max_seq_length
    return settings


def _load_vae(base: Path, dtype):
    from diffusers import AutoencoderKL

    if (base / "vae").is_dir():
        return AutoencoderKL.from_pretrained(base / "vae", torch_dtype=dtype).eval()
    from safetensors.torch import load_file

    from ace.model.convert import vae_from_published

    vae = AutoencoderKL(**_AE_CONFIG)
    vae.load_state_dict(vae_from_published(load_file(base / AUTOENCODER_FILE), vae))
    return vae.to(dtype).eval()


def place(pipeline: ACEPlusPipeline, device: str, offload: str) -> ACEPlusPipeline:
    """Put a pipeline on a device, or make its weights wait elsewhere until they are needed; see `load_plus`."""
    import torch

    if offload == "disk":
        return pipeline  # its weights are where they are
    if offload == "none":
        return pipeline.to(device)
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    from diffusers.hooks import apply_group_offloading

    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            apply_group_offloading(
                part,
                onload_device=torch.device(device),
                offload_device=torch.device("cpu"),
                offload_type="leaf_level" if offload == "sequential" else "block_level",
                num_blocks_per_group=None if offload == "sequential" else 1,
            )
    return pipeline
