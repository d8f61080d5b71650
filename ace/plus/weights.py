"""FLUX weight files → a transformer, one tensor at a time.

Any layout is read: a safetensors file in Black Forest Labs' or diffusers' names, or a folder that diffusers saved, in
shards or whole; 32, 16 or 8 bits, the latter with ComfyUI's scales or without; or a GGUF file. Headers are checked
before a weight is touched. Adapters are merged in float32 on the way, so that nothing is left of them at run time, and
weights are put into fewer bits where that is asked for.

Not here: names of models (`plus/sources.py`), names of keys (`ace/plus/layouts.py`), kinds of fewer bits
(`plus/quantize.py`), writing files (`plus/convert.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from diffusers import FluxTransformer2DModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ace.adapter_files import read_header, read_settings
from ace.errors import CheckpointError, ConfigError
from ace.plus.fp8 import Fp8Linear, to_fp8
from ace.plus.gguf import GgufFile
from ace.plus.layouts import (
    BFL_PREFIX,
    FFT_CHANNELS,
    LORA_CHANNELS,
    Delta,
    FluxAdapter,
    FluxSizes,
    Piece,
    Shape,
    check_checkpoint,
    flux_sizes,
    is_bfl,
    is_scale,
    pieces,
    read_adapter,
    widen,
)
from ace.plus.quantize import Quantization, Quantizer, check_quantization

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.", "double_blocks.", "single_blocks.")

Progress = Callable[[int, int], None]  # tensors done, and in all


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a checkpoint, found by name over its files. shapes: of all; files: tensor → its file; dtypes: as
    safetensors calls them; metadata: of a single file."""

    name: str
    shapes: Mapping[str, Shape]
    files: Mapping[str, Path]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]
    gguf: GgufFile | None = None

    @property
    def is_fp8(self) -> bool:
        """Whether it holds 8-bit floats."""
        return any(kind.startswith("F8_") for kind in self.dtypes.values())

    def is_fp8_tensor(self, name: str) -> bool:
        """Whether a tensor is stored in 8-bit floats of the kind that is computed with (E4M3)."""
        return self.dtypes.get(name) == "F8_E4M3"

    def tensors(self) -> _Tensors:
        """A reader of single tensors; the files stay mapped as long as it lives."""
        return _Tensors(self)


class _Tensors:
    def __init__(self, files: WeightFiles) -> None:
        self.files = files
        self._open: dict[Path, safe_open] = {}

    def __call__(self, name: str) -> Tensor:
        if self.files.gguf is not None:
            return self.files.gguf.unpacked(name)
        path = self.files.files[name]
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt")
            return self._open[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path.name} cannot be read ({str(error)[:120]}): get the file again") from None


def read_weight_files(source: Path) -> WeightFiles:
    """The tensors of a safetensors or GGUF file, or of all in a folder, from their headers alone.

    Raises CheckpointError for other files, and for one that is cut off."""
    if source.suffix == ".gguf" and source.is_file():
        gguf = GgufFile(source)
        shapes = gguf.shapes()
        return WeightFiles(source.name, shapes, dict.fromkeys(shapes, source), {}, {}, gguf)
    if source.is_dir():
        paths = sorted(source.glob("*.safetensors"))
        if not paths:
            raise CheckpointError(f"{source.name} holds no safetensors files: name a folder with weights, or a file")
    else:
        paths = [source]
    shapes: dict[str, Shape] = {}
    files: dict[str, Path] = {}
    dtypes: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        header = read_header(path)
        metadata = header.pop("__metadata__", {})
        for name, entry in header.items():
            shapes[name], dtypes[name], files[name] = tuple(entry["shape"]), entry["dtype"], path
    return WeightFiles(source.name, shapes, files, dtypes, metadata)


def check_transformer(files: WeightFiles) -> FluxSizes:
    """The sizes of a transformer's files, after checking that nothing is missing or unknown. Raises CheckpointError."""
    try:
        sizes = flux_sizes(files.shapes)
        if is_bfl(files.shapes):
            check_checkpoint(files.shapes, sizes)
        else:
            _check_diffusers(files, sizes)
        sizes.config()
        return sizes
    except CheckpointError as error:
        raise CheckpointError(f"{files.name}: {error}") from None


def _check_diffusers(files: WeightFiles, sizes: FluxSizes) -> None:
    given = {name for name in files.shapes if not is_scale(name)}
    wanted = set(pieces(sizes))
    if given != wanted:
        missing, unknown = sorted(wanted - given)[:3], sorted(given - wanted)[:3]
        raise CheckpointError(
            f"not a whole FLUX transformer: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}"
        )


def load_adapter(path: Path, sizes: FluxSizes) -> FluxAdapter:
    """An adapter file for a transformer of these sizes. Raises CheckpointError, naming the file."""
    files = read_weight_files(path)
    read = files.tensors()
    settings = read_settings(path, files.metadata)
    return read_adapter({name: read(name) for name in files.shapes}, sizes, path.name, settings)


# Loading

Way = Literal["plain", "fp8", "packed", "quantized"]


