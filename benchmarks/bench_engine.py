"""What the data engine costs beside the work itself: the same jobs in a bare loop and through Daft with checkpoints.

python benchmarks/bench_engine.py [--jobs 24] [--repeats 3]

The work is real: gray, mosaic, edges and inpainting samples of drawn 256 px pictures, checked and encoded. Both ways
alternate; the best of each counts. Importing the libraries is not timed; the engine's checkpoints are.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import daft  # noqa: F401 (imported before the clock starts)

from ace.data.engine import DataJob, Where, run_stage
from ace.data.recipe import Collection, DataRecipe
from ace.data.sources import read_pictures
from ace.data.synthesize import synthesize_slice
from tests.data.pictures import draw

TASKS = ("low_level_analysis/gray", "low_level_analysis/mosaic", "low_level_analysis/edge", "repainting/inpainting")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {' '.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        for seed in range(given.jobs * 4):
            draw(seed, (256, 256)).save(folder / "pictures" / f"{seed:04d}.png")
        recipe = DataRecipe(Collection(str(folder / "pictures")))
        names = [{"file": f"{seed:04d}.png"} for seed in range(given.jobs * 4)]
        sources = [record.facts for record in read_pictures(recipe, DataJob("0", {"pictures": names}))]
        jobs = [
            DataJob(f"{n:06d}", {"tried": [(facts, TASKS) for facts in sources[4 * n : 4 * n + 4]]})
            for n in range(given.jobs)
        ]
        work = partial(synthesize_slice, recipe)
        made = sum(len(list(work(job))) for job in jobs)  # everything is loaded and warm
        bare, engine = [], []
        for repeat in range(given.repeats):
            start = time.process_time()
            for job in jobs:
                list(work(job))
            bare.append(time.process_time() - start)
            start = time.process_time()
            run_stage("synthesize", jobs, work, folder / f"run-{repeat}", Where())
            engine.append(time.process_time() - start)
        print(f"bare loop {min(bare):.2f} s of CPU, {made / min(bare):.1f} samples/s per core")
        print(f"engine    {min(engine):.2f} s of CPU, {100 * (min(engine) / min(bare) - 1):+.1f} %")


if __name__ == "__main__":
    main()
