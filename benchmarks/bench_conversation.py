"""A conversation: what a turn costs with more and more turns before it, against what its tokens say.

python benchmarks/bench_conversation.py            # the small model: turns 1 to 6, each going on from the last answer
python benchmarks/bench_conversation.py --steps 4

Turn n has n - 1 answers before it. Compared are processor seconds and operations (`ace/model/cost.py`), both as ratios
to turn 1: a turn costs no more than its tokens say if the first is not above the second. Preparing (texts,
autoencoder) is counted apart: with the latents of earlier answers kept, its share does not grow with the pictures.
Without `Turn.latents` and the cache every picture would be encoded in every turn; that is measured too.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time

import numpy as np
import torch
from bench_forward import processor
from PIL import Image

from ace import load_tiny
from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.diffusion import seeded_generator
from ace.inference.pipeline import ACEPipeline, Request
from ace.model.cost import step_cost

TURNS = 6


def photo() -> Image.Image:
    """A picture with something in it."""
    rows, columns = np.mgrid[0:64, 0:64]
    values = np.stack([4 * columns, 4 * rows, 255 - 2 * (rows + columns)], axis=2)
    values[20:44, 20:44] = (200, 60, 40)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def operations(pipeline: ACEPipeline, request: Request) -> int:
    """Of all steps of a request, by its tokens."""
    (state,) = pipeline.prepare([request])
    p = pipeline.transformer.sizes.patch_size
    size = state.branches[0].frames.size
    frames = [size, *(image.shape[-2:] for image in state.branches[0].frames.images)]
    counts = [(h // p) * (w // p) for h, w in frames]
    texts = [[len(text) for text in branch.frames.texts] for branch in state.branches]
    return state.num_steps * step_cost(pipeline.transformer.sizes, counts, *texts).total


def timed_turn(pipeline: ACEPipeline, request: Request, repeats: int) -> tuple[float, float, Turn]:
    """(processor seconds to prepare, and to denoise, the best of several; the finished turn)."""
    prepare = denoise = float("inf")
    for _ in range(repeats):
        own = dataclasses.replace(request, generator=seeded_generator(1))
        start = time.process_time()
        states = pipeline.prepare([own])
        prepared = time.process_time()
        while not states[0].done:
            pipeline.step(states)
        prepare, denoise = min(prepare, prepared - start), min(denoise, time.process_time() - prepared)
    (answer,) = pipeline.decode(states)
    return prepare, denoise, pipeline.turn(states[0], answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="one step, once")
    options = parser.parse_args()
    steps, repeats = (1, 1) if options.smoke else (options.steps, options.repeats)
    torch.set_num_threads(options.threads)
    pipeline = load_tiny("cpu")
    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"command: python benchmarks/bench_conversation.py {' '.join(sys.argv[1:])}".rstrip())
    turns: list[Turn] = []
    first: tuple[float, int] | None = None
    for number in range(1, TURNS + 1):
        image = photo() if not turns else turns[-1].answer
        unit = LongContextConditionUnit(ConditionUnit("make the background blue", (image,)), tuple(turns))
        request = Request(unit, num_inference_steps=steps)
        counted = operations(pipeline, request)
        prepare, denoise, turn = timed_turn(pipeline, request, repeats)
        pipeline.latent_cache.clear()
        plain = tuple(dataclasses.replace(turn, latents=None) for turn in turns)
        forgotten = dataclasses.replace(request, unit=dataclasses.replace(unit, history=plain))
        again = timed_turn(pipeline, forgotten, 1)[0]
        first = first or (denoise, counted)
        turns.append(turn)
        print(
            f"  turn {number}: {len(unit.frames())} images; denoising {denoise:.2f} s, {denoise / first[0]:.2f} times "
            f"turn 1's; its tokens say {counted / first[1]:.2f} times; preparing {prepare:.3f} s, "
            f"with nothing kept {again:.3f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
