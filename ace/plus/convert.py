"""A FLUX checkpoint → the same with 8-bit weights, one tensor in memory at a time, and what that costs each layer.

Ours carry one scale per layer, which ComfyUI reads; the published cast does not (`Fp8Error` says how much it loses).

Not here: reading and loading files (`plus/weights.py`), the layer that computes with them (`plus/fp8.py`).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ace.errors import CheckpointError, OutputError
from ace.plus.fp8 import FP8, to_fp8
from ace.plus.layouts import BFL_PREFIX, Shape
from ace.plus.weights import BLOCKS, Progress, WeightFiles, check_transformer


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
        if everything or (len(files.shapes[name]) == 2 and name.removeprefix(BFL_PREFIX).startswith(BLOCKS))
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
