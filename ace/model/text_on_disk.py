"""A T5 text encoder that stays on disk until a text needs it, and the states of texts that were encoded before.

T5-XXL is eight times the size of the transformer and works for a second per picture. `TextEncoderOnDisk` stands in for
it in a pipeline: it answers from its cache, else loads the encoder, once per request, and lets go of it. The ways of
loading are exact (`load_whole`, `load_streamed`: layer by layer from the mapped files) but for `load_8bit`.

Not here: which way is taken (`weights/memory.py`), texts and tokens (`text.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from accelerate.hooks import attach_align_device_hook
from accelerate.utils import OffloadedWeightsLoader
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PreTrainedModel, T5Config, T5EncoderModel

from ace.errors import CheckpointError, MissingDependencyError
from ace.extras import install_command

CACHE_BYTES = 1_000_000_000  # of prompts: several thousand of them

Load = Callable[[], PreTrainedModel]


@dataclasses.dataclass(frozen=True)
class EncodedTexts:
    """What an encoder returns: states (N, L, C)."""

    last_hidden_state: Tensor


class TextEncoderOnDisk:
    """Called as the encoder is: token ids and mask (N, L) → states (N, L, C) in `last_hidden_state`.

    load: makes the encoder. device: where states are returned. keep: hold on to a loaded encoder instead of letting go
    of it at the end of `held`. cache: of padded rows; None = none. num_loads counts how often `load` was called."""

    def __init__(self, load: Load, device: torch.device, *, keep: bool, cache: StatesCache | None = None) -> None:
        self.device = device
        self.cache = cache
        self.num_loads = 0
        self._load, self._keep = load, keep
        self._model: PreTrainedModel | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within, the encoder is loaded at most once."""
        try:
            yield
        finally:
            if not self._keep and self._model is not None:
                self._model = None
                gc.collect()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> EncodedTexts:
        """Rows that are in the cache are read, the others are encoded together."""
        rows: list[Tensor | None] = [None] * len(input_ids)
        if self.cache is not None:
            rows = [self.cache.read(ids, mask) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        missing = [number for number, row in enumerate(rows) if row is None]
        if missing:
            model = self._loaded()
            with torch.no_grad():
                made = model(input_ids=input_ids[missing], attention_mask=attention_mask[missing]).last_hidden_state
            for number, row in zip(missing, made, strict=True):
                rows[number] = row
                if self.cache is not None:
                    self.cache.write(input_ids[number], attention_mask[number], row)
        return EncodedTexts(torch.stack([row.to(self.device) for row in rows if row is not None]))

    def _loaded(self) -> PreTrainedModel:
        if self._model is None:
            self._model = self._load()
            self.num_loads += 1
        return self._model


@dataclasses.dataclass(frozen=True)
class StatesCache:
    """States of texts in a folder, one small file each, the least recently used removed beyond `max_bytes`.

    encoder: what the states depend on beside the tokens (`fingerprint`). An entry that cannot be read is none, and a
    folder that cannot be written to keeps nothing."""

    folder: Path
    encoder: str
    max_bytes: int = CACHE_BYTES

    def read(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        """States (L, C) of one padded row of tokens, or None."""
        path = self._path(ids, mask)
        try:
            states = load(path.read_bytes())["states"]
            os.utime(path)
        except (OSError, SafetensorError, KeyError):
            return None
        return states if len(states) == len(ids) else None

    def write(self, ids: Tensor, mask: Tensor, states: Tensor) -> None:
        """Keep states (L, C)."""
        data = save({"states": states.cpu().contiguous()})
        path = self._path(ids, mask)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".")
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(name, path)
            self._make_room()
        except OSError:
            return  # a full or read-only disk: the next request encodes again

    def _path(self, ids: Tensor, mask: Tensor) -> Path:
        key = f"{self.encoder} {ids.tolist()} {mask.tolist()}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _make_room(self) -> None:
        found = [(path.stat(), path) for path in self.folder.glob("*.safetensors")]
        total = sum(stat.st_size for stat, _ in found)
        for stat, path in sorted(found, key=lambda pair: pair[0].st_mtime_ns):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


def fingerprint(folder: Path, *settings: object) -> str:
    """Of a folder with an encoder: changes with its files (by name, size and time) and the settings given."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    text = json.dumps([files, [str(setting) for setting in settings], torch.__version__])
    return hashlib.sha256(text.encode()).hexdigest()


def load_whole(folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The encoder in memory."""
    model = T5EncoderModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return cast(PreTrainedModel, cast(nn.Module, model).eval().to(device))


def load_streamed(folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The encoder with its weights left on disk: each layer's are mapped while it works, then dropped.

    Raises CheckpointError if the files lack a weight."""
    model = _empty(folder, dtype)
    index = {}
    for name, path in weight_files(folder).items():
        index[name] = {"safetensors_file": str(path), "weight_name": name, "dtype": str(dtype).removeprefix("torch.")}
    for name, same in (model.all_tied_weights_keys or {}).items():
        if same in index:
            index.setdefault(name, index[same])
    missing = sorted(name for name, _ in model.named_parameters(remove_duplicate=False) if name not in index)
    if missing:
        raise CheckpointError(f"the text encoder lacks {', '.join(missing[:4])}: copy all of its files again")
    weights = OffloadedWeightsLoader(index=index, device=str(device))
    attach_align_device_hook(model, execution_device=device, offload=True, weights_map=weights)
    return model


def load_8bit(folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The encoder with 8-bit linear weights, one scale per row (torchao), made layer by layer: half the memory.

    Its states differ slightly. Raises MissingDependencyError without torchao."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import]
    except ImportError:
        raise MissingDependencyError(f"8-bit weights need torchao: {install_command('quant')}") from None
    model = _empty(folder, dtype)
    files = weight_files(folder)
    tied = model.all_tied_weights_keys or {}
    for module_name, module in model.named_modules():
        own = {name: f"{module_name}.{name}" for name, _ in module.named_parameters(recurse=False)}
        for name, full in own.items():
            source = full if full in files else tied[full]
            with safe_open(files[source], framework="pt", device=str(device)) as file:
                value = file.get_tensor(source).to(dtype, copy=True)
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        if isinstance(module, nn.Linear):
            quantize_(module, Int8WeightOnlyConfig())
    model.tie_weights()
    return cast(PreTrainedModel, cast(nn.Module, model).to(device))


def weight_files(folder: Path) -> dict[str, Path]:
    """Name of a weight → the safetensors file that holds it. Raises CheckpointError for a damaged file or none."""
    index = folder / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else []
    found: dict[str, Path] = {}
    for name in names or ["model.safetensors"]:
        try:
            with safe_open(folder / name, framework="pt") as file:
                found.update(dict.fromkeys(file.keys(), folder / name))
        except (OSError, SafetensorError):
            raise CheckpointError(f"{name} is missing, damaged or cut off: copy the text encoder again") from None
    return found


def _empty(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The encoder without weights."""
    config = T5Config.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return cast(PreTrainedModel, cast(nn.Module, T5EncoderModel(config)).to(dtype).eval())
