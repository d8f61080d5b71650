"""Names of ACE++ models → their files → a pipeline.

`ace-plus-portrait`, `-subject` and `-local` are LoRAs on FLUX.1-Fill-dev, `ace-plus-fft` is a whole transformer. Files
are found where the published environment variables point (`FLUX_FILL_PATH`, `PORTRAIT_MODEL_PATH`, …), else on the hub;
each may be a path, a hub id, `hf://owner/repo@file` or `ms://owner/repo@file`. A folder that holds a pipeline of ACE++
or FLUX.1-Fill is a model as well. `find_plus` checks headers only; `load_plus` loads.

Not here: the weights themselves (`plus_weights.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace.errors import CheckpointError, ConfigError, ModelNotFoundError
from ace.inference.recipe import hash_file, hash_model

if TYPE_CHECKING:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    from ace.inference.pipeline_plus import ACEPlusPipeline
    from ace.inference.plus_quantize import Quantization
    from ace.model.convert_plus import FluxSizes

BASE_VARIABLE = "FLUX_FILL_PATH"
BASE_HUB_ID = "black-forest-labs/FLUX.1-Fill-dev"
BASE_FILE = "flux1-fill-dev.safetensors"
MIRROR_VARIABLE = "ACE_MODELSCOPE_MIRROR"
PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
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

# ModelScope's copies of what is on the Hugging Face hub
COUNTERPARTS = {
    "iic/ACE_Plus": "ali-vilab/ACE_Plus",
    "AI-ModelScope/FLUX.1-Fill-dev": BASE_HUB_ID,
    "black-forest-labs/FLUX.1-Fill-dev": BASE_HUB_ID,
}
_URI = re.compile(r"^(hf|ms)://([\w.-]+/[\w.-]+)(?:@(.+))?$")
_HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$")


@dataclass(frozen=True)
class PlusModel:
    """A published model of ACE++. variable: the environment variable that may name its file; source: where it is
    otherwise; channels: input channels of its transformer; repainting_scale: its default."""

    name: str
    description: str
    variable: str
    source: str
    channels: int
    repainting_scale: float

    @property
    def is_lora(self) -> bool:
        """Whether it is an adapter of FLUX.1-Fill-dev."""
        return self.channels == 384


_WEIGHTS = "hf://ali-vilab/ACE_Plus@"
PLUS_MODELS: dict[str, PlusModel] = {
    model.name: model
    for model in (
        PlusModel(
            "ace-plus-portrait",
            "ACE++ LoRA on FLUX.1-Fill-dev: keeps a person's face",
            "PORTRAIT_MODEL_PATH",
            f"{_WEIGHTS}portrait/comfyui_portrait_lora64.safetensors",
            384,
            1.0,
        ),
        PlusModel(
            "ace-plus-subject",
            "ACE++ LoRA on FLUX.1-Fill-dev: keeps a thing or a logo",
            "SUBJECT_MODEL_PATH",
            f"{_WEIGHTS}subject/comfyui_subject_lora16.safetensors",
            384,
            1.0,
        ),
        PlusModel(
            "ace-plus-local",
            "ACE++ LoRA on FLUX.1-Fill-dev: redraws inside a mask, keeps its structure",
            "LOCAL_MODEL_PATH",
            f"{_WEIGHTS}local_editing/comfyui_local_lora16.safetensors",
            384,
            0.5,
        ),
        PlusModel(
            "ace-plus-fft",
            "ACE++ fully fine-tuned: references, editing and control in one model",
            "ACE_PLUS_FFT_MODEL",
            f"{_WEIGHTS}ace_plus_fft.safetensors",
            448,
            1.0,
        ),
    )
}


@dataclass(frozen=True)
class AdapterFile:
    """An adapter to merge, with its strength."""

    path: Path
    strength: float = 1.0


@dataclass(frozen=True)
class PlusFiles:
    """An ACE++ model that is on this machine. base: folder of FLUX.1-Fill-dev's parts; transformer: file or folder."""

    name: str
    base: Path
    transformer: Path
    sizes: FluxSizes
    adapters: tuple[AdapterFile, ...]
    repainting_scale: float

    @property
    def is_fft(self) -> bool:
        """Whether it has change channels."""
        return self.sizes.in_channels == 448

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that makes the pictures: the parts' and weights' names and contents, and strengths."""
        digest = hashlib.sha256()
        for part in PARTS:
            if (self.base / part).is_dir():
                digest.update(f"{part}\0{hash_model(self.base / part)}\n".encode())
        weights = self.transformer
        digest.update((hash_model(weights) if weights.is_dir() else hash_file(weights)).encode())
        for adapter in self.adapters:
            digest.update(f"{hash_file(adapter.path)}\0{adapter.strength}\n".encode())
        return digest.hexdigest()


def is_plus(name: str | None) -> bool:
    """Whether a model's name, or the folder it is, is one of ACE++. Reads at most a small JSON file."""
    if name is None:
        return False
    if name in PLUS_MODELS:
        return True
    index = Path(name).expanduser() / "model_index.json"
    if not index.is_file():
        return False
    try:
        return json.loads(index.read_text(encoding="utf-8")).get("_class_name") in (
            "ACEPlusPipeline",
            "FluxFillPipeline",
        )
    except (OSError, ValueError, AttributeError):
        return False


