"""How fast training goes: tokens per second and share of peak, the loader alone, packed against padded batches.

    python benchmarks/bench_training.py             # this machine; on CPUs the peak is that of a large matrix product
    python benchmarks/bench_training.py --steps 20

Runs the real loop on the small model, single steps at the published width, and the loader without any model. Prints
hardware, command and numbers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

from ace.inference.inputs import Geometry
from ace.model.config import PRESETS, ACEConfig
from ace.model.cost import step_cost, text_cost
from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents
from ace.model.transformer import ACETransformer
from ace.training.batches import Samples
from ace.training.config import DataSource, ModelRecipe, TrainingStage
from ace.training.model import train_model
from ace.training.sources import Mixture, WorldRecords
from ace.training.speed import peak_flops
from ace.training.stream import global_batches

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Alone:
    """What the stream asks of accelerate in a run of one process."""

    num_processes: int = 1
    process_index: int = 0


def small_model(steps: int) -> str:
    """The whole loop on ace-tiny, data and optimiser included, after a warm-up of as many steps."""
    with tempfile.TemporaryDirectory() as folder:
        stage = TrainingStage("bench", lr=1e-4, steps=2 * max(20, steps), batch_tokens=4096)
        recipe = ModelRecipe((stage,), init="ace-tiny", tracker="none", save_minutes=1e9, num_workers=1)
        train_model(recipe, Path(folder), quiet=True)
        lines = [json.loads(line) for line in (Path(folder) / "speed.jsonl").read_text().splitlines()]
    last = lines[-1]
    return (
        f"{last['tokens_per_s']:,.0f} visual tokens/s, {last['samples_per_s']:.1f} samples/s, "
        f"MFU {100 * last['mfu']:.0f} %, {100 * last['waiting']:.1f} % of the time waiting for data"
    )


def loader_alone(seconds: float = 5.0) -> str:
    """Samples of the world, made, prepared and cut into batches by one worker; nothing is trained."""
    stage = TrainingStage("bench", lr=1.0, steps=1, batch_tokens=4096)
    mixture = Mixture((DataSource("world", "world"),), (WorldRecords(64),), stage, 0)
    dataset = Samples(mixture, Geometry(64, 8, 8, True, True), 0.1)
    batches = global_batches(dataset, stage, 0, 1, Alone())  # type: ignore[arg-type]
    list(itertools.islice(batches, 3))
    start, tokens, samples = time.perf_counter(), 0, 0
    for batch in batches:
        tokens, samples = tokens + batch.tokens, samples + batch.num_samples
        if time.perf_counter() - start > seconds:
            break
    spent = time.perf_counter() - start
    batches.close()
    return f"{tokens / spent:,.0f} visual tokens/s, {samples / spent:.1f} samples/s from one worker"


def requests(config: ACEConfig, frames: list[list[int]], words: int) -> list[RequestFrames]:
    made = []
    for sides in frames:
        texts = tuple(torch.randn(words, config.text_channels, device=DEVICE) for _ in sides)
        latents = [torch.randn(config.latent_channels, s, s, device=DEVICE) for s in sides]
        made.append(RequestFrames((sides[0],) * 2, texts, None, tuple(latents[1:]), (None,) * (len(sides) - 1)))
    return made


def step_seconds(model: nn.Module, config: ACEConfig, frames: list[list[int]], words: int, tries: int) -> float:
    """One forward and backward pass over a packed batch, the best of some."""
    asked = requests(config, frames, words)
    layout = make_layout(asked, config.patch_size, config.head_dim).to(DEVICE)
    conditions = [condition_patches(r, config.patch_size, 0) for r in asked]
    noisy = [torch.randn(config.latent_channels, *r.size, device=DEVICE) for r in asked]
    patches = pack_latents(noisy, conditions, config.patch_size)
    texts = torch.cat([text for r in asked for text in r.texts])
    timestep = torch.full((len(asked),), 500.0, device=DEVICE)
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            model(patches, timestep, layout, texts=texts).square().mean().backward()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        model.zero_grad()
    return best


def published_width(peak: float, tries: int) -> str:
    """0.6B's width: the whole depth on a GPU, four blocks on a CPU (the share of peak does not depend on it)."""
    config = replace(PRESETS["0.6b-512"], depth=28 if DEVICE.type == "cuda" else 2)
    model = ACETransformer(**vars(config)).to(DEVICE)
    count = 8 if DEVICE.type == "cuda" else 1
    sides = [[64, 64]] * count if DEVICE.type == "cuda" else [[32, 32]]
    seconds = step_seconds(model, config, sides, 30, tries)
    lengths = [(side // config.patch_size) ** 2 for side in sides[0]]
    operations = 3 * count * (step_cost(config, lengths, [30] * 2).total + text_cost(config, [30] * 2))
    tokens = count * sum(lengths)
    return (
        f"depth {config.depth}, {tokens:,} tokens: {tokens / seconds:,.0f} tokens/s, "
        f"{operations / seconds / 1e12:.2f} Tflop/s, MFU {100 * operations / seconds / peak:.0f} %"
    )


def packed_against_padded(tries: int) -> str:
    """Requests of one to four frames of unlike sizes, packed; and the same, every one as large as the largest."""
    config = replace(PRESETS["tiny"], source_on_channels=False)
    model = ACETransformer(**vars(config)).to(DEVICE)
    mixed = [[8], [8, 8], [6, 6], [8, 8, 8], [4, 8], [8, 8, 8, 8], [8], [6, 8]]
    longest = max(mixed, key=lambda sides: sum(s * s for s in sides))
    packed, padded = float("inf"), float("inf")
    for _ in range(tries):  # taking turns, so that a busy machine is busy for both
        packed = min(packed, step_seconds(model, config, mixed, 16, 2))
        padded = min(padded, step_seconds(model, config, [longest] * len(mixed), 16, 2))
    own = sum(s * s for sides in mixed for s in sides)
    whole = len(mixed) * sum(s * s for s in longest)
    return f"{padded / packed:.2f} times faster packed ({own} tokens) than padded to the longest ({whole})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tries", type=int, default=3)
    options = parser.parse_args()
    peak = peak_flops(DEVICE, "bf16")
    what = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or platform.machine()
    print(
        f"{what}, {torch.get_num_threads()} threads, torch {torch.__version__}; peak {peak / 1e12:.2f} Tflop/s in bf16"
    )
    print(f"command: python {' '.join(sys.argv)}")
    print("loader alone:        ", loader_alone())
    print("packed and padded:   ", packed_against_padded(options.tries))
    print("published width:     ", published_width(peak, options.tries))
    print("small model, whole:  ", small_model(options.steps))


if __name__ == "__main__":
    main()
