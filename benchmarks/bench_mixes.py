"""What company does to a request, and what it costs to keep it out: requests in passes of their own, and packed.

Every request of a mixture (sizes, 0 to 3 images, masks, histories, steps; that of `bench_server.py`) is made alone,
then in several mixes through the server's engine: all of them and a copy of one, asked for at once in an order drawn
from a seed, so that they join and leave at any step. Compared for each number type, both ways: the final latents,
relative to their largest value; the pixels, in levels of 255; the bytes of the PNG with its recipe.

The cost is the CPU time of one step of 1, 4 and 16 of them in passes of their own against one packed pass, of one
thread and in turn, so that other programs on the machine count little; the median of the ratios counts.

    python benchmarks/bench_mixes.py [--requests 12] [--mixes 4] [--together 1 4 16] [--rounds 8] [--dtypes float32]
                                     [--threads 1] [--model NAME] [--device cuda]

The exit code is 1 if a request in a pass of its own is not the same to the byte, or a packed one moves by more than
1e-5 in float32.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from bench_server import mixed_jobs

from ace.conversation.job import Job, Made
from ace.conversation.recipe import encode
from ace.families.ace import AceFamily
from ace.inference.pipeline import ACEPipeline, RequestState
from ace.server.engine import Engine
from ace.weights.sources import find_model, load_pipeline

PROMISED = 1e-5
PATIENCE_S = 600


@dataclass
class Moved:
    """How results differ from those made alone.

    latents: largest difference of each, relative to the largest value; levels: largest of each picture, of 255; pixels:
    share of each picture's values that differ; same_png: how many files are the same to the byte."""

    latents: list[float] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)
    same_png: int = 0

    @property
    def same(self) -> bool:
        """Whether every result is the same to the byte."""
        return max(self.latents) == 0 and self.same_png == len(self.levels)

    def add(self, alone: Made, mixed: Made) -> None:
        """Count one result."""
        assert alone.latents is not None and mixed.latents is not None
        difference = np.abs(alone.latents.astype(np.float64) - mixed.latents).max()
        self.latents.append(float(difference / np.abs(alone.latents).max()))
        levels = np.abs(np.asarray(alone.image).astype(int) - np.asarray(mixed.image).astype(int))
        self.levels.append(int(levels.max()))
        self.pixels.append(float((levels > 0).mean()))
        self.same_png += encode(alone.image, "PNG", alone.recipe) == encode(mixed.image, "PNG", mixed.recipe)

    def __str__(self) -> str:
        return (
            f"latents at most {max(self.latents):.1e}, median {np.median(self.latents):.1e} of the largest value; "
            f"PNG the same to the byte {self.same_png} of {len(self.levels)}, values that differ "
            f"{np.mean(self.pixels):.2%}, by at most {max(self.levels)} of 255 levels"
        )


def made_by(engine: Engine, jobs: Sequence[Job]) -> list[Made]:
    """All jobs, asked for at once by as many clients."""
    requests = [engine.submit([job], f"client {number}")[0] for number, job in enumerate(jobs)]
    return [request.result.result(timeout=PATIENCE_S) for request in requests]


def measure(engine: Engine, jobs: Sequence[Job], num_mixes: int, seed: int = 0) -> tuple[Moved, Moved]:
    """(alone a second time, in mixes), each against alone."""
    alone = [made_by(engine, [job])[0] for job in jobs]
    again, mixed = Moved(), Moved()
    for job, made in zip(jobs, alone, strict=True):
        again.add(made, made_by(engine, [job])[0])
    draw = random.Random(seed)
    for _ in range(num_mixes):
        order = [*draw.sample(range(len(jobs)), len(jobs)), draw.randrange(len(jobs))]
        for number, made in zip(order, made_by(engine, [jobs[n] for n in order]), strict=True):
            mixed.add(alone[number], made)
    return again, mixed


def moved(family: AceFamily, jobs: Sequence[Job], num_mixes: int) -> tuple[Moved, Moved]:
    """As `measure`, by an engine of its own."""
    engine = Engine(family)
    engine.start()
    try:
        return measure(engine, jobs, num_mixes)
    finally:
        engine.stop()


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


def say_cost(family: AceFamily, jobs: Sequence[Job], rounds: int) -> None:
    """Print what a step of all jobs costs both ways."""
    states = [running.state for running in family.prepare(jobs)]
    packed, alone = (step_time(family.pipeline, states, exact) for exact in (False, True))
    packed(), alone()
    times = [(packed(), alone()) for _ in range(rounds)]
    ratios = [own / shared for shared, own in times]
    shared, own = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"  a step of {len(jobs):>2}: {shared:.0f} ms packed, {own:.0f} ms in passes of their own, "
        f"{statistics.median(ratios):.3f} times ({min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--mixes", type=int, default=4)
    parser.add_argument("--together", type=int, nargs="*", default=[1, 4, 16], help="requests whose step is timed")
    parser.add_argument("--rounds", type=int, default=8, help="of the timed steps")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, help="of the processor; default: as many as torch takes")
    parser.add_argument("--model", default="ace-tiny")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = find_model(arguments.model)
    most = max(arguments.requests, *arguments.together)
    jobs = [job for job, _ in mixed_jobs(most, round(model.budget**0.5) * model.cell_px, 3)]
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    print(
        f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, {model.name}, "
        f"{arguments.requests} mixed requests in {arguments.mixes} mixes"
    )
    broken = False
    for dtype in arguments.dtypes:
        pipeline = load_pipeline(model, device=arguments.device, dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        family = AceFamily(model, pipeline)
        print(dtype)
        if arguments.device == "cpu":
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            for count in arguments.together:
                say_cost(family, jobs[:count], arguments.rounds)
            torch.set_num_threads(threads)
        for way, exact in (("in passes of their own", True), ("packed", False)):
            pipeline.exact = exact
            again, mixed = moved(family, jobs[: arguments.requests], arguments.mixes)
            print(f"  {way}\n    alone again: {again}\n    in mixes:    {mixed}", flush=True)
            broken |= not mixed.same if exact else dtype == "float32" and max(mixed.latents) > PROMISED
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
