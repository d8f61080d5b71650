"""How long the command line takes: `ace --help`, and one edit with the small model beyond importing what it needs.

Run: python benchmarks/bench_cli.py [--repeat N]. Every figure is the median of N fresh processes, all of one run. The
imports measured are those of an edit: torch, the pipeline's classes (diffusers) and the text encoder's (transformers).
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


def seconds(command: list[str], repeat: int) -> float:
    """Median wall time of a command that must succeed."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


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
        imports_s = seconds([sys.executable, "-c", IMPORTS], repeat)
        edit_s = seconds(edit, repeat)
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, median of {repeat}")
    print(f"ace --help                          {help_s:6.2f} s   (aim: under 0.5)")
    print(f"imports alone                       {imports_s:6.2f} s")
    print(f"ace edit in.png '...' -o out.png    {edit_s:6.2f} s")
    print(f"an edit beyond its imports          {edit_s - imports_s:6.2f} s   (aim: under 3)")


if __name__ == "__main__":
    main()
