"""One plan: a collection of pictures in, a data set out (section 3 of the paper).

read → unique → mine → synthesize → label → filter → shards

Every step leaves checkpoints in `work/` (`engine.py`), so the same call goes on where it was stopped and ends with the
same manifest. What is rejected anywhere is kept in `rejected/`, with its stage and reason.

    OUT/manifest.json, shard-*.parquet   the data set
    OUT/held_out/                        the part for evaluation, if one is asked for
    OUT/rejected/                        what was dropped, samples whole
    OUT/report.json, report.html, funnel.png, browse.html
    OUT/work/                            checkpoints; may be deleted when all is done

Not here: how sources are read (`sources.py`), how sets are found (`mine.py`), how a picture becomes a pair
(`synthesize.py`, `tasks/`), who writes instructions (`label.py`), what is dropped (`filter.py`).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ace.data import collect, filter, label, mine, report
from ace.data.engine import DataJob, OnProgress, Part, Record, StageReport, Where, report_stage, run_stage
from ace.data.recipe import DataRecipe
from ace.data.shards import MANIFEST, SCHEMA, Manifest, read_manifest, read_shards, write_rows
from ace.data.sources import PER_JOB, read_sources
from ace.data.synthesize import synthesize, tasks_of
from ace.errors import ConfigError, OutputError
from ace.files import write_atomically

WORK, REJECTED, HELD_OUT = "work", "rejected", "held_out"
REJECTED_SCHEMA = pa.schema(
    [("stage", pa.string()), ("what", pa.string()), ("reason", pa.string()), ("detail", pa.string()), *SCHEMA]
)

OnStageProgress = Callable[[str, int, int], None]  # (stage, pieces of work done, in all)


@dataclass(frozen=True)
class Built:
    """What a build made: its manifest, what each stage did, and where to look."""

    folder: Path
    manifest: Manifest
    stages: tuple[StageReport, ...]


@dataclass
class _Run:
    """One call: where it works, whom it tells, and what its stages have done so far."""

    recipe: DataRecipe
    folder: Path
    where: Where
    on_progress: OnStageProgress | None
    start: float = field(default_factory=time.perf_counter)
    stages: list[StageReport] = field(default_factory=list)
    outcomes: list[tuple[str, Sequence[Part] | Sequence[Record]]] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.folder / WORK

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def told(self, stage: str) -> OnProgress | None:
        return partial(self.on_progress, stage) if self.on_progress else None

    def note(self, stage: str, parts: Sequence[Part]) -> None:
        """Keep what a stage did."""
        self.stages.append(report_stage(stage, parts))
        self.outcomes.append((stage, parts))


def build(
    recipe: DataRecipe, folder: Path | str, where: Where | None = None, on_progress: OnStageProgress | None = None
) -> Built:
    """Make the data set of a recipe in a folder; goes on from what is there.

    on_progress: called with (stage, jobs done, jobs in all). Raises ConfigError for a folder of another recipe's work,
    DataError if there are no images, MissingDependencyError, OutputError if the folder cannot be written; a bad image
    never raises."""
    run = _Run(recipe, Path(folder), where or Where(), on_progress)
    _claim(recipe, run.folder)
    sources = _read(run)
    pairs: list[dict[str, Any]] = []
    if recipe.mine is not None and sources:
        found = _mine(run, sources)
        sources = found.sources
        pairs = found.pairs(recipe.label.pair_limit if recipe.label is not None and recipe.label.pairs else 0)
    made = synthesize(recipe, sources, run.work, run.where, run.told("synthesize"))
    run.note("synthesize", made)
    if recipe.label is not None:
        made = label.label_parts(recipe, made, pairs, sources, run.work, run.where, run.told("label"))
        run.note("label", made)
    return _finish(run, made, {s["id"]: s.get("set") or s["id"] for s in sources})


def rework(
    recipe: DataRecipe, folder: Path | str, where: Where | None = None, on_progress: OnStageProgress | None = None
) -> Built:
    """Label or filter a data set that is there already (the recipe's source, shards of ours) into a new folder.

    Raises as `build`."""
    run = _Run(recipe, Path(folder), where or Where(), on_progress)
    samples = read_shards(recipe.source.path)
    _claim(recipe, run.folder)
    jobs = [
        DataJob(f"{number:06d}", {"first": first, "last": min(first + PER_JOB, len(samples))})
        for number, first in enumerate(range(0, len(samples), PER_JOB))
    ]
    made = run_stage("take", jobs, partial(_take, recipe), run.work, run.where, run.told("take"))
    run.stages.append(report_stage("take", made))
    if recipe.label is not None:
        made = label.label_parts(recipe, made, (), (), run.work, run.where, run.told("label"))
        run.note("label", made)
    return _finish(run, made, {})


def mine_only(
    recipe: DataRecipe, folder: Path | str, where: Where | None = None, on_progress: OnStageProgress | None = None
) -> Built:
    """Find sets and pairs and stop there: `metadata.jsonl` (the pictures with their sets, as a collection's caption
    file), `pairs.jsonl` and a report. Raises as `build`."""
    if recipe.mine is None:
        raise ConfigError("there is no [mine] in the recipe: say how pictures are related")
    run = _Run(recipe, Path(folder), where or Where(), on_progress)
    _claim(recipe, run.folder)
    found = _mine(run, _read(run))
    count = 0
    try:
        _write_lines(run.folder / "metadata.jsonl", map(mine.describe, found.sources))
        count = _write_lines(run.folder / "pairs.jsonl", found.each_pair())
        report.write_funnel(run.folder, run.stages, {}, run.seconds)
    except OSError as error:
        raise _unwritable(run.folder, error) from None
    return Built(run.folder, Manifest(count, {}, ()), tuple(run.stages))


def _read(run: _Run) -> list[dict[str, Any]]:
    """The facts of every picture that can be used."""
    read, sources, doubles = read_sources(run.recipe, run.work, run.where, run.told("read"))
    run.note("read", read)
    run.stages.append(_counted("unique", len(sources), doubles))
    run.outcomes.append(("unique", doubles))
    return sources


def _mine(run: _Run, sources: Sequence[dict[str, Any]]) -> mine.Found:
    found = mine.mine_sources(run.recipe, sources, run.work, run.where, run.told)
    run.note("embed", found.embedded)
    run.note("mine", found.mined)
    return found


def _take(recipe: DataRecipe, job: DataJob) -> Iterator[Record]:
    samples = read_shards(recipe.source.path)
    for number in range(job.payload["first"], job.payload["last"]):
        row = samples.row(number)
        yield Record(row["id"], task=row["task"], sample={name: row[name] for name in SCHEMA.names})


def _finish(run: _Run, made: Sequence[Part], groups: dict[str, str]) -> Built:
    """Filter, shards, report. groups: the set of every source, which stays on one side of the split."""
    banned = filter.benchmark_hashes(run.recipe.filter, run.work)
    jobs = [DataJob(f"{n:06d}", {"part": str(part.file.relative_to(run.work))}) for n, part in enumerate(made)]
    judge = partial(filter.judge_part, run.recipe, str(run.work), banned)
    judged = run_stage("filter", jobs, judge, run.work, run.where, run.told("filter"))
    verdicts = filter.decide(run.recipe, judged, groups)
    run.stages.append(filter.report_verdicts(judged, verdicts))
    on_progress = run.told("shards") or (lambda done, total: None)
    on_progress(0, 1)
    try:
        manifest = _write(run, made, verdicts)
        on_progress(1, 1)
        report.write_report(run.folder, run.stages, manifest, run.seconds)
    except OSError as error:
        raise _unwritable(run.folder, error) from None
    return Built(run.folder, manifest, tuple(run.stages))


def _claim(recipe: DataRecipe, folder: Path) -> None:
    """Mark the folder as this recipe's, once all that the recipe names is there; nothing is written before.

    Raises ConfigError if the folder is another's, OutputError if it cannot be written, and what the checks raise."""
    tasks_of(recipe)
    collect.kind_of(recipe.source)
    if recipe.mine is not None:
        mine.check_ready(recipe.mine)
    if recipe.label is not None:
        label.check_ready(recipe.label)
    filter.check_ready(recipe.filter)
    note = folder / WORK / "recipe.json"
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        if note.exists():
            if note.read_text(encoding="utf-8") != recipe.to_json():
                raise ConfigError(f"{folder} holds the work of another recipe: choose another folder, or delete it")
        elif (folder / MANIFEST).exists():
            raise ConfigError(f"{folder} holds a finished data set: choose another folder")
        else:
            write_atomically(note, recipe.to_json().encode())
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}): choose another place") from None


