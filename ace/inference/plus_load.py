"""Files of an ACE++ model → a pipeline, in as many bits and spread over as much memory as asked for.

Not here: which files (`plus_sources.py`), the transformer's weights (`plus_weights.py`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace.errors import CheckpointError, ConfigError
from ace.inference.plus_sources import AUTOENCODER_FILE, PlusFiles

if TYPE_CHECKING:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    from ace.inference.pipeline_plus import ACEPlusPipeline
    from ace.inference.plus_quantize import Quantization

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
    tiling: bool = True,
    attach: bool = False,
    max_seq_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ACEPlusPipeline:
    """Load a model, ready to use.

    dtype: "auto" is bfloat16 on GPUs, float32 on CPUs. quantization: of the transformer, see `load_transformer`;
    text_quantization: of T5, one of the same names. offload: "model" keeps the part that works on the GPU, "group"
    streams blocks, "sequential" single layers (slowest, least GPU memory), "disk" blocks from files in a temporary
    folder, also without a GPU. tiling: the autoencoder works on tiles where a canvas is large. attach: keep adapters
    beside the weights (peft) instead of merging them. max_seq_length: cells of the canvas, else 4096.
    Raises ConfigError, CheckpointError or MissingDependencyError."""
    import torch

    from ace.inference.plus_quantize import check_quantization
    from ace.inference.plus_weights import load_adapter, load_transformer, read_weight_files
    from ace.inference.sources import find_device

    check_quantization(quantization)
    check_quantization(text_quantization)
    device = find_device(device)
    _check_offload(offload, device, quantization, text_quantization)
    number_type = getattr(torch, ("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype)
    adapters = [(load_adapter(file.path, model.sizes), file.strength) for file in model.adapters]
    transformer = load_transformer(
        read_weight_files(model.transformer),
        dtype=number_type,
        adapters=() if attach else adapters,
        quantization=quantization,
        device=device if offload == "none" else "cpu",
        progress=progress,
    )
    pipeline = _assemble(model, transformer, number_type, text_quantization, max_seq_length)
    if attach:
        for adapter, strength in adapters:
            pipeline.attach(adapter, strength)
    if tiling:
        pipeline.vae.enable_tiling()
    return place(pipeline, device, offload)


def _check_offload(offload: str, device: str, *quantizations: Quantization | None) -> None:
    if offload not in OFFLOADS:
        raise ConfigError(f"offload {offload!r}: use {', '.join(OFFLOADS)}")
    if offload not in ("none", "disk") and device == "cpu":
        raise ConfigError(f"offload {offload} moves weights off a GPU, and there is none here: use disk, or none")
    if offload == "disk" and any(q is not None and q != "fp8" for q in quantizations):
        raise ConfigError("offload disk keeps blocks in files, which takes whole or fp8 weights: use fp8")


def _assemble(
    model: PlusFiles,
    transformer: FluxTransformer2DModel,
    dtype: torch.dtype,
    text_quantization: str | None,
    max_seq_length: int | None,
) -> ACEPlusPipeline:
    """The pipeline of a transformer and the other parts of its base. Raises CheckpointError."""
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    from ace.inference.pipeline_plus import ACEPlusPipeline
    from ace.inference.plus_quantize import shrink_text, text_options

    base = model.base
    try:
        text_encoder_2 = T5EncoderModel.from_pretrained(
            base / "text_encoder_2", dtype=dtype, **text_options(text_quantization, dtype)
        ).eval()
        if text_quantization == "fp8":
            shrink_text(text_encoder_2)
        return ACEPlusPipeline(
            scheduler=_load_scheduler(base),
            vae=_load_vae(base, dtype),
            text_encoder=CLIPTextModel.from_pretrained(base / "text_encoder", dtype=dtype).eval(),
            tokenizer=AutoTokenizer.from_pretrained(base / "tokenizer"),
            text_encoder_2=text_encoder_2,
            tokenizer_2=AutoTokenizer.from_pretrained(base / "tokenizer_2"),
            transformer=transformer,
            repainting_scale=model.repainting_scale,
            **_own_settings(base, max_seq_length),
        )
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

    if offload == "none":
        return pipeline.to(device)
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    from diffusers.hooks import apply_group_offloading

    folder = None
    if offload == "disk":
        pipeline.offloaded = folder = Path(tempfile.mkdtemp(prefix="ace-plus-"))
        weakref.finalize(pipeline, shutil.rmtree, folder, ignore_errors=True)
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            apply_group_offloading(
                part,
                onload_device=torch.device(device),
                offload_device=torch.device("cpu"),
                offload_type="leaf_level" if offload == "sequential" else "block_level",
                num_blocks_per_group=None if offload == "sequential" else 1,
                # diffusers reads a file that is there already: each part has a folder of its own, new every time
                offload_to_disk_path=None if folder is None else str(folder / name),
            )
    return pipeline
