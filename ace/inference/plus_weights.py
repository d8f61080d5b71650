"""FLUX weight files → a transformer, one tensor at a time; 8-bit weights, in memory and as files, with their error.

Any layout is read: a safetensors file in Black Forest Labs' or diffusers' names, or a folder that diffusers saved, in
shards or whole; 32, 16 or 8 bits, the latter with ComfyUI's scales or without; or a GGUF file. Headers are checked
before a weight is touched. Adapters are merged in float32 on the way, so that nothing is left of them at run time.

8-bit weights: ours carry one scale per layer, which the published cast lacks: weights below 0.016 then fall into the
format's subnormal range and lose digits (`Fp8Error` says how much, for each layer and both ways).

Not here: names of models (`plus_sources.py`), names of keys (`ace/model/convert_plus.py`).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ace.errors import CheckpointError, ConfigError, MissingDependencyError, OutputError
from ace.inference.plus_gguf import GgufFile, GgufLinear
from ace.model.convert_plus import (
    BFL_PREFIX,
    FFT_CHANNELS,
    LORA_CHANNELS,
    Adapter,
    Delta,
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

QUANTIZATIONS = ("fp8", "int8", "4bit")
FP8 = torch.float8_e4m3fn
FP8_LARGEST = 448.0
_HEADER_LIMIT = 100_000_000  # bytes; what safetensors itself allows
_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.", "double_blocks.", "single_blocks.")

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
        header = _read_header(path)
        metadata = header.pop("__metadata__", {})
        for name, entry in header.items():
            shapes[name], dtypes[name], files[name] = tuple(entry["shape"]), entry["dtype"], path
    return WeightFiles(source.name, shapes, files, dtypes, metadata)


def _read_header(path: Path) -> dict:
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path.name} is no safetensors file: convert it, or get the safetensors version")
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            (length,) = struct.unpack("<Q", start)
            if length > _HEADER_LIMIT:
                raise ValueError
            header = json.loads(file.read(length))
        end = max((e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"), default=0)
        if path.stat().st_size < 8 + length + end:
            raise CheckpointError(f"{path.name} is cut off: get the file again")
        return header
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path.name} is damaged or no safetensors file: get the file again") from None


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


def load_adapter(path: Path, sizes: FluxSizes) -> Adapter:
    """An adapter file for a transformer of these sizes. Raises CheckpointError, naming the file."""
    files = read_weight_files(path)
    read = files.tensors()
    return read_adapter({name: read(name) for name in files.shapes}, sizes, path.name, _alphas(files.metadata))


def _alphas(metadata: Mapping[str, str]) -> dict[str, float]:
    """Alphas that stand in a file's metadata, as diffusers and peft write them: module → alpha, "" for all."""
    found: dict[str, float] = {}
    for text in metadata.values():
        try:
            settings = json.loads(text) if text.startswith("{") else {}
        except ValueError:
            continue
        for key, value in settings.items() if isinstance(settings, dict) else ():
            if key.rsplit(".", 1)[-1] == "lora_alpha" and isinstance(value, int | float):
                found[""] = float(value)
            if key.rsplit(".", 1)[-1] == "alpha_pattern" and isinstance(value, dict):
                found |= {module: float(alpha) for module, alpha in value.items()}
    return found


# Loading


