"""The ACE benchmark's format: any sets of edit samples, scored against their targets.

The paper's benchmark (31 subtasks, real and generated pictures, global and regional, multi-turn) was never published.
Its kind is built here from any folder of pictures by `ace data synthesize`, as the same records that training reads,
and measured like ace-world. Several sets make one benchmark, such as one from photographs and one from generated
pictures; the report has a row for each, and for local, global and multi-turn requests. The targets of a synthesised set
are as good as the tools that made them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace.data.sample import TASKS, EditSample
from ace.data.shards import Shards, from_row, read_shards
from ace.errors import ConfigError, DataError
from ace.evaluation.benchmarks.world import absent_metrics, check_answered, find_judges, run_settings
from ace.evaluation.folder import RunFolder
from ace.evaluation.lpips import find_lpips
from ace.evaluation.report import write_report
from ace.evaluation.run import run, system_of
from ace.evaluation.summary import WorldReport, make_report
from ace.evaluation.systems import Contestant


@dataclass(frozen=True)
class SamplePlace:
    """Where a sample lies: the set's name, its shards, the row in them."""

    set_name: str
    shards: Shards
    row: int


def evaluate_sets(
    contestant: Contestant,
    sources: Sequence[Path],
    output: Path,
    limit: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    *,
    results: Path | None = None,
    tasks: Sequence[str] = TASKS,
) -> WorldReport:
    """Answer and score the samples of data sets, one at a time; run again on the same folder, it goes on.

    sources: folders of shards, or Parquet files. limit: of each task in each set, None = all. Other arguments as
    `evaluate_world`. Raises DataError for a set that cannot be read or has none of these tasks, ConfigError for two
    sets of one name."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}: use 1 or more")
    sets = _read_sets(sources)
    places = _find_places(sets, tasks, limit)

    def sample_of(task: str, number: int) -> EditSample:
        place = places[task][number]
        return from_row(place.shards.row(place.row))

    settings = {
        "benchmark": "ace-bench",
        "sets": {
            name: [file.sha256 for file in read.manifest.shards] if read.manifest else None for name, read in sets
        },
        **run_settings(contestant, seed, 1),
    }
    folder = RunFolder(output, settings)
    lpips, judges = find_lpips(), find_judges()
    chunks = [[(task, n)] for task in TASKS if task in places for n in range(len(places[task]))]
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
        kinds_of=lambda row: (
            "global" if row.drift is None else "local",
            *(("multi-turn",) if row.family == "multi_turn" else ()),
            f"set {places[row.task][row.number].set_name}",
        ),
    )
    write_report(report, finished.rows, folder, sample_of)
    return report


def _read_sets(sources: Sequence[Path]) -> list[tuple[str, Shards]]:
    """The sets by name, in the order given."""
    names = [Path(source).stem for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two sets are called {twice[0]}: rename one, so that the report can tell them apart")
    return [
        (name, read_shards(source, verify=Path(source).is_dir())) for name, source in zip(names, sources, strict=True)
    ]


def _find_places(
    sets: Sequence[tuple[str, Shards]], tasks: Sequence[str], limit: int | None
) -> dict[str, list[SamplePlace]]:
    """By task, where its samples lie: the first `limit` of each set. Raises DataError for a set without any."""
    places: dict[str, list[SamplePlace]] = defaultdict(list)
    for name, read in sets:
        found = Counter[str]()
        for row, task in enumerate(read.column("task")):
            if task in tasks and (limit is None or found[task] < limit):
                found[task] += 1
                places[task].append(SamplePlace(name, read, row))
        if not found:
            raise DataError(f"{name} has no sample of these tasks")
    return places