def read_adapter_option(text: str) -> tuple[str, float]:
    """ "FILE" or "FILE:STRENGTH" → (file, strength). Raises ConfigError."""
    source, separator, strength = text.rpartition(":")
    if not separator or "/" in strength or "\\" in strength:
        return text, 1.0
    try:
        return source, float(strength)
    except ValueError:
        raise ConfigError(f"adapter {text!r}: write FILE or FILE:STRENGTH, for example style.safetensors:0.8") from None


def find_plus(name: str, adapters: Sequence[tuple[str, float]] = (), transformer: str | None = None) -> PlusFiles:
    """The files of a named ACE++ model, or of a folder that holds one, checked by their headers.

    adapters: further ones, with strengths: a file, a hub address, or the name of a LoRA model. transformer: another
    file for its weights (an fp8 or GGUF one). Fetches what is neither named nor cached. Raises ModelNotFoundError for
    what is not there, ConfigError for files that do not belong together."""
    model = PLUS_MODELS.get(name)
    own = [(PLUS_MODELS[a].name if a in PLUS_MODELS else a, strength) for a, strength in adapters]
    if model is None:
        folder = Path(name).expanduser()
        if not is_plus(name):
            raise ModelNotFoundError(f"unknown model {name!r}: use {', '.join(PLUS_MODELS)} or the folder of a model")
        base, repainting = folder, 1.0
        where = locate(transformer, "the transformer") if transformer else _own_transformer(folder)
        channels = None
    else:
        base = find_base(with_transformer=model.is_lora and transformer is None)
        repainting, channels = model.repainting_scale, model.channels
        weights = _of_variable(model)
        if model.is_lora:
            where = locate(transformer, "the transformer") if transformer else _own_transformer(base)
            own = [(weights, 1.0), *own]
        else:
            where = locate(transformer or weights, name)
    missing = [part for part in PARTS if not (base / part).is_dir() and not (part == "vae" and _ae_file(base))]
    if missing:
        raise ModelNotFoundError(
            f"{base.name} lacks {', '.join(missing)}: it must hold FLUX.1-Fill-dev as published ({BASE_VARIABLE})"
        )
    files = [AdapterFile(_adapter_path(a), strength) for a, strength in own]
    try:
        sizes = _sizes(where)
        for file in files:
            _check_adapter(file.path, sizes)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    if channels is not None:
        from ace.inference.plus_weights import WeightFiles, check_channels

        check_channels(WeightFiles(where.name, {}, {}, {}, {}), sizes, channels, name)
    label = name if model is not None else Path(name).expanduser().resolve().name
    return PlusFiles(label, base, where, sizes, tuple(files), repainting)


def find_base(with_transformer: bool = True) -> Path:
    """The folder of FLUX.1-Fill-dev: where `FLUX_FILL_PATH` points, else from the hub. Raises ModelNotFoundError."""
    wanted = [f"{part}/*" for part in (*PARTS, "scheduler")] + ["model_index.json"]
    if with_transformer:
        wanted.append("transformer/*")
    source = os.environ.get(BASE_VARIABLE) or f"hf://{BASE_HUB_ID}"
    return locate(source, "FLUX.1-Fill-dev", wanted)


def locate(source: str, what: str, patterns: Sequence[str] | None = None) -> Path:
    """A path, a hub id, `hf://…` or `ms://…`, with variables as in `${NAME}/file` → a local file or folder.

    patterns: which files of a whole repository are needed. Raises ModelNotFoundError, in one line."""
    text = os.path.expandvars(source.strip())
    unset = re.search(r"\$\{(\w+)\}", text)
    if unset:
        raise ModelNotFoundError(f"{what}: the variable {unset[1]} in {source!r} is not set: set it, or name a file")
    uri = _URI.match(text)
    path = Path(text).expanduser()
    if uri is None and path.exists():
        return path
    if uri is None and _HUB_ID.match(text) and path.suffix not in (".safetensors", ".gguf", ".pt", ".pth", ".ckpt"):
        uri = _URI.match(f"hf://{text}")
    if uri is None:
        short = _without_double_suffix(text)
        if short != text and Path(short).expanduser().exists():
            return Path(short).expanduser()
        raise ModelNotFoundError(
            f"{what}: {source!r} is neither a file here nor an address: write a path, hf://owner/repo@file or "
            "ms://owner/repo@file"
        )
    kind, repository, file = uri.groups()
    file = None if file is None else _without_double_suffix(file)
    if kind == "ms":
        return _from_modelscope(repository, file, what, patterns)
    return _from_hub(repository, file, what, patterns)