def load_transformer(
    files: WeightFiles,
    *,
    dtype: torch.dtype,
    adapters: Sequence[tuple[Adapter, float]] = (),
    channels: int | None = None,
    quantization: str | None = None,
    progress: Progress | None = None,
) -> FluxTransformer2DModel:
    """diffusers' transformer with these weights.

    adapters: merged, with their strengths. channels: 448 widens a 384-channel model (the change channels begin at
    zero). quantization: of the blocks' weights: "fp8" (scaled 8-bit floats, any device), "int8" (torchao) or "4bit"
    (bitsandbytes). Raises CheckpointError, ConfigError or MissingDependencyError."""
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization {quantization!r}: use {', '.join(QUANTIZATIONS)}")
    _check_quantizer(quantization)
    sizes = check_transformer(files)
    wanted = sizes.in_channels if channels is None else channels
    config = sizes.config() | {"in_channels": wanted}
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config)  # type: ignore[arg-type]
    read = files.tensors()
    published = is_bfl(files.shapes)
    prefix = BFL_PREFIX if any(name.startswith(BFL_PREFIX) for name in files.shapes) else ""
    plan = pieces(sizes) if published else {name: Piece(name) for name in pieces(sizes)}
    total = len(plan)
    small: dict[str, Tensor] = {}
    for number, (name, piece) in enumerate(plan.items()):
        source = f"{prefix}{piece.source}"
        changes = [(a.deltas[name], strength) for a, strength in adapters if name in a.deltas]
        is_matrix = len(files.shapes[source]) == 2 and name.startswith(_BLOCKS)
        if (
            files.gguf is not None
            and files.gguf.is_packed(source)
            and is_matrix
            and quantization is None
            and not changes
        ):
            packed, kind = files.gguf.packed(source)
            _replace(model, name, GgufLinear(piece.of(packed), kind, files.shapes[source][1]))
            continue
        tensor = piece.of(read(source))
        scale = _scale_of(files, read, source)
        if files.gguf is not None and files.gguf.is_packed(source) and quantization is None and is_matrix:
            _replace(model, name, _fp8_linear(_merged(tensor, changes)))
            continue
        if quantization == "fp8" and is_matrix and tensor.dtype == FP8 and not changes:
            _replace(model, name, Fp8Linear(tensor.clone(), scale))  # as it is in the file
        else:
            if scale != 1.0:
                tensor = tensor.float() * scale
            tensor = _merged(tensor, changes)
            if name == "x_embedder.weight" and wanted != sizes.in_channels:
                tensor = widen(tensor, wanted)
            if quantization == "fp8" and is_matrix:
                _replace(model, name, _fp8_linear(tensor))
            else:
                small[name] = tensor.to(dtype, copy=True).contiguous()
        if progress is not None:
            progress(number + 1, total)
    for name, tensor in small.items():
        parent, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if isinstance(parent, Fp8Linear | GgufLinear):
            parent.bias = tensor
        else:
            parent.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    if quantization in ("int8", "4bit"):
        _quantize(model, quantization, dtype)
    return model.eval()


def _scale_of(files: WeightFiles, read: Callable[[str], Tensor], name: str) -> float:
    key = f"{name.removesuffix('.weight')}.scale_weight"
    if not name.endswith(".weight") or key not in files.shapes:
        return 1.0
    scale = read(key)
    if scale.numel() != 1:
        raise CheckpointError(f"{files.name}: {key} has {scale.numel()} values, one is known: get another fp8 file")
    return float(scale)


class Fp8Linear(nn.Module):
    """A linear layer whose weight (R, C) is kept in 8-bit floats with one scale, and computes in its input's type.

    The bytes are a buffer of integers, so that a change of the model's number type leaves them alone."""

    bytes: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: float, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("bytes", weight.contiguous().view(torch.uint8))
        self.register_buffer("bias", bias)
        self.scale = scale

    @property
    def weight(self) -> Tensor:
        """The weight as it counts, float32."""
        return self.bytes.view(FP8).float() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, C) → (…, R)."""
        product = F.linear(x, self.bytes.view(FP8).to(x.dtype)) * self.scale
        return product if self.bias is None else product + self.bias.to(x.dtype)


def _fp8_linear(weight: Tensor) -> Fp8Linear:
    return Fp8Linear(*to_fp8(weight))


def _merged(weight: Tensor, changes: Sequence[tuple[Delta, float]]) -> Tensor:
    weight = weight.float() if changes else weight
    for delta, strength in changes:
        weight = delta.apply(weight, strength)
    return weight


def _replace(model: nn.Module, weight: str, layer: nn.Module) -> None:
    """Put a layer where the weight of this name belongs."""
    parent, _, leaf = weight.removesuffix(".weight").rpartition(".")
    model.get_submodule(parent).register_module(leaf, layer)


def to_fp8(weight: Tensor, scaled: bool = True) -> tuple[Tensor, float]:
    """(8-bit floats, scale): scale so that the largest value is the format's largest; unscaled is the published cast.

    Values beyond the range are cut at its end."""
    weight = weight.float()
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    scale = largest / FP8_LARGEST if scaled and largest > 0 else 1.0
    return (weight / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8), scale


def _check_quantizer(quantization: str | None) -> None:
    from importlib.util import find_spec

    package = {"int8": "torchao", "4bit": "bitsandbytes"}.get(quantization or "")
    if package and find_spec(package) is None:
        raise MissingDependencyError(f"{quantization} weights need {package}: pip install 'ace-allround[quant]'")


def _quantize(model: FluxTransformer2DModel, quantization: str, dtype: torch.dtype) -> None:
    """Quantize the blocks' linear layers in place with the library that the quantization is named after."""
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    if quantization == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import]

        for block in blocks:
            quantize_(block, Int8WeightOnlyConfig())
        return
    import bitsandbytes as bnb  # type: ignore[import]

    for block in blocks:
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear):
                new = bnb.nn.Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    layer.bias is not None,
                    dtype,
                    quant_type="nf4",
                    device="meta",
                )
                new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
                new.bias = layer.bias
                parent = block.get_submodule(name.rpartition(".")[0])
                parent.register_module(name.rpartition(".")[2], new)


