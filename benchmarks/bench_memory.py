"""Peak memory of a whole 512 px edit, mode by mode, each in a process of its own.

    python benchmarks/make_full_size.py FULL && ace convert FULL --output CONVERTED
    python benchmarks/bench_memory.py CONVERTED [--modes lean balanced]

Peak memory is what the system counted for the process (resident set, mapped files included). "Again" is a second edit
with the same instruction, whose text is in the cache. Two steps: more take longer, not more memory. Without an argument
the model in the package is measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

MODES = ("lean", "balanced", "8bit", "full")


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Peak memory in GB, seconds, and what was said, of one process."""
    report = f"import resource, subprocess, sys; done = subprocess.run({command!r}, capture_output=True, text=True); "
    report += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); "
    report += (
        "print((done.stdout if done.returncode == 0 else 'failed: ' + done.stderr.strip().splitlines()[-1]).strip())"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", report], env=environment, capture_output=True, text=True, check=True)
    peak, said = done.stdout.split("\n", 1)
    scale = 1 if platform.system() == "Darwin" else 1024
    return int(peak) * scale / 1e9, time.monotonic() - began, said.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="ace-tiny", help="a converted model's folder")
    parser.add_argument("--modes", nargs="+", default=MODES)
    parser.add_argument("--steps", default="2")
    parser.add_argument("--size", type=int, default=512, help="side of the photo in px")
    arguments = parser.parse_args()
    if arguments.model == "ace-tiny" and tuple(arguments.modes) == MODES:
        arguments.modes = ("full", "lean")  # there is no T5 to treat otherwise
    cores = os.cpu_count()
    print(f"{platform.machine()}, {cores} cores, {resource.getpagesize() * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB")
    print(f"$ python benchmarks/bench_memory.py {' '.join(sys.argv[1:])}")
    for mode in arguments.modes:
        with tempfile.TemporaryDirectory() as folder:
            photo = Path(folder) / "photo.png"
            pixels = np.random.default_rng(0).integers(0, 256, (arguments.size, arguments.size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photo)
            command = [sys.executable, "-m", "ace", "edit", str(photo), "make the boy cry", "--seed", "1"]
            command += ["--out", str(Path(folder) / "out.png"), "--model", arguments.model]
            command += ["--steps", arguments.steps, "--memory", mode, "--device", "cpu"]
            environment = os.environ | {"ACE_CACHE": folder}
            for run in ("first", "again"):
                peak, seconds, said = measure(command, environment)
                print(f"{mode:9} {run:5}  {peak:5.1f} GB  {seconds:5.0f} s  {said.splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