def _without_double_suffix(name: str) -> str:
    """The published instructions write one address with its suffix twice."""
    return re.sub(r"(\.safetensors)+$", ".safetensors", name)


def _from_hub(repository: str, file: str | None, what: str, patterns: Sequence[str] | None) -> Path:
    import huggingface_hub
    from httpx2 import HTTPError
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    name = repository if file is None else f"{repository}/{file}"
    variable = f" or point {BASE_VARIABLE} at a local copy" if repository == BASE_HUB_ID else " or name a local copy"
    try:
        if file is not None:
            return Path(huggingface_hub.hf_hub_download(repository, file))
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns) if patterns else None))
    except GatedRepoError:
        raise ModelNotFoundError(
            f"{what}: {repository} is gated: accept its licence on the hub and run `hf auth login`,{variable}"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelNotFoundError(
            f"{what}: {name} is not in the hub's cache and the hub cannot be reached: go online,{variable}"
        ) from None
    except (RepositoryNotFoundError, HFValidationError, EntryNotFoundError):
        raise ModelNotFoundError(f"{what}: the hub has no {name} (or it needs a login): check it,{variable}") from None
    except (HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise ModelNotFoundError(
            f"{what}: {name} was not fetched ({reason}): try again, it goes on from there"
        ) from None


def _from_modelscope(repository: str, file: str | None, what: str, patterns: Sequence[str] | None) -> Path:
    mirror = os.environ.get(MIRROR_VARIABLE)
    if mirror:
        path = Path(mirror).expanduser() / repository
        path = path if file is None else path / file
        if path.exists():
            return path
    if find_spec("modelscope") is not None:
        return _from_modelscope_client(repository, file, what, patterns)
    counterpart = COUNTERPARTS.get(repository)
    other = f"hf://{counterpart}" + (f"@{file}" if file else "") if counterpart else "a copy on disk"
    raise ModelNotFoundError(
        f"{what}: ms://{repository} needs the modelscope package or a folder of copies ({MIRROR_VARIABLE}): "
        f"install modelscope, or use {other}"
    )


def _from_modelscope_client(repository: str, file: str | None, what: str, patterns: Sequence[str] | None) -> Path:
    import modelscope  # type: ignore[import]

    try:
        if file is not None:
            return Path(modelscope.model_file_download(repository, file))
        return Path(modelscope.snapshot_download(repository, allow_patterns=list(patterns) if patterns else None))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise ModelNotFoundError(f"{what}: ms://{repository} was not fetched ({reason}): try again") from None


def _of_variable(model: PlusModel) -> str:
    """Where a named model's own weights are: its variable, else the hub."""
    return os.environ.get(model.variable) or model.source


def _adapter_path(source: str) -> Path:
    model = PLUS_MODELS.get(source)
    if model is not None and not model.is_lora:
        raise ConfigError(f"{source} is a whole model, no adapter: use it with --model")
    path = locate(
        _of_variable(model) if model is not None else source, model.name if model is not None else "the adapter"
    )
    if path.is_dir():
        found = sorted(path.rglob("comfyui_model.safetensors")) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise ModelNotFoundError(f"{path.name} holds {len(found)} adapter files: name one of them")
        return found[0]
    return path


def _own_transformer(folder: Path) -> Path:
    """diffusers' folder of a base, else Black Forest Labs' file."""
    inner = folder / "transformer"
    if inner.is_dir() and any(inner.glob("*.safetensors")):
        return inner
    files = [folder / BASE_FILE, *sorted(folder.glob("*.safetensors"))]
    found = [file for file in files if file.is_file() and file.name != "ae.safetensors"]
    if not found:
        raise ModelNotFoundError(
            f"{folder.name} holds no transformer: it needs transformer/ or {BASE_FILE}, as FLUX.1-Fill-dev has"
        )
    return found[0]


def _ae_file(base: Path) -> Path | None:
    file = base / "ae.safetensors"
    return file if file.is_file() else None


def _sizes(transformer: Path) -> FluxSizes:
    from ace.inference.plus_weights import check_transformer, read_weight_files

    return check_transformer(read_weight_files(transformer))


def _check_adapter(path: Path, sizes: FluxSizes) -> None:
    from ace.inference.plus_weights import load_adapter

    load_adapter(path, sizes)


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
    vae.load_state_dict(vae_from_published(load_file(base / "ae.safetensors"), vae))
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
