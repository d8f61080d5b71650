"""Names of ACE++ models → their files, checked by their headers.

Files are found where the published environment variables point (`FLUX_FILL_PATH`, `PORTRAIT_MODEL_PATH`, …), else on
the hub. A folder that holds a pipeline of ACE++ or FLUX.1-Fill is a model as well.

Not here: the names (`plus/models.py`), addresses (`plus/addresses.py`), loading (`plus/load.py`).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ace.errors import CheckpointError, ConfigError, ModelNotFoundError
from ace.files import cache_folder, hash_model_once, hash_once
from ace.plus.addresses import locate
from ace.plus.models import BASE_HUB_ID, BASE_VARIABLE, PLUS_MODELS, PlusModel, is_plus

if TYPE_CHECKING:
    from ace.plus.layouts import FluxSizes

BASE_FILE = "flux1-fill-dev.safetensors"
AUTOENCODER_FILE = "ae.safetensors"
PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


@dataclass(frozen=True)
class AdapterFile:
    """An adapter to merge, with its strength. name: as it was asked for, a model's name or the file's."""

    path: Path
    strength: float = 1.0
    name: str = ""

    @cached_property
    def sha256(self) -> str:
        """Hash of the file."""
        return hash_once(self.path, cache_folder())


@dataclass(frozen=True)
class PlusFiles:
    """An ACE++ model that is on this machine. base: folder of FLUX.1-Fill-dev's parts; transformer: file or folder;
    other_transformer: it stands in for the model's own."""

    name: str
    base: Path
    transformer: Path
    sizes: FluxSizes
    adapters: tuple[AdapterFile, ...]
    repainting_scale: float
    other_transformer: bool = False

    @property
    def is_fft(self) -> bool:
        """Whether it has change channels."""
        return self.sizes.in_channels == 448

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that makes the pictures: the parts' and weights' names and contents, and strengths."""
        cache = cache_folder()
        digest = hashlib.sha256()
        for part in PARTS:
            if (self.base / part).is_dir():
                digest.update(f"{part}\0{hash_model_once(self.base / part, cache)}\n".encode())
        weights = self.transformer
        digest.update((hash_model_once(weights, cache) if weights.is_dir() else hash_once(weights, cache)).encode())
        for adapter in self.adapters:
            digest.update(f"{adapter.sha256}\0{adapter.strength}\n".encode())
        return digest.hexdigest()


def read_adapter_option(text: str) -> tuple[str, float]:
    """ "FILE" or "FILE:STRENGTH" → (file, strength). Raises ConfigError."""
    source, separator, strength = text.rpartition(":")
    if not separator or "/" in strength or "\\" in strength:
        return text, 1.0
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if not abs(value) <= 100:
        raise ConfigError(f"adapter {text!r}: write FILE or FILE:STRENGTH, for example style.safetensors:0.8")
    return source, value


def find_plus(name: str, adapters: Sequence[tuple[str, float]] = (), transformer: str | None = None) -> PlusFiles:
    """The files of a named ACE++ model, or of a folder that holds one, checked by their headers.

    adapters: further ones, with strengths: a file, a hub address, or the name of a LoRA model. transformer: another
    file for its weights (an fp8 or GGUF one). Fetches what is neither named nor cached. Raises ModelNotFoundError for
    what is not there, ConfigError for files that do not belong together."""
    model = PLUS_MODELS.get(name)
    if model is None and not is_plus(name):
        raise ModelNotFoundError(f"unknown model {name!r}: use {', '.join(PLUS_MODELS)} or the folder of a model")
    base = Path(name).expanduser()
    if model is not None:
        base = find_base(with_transformer=model.is_lora and transformer is None)
    if transformer is not None:
        weights = locate(transformer, "the transformer")
    elif model is not None and not model.is_lora:
        weights = locate(_of_variable(model), name)
    else:
        weights = _own_transformer(base)
    _check_parts(base)
    wanted = [(name, 1.0), *adapters] if model is not None and model.is_lora else adapters
    files = tuple(_adapter_file(source, strength) for source, strength in wanted)
    return PlusFiles(
        name=name if model is not None else base.resolve().name,
        base=base,
        transformer=weights,
        sizes=_check_headers(weights, files, model),
        adapters=files,
        repainting_scale=1.0 if model is None else model.repainting_scale,
        other_transformer=transformer is not None,
    )


def find_base(with_transformer: bool = True) -> Path:
    """The folder of FLUX.1-Fill-dev: where `FLUX_FILL_PATH` points, else from the hub. Raises ModelNotFoundError."""
    wanted = [f"{part}/*" for part in (*PARTS, "scheduler")] + ["model_index.json"]
    if with_transformer:
        wanted.append("transformer/*")
    source = os.environ.get(BASE_VARIABLE) or f"hf://{BASE_HUB_ID}"
    return locate(source, "FLUX.1-Fill-dev", wanted)


def _of_variable(model: PlusModel) -> str:
    """Where a named model's own weights are: its variable, else the hub."""
    return os.environ.get(model.variable) or model.source


def _adapter_file(source: str, strength: float) -> AdapterFile:
    """What a name, an address or a folder of training output holds."""
    model = PLUS_MODELS.get(source)
    if model is not None and not model.is_lora:
        raise ConfigError(f"{source} is a whole model, no adapter: use it with --model")
    path = locate(source, "the adapter") if model is None else locate(_of_variable(model), model.name)
    if path.is_dir():
        found = sorted(path.rglob("comfyui_model.safetensors")) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise ModelNotFoundError(f"{path.name} holds {len(found)} adapter files: name one of them")
        path = found[0]
    return AdapterFile(path, strength, path.name if model is None else model.name)


def _own_transformer(folder: Path) -> Path:
    """diffusers' folder of a base, else Black Forest Labs' file."""
    inner = folder / "transformer"
    if inner.is_dir() and any(inner.glob("*.safetensors")):
        return inner
    files = [folder / BASE_FILE, *sorted(folder.glob("*.safetensors"))]
    found = [file for file in files if file.is_file() and file.name != AUTOENCODER_FILE]
    if not found:
        raise ModelNotFoundError(
            f"{folder.name} holds no transformer: it needs transformer/ or {BASE_FILE}, as FLUX.1-Fill-dev has"
        )
    return found[0]


def _check_parts(base: Path) -> None:
    missing = [part for part in PARTS if not (base / part).is_dir()]
    if (base / AUTOENCODER_FILE).is_file() and "vae" in missing:
        missing.remove("vae")
    if missing:
        raise ModelNotFoundError(
            f"{base.name} lacks {', '.join(missing)}: it must hold FLUX.1-Fill-dev as published ({BASE_VARIABLE})"
        )


def _check_headers(transformer: Path, adapters: Sequence[AdapterFile], model: PlusModel | None) -> FluxSizes:
    """The transformer's sizes, after checking that it is the model's kind and that the adapters are made for it."""
    from ace.plus.weights import check_channels, check_transformer, load_adapter, read_weight_files

    try:
        sizes = check_transformer(read_weight_files(transformer))
        for adapter in adapters:
            load_adapter(adapter.path, sizes)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    if model is not None:
        check_channels(transformer.name, sizes, model.channels, model.name)
    return sizes
