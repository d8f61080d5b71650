"""How fast the procedural world makes samples, task by task, on one core; beside another checkout if one is named.

    python benchmarks/bench_world.py
    python benchmarks/bench_world.py --other ../ace-before   # the same there, each task one after the other
    python benchmarks/bench_world.py --warm 0                # from cold caches, as in the first seconds of training

Sprites and grounds are cached, so `--warm` samples of each task are made first; those that are timed are others, in
five blocks of which the fastest counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

BLOCKS = 5  # of timed samples; the fastest counts, since other work on the machine only slows
TIMED = (
    f"BLOCKS = {BLOCKS}"
    + """
import json, sys, time
from ace.data.sample import TASKS
from ace.data.world import SpriteLibrary, World
from ace.data.world.sprites import SHIPPED_PACK

size_px, warm, count = map(int, sys.argv[1:])
world = World(size_px, "train", SpriteLibrary(SHIPPED_PACK))
for number in range(warm):
    for task in TASKS:
        world.sample(number, task)
for task in TASKS:
    fastest = float("inf")
    for block in range(BLOCKS):
        start = time.process_time()
        for number in range(warm + block * count, warm + (block + 1) * count):
            world.sample(number, task)
        fastest = min(fastest, (time.process_time() - start) / count)
    print(json.dumps([task, fastest]), flush=True)
"""
)


def timed(checkout: Path, *settings: int) -> dict[str, float]:
    """Seconds of processor time per sample of every task, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TIMED, *map(str, settings)]
    done = subprocess.run(command, env=environment, cwd=checkout, check=True, capture_output=True, text=True)
    return dict(map(json.loads, done.stdout.splitlines()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--warm", type=int, default=200, help="samples of each task before the timed ones")
    parser.add_argument("--count", type=int, default=40, help="timed samples of each task in each of five blocks")
    parser.add_argument("--other", type=Path, help="another checkout to time beside this one")
    args = parser.parse_args()
    settings = args.size, args.warm, args.count
    print(f"{platform.machine()}, Python {platform.python_version()}, one core, {args.size} px; ms a sample")
    start = time.perf_counter()
    mine = timed(Path(__file__).resolve().parents[1], *settings)
    other = timed(args.other.resolve(), *settings) if args.other else {}
    for task, seconds in mine.items():
        beside = f"{1000 * other[task]:9.2f} there {other[task] / seconds:7.1f} times" if task in other else ""
        print(f"{1000 * seconds:9.2f}{beside}  {task}")
    print(f"mean {1000 * sum(mine.values()) / len(mine):.2f} ms; {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