def _counted(stage: str, kept: int, rejected: Sequence[Record]) -> StageReport:
    reasons = Counter(record.reason for record in rejected)
    return StageReport(stage, kept + len(rejected), kept, dict(sorted(reasons.items())), 0.0)


def _write(run: _Run, made: Sequence[Part], verdicts: filter.Verdicts) -> Manifest:
    """The shards: what was dropped first, the data set last, so that its manifest says that all is there."""
    folder, rows_per_shard = run.folder, run.recipe.output.rows_per_shard
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    if not (folder / REJECTED / MANIFEST).exists():
        write_rows(_dropped(run.outcomes, made, verdicts), folder / REJECTED, rows_per_shard, REJECTED_SCHEMA)
    if run.recipe.filter.held_out and not (folder / HELD_OUT / MANIFEST).exists():
        write_rows(_kept(made, verdicts, HELD_OUT), folder / HELD_OUT, rows_per_shard)
    return write_rows(_kept(made, verdicts, "train"), folder, rows_per_shard)


def _kept(made: Sequence[Part], verdicts: filter.Verdicts, side: str) -> Iterator[dict[str, Any]]:
    """The rows of one side of the split."""
    for part, sides in zip(made, verdicts.sides, strict=True):
        if side in sides.values():
            for row, record in enumerate(part.records()):
                if sides.get(row) == side and record.sample is not None:
                    yield record.sample


