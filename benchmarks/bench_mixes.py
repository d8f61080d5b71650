"""How far one request's result moves when others share its passes: latents, pixels and PNG bytes.

Every request of a mixture (sizes, 0 to 3 images, masks, histories, steps; that of `bench_server.py`) is made alone,
then in several mixes through the server's engine: all of them and a copy of one, asked for at once in an order drawn
from a seed, so that they join and leave at any step. Compared for each number type: the final latents, relative to
their largest value; the pixels, in levels of 255; the bytes of the PNG, without its recipe, which says how many shared
the passes.

    python benchmarks/bench_mixes.py [--requests 12] [--mixes 4] [--threads 1] [--model NAME] [--device cuda]

The promise is 1e-5 for latents in float32, and the exit code is 1 if it is broken; all else is a report.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from bench_server import mixed_jobs

from ace.conversation.edit import Job, Made
from ace.conversation.recipe import encode
from ace.server.engine import Engine
from ace.weights.sources import find_model, load_pipeline

PROMISED = 1e-5
PATIENCE_S = 600


@dataclass
class Moved:
    """How results differ from those made alone.

    latents: largest difference of each, relative to the largest value; levels: largest of each picture, of 255; pixels:
    share of each picture's values that differ; same_png: how many files are the same to the byte; together: how many
    pictures shared a pass with each at most, itself counted."""

    latents: list[float] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)
    same_png: int = 0
    together: list[int] = field(default_factory=list)

    def add(self, alone: Made, mixed: Made) -> None:
        """Count one result."""
        assert alone.latents is not None and mixed.latents is not None
        difference = np.abs(alone.latents.astype(np.float64) - mixed.latents).max()
        self.latents.append(float(difference / np.abs(alone.latents).max()))
        levels = np.abs(np.asarray(alone.image).astype(int) - np.asarray(mixed.image).astype(int))
        self.levels.append(int(levels.max()))
        self.pixels.append(float((levels > 0).mean()))
        self.same_png += encode(alone.image, "PNG") == encode(mixed.image, "PNG")
        self.together.append(int(mixed.recipe.settings.get("batch_size", 1)))

    def __str__(self) -> str:
        return (
            f"{min(self.together)} to {max(self.together)} together; latents at most {max(self.latents):.1e}, "
            f"median {np.median(self.latents):.1e} of the largest value; "
            f"PNG the same to the byte {self.same_png} of {len(self.levels)}, values that differ "
            f"{np.mean(self.pixels):.2%}, by at most {max(self.levels)} of 255 levels"
        )


def made_by(engine: Engine, jobs: Sequence[Job]) -> list[Made]:
    """All jobs, asked for at once by as many clients."""
    tickets = [engine.submit([job], f"client {number}")[0] for number, job in enumerate(jobs)]
    return [ticket.result.result(timeout=PATIENCE_S) for ticket in tickets]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--mixes", type=int, default=4)
    parser.add_argument("--threads", type=int, help="of the processor; default: as many as torch takes")
    parser.add_argument("--model", default="ace-tiny")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = find_model(arguments.model)
    jobs = [job for job, _ in mixed_jobs(arguments.requests, round(model.budget**0.5) * model.cell_px, 3)]
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    print(
        f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, {model.name}, "
        f"{len(jobs)} mixed requests in {arguments.mixes} mixes"
    )
    broken = False
    for dtype in ("float32", "bfloat16"):
        pipeline = load_pipeline(model, device=arguments.device, dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        engine = Engine(pipeline, model)
        engine.start()
        try:
            again, mixed = measure(engine, jobs, arguments.mixes)
        finally:
            engine.stop()
        print(f"{dtype}\n  alone again: {again}\n  in mixes:    {mixed}", flush=True)
        broken |= dtype == "float32" and max(mixed.latents) > PROMISED
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
