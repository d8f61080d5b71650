"""How a model is spread over the memory that there is: modes, and the one that `auto` takes.

The text encoder of the published models is eight times the transformer, and works for a moment; so the modes differ in
where it is while it does nothing, and on a GPU in where everything is. All but `8bit` give the same numbers; `lean`
sends pictures beyond 512 px through the autoencoder in overlapping tiles, which is not exact.

Not here: loading (`sources.py`), the encoder on disk (`model/text_on_disk.py`). Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ace.errors import ConfigError
from ace.model.sizes import BYTES, GB, LAYER, LIBRARIES, TILE_WORK, WORK_PER_CELL, free_memory, weight_bytes

MEMORY_MODES = ("auto", "full", "balanced", "8bit", "offload", "lean")
TILE_PX = 512  # side of a tile; pictures up to this stay whole
EIGHT_BIT = 0.53  # of the bytes of 16-bit weights: the embeddings stay
SMALL_TEXT_ENCODER = 1 * GB  # below, nothing is worth moving

Text = Literal["kept", "freed", "8bit", "streamed"]
Offload = Literal["none", "model", "sequential"]

# mode -> the text encoder, what is moved to a GPU and when, whether large pictures are cut into tiles, in words
_MODES: dict[str, tuple[Text, Offload, bool, str]] = {
    "full": ("kept", "none", False, "everything stays loaded"),
    "balanced": ("freed", "none", False, "the text encoder is loaded, used and freed"),
    "8bit": ("8bit", "none", False, "the text encoder stays, in 8 bits"),
    "offload": ("streamed", "model", False, "each part is on the GPU only while it works"),
    "lean": ("streamed", "sequential", True, "the text encoder is read from disk layer by layer"),
}


@dataclass(frozen=True)
class MemoryPlan:
    """A mode and what it means here.

    text: what becomes of the text encoder; offload: what moves between CPU and GPU; tiled: cut large pictures;
    needed, free: bytes, of the device where the mode matters; plain: a small model, of which nothing is worth
    moving."""

    mode: str
    text: Text
    offload: Offload
    tiled: bool
    needed: float
    free: float
    plain: bool

    def __str__(self) -> str:
        words = _MODES[self.mode][3]
        return f"{self.mode}: {words}; about {self.needed / GB:.1f} GB of {self.free / GB:.1f} GB free"


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's weights as they are run, and of its work."""

    text: float
    rest: float
    work: float

    def needed(self, mode: str) -> float:
        """Bytes of a mode where everything is in one memory (CPU)."""
        working = {
            "full": self.text + self.work,
            "balanced": max(self.text, self.work),
            "8bit": EIGHT_BIT * self.text + self.work,
            "lean": max(LAYER, min(self.work, TILE_WORK)),
        }
        return LIBRARIES + self.rest + working[mode]


def plan_memory(
    folder: Path, budget: int, mode: str = "auto", device: str = "cpu", dtype: str = "float32"
) -> MemoryPlan:
    """The plan for a model's folder on a device ("cpu", "cuda", "mps"), before anything is loaded.

    budget: cells of one picture; dtype: of all but the text encoder. `auto` takes the first of full (GPU only),
    balanced, offload (GPU only) and lean that fits into what is free. Raises ConfigError for an unknown mode or one
    that does not fit, saying what would."""
    if mode not in MEMORY_MODES:
        raise ConfigError(f"memory {mode!r}: use one of {', '.join(MEMORY_MODES)}")
    sizes = sizes_of(folder, budget, dtype)
    plain = sizes.text < SMALL_TEXT_ENCODER
    if mode == "offload" and device == "cpu":
        raise ConfigError("memory offload moves parts to a GPU, and there is none: use lean")
    free = free_memory()
    if device == "cuda":
        return _plan_gpu(sizes, mode, free, plain)
    if mode == "auto":
        wanted = ("full" if plain else "balanced", "lean")
        mode = next((name for name in wanted if sizes.needed(name) <= free), "lean")
    _check(mode, sizes.needed(mode), free, "memory")
    text, _, tiled, _ = _MODES[mode]
    return MemoryPlan(mode, text, "none", tiled, sizes.needed(mode), free, plain and mode in ("full", "balanced"))


def _plan_gpu(sizes: Sizes, mode: str, free: float, plain: bool) -> MemoryPlan:
    import torch

    on_gpu = float(torch.cuda.mem_get_info()[0])
    parts = sizes.rest + sizes.work
    needed = {
        "full": parts + sizes.text,
        "balanced": parts + LAYER,  # the text encoder goes through layer by layer if it does not fit whole
        "8bit": parts + EIGHT_BIT * sizes.text,
        "offload": max(sizes.rest, LAYER) + sizes.work,
        "lean": LAYER + min(sizes.work, TILE_WORK),
    }
    if mode == "auto":
        mode = next((name for name in ("full", "balanced", "offload", "lean") if needed[name] <= on_gpu), "lean")
    _check(mode, needed[mode], on_gpu, "GPU memory")
    _check(mode, LIBRARIES + (sizes.rest if mode in ("offload", "lean") else LAYER), free, "memory")
    text, offload, tiled, _ = _MODES[mode]
    if mode == "balanced" and parts + sizes.text > on_gpu:
        text = "streamed"
    return MemoryPlan(mode, text, offload, tiled, needed[mode], on_gpu, plain and mode in ("full", "balanced"))


def _check(mode: str, needed: float, free: float, what: str) -> None:
    if needed > free:
        how = "close other programs" if mode == "lean" else "use --memory lean, or auto"
        raise ConfigError(
            f"--memory {mode} needs about {needed / GB:.1f} GB of {what}, {free / GB:.1f} GB are free: {how}"
        )


def sizes_of(folder: Path, budget: int, dtype: str) -> Sizes:
    """What a model folder needs, from the headers of its files. Raises CheckpointError for a damaged one."""
    return Sizes(
        text=weight_bytes(folder / "text_encoder", 2 if budget > 256 else 4),
        rest=weight_bytes(folder / "transformer", BYTES[dtype]) + weight_bytes(folder / "vae", BYTES[dtype]),
        work=budget * WORK_PER_CELL,
    )
