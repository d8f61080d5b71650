"""How fast a run is: tokens per second, the share of the machine's peak (MFU), and the time spent waiting for data.

Peak is the maker's dense figure for known GPUs; elsewhere the rate of one large matrix product, measured at the start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# dense bfloat16 operations per second, by a part of the device's name
GPU_PEAKS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40": 181e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device, precision: str) -> float:
    """Operations per second of the device at best, in the run's precision."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        known = next((rate for part, rate in GPU_PEAKS.items() if part in name), None)
        if known:
            return known
    return measured_flops(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def measured_flops(device: torch.device, dtype: torch.dtype, size: int = 1024, tries: int = 4) -> float:
    """Operations per second of a large square matrix product, the best of a few."""
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        torch.matmul(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Speedometer:
    """Counts what a run gets done since the last `restart`."""

    def __init__(self, peak: float) -> None:
        self.peak = peak
        self.restart()

    def restart(self) -> None:
        """Begin to count anew."""
        self.start = time.perf_counter()
        self.waited = 0.0
        self.tokens = self.samples = self.operations = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, tokens: int, samples: int, operations: int) -> None:
        """A step is done."""
        self.tokens += tokens
        self.samples += samples
        self.operations += operations

    def figures(self) -> dict[str, float]:
        """tokens_per_s, samples_per_s, mfu (0 to 1), waiting (share of the time)."""
        seconds = max(time.perf_counter() - self.start, 1e-9)
        return {
            "tokens_per_s": round(self.tokens / seconds, 1),
            "samples_per_s": round(self.samples / seconds, 2),
            "mfu": round(self.operations / seconds / self.peak, 4),
            "waiting": round(self.waited / seconds, 4),
        }

    def note(self) -> str:
        """For the progress line."""
        figures = self.figures()
        return f"{figures['tokens_per_s']:.0f} tokens/s  MFU {100 * figures['mfu']:.0f} %"
