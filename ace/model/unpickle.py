"""Weights out of a torch pickle, in a process of its own; weights into a safetensors file, tensor by tensor.

A pickle can hold any program; torch's `weights_only` reader refuses everything but tensors, and a separate process
keeps what it might still miss out of ours. The doors are `inspect_pickle`, `read_pickle` and `write_weights`, which
never holds more than one tensor; the lower half runs in the other process and imports nothing heavy but torch.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ace.errors import CheckpointError, ShapeError

WRAPPERS = ("state_dict", "model", "module", "model_state_dict", "params")
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NUMBER_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_weights(
    path: Path, layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]], make: Callable[[str], Tensor]
) -> int:
    """Write a safetensors file (a JSON header, then the bytes). Returns how many bytes its tensors have.

    layout: name → shape and dtype; make: called once per name, in order; its tensor becomes of that dtype. Raises
    ShapeError if a tensor has another shape, CheckpointError for numbers that the format lacks."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    names = sorted(layout)
    end = 0
    for name in names:
        shape, dtype = layout[name]
        if dtype not in NUMBER_TYPES:
            raise CheckpointError(f"{name} holds {dtype} numbers, which are no weights: get the file again")
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NUMBER_TYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            shape, dtype = layout[name]
            tensor = make(name)
            if tuple(tensor.shape) != shape:
                raise ShapeError(f"{name} has shape {tuple(tensor.shape)}, announced was {shape}")
            file.write(tensor.detach().to("cpu", dtype).contiguous().flatten().view(torch.uint8).numpy().data)
    return end


def read_pickle(source: Path, target: Path, dtype: str, without: tuple[str, ...] = ()) -> None:
    """Write the tensors of a torch pickle, bare or wrapped, to a safetensors file.

    dtype: "float32", "bfloat16" or "float16", what floating point tensors of any precision become. without: leave out
    what begins with these. Raises CheckpointError, naming the file, if it is damaged, holds code or holds no
    weights."""
    _run("weights", source, target, dtype, *without)


def inspect_pickle(source: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a torch pickle's tensors; the tensors themselves are not read.

    Raises as `read_pickle` does."""
    return {name: tuple(shape) for name, shape in json.loads(_run("shapes", source)).items()}


def _run(verb: str, source: Path, *arguments: str | Path) -> str:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-P", __file__, verb, str(source), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["the reader was stopped, perhaps for lack of memory"])[-1]
        raise CheckpointError(f"{source.name}: {reason}")
    return done.stdout


def unwrap(state: Mapping) -> Mapping[str, Tensor]:
    """A bare state dict from one that may sit under a `state_dict` key. Raises CheckpointError if it has no tensors."""
    for name in WRAPPERS:
        if name in state and isinstance(state[name], Mapping):
            state = state[name]
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError("this file holds no state dict of tensors")
    return state


def as_dtype(tensor: Tensor, dtype: str) -> Tensor:
    """A contiguous tensor of its own; floating point ones in `dtype`, 8-bit floats included."""
    return tensor.to(FLOATS[dtype], copy=True).contiguous() if tensor.is_floating_point() else tensor.clone()


def _load(source: Path) -> Mapping[str, Tensor]:
    is_zip = zipfile.is_zipfile(source)
    if is_zip:
        with zipfile.ZipFile(source) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError("it is compressed, which torch never writes: get the file again")
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise CheckpointError(f"it holds code ({forbidden[1]}), not only weights: do not use it") from None
        raise CheckpointError("it is no torch file, or damaged: get the file again") from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile):
        raise CheckpointError("it is damaged or cut off: get the file again") from None
    if not isinstance(loaded, Mapping):
        raise CheckpointError("this file holds no state dict of tensors")
    return unwrap(loaded)


def _main(verb: str, source: str, *arguments: str) -> int:
    try:
        _answer(verb, _load(Path(source)), *arguments)
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"its weights cannot be written ({error.strerror}): make room on the disk\n")
        return 1
    return 0


def _answer(verb: str, state: Mapping[str, Tensor], *arguments: str) -> None:
    if verb == "shapes":
        sys.stdout.write(json.dumps({name: list(value.shape) for name, value in state.items()}))
    else:
        target, dtype, *without = arguments
        kept = {name: value for name, value in state.items() if not name.startswith(tuple(without))}
        layout = {}
        for name, value in kept.items():
            layout[name] = (tuple(value.shape), FLOATS[dtype] if value.is_floating_point() else value.dtype)
        write_weights(Path(target), layout, kept.__getitem__)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
