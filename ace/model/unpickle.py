"""Weights out of a torch pickle, in a process of its own.

A pickle can hold any program; torch's `weights_only` reader refuses everything but tensors, and a separate process
keeps what it might still miss (and the memory of a large file) out of ours. The doors are `inspect_pickle` and
`read_pickle`; the lower half runs in the other process and imports nothing but torch and safetensors.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ace.errors import CheckpointError

WRAPPERS = ("state_dict", "model", "module")
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_pickle(source: Path, target: Path, dtype: str) -> None:
    """Write the tensors of a torch pickle, bare or wrapped, to a safetensors file.

    dtype: "float32", "bfloat16" or "float16", what floating point tensors of any precision become.
    Raises CheckpointError, naming the file, if it is damaged, holds code or holds no weights."""
    _run("weights", source, target, dtype)


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
        state = _load(Path(source))
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if verb == "shapes":
        sys.stdout.write(json.dumps({name: list(value.shape) for name, value in state.items()}))
    else:
        target, dtype = arguments
        save_file({name: as_dtype(value, dtype) for name, value in state.items()}, target)
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
