"""Mining at size: K-means and both union-find turns on planted features, with recall, precision, seconds and memory.

python benchmarks/bench_mining.py                        10 000 and 30 000, quick
python benchmarks/bench_mining.py --counts 10000 100000 1000000 --plot growth.png

Features are 768 float16 numbers each, memory-mapped; the world is described in `planted.py`. Making them is not timed.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ace.data.cluster import mine
from ace.data.recipe import Mining
from benchmarks.planted import plant, recall_and_precision


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 30_000])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--neighbours", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {' '.join(sys.argv)}")
    measured = []
    for count in given.counts:
        with tempfile.TemporaryDirectory() as folder:
            planted = plant(count, given.width, seed=0, file=Path(folder) / "features.npy")
            start, cpu = time.perf_counter(), time.process_time()
            found = mine(planted.features, Mining(neighbours=given.neighbours), planted.score)
            seconds, worked = time.perf_counter() - start, time.process_time() - cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # with the pages of the file
            recall, precision = recall_and_precision(planted, found)
            del planted
        measured.append((count, seconds, worked))
        print(
            f"{count:>9} features: {seconds:7.1f} s ({worked:.1f} s of CPU), recall {recall:.4f}, "
            f"precision {precision:.4f}, {len(found.pairs)} pairs, peak memory so far {peak:.2f} GiB",
            flush=True,
        )
    if given.plot:
        draw(measured, given.plot)
        print(f"wrote {given.plot}")


def draw(measured: list[tuple[int, float, float]], file: Path) -> None:
    """Seconds against features, both logarithmic, with a line that grows in proportion."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    counts, seconds, worked = zip(*measured, strict=True)
    axes.loglog(counts, worked, "o-", label="CPU seconds")
    axes.loglog(counts, seconds, "s--", label="seconds on the clock")
    axes.loglog(counts, [worked[0] * n / counts[0] for n in counts], ":", color="grey", label="in proportion")
    axes.set_xlabel("features")
    axes.set_ylabel("seconds")
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
