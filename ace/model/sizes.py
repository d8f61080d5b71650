"""Bytes that weights take and bytes that are free. Imports nothing heavy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import psutil

from ace.errors import CheckpointError

GB = 1e9
LIBRARIES = 0.9 * GB  # Python, torch, diffusers and transformers
WORK_PER_CELL = 1.5 * GB / 1024  # activations of the autoencoder, which has the largest, per cell of the picture
LAYER = 0.6 * GB  # of the text encoder, one at a time
TILE_WORK = 1.5 * GB  # activations of the autoencoder on one tile
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def weight_bytes(folder: Path, bytes_per_float: int) -> int:
    """Bytes of a folder's weights when its floats have so many bytes each; others (8-bit weights) stay as they are.

    Raises CheckpointError, naming the file, for one that is damaged or shorter than its header says."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 0 < length < min(path.stat().st_size, 100_000_000):
                    raise ValueError
                header = json.loads(file.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = max((entry["data_offsets"][1] for entry in tensors), default=0)
            if 8 + length + end != path.stat().st_size:
                raise ValueError
            for entry in tensors:
                begin, end = entry["data_offsets"]
                floats = entry["dtype"] in ("F64", "F32", "F16", "BF16")
                total += math.prod(entry["shape"]) * bytes_per_float if floats else end - begin
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CheckpointError(f"{path.name} in {folder.name} is damaged or cut off: copy the model again") from None
    return total


def free_memory() -> float:
    """Bytes that this process may still take: what the machine has available, or what its container leaves."""
    available = float(psutil.virtual_memory().available)
    try:  # a container's limit (cgroup version 2), where there is one
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        cached = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        if limit != "max":
            available = min(available, float(int(limit) - used + int(cached.get("inactive_file", 0))))
    except (OSError, ValueError, RecursionError):
        return available
    return max(0.0, available)
