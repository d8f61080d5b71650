"""The ACE benchmark's format: any set of edit samples, scored against its targets.

The paper's benchmark (31 subtasks, real and generated pictures, global and regional, multi-turn) was never published.
Its kind is built here from any folder of pictures by `ace data synthesize`, as the same records that training reads,
and measured like ace-world. The targets of a synthesised set are as good as the tools that made them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ace.data.sample import TASKS, EditSample
from ace.data.shards import from_row, read_shards
from ace.errors import ConfigError, DataError
from ace.evaluation.benchmarks.world import absent_metrics, check_answered, find_judges, run_settings
from ace.evaluation.folder import RunFolder
from ace.evaluation.lpips import find_lpips
from ace.evaluation.report import write_report
from ace.evaluation.run import run, system_of
from ace.evaluation.summary import WorldReport, make_report
from ace.evaluation.systems import Contestant


def evaluate_set(
    contestant: Contestant,
    source: Path,
    output: Path,
    limit: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    *,
    results: Path | None = None,
    tasks: Sequence[str] = TASKS,
) -> WorldReport:
    """Answer and score the samples of a data set, one at a time; run again on the same folder, it goes on.

    source: folder of shards, or one Parquet file. limit: of each task, None = all. Other arguments as `evaluate_world`.
    Raises DataError for a set that cannot be read or has none of these tasks."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}: use 1 or more")
    shards = read_shards(source, verify=Path(source).is_dir())
    places: dict[str, list[int]] = defaultdict(list)
    for place, task in enumerate(shards.column("task")):
        if task in tasks:
            places[task].append(place)
    if not places:
        raise DataError(f"{source.name} has no sample of these tasks")

    def sample_of(task: str, number: int) -> EditSample:
        return from_row(shards.row(places[task][number]))

    settings = {
        "benchmark": "ace-bench",
        "set": [file.sha256 for file in shards.manifest.shards] if shards.manifest else source.name,
        **run_settings(contestant, seed, 1),
    }
    folder = RunFolder(output, settings)
    lpips, judges = find_lpips(), find_judges()
    chunks = [[(task, n)] for task in TASKS if task in places for n in range(len(places[task]))[:limit]]
    system = system_of(contestant, results)
    finished = run(chunks, sample_of, system, folder, seed, lpips, judges, quiet, results=results)
    check_answered(finished, folder, results)
    report = make_report(
        finished.rows,
        model_name=contestant.name,
        settings=settings,
        absent_tasks=tuple(task for task in tasks if task not in places),
        absent_metrics=absent_metrics(lpips is not None, judges),
        autoencoder_psnr=None,
        missing=finished.missing,
    )
    write_report(report, finished.rows, folder, sample_of)
    return report
