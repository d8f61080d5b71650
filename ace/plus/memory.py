"""How an ACE++ model is spread over the memory that is free: modes, the one that `auto` takes, weights on disk.

All modes but `8bit` give the same numbers for canvases of up to `tile_px` a side; larger ones go through the
autoencoder in overlapping tiles, which is not exact, unless the mode is `full`.

Not here: loading (`plus/load.py`), what is free (`memory.py`).
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ace.errors import ConfigError, OutputError
from ace.model.sizes import BYTES, GB, LAYER, LIBRARIES, TILE_WORK, WORK_PER_CELL, free_memory, weight_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from ace.plus.sources import PlusFiles

WHOLE_PX = 1024  # side of a tile; canvases up to this stay whole
LEAN_PX = 512
PLAIN = 1 * GB  # of weights: below, nothing is worth moving
BYTES_OF = {"fp8": 1.0, "int8": 1.0, "4bit": 0.57}  # a weight with its share of the scales
BLOCK = 1.5 * GB  # of weights on the GPU while blocks are streamed: one at work, one on its way

# mode -> what moves where with a GPU, the same without one (None: not offered), side of a tile, in words
_MODES: dict[str, tuple[str, str | None, int, str]] = {
    "full": ("none", "none", 0, "everything stays loaded"),
    "auto": ("none", "none", WHOLE_PX, "everything stays loaded, large canvases in tiles"),
    "8bit": ("none", "none", WHOLE_PX, "everything stays loaded, weights in 8 bits"),
    "offload": ("model", None, WHOLE_PX, "one part is on the GPU at a time"),
    "balanced": ("group", None, WHOLE_PX, "blocks are streamed to the GPU"),
    "lean": ("sequential", "disk", LEAN_PX, "weights wait outside and come layer by layer"),
}
PLUS_MEMORY_MODES = tuple(_MODES)
_AUTOMATIC = ("auto", "offload", "balanced", "lean")  # the fastest first


@dataclass(frozen=True)
class PlusMemory:
    """A mode and what it means here.

    offload: see `load_plus`; tile_px: side of a tile of the autoencoder, 0 = never in tiles; quantization: of the
    weights; needed, free: bytes, of the device where the mode matters; plain: a small model."""

    mode: str
    offload: str
    tile_px: int
    quantization: str | None
    needed: float
    free: float
    plain: bool

    @property
    def text_quantization(self) -> str | None:
        """Of T5; on disk it stays as it is and is read layer by layer."""
        return None if self.offload == "disk" else self.quantization

    def __str__(self) -> str:
        return f"{self.mode}: {_MODES[self.mode][3]}; about {self.needed / GB:.1f} GB of {self.free / GB:.1f} GB free"


@dataclass(frozen=True)
class PlusSizes:
    """Bytes of a model's weights as they are run, and of its work on one canvas."""

    transformer: float
    text: float
    rest: float
    work: float

    @property
    def weights(self) -> float:
        """All of them."""
        return self.transformer + self.text + self.rest


def plan_plus(
    files: PlusFiles,
    mode: str = "auto",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quantization: str | None = None,
    max_seq_length: int = 4096,
) -> PlusMemory:
    """The plan for a model on a device ("cpu", "cuda", "mps"), before anything is loaded.

    quantization: asked for; `8bit` means fp8 if none is. `auto` keeps everything loaded if that fits into what is
    free, else takes the first of offload, balanced (GPU only) and lean that does. Raises ConfigError for an unknown
    mode, one that needs a GPU, or one that does not fit, saying what would."""
    if mode not in _MODES:
        raise ConfigError(f"memory {mode!r}: use {', '.join(_MODES)}")
    if mode == "8bit" and quantization is None:
        quantization = "fp8"
    if device == "cpu" and _MODES[mode][1] is None:
        raise ConfigError(
            f"--memory {mode} moves weights off a GPU, and there is none here: use 8bit (fewer bits) or lean (disk)"
        )
    sizes = sizes_of_plus(files, dtype, quantization, max_seq_length)
    plain = sizes.weights < PLAIN
    free = _free_gpu_memory() if device == "cuda" else free_memory()
    needed = _needed_on_gpu(sizes) if device == "cuda" else _needed(sizes)
    if mode == "auto" and not plain:
        mode = next((name for name in _AUTOMATIC if needed.get(name, math.inf) <= free), "lean")
    with_gpu, without, tile_px, _ = _MODES[mode]
    offload = without if device == "cpu" and without is not None else with_gpu
    if offload == "disk" and quantization not in (None, "fp8"):
        raise ConfigError(f"{quantization} weights cannot wait on disk, as --memory lean has it: use --quantize fp8")
    if not plain:
        _check_fits(mode, needed[mode], free, "GPU memory" if device == "cuda" else "memory")
        if device == "cuda" and offload != "none":
            _check_fits(mode, LIBRARIES + sizes.weights, free_memory(), "memory beside the GPU's")
    return PlusMemory(mode, offload, tile_px, quantization, needed[mode], free, plain)


