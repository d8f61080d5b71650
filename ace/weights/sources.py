"""A model's name → its files → a pipeline.

A name is one of the known ones (`ace-tiny` ships in the package, the published models are converted once into the cache
folder) or a folder in diffusers' layout. `find_model` reads small JSON files only; torch is imported by
`load_pipeline`.

Not here: converting published checkpoints (`convert.py`).
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ace.conditions.vocabulary import Vocabulary
from ace.errors import CheckpointError, ConfigError, MissingDependencyError, ModelNotFoundError
from ace.extras import install_command
from ace.files import cache_folder, hash_model
from ace.model.devices import find_device
from ace.plus.models import PLUS_MODELS
from ace.weights.adapters import AdapterChoice, attach_adapters
from ace.weights.memory import TILE_PX, MemoryPlan, plan_memory

if TYPE_CHECKING:
    import torch

    from ace.inference.pipeline import ACEPipeline
    from ace.model.text_on_disk import TextEncoderOnDisk

DEFAULT_MODEL = "ace-tiny"
SHIPPED_MODEL = Path(__file__).parents[1] / "tiny" / "checkpoint"
NUMBER_TYPES = ("auto", "float32", "bfloat16", "float16")

# name -> what it is; those that are not in the package are looked for in the cache folder
PUBLISHED_MODELS = {
    "ace-0.6b-512": "published weights, 0.6 B parameters, pictures of about 512x512 px",
    "ace-0.6b-1024": "published weights, 0.6 B parameters, pictures of about 1024x1024 px",
}


@dataclass(frozen=True)
class KnownModel:
    """A model that has a name. folder: where its files are or would be."""

    name: str
    description: str
    folder: Path

    @property
    def is_present(self) -> bool:
        """Whether its files are on this machine."""
        return (self.folder / "model_index.json").is_file()


@dataclass(frozen=True)
class ModelFiles:
    """A model that is on this machine, named as recipes name it, with the settings that can be read without loading it.

    budget: cells of one picture; cell_px: side of a cell; the rest are the model's defaults."""

    name: str
    folder: Path
    budget: int
    cell_px: int
    num_inference_steps: int
    guidance_scale: float

    @property
    def side_px(self) -> int:
        """Side of a square picture of the model's own size."""
        return int(self.budget**0.5) * self.cell_px

    @cached_property
    def sha256(self) -> str:
        """Hash of the model's files, see `hash_model`; those that a conversion wrote down are not read again."""
        return hash_model(self.folder, _written_hashes(self.folder))

    @cached_property
    def is_quantized(self) -> bool:
        """Whether the transformer's weights are of 8 bits. Raises ModelNotFoundError."""
        return "quantization_config" in _read_json(self.folder / "transformer" / "config.json", self.name)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """What the model has learnt to draw from words, None if its folder does not say. Raises CheckpointError."""
        return Vocabulary.load(self.folder)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise ConfigError if this model cannot work at (width, height) px."""
        width, height = size
        if width < 1 or height < 1 or width % self.cell_px or height % self.cell_px:
            nearest = "x".join(str(max(1, round(side / self.cell_px)) * self.cell_px) for side in size)
            raise ConfigError(
                f"size {width}x{height} px: {self.name} works in steps of {self.cell_px} px, use {nearest}"
            )
        most = 4 * self.budget
        if width * height > most * self.cell_px**2:
            raise ConfigError(
                f"size {width}x{height} px is far beyond what {self.name} was made for: "
                f"about {self.side_px}x{self.side_px}"
            )


def models_folder() -> Path:
    """Where converted models are kept: the folder `models` in `cache_folder`."""
    return cache_folder() / "models"


def known_models() -> tuple[KnownModel, ...]:
    """Every model that has a name, whether it is on this machine or not; the default first."""
    tiny = KnownModel(DEFAULT_MODEL, "small, in the package: emoji-like scenes of about 128x128 px", SHIPPED_MODEL)
    published = (KnownModel(name, text, models_folder() / name) for name, text in PUBLISHED_MODELS.items())
    return (tiny, *published)


def find_model(name: str | None = None) -> ModelFiles:
    """The files behind a name or a folder; None = `$ACE_MODEL`, else `ace-tiny`. Loads nothing.

    Raises ModelNotFoundError for an unknown name, a model that is not here, or a folder that holds none."""
    name = name or os.environ.get("ACE_MODEL") or DEFAULT_MODEL
    known = {model.name: model for model in known_models()}
    if name in known:
        model = known[name]
        if not model.is_present:
            how = (
                "the package is incomplete: install it again"
                if name == DEFAULT_MODEL
                else f"run `ace convert {name}` once"
            )
            raise ModelNotFoundError(f"the model {name} is not on this machine: {how}, or use another (`ace models`)")
        return _read_settings(name, model.folder)
    if name in PLUS_MODELS:
        raise ModelNotFoundError(
            f"{name} is an ACE++ model, for `ace edit` with a photo or --reference: use another here"
        )
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelNotFoundError(f"unknown model {name!r}: use {', '.join(known)} or the folder of a model")
    return _read_settings(folder.resolve().name, folder)


def find_dtype(model: ModelFiles, device: str, dtype: str = "auto") -> str:
    """ "auto" is float32 on CPUs and for small models, else bfloat16, as for 8-bit weights, which need it.

    Raises ConfigError for one that is unknown or impossible."""
    if dtype not in NUMBER_TYPES:
        raise ConfigError(f"dtype {dtype!r}: use one of {', '.join(NUMBER_TYPES)}")
    if model.is_quantized:
        if dtype not in ("auto", "bfloat16"):
            raise ConfigError(f"the 8-bit weights of {model.name} are computed in bfloat16: leave --dtype out")
        return "bfloat16"
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" and model.budget > 256 else "float32"


def choose_memory(model: ModelFiles, *, device: str = "auto", dtype: str = "auto", memory: str = "auto") -> MemoryPlan:
    """How a model would be spread over the memory that is free now. Raises as `load_pipeline`."""
    device = find_device(device)
    return plan_memory(model.folder, model.budget, memory, device, find_dtype(model, device, dtype))


def load_pipeline(
    model: ModelFiles,
    *,
    device: str = "auto",
    dtype: str = "auto",
    memory: str | MemoryPlan = "auto",
    adapters: Sequence[AdapterChoice] = (),
) -> ACEPipeline:
    """Load a model, ready to use.

    device: "auto" takes a GPU if there is one. dtype: "auto" is float32 on CPUs and for small models, else bfloat16.
    memory: one of `MEMORY_MODES`, or what `choose_memory` made of it. adapters: stacked on the
    transformer. Raises ConfigError for a device, number type, mode or adapter that is not there or does not fit,
    CheckpointError for files that cannot be loaded."""
    device = find_device(device)
    dtype = find_dtype(model, device, dtype)
    if isinstance(memory, str):
        memory = plan_memory(model.folder, model.budget, memory, device, dtype)
    import torch
    from diffusers import AutoencoderKL
    from safetensors import SafetensorError

    from ace.inference.latents import scale_factor
    from ace.inference.pipeline import ACEPipeline

    dtypes = {"default": getattr(torch, dtype)}
    if model.budget > 256:
        dtypes["text_encoder"] = torch.bfloat16  # as published; T5-XXL in float32 would take 19 GB
    on_disk = None if memory.plain else _text_encoder_on_disk(model, memory, torch.device(device), dtypes)
    if model.is_quantized and importlib.util.find_spec("torchao") is None:
        raise MissingDependencyError(f"{model.name} has 8-bit weights: {install_command('quant')}")
    left_out = {} if on_disk is None else {"text_encoder": None}
    try:
        pipeline = ACEPipeline.from_pretrained(
            model.folder, dtype=dtypes, local_files_only=True, use_safetensors=True, **left_out
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(f"the model {model.name} cannot be loaded ({reason}): fetch or copy it again") from error
    if adapters:
        attach_adapters(pipeline, adapters)
    if isinstance(pipeline.vae, AutoencoderKL):
        pipeline.vae.to(memory_format=torch.channels_last)  # faster convolutions, equal up to rounding
        if memory.tiled:
            pipeline.vae.enable_tiling()
            pipeline.vae.tile_sample_min_size = TILE_PX  # smaller pictures stay whole, exactly
            pipeline.vae.tile_latent_min_size = TILE_PX // scale_factor(pipeline.vae)
    if memory.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif memory.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
    if on_disk is not None:
        pipeline.text_encoder = on_disk
        pipeline.text_quantization = "int8" if memory.text == "8bit" else ""
    return pipeline


def _text_encoder_on_disk(
    model: ModelFiles, memory: MemoryPlan, device: torch.device, dtypes: dict[str, torch.dtype]
) -> TextEncoderOnDisk | None:
    """What stands in for a T5 encoder; None for another kind, which is small."""
    from ace.model import text_on_disk

    folder = model.folder / "text_encoder"
    if _read_json(folder / "config.json", model.name).get("model_type") != "t5":
        return None
    dtype = dtypes.get("text_encoder", dtypes["default"])
    load = {
        "kept": text_on_disk.load_whole,
        "freed": text_on_disk.load_whole,
        "8bit": text_on_disk.load_8bit,
        "streamed": text_on_disk.load_streamed,
    }[memory.text]
    key = text_on_disk.fingerprint(folder, dtype, device.type, "8bit" if memory.text == "8bit" else "exact")
    return text_on_disk.TextEncoderOnDisk(
        lambda: load(folder, device, dtype),
        device,
        keep=memory.text in ("kept", "8bit", "streamed"),
        cache=text_on_disk.StatesCache(cache_folder() / "prompts", key),
    )


def _written_hashes(folder: Path) -> dict[str, str]:
    """Hashes in a converted model's manifest, of the files that are as large and as old as then."""
    manifest = folder / "manifest.json"
    try:
        recorded = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        written = manifest.stat().st_mtime_ns
        found = {name: ((folder / name).stat(), entry) for name, entry in recorded.items()}
        return {
            name: str(entry["sha256"])
            for name, (stat, entry) in found.items()
            if stat.st_size == entry["bytes"] and max(stat.st_mtime_ns, stat.st_ctime_ns) <= written
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _read_settings(name: str, folder: Path) -> ModelFiles:
    """Check that a folder holds one of our pipelines, complete as far as its index says."""
    index = _read_json(folder / "model_index.json", name)
    if index.get("_class_name") != "ACEPipeline":
        raise ModelNotFoundError(f"{name} holds a {index.get('_class_name')}, not an ACEPipeline: name another folder")
    missing = [part for part, kind in index.items() if isinstance(kind, list) and not (folder / part).is_dir()]
    if missing:
        raise ModelNotFoundError(f"the model {name} lacks {', '.join(missing)}: copy the whole folder again")
    vae, transformer = (_read_json(folder / part / "config.json", name) for part in ("vae", "transformer"))
    try:
        levels = len(vae.get("encoder_block_out_channels") or vae["block_out_channels"])
        return ModelFiles(
            name=name,
            folder=folder,
            budget=int(index["budget"]),
            cell_px=2 ** (levels - 1) * int(transformer["patch_size"]),
            num_inference_steps=int(index["num_inference_steps"]),
            guidance_scale=float(index["guidance_scale"]),
        )
    except (KeyError, TypeError, ValueError):
        raise ModelNotFoundError(
            f"the settings of the model {name} cannot be read: copy the whole folder again"
        ) from None


def _read_json(path: Path, name: str) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ModelNotFoundError(
            f"{name} is no model folder (it has no {path.name}): name one that diffusers saved"
        ) from None
    except ValueError:
        raise ModelNotFoundError(f"{path.name} of the model {name} is damaged: copy the whole folder again") from None
    if not isinstance(content, dict):
        raise ModelNotFoundError(f"{path.name} of the model {name} is damaged: copy the whole folder again")
    return content