# Writing 8-bit files


@dataclass(frozen=True)
class Fp8Error:
    """What 8 bits cost one layer. relative: root mean square of the error over that of the weights, scaled and in the
    published cast; largest: of the error written, in units of the largest weight."""

    layer: str
    relative: float
    relative_unscaled: float
    largest: float


def convert_fp8(
    files: WeightFiles, target: Path, *, scaled: bool = True, everything: bool = False, progress: Progress | None = None
) -> list[Fp8Error]:
    """Write a checkpoint with 8-bit weights, in the layout it came in, and say what that costs each layer.

    scaled: with one scale per layer (ComfyUI's `scale_weight`); else the published cast. everything: biases, norms and
    the layers outside the blocks too, as published. One tensor is in memory at a time, the file appears whole or not at
    all. Raises CheckpointError for a file that already has 8 bits, OutputError."""
    check_transformer(files)
    if files.is_fp8:
        raise CheckpointError(f"{files.name} has 8-bit weights already: convert the 16-bit file")
    read = files.tensors()
    names = list(files.shapes)
    chosen = {
        name
        for name in names
        if everything or (len(files.shapes[name]) == 2 and name.removeprefix(BFL_PREFIX).startswith(_BLOCKS))
    }
    layout: dict[str, tuple[str, Shape]] = {}
    for name in names:
        layout[name] = ("F8_E4M3", files.shapes[name]) if name in chosen else ("BF16", files.shapes[name])
        if name in chosen and scaled and name.endswith(".weight"):
            layout[f"{name.removesuffix('.weight')}.scale_weight"] = ("F32", ())
    if scaled:
        layout["scaled_fp8"] = ("F8_E4M3", (2,))  # by this ComfyUI knows that scales are there
    errors: list[Fp8Error] = []

    def tensors() -> Iterator[Tensor]:
        for number, name in enumerate(names):
            weight = read(name)
            if name in chosen:
                bits, scale = to_fp8(weight, scaled and name.endswith(".weight"))
                if weight.ndim == 2:
                    errors.append(_error(name, weight, bits, scale))
                yield bits.view(torch.uint8)
                if scaled and name.endswith(".weight"):
                    yield torch.tensor([scale]).view(torch.uint8)
            else:
                yield weight.to(torch.bfloat16).contiguous().flatten().view(torch.uint8)
            if progress is not None:
                progress(number + 1, len(names))
        if scaled:
            yield torch.zeros(2, dtype=FP8).view(torch.uint8)

    _write_safetensors(target, layout, tensors())
    return errors


def _error(name: str, weight: Tensor, bits: Tensor, scale: float) -> Fp8Error:
    weight = weight.float()
    size = math.sqrt(float(weight.square().mean())) or 1.0

    def relative(back: Tensor) -> float:
        return math.sqrt(float((back - weight).square().mean())) / size

    back = bits.float() * scale
    plain, _ = to_fp8(weight, scaled=False)
    largest = float((back - weight).abs().max()) / (float(weight.abs().max()) or 1.0)
    return Fp8Error(name.removesuffix(".weight"), relative(back), relative(plain.float()), largest)


def _write_safetensors(target: Path, layout: Mapping[str, tuple[str, Shape]], tensors: Iterator[Tensor]) -> None:
    """A safetensors file from tensors that come one after the other in the order of `layout`."""
    sizes = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (kind, shape) in layout.items():
        end = at + sizes[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 256)
    part = target.with_name(f".{target.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(struct.pack("<Q", len(text)))
            file.write(text)
            for tensor in tensors:
                file.write(tensor.flatten().numpy().data)
        part.replace(target)
    except OSError as error:
        raise OutputError(
            f"{target.name} cannot be written ({error.strerror or error}): choose another place"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def check_channels(files: WeightFiles, sizes: FluxSizes, channels: int, model: str) -> None:
    """Raise ConfigError, naming the file and what to give instead, for a transformer of the other kind."""
    if sizes.in_channels == channels:
        return
    kinds = {LORA_CHANNELS: "FLUX.1-Fill-dev", FFT_CHANNELS: "ACE++ FFT"}
    what = kinds.get(sizes.in_channels, "FLUX.1-dev or another FLUX" if sizes.in_channels == 64 else "another model")
    raise ConfigError(
        f"{files.name} has {sizes.in_channels} input channels ({what}), {model} needs {channels}: give "
        f"{kinds[channels]}" + (" or use --model ace-plus-fft" if sizes.in_channels == FFT_CHANNELS else "")
    )
