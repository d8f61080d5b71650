"""Load sweep of the server's engine: step-level continuous batching against one request at a time.

Both are the same engine with the same model and every exact optimisation on; one at a time is `max_running = 1`, first
come first served. Requests are mixed (sizes, 0 to 3 images, masks, histories, steps), drawn from a seed, and arrive in
closed loop: so many clients, each with its next request when it has its last answer. Runs of the two alternate, in turn
the one and the other first, and the median over the runs counts, since other programs may be at work on the machine.

    python benchmarks/bench_server.py [--thorough] [--rounds 5] [--clients 1 4 16] [--model NAME] [--device cuda]

With `--full-size` random weights in the published 0.6B shapes (bfloat16, wants a GPU). Not here: HTTP, whose own time
is a few milliseconds; `soak.py` drives that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.conversation.edit import Job, Settings
from ace.server.engine import Engine
from ace.server.settings import Limits
from ace.weights.sources import find_model, load_pipeline

WAYS = {"one by one": Limits(max_running=1), "continuous": Limits()}


@dataclass(frozen=True)
class Outcome:
    """One run. seconds: of all of it; short, all: latencies in seconds; together: mean number stepped together."""

    seconds: float
    all: list[float]
    short: list[float]
    together: float


def picture(draw: random.Random, side: int) -> Image.Image:
    """A blocky picture of about `side` px."""
    width, height = (side * draw.choice((3, 4)) // 4 for _ in range(2))
    cells = np.random.default_rng(draw.randrange(2**31)).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def mixed_jobs(count: int, side: int, steps: int, seed: int = 0) -> list[tuple[Job, bool]]:
    """(job, is it a short one), the same for the same seed. A third have a third of the steps and no images."""
    draw = random.Random(seed)
    jobs = []
    for number in range(count):
        kind = draw.choice(("short", "short", "edit", "mask", "several", "history"))
        photos = [picture(draw, side) for _ in range(3)]
        if kind == "short":
            unit = LongContextConditionUnit(ConditionUnit("a red apple"))
        elif kind == "edit":
            unit = LongContextConditionUnit(ConditionUnit("make the background blue", photos[:1]))
        elif kind == "mask":
            mask = Image.new("L", photos[0].size, 0)
            mask.paste(255, (0, 0, photos[0].width // 2, photos[0].height // 2))
            unit = LongContextConditionUnit(ConditionUnit("add a hat", photos[:1], (mask,)))
        elif kind == "several":
            unit = LongContextConditionUnit(ConditionUnit("put {image1} and {image2} into {image}", tuple(photos)))
        else:
            turns = (Turn(ConditionUnit("a cat"), photos[0]), Turn(ConditionUnit("make it blue"), photos[1]))
            unit = LongContextConditionUnit(ConditionUnit("add a hat"), turns)
        own_steps = max(1, steps // 3) if kind == "short" else draw.choice((steps, 2 * steps))
        jobs.append((Job(unit, Settings(seed=number, num_inference_steps=own_steps)), kind == "short"))
    return jobs


def run(pipeline, model, jobs: list[tuple[Job, bool]], clients: int, limits: Limits) -> Outcome:
    """All jobs, by so many clients in closed loop."""
    engine = Engine(pipeline, model, limits)
    engine.start()
    steps, picture_steps = engine.num_steps, engine.num_picture_steps
    todo = list(reversed(jobs))
    lock = threading.Lock()
    latencies: list[tuple[float, bool]] = []

    def client(name: str) -> None:
        while True:
            with lock:
                if not todo:
                    return
                job, short = todo.pop()
            began = time.perf_counter()
            (ticket,) = engine.submit([job], name)
            ticket.result.result()
            with lock:
                latencies.append((time.perf_counter() - began, short))

    threads = [threading.Thread(target=client, args=(f"client {n}",)) for n in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    together = (engine.num_picture_steps - picture_steps) / (engine.num_steps - steps)
    engine.stop()
    return Outcome(seconds, [s for s, _ in latencies], [s for s, short in latencies if short], together)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


FIGURES: dict[str, Callable[[Outcome], float]] = {
    "pictures_per_s": lambda run: len(run.all) / run.seconds,
    "mean_s": lambda run: statistics.mean(run.all),
    "p50_s": lambda run: percentile(run.all, 0.5),
    "p99_s": lambda run: percentile(run.all, 0.99),
    "short_mean_s": lambda run: statistics.mean(run.short),
    "together": lambda run: run.together,
}


def report(name: str, runs: list[Outcome]) -> dict[str, float]:
    """The median of each figure over the runs, printed."""
    numbers = {what: statistics.median(figure(run) for run in runs) for what, figure in FIGURES.items()}
    print(f"  {name:12}  " + "  ".join(f"{what} {value:.3g}" for what, value in numbers.items()), flush=True)
    return numbers


def full_size_pipeline(device: str):
    """The published 0.6B transformer shape with random weights beside the small model's encoders is no model anybody
    can look at; it computes what the real one computes."""
    from ace.model.config import PRESETS
    from ace.model.text import encode_indicators
    from ace.model.transformer import ACETransformer

    small = load_pipeline(find_model("ace-tiny"), device=device)
    wanted = {**vars(PRESETS["0.6b-512"])}
    own = small.transformer.sizes
    wanted.update(
        text_channels=own.text_channels,
        latent_channels=own.latent_channels,
        source_on_channels=own.source_on_channels,
        learned_sigma=own.learned_sigma,
    )
    torch.manual_seed(0)
    transformer = ACETransformer(**wanted).eval()
    transformer.set_indicators(encode_indicators(small.tokenizer, small.text_encoder))
    small.register_modules(transformer=transformer.to(device, torch.bfloat16))
    small.register_to_config(budget=1024, enlarge=True)
    return small


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--thorough", action="store_true", help="more requests and steps")
    parser.add_argument("--model", default="ace-tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write all numbers here")
    arguments = parser.parse_args()
    model = find_model(arguments.model)
    if arguments.full_size:
        pipeline, side = full_size_pipeline(arguments.device), 256
    else:
        pipeline = load_pipeline(model, device=arguments.device)
        side = round(model.budget**0.5) * model.cell_px
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    print(
        f"{name}, {torch.get_num_threads()} of {os.cpu_count()} CPU threads, torch {torch.__version__}, "
        f"{'0.6B shapes, random weights' if arguments.full_size else model.name}, "
        f"{pipeline.transformer.dtype}; medians of {arguments.rounds} alternating runs"
    )
    steps = 6 if arguments.thorough else 3
    results = []
    for clients in arguments.clients:
        count = max(32, 4 * clients) if arguments.thorough else max(16, 2 * clients)
        jobs = mixed_jobs(count, side, steps)
        print(f"{clients} clients, {count} mixed requests", flush=True)
        runs: dict[str, list[Outcome]] = {way: [] for way in WAYS}
        for number in range(arguments.rounds):
            for way in sorted(WAYS, reverse=number % 2 == 0):
                runs[way].append(run(pipeline, model, jobs, clients, WAYS[way]))
        one, many = (report(way, runs[way]) for way in WAYS)
        ratios = {
            "throughput": many["pictures_per_s"] / one["pictures_per_s"],
            "mean latency": many["mean_s"] / one["mean_s"],
            "short ones' mean latency": many["short_mean_s"] / one["short_mean_s"],
            "p99": many["p99_s"] / one["p99_s"],
        }
        print("  continuous / one by one: " + ", ".join(f"{k} {v:.2f}" for k, v in ratios.items()), flush=True)
        results.append({"clients": clients, "one": one, "continuous": many, "ratios": ratios})
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