def _dropped(
    outcomes: Sequence[tuple[str, Sequence[Part] | Sequence[Record]]], made: Sequence[Part], verdicts: filter.Verdicts
) -> Iterator[dict[str, Any]]:
    """The rows of everything that a stage or the filter rejected."""
    for stage, found in outcomes:
        for record in _records(found):
            if record.reason:
                yield _rejected_row(stage, record)
    for part, reasons in zip(made, verdicts.reasons, strict=True):
        if reasons:
            for row, record in enumerate(part.records()):
                if row in reasons:
                    reason, detail = reasons[row]
                    yield _rejected_row("filter", replace(record, reason=reason, detail=detail))


def _write_lines(file: Path, lines: Iterable[dict[str, Any]]) -> int:
    """Write a JSON Lines file; returns how many lines."""
    texts = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
    write_atomically(file, "".join(texts).encode())
    return len(texts)


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{folder} cannot be written ({error.strerror}): free space and run it again")


def _records(found: Sequence[Part] | Sequence[Record]) -> Iterator[Record]:
    """The records of parts that reject something, or the records given."""
    for item in found:
        if isinstance(item, Record):
            yield item
        elif any(item.columns("reason")["reason"]):
            yield from item.records()


def _rejected_row(stage: str, record: Record) -> dict[str, Any]:
    empty = dict.fromkeys(SCHEMA.names)
    what = {"stage": stage, "what": record.what, "reason": record.reason, "detail": record.detail}
    return {**empty, "task": record.task, **(record.sample or {}), **what}