def _check_fits(mode: str, needed: float, free: float, what: str) -> None:
    if needed > free:
        raise ConfigError(
            f"--memory {mode} needs about {needed / GB:.1f} GB of {what}, {free / GB:.1f} GB are free: "
            + ("close other programs" if mode == "lean" else "use --memory auto")
            + ", or use --quantize fp8 or fewer --max-seq-length"
        )


def sizes_of_plus(files: PlusFiles, dtype: str, quantization: str | None, max_seq_length: int) -> PlusSizes:
    """What a model needs, from the headers of its files."""
    from ace.plus.weights import BLOCKS, read_weight_files

    each = BYTES[dtype]
    small = BYTES_OF.get(quantization or "", each)
    weights = read_weight_files(files.transformer)
    if weights.gguf is not None and quantization is None:
        transformer = float(files.transformer.stat().st_size)
    else:
        transformer = sum(
            math.prod(shape) * (small if len(shape) == 2 and any(block in name for block in BLOCKS) else each)
            for name, shape in weights.shapes.items()
        )
    return PlusSizes(
        transformer=transformer,
        text=weight_bytes(files.base / "text_encoder_2", each) * small / each,
        rest=weight_bytes(files.base / "vae", each) + weight_bytes(files.base / "text_encoder", each),
        work=max_seq_length * WORK_PER_CELL * each / 4,
    )


def _needed(sizes: PlusSizes) -> dict[str, float]:
    """Bytes of each mode where there is one memory."""
    whole = LIBRARIES + sizes.weights + sizes.work
    lean = LIBRARIES + sizes.rest + LAYER + min(sizes.work, TILE_WORK)
    return {"full": whole, "auto": whole, "8bit": whole, "lean": lean}


def _needed_on_gpu(sizes: PlusSizes) -> dict[str, float]:
    """Bytes on the GPU of each mode."""
    whole = sizes.weights + sizes.work
    return {
        "full": whole,
        "auto": whole,
        "8bit": whole,
        "offload": max(sizes.transformer, sizes.text) + sizes.work,
        "balanced": BLOCK + sizes.work,
        "lean": LAYER + min(sizes.work, TILE_WORK),
    }


def _free_gpu_memory() -> float:
    import torch

    return float(torch.cuda.mem_get_info()[0])


class MappedWeights:
    """Tensors that are in files, mapped into memory: the system reads what is used, and drops it when memory is short.

    The files lie in a folder of their own, gone with this object; where the system allows it they have no name as soon
    as they are mapped, so that a killed process leaves nothing. Raises ConfigError if the disk has not that much
    room, OutputError if it cannot be written."""

    def __init__(self, parent: Path, num_bytes: float) -> None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix="weights-", dir=parent))
        except OSError as error:
            raise OutputError(f"{parent.name} cannot be written ({error.strerror}): set ACE_CACHE to another") from None
        self._end = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._count = 0
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise ConfigError(
                f"--memory lean needs {num_bytes / GB:.1f} GB of the disk, {free / GB:.1f} GB are free: "
                "make room, or set ACE_CACHE to a folder on another"
            )

    def keep(self, tensor: Tensor) -> Tensor:
        """The same values, mapped from a file. Raises OutputError."""
        import torch

        path = self.folder / f"{self._count}.bin"
        self._count += 1
        try:
            tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tofile(path)
            mapped = torch.from_file(str(path), shared=False, size=tensor.numel(), dtype=tensor.dtype)
        except OSError as error:
            raise OutputError(
                f"weights cannot be written to {self.folder.name} ({error.strerror}): check the disk"
            ) from None
        try:
            path.unlink()
        except OSError:  # Windows keeps the names of mapped files: they go with the folder
            pass
        return mapped.reshape(tensor.shape)
