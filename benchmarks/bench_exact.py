"""Cost of exactness: a step of N mixed requests in passes of their own against one packed pass.

Both ways on the same states, in turn, in CPU time of one thread, so that other programs on the machine count little;
the median of the ratios counts. Requests are mixed: no to three images, a mask, history, all with guidance.

    python benchmarks/bench_exact.py [--requests 1 4 16] [--dtype float32] [--model NAME] [--rounds 8]
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.diffusion import seeded_generator
from ace.inference.pipeline import ACEPipeline, Request, RequestState
from ace.weights.sources import find_model, load_pipeline


def picture(draw: random.Random) -> Image.Image:
    cells = np.random.default_rng(draw.randrange(2**31)).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((draw.choice((96, 128)), draw.choice((96, 128))), Image.Resampling.BICUBIC)


def mixed_request(number: int) -> Request:
    draw = random.Random(number)
    photos = [picture(draw) for _ in range(draw.choice((0, 0, 1, 1, 2, 3)))]
    masks = [Image.new("L", photos[0].size, 255), *[None] * (len(photos) - 1)] if photos and draw.random() < 0.3 else ()
    turns = (Turn(ConditionUnit("a cat"), picture(draw)),) if draw.random() < 0.2 else ()
    unit = LongContextConditionUnit(ConditionUnit("add a red hat", photos, masks), turns)
    return Request(unit, generator=seeded_generator(number))


def step_time(pipeline: ACEPipeline, states: Sequence[RequestState], exact: bool) -> Callable[[], float]:
    """A function that computes one step of all states, without taking it, and says the CPU time in seconds."""
    groups = [[state] for state in states] if exact else [states]

    def run() -> float:
        began = time.thread_time()
        with torch.no_grad():
            for group in groups:
                pipeline._predict(group)
        return time.thread_time() - began

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", default="ace-tiny")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = load_pipeline(find_model(arguments.model), device="cpu", dtype=arguments.dtype)
    print(f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}, {arguments.model}")
    for count in arguments.requests:
        states = pipeline.prepare([mixed_request(number) for number in range(count)])
        packed, alone = (step_time(pipeline, states, exact) for exact in (False, True))
        packed(), alone()
        times = [(packed(), alone()) for _ in range(arguments.rounds)]
        ratio = statistics.median(own / shared for shared, own in times)
        shared, own = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        print(f"{arguments.dtype}, {count:>2} requests: {shared:.0f} ms packed, {own:.0f} ms alone, {ratio:.3f} times")


if __name__ == "__main__":
    main()
