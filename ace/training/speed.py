"""How fast a run is: tokens per second, the share of the machine's peak (MFU), and the time spent waiting for data; and
how fast one would be here, for a plan.

Peak is the maker's dense figure for known GPUs; elsewhere the rate of one large matrix product, measured at the start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from ace.training.plan import Device

TYPICAL_SHARE = 0.4  # of the peak, that training gets: MFU, in words of 0.6B

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


def peak_flops(device: torch.device, precision: str, seconds: float = 0.2) -> float:
    """Operations per second of the device at best, in the run's precision. seconds: to measure, if need be."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        known = next((rate for part, rate in GPU_PEAKS.items() if part in name), None)
        if known:
            return known
    return measured_flops(device, torch.bfloat16 if precision == "bf16" else torch.float32, seconds)


def measured_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Operations per second of a large square matrix product: the best of those that fit in the time, at least four."""
    size = 1024 if device.type == "cpu" else 8192
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best, begin, tries = float("inf"), time.perf_counter(), 0
    while tries < 4 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        torch.matmul(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
        tries += 1
    return 2 * size**3 / best


def this_device(precision: str) -> Device:
    """What a recipe would run on here, and what training gets out of it; measures for about a second."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    if on_gpu:
        name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    else:
        name, memory = f"this CPU, {torch.get_num_threads()} threads", psutil.virtual_memory().total
    peak = peak_flops(device, precision, seconds=1.0)
    words = f"{name} ({100 * TYPICAL_SHARE:.0f} % of {peak / 1e12:.3g} Tflop/s at best)"
    return Device(words, TYPICAL_SHARE * peak / 1e12, memory)


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
