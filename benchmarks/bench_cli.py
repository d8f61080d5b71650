"""How long the command line takes: `ace --help`, importing for an edit with the small model, and such an edit.

Run: python benchmarks/bench_cli.py [--repeat N]. Every figure is the median of N fresh processes, all of one run, in
seconds of wall time and of processor time. The imports are those of an edit: torch, the pipeline's classes (diffusers)
and the text encoder's (transformers); with every optional package that is installed, as Python's users and the server
import them, and without those that a plain `ace edit` does without (`ace/cli/lean.py`).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

IMPORTS = (
    "import torch; from diffusers import AutoencoderDC, AutoencoderKL, DiffusionPipeline; "
    "from transformers import BertModel, BertTokenizer; import ace.inference.pipeline"
)


WITHOUT = "from ace.cli.lean import OPTIONAL, without\nwith without(OPTIONAL):\n    "


def processor_s() -> float:
    """Processor time of all processes that were started and have ended."""
    used = os.times()
    return used.children_user + used.children_system


def seconds(command: list[str], repeat: int) -> tuple[float, float]:
    """Median wall and processor time of a command that must succeed."""
    walls, cpus = [], []
    for _ in range(repeat):
        start, used = time.perf_counter(), processor_s()
        subprocess.run(command, check=True, capture_output=True)
        walls.append(time.perf_counter() - start)
        cpus.append(processor_s() - used)
    return statistics.median(walls), statistics.median(cpus)


def main() -> None:
    """Print hardware, commands and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    ace = [sys.executable, "-m", "ace"]
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "in.png"
        image = Image.new("RGB", (256, 256), "skyblue")
        ImageDraw.Draw(image).ellipse((80, 80, 176, 176), fill="crimson")
        image.save(picture)
        edit = [
            *ace,
            "edit",
            str(picture),
            "make the background green",
            "--seed",
            "1",
            "-o",
            str(Path(folder) / "out.png"),
        ]
        seconds([sys.executable, "-c", IMPORTS], 1)  # files into the page cache
        help_s = seconds([*ace, "--help"], repeat)
        all_s = seconds([sys.executable, "-c", IMPORTS], repeat)
        few_s = seconds([sys.executable, "-c", WITHOUT + IMPORTS], repeat)
        edit_s = seconds(edit, repeat)
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, median of {repeat}")
    for name, (wall_s, cpu_s) in {
        "ace --help": help_s,
        "imports with every optional package": all_s,
        "imports of a plain edit": few_s,
        "ace edit in.png '...' -o out.png": edit_s,
    }.items():
        print(f"{name:40} {wall_s:6.2f} s, {cpu_s:6.2f} s of processor time")
    print(f"a plain edit's imports take {few_s[1] / all_s[1]:.0%} of the processor time of all (aim: 50%)")


if __name__ == "__main__":
    main()