def load_transformer(
    files: WeightFiles,
    *,
    dtype: torch.dtype,
    adapters: Sequence[tuple[FluxAdapter, float]] = (),
    channels: int | None = None,
    quantization: Quantization | None = None,
    device: str = "cpu",
    keep: Callable[[Tensor], Tensor] | None = None,
    progress: Progress | None = None,
) -> FluxTransformer2DModel:
    """diffusers' transformer with these weights.

    adapters: merged, with their strengths. channels: 448 widens a 384-channel model (the change channels begin at
    zero). quantization: of the blocks' weights: "fp8" (scaled 8-bit floats, any device), "int8" (torchao), "4bit"
    (bitsandbytes) or a configuration of diffusers' quantizers. device: where each tensor goes as soon as it is read.
    keep: what each becomes then, on a CPU (`MappedWeights`).
    Raises CheckpointError, ConfigError or MissingDependencyError."""
    check_quantization(quantization)
    keep = keep or (lambda tensor: tensor)
    sizes = check_transformer(files)
    wanted = sizes.in_channels if channels is None else channels
    config = sizes.config() | {"in_channels": wanted}
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config)  # type: ignore[arg-type]
    read = files.tensors()
    plan = _plan(files, sizes)
    changes = {name: [(a.deltas[name], strength) for a, strength in adapters if name in a.deltas] for name in plan}
    ways = {name: _way_of(files, name, piece, quantization, bool(changes[name])) for name, piece in plan.items()}
    packed = {n: files.gguf.packed(p.source, p) for n, p in plan.items() if files.gguf and ways[n] == "packed"}
    quantizer = None
    if packed or "quantized" in ways.values():
        quantizer = Quantizer(model, quantization, dtype, packed)

    plain: dict[str, Tensor] = {}
    for number, (name, piece) in enumerate(plan.items()):
        way = ways[name]
        if way == "packed" and quantizer is not None:
            quantizer.take(name, packed.pop(name), device)
        elif way == "fp8" and files.is_fp8_tensor(piece.source) and not changes[name]:
            stored = piece.of(read(piece.source)).clone()  # as it is in the file
            layer = Fp8Linear(stored, _scale_of(files, read, piece.source)).to(device)
            layer.bytes = keep(layer.bytes)
            _replace(model, name, layer)
        else:
            tensor = piece.of(read(piece.source))
            scale = _scale_of(files, read, piece.source)
            tensor = _merged(tensor if scale == 1.0 else tensor.float() * scale, changes[name])
            if name == "x_embedder.weight" and wanted != sizes.in_channels:
                tensor = widen(tensor, wanted)
            if way == "fp8":
                layer = Fp8Linear(*to_fp8(tensor)).to(device)
                layer.bytes = keep(layer.bytes)
                _replace(model, name, layer)
            elif way == "quantized" and quantizer is not None:
                quantizer.take(name, tensor.to(dtype).contiguous(), device)
            else:
                plain[name] = keep(tensor.to(device, dtype, copy=True).contiguous())
        if progress is not None:
            progress(number + 1, len(plan))
    for name, tensor in plain.items():
        _put(model, name, tensor)
    if quantizer is not None:
        quantizer.finish()
    return model.eval()


def _plan(files: WeightFiles, sizes: FluxSizes) -> dict[str, Piece]:
    """Where each of diffusers' parameters is in these files."""
    if not is_bfl(files.shapes):
        return {name: Piece(name) for name in pieces(sizes)}
    prefix = BFL_PREFIX if any(name.startswith(BFL_PREFIX) for name in files.shapes) else ""
    return {name: replace(piece, source=f"{prefix}{piece.source}") for name, piece in pieces(sizes).items()}


def _way_of(files: WeightFiles, name: str, piece: Piece, quantization: Quantization | None, changed: bool) -> Way:
    """How a parameter is kept: matrices of the blocks in fewer bits if asked for, those of a GGUF file as they are but
    where an adapter changes them."""
    if len(files.shapes[piece.source]) != 2 or not name.startswith(BLOCKS):
        return "plain"
    if quantization is not None:
        return "fp8" if quantization == "fp8" else "quantized"
    if files.gguf is not None and files.gguf.is_packed(piece.source):
        return "fp8" if changed else "packed"
    return "plain"


def _scale_of(files: WeightFiles, read: Callable[[str], Tensor], name: str) -> float:
    key = f"{name.removesuffix('.weight')}.scale_weight"
    if not name.endswith(".weight") or key not in files.shapes:
        return 1.0
    scale = read(key)
    if scale.numel() != 1:
        raise CheckpointError(f"{files.name}: {key} has {scale.numel()} values, one is known: get another fp8 file")
    return float(scale)


def _merged(weight: Tensor, changes: Sequence[tuple[Delta, float]]) -> Tensor:
    weight = weight.float() if changes else weight
    for delta, strength in changes:
        weight = delta.apply(weight, strength)
    return weight


def _replace(model: nn.Module, weight: str, layer: nn.Module) -> None:
    """Put a layer where the weight of this name belongs."""
    parent, _, leaf = weight.removesuffix(".weight").rpartition(".")
    model.get_submodule(parent).register_module(leaf, layer)


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    layer = model.get_submodule(parent)
    if isinstance(layer, Fp8Linear):
        layer.bias = tensor
    else:
        layer.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))


def check_channels(file: str, sizes: FluxSizes, channels: int, model: str) -> None:
    """Raise ConfigError, naming the file and what to give instead, for a transformer of the other kind."""
    if sizes.in_channels == channels:
        return
    kinds = {LORA_CHANNELS: "FLUX.1-Fill-dev", FFT_CHANNELS: "ACE++ FFT"}
    what = kinds.get(sizes.in_channels, "FLUX.1-dev or another FLUX" if sizes.in_channels == 64 else "another model")
    raise ConfigError(
        f"{file} has {sizes.in_channels} input channels ({what}), {model} needs {channels}: give "
        f"{kinds[channels]}" + (" or use --model ace-plus-fft" if sizes.in_channels == FFT_CHANNELS else "")
    )
