"""What each approximate acceleration saves and what it costs in accuracy, against exact sampling from the same noise.

    python benchmarks/bench_fast.py                     # the small model, 20 steps, held-out requests of its world
    python benchmarks/bench_fast.py --steps 50 --model FOLDER

Two requests from words and one of each of four kinds of edits. Network runs are of a guidance branch; processor seconds
are of one run each and of this machine. Masks are not put back, so that nothing hides a difference.
"""

from __future__ import annotations

import argparse
import time

import torch
from bench_forward import processor

from ace.data.world.sprites import SHIPPED_PACK, SpriteLibrary
from ace.data.world.world import World
from ace.inference.accelerate import FAST, Fast
from ace.inference.fast_error import measure_error
from ace.inference.pipeline import Request
from ace.weights.sources import find_model, load_pipeline

TASKS = (
    *("text_guided_generation/text_to_image",) * 2,
    "semantic_editing/background",
    "element_editing/object_remove",
    "repainting/inpainting",
    "controllable_generation/edge",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="ace-tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--intervals", type=int, nargs="*", default=[2, 4, 5], help="step caches beside `--fast cache`")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = find_model(arguments.model)
    pipeline = load_pipeline(model, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    world = World(round(model.budget**0.5) * model.cell_px, "held_out", SpriteLibrary(SHIPPED_PACK))
    requests = [
        Request(world.sample(number, task).request, num_inference_steps=arguments.steps)
        for number, task in enumerate(TASKS)
    ]
    print(f"{processor()}, {arguments.threads} threads, torch {torch.__version__}, {model.name}")
    print(f"{len(requests)} requests of {arguments.steps} steps")
    caches = {f"cache_interval={interval}": Fast(cache_interval=interval) for interval in arguments.intervals}
    for name, fast in {**FAST, **caches}.items():
        start = time.process_time()
        error = measure_error(pipeline, requests, fast)
        both = time.process_time() - start
        share = error.seconds[1] / sum(error.seconds)
        print(
            f"  {name:<17} {error.runs[1] / error.runs[0]:4.0%} of the network runs, "
            f"{share / (1 - share):4.0%} of the time ({both * share:.2f} s), "
            f"{error.levels:5.2f} of 255 levels, {error.psnr_db:4.1f} dB",
            flush=True,
        )


if __name__ == "__main__":
    main()
