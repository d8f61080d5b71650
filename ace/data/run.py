"""One plan: a collection of pictures in, a data set out (section 3 of the paper).

read → unique → mine → synthesize → label → filter → shards

Every step leaves checkpoints in `work/` (`engine.py`), so the same call goes on where it was stopped and ends with the
same manifest. What is rejected anywhere is kept in `rejected/`, with its stage and reason.

    OUT/manifest.json, shard-*.parquet   the data set
    OUT/held_out/                        the part for evaluation, if one is asked for
    OUT/rejected/                        what was dropped, samples whole
    OUT/report.json, report.html, funnel.png, browse.html
    OUT/work/                            checkpoints; may be deleted when all is done

Not here: how a picture becomes a pair (`tasks/`), how sets are found (`mine.py`), who writes instructions (`label.py`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from ace.data import collect, filter, report
from ace.data.collect import Pointer
from ace.data.engine import Job, Part, Record, StageReport, Where, report_stage, run_stage
from ace.data.recipe import DataRecipe
from ace.data.shards import MANIFEST, SCHEMA, Manifest, read_manifest, read_shards, to_row, write_atomically, write_rows
from ace.data.tasks import TASK_MAKERS, Rejected, Source, Tools, check
from ace.errors import AceError, ConfigError, MissingDependencyError, OutputError

WORK, REJECTED, HELD_OUT = "work", "rejected", "held_out"
REJECTED_SCHEMA = pa.schema(
    [("stage", pa.string()), ("what", pa.string()), ("reason", pa.string()), ("detail", pa.string()), *SCHEMA]
)
_PICTURES_PER_JOB = 32  # of reading and embedding
_SLICES_PER_ROUND = 4  # of synthesis with a quota; decides what is made, so never the number of workers
_NOT_INSTALLED = "something is not installed"
# families whose makers look at the other pictures of a mined set
_OF_SETS = ("semantic_editing", "reference_generation", "multi_turn")
# what a picture, a file or a library can do to a maker; anything else is a bug and stops the run
_OF_ONE_PICTURE = (AceError, OSError, ValueError, RuntimeError, ArithmeticError, LookupError, MemoryError)

Tell = Callable[[str, int, int], None]  # (stage, pieces of work done, in all)


@dataclass(frozen=True)
class Built:
    """What a build made: its manifest, what each stage did, and where to look."""

    folder: Path
    manifest: Manifest
    stages: tuple[StageReport, ...]


def build(recipe: DataRecipe, folder: Path | str, where: Where | None = None, tell: Tell | None = None) -> Built:
    """Make the data set of a recipe in a folder; goes on from what is there.

    tell: told of progress. Raises ConfigError for a folder that holds another recipe's work, DataError if there are no
    pictures, MissingDependencyError, OutputError if the folder cannot be written; pictures never raise."""
    folder, where = Path(folder), where or Where()
    work = folder / WORK
    _claim(recipe, folder)
    start = time.perf_counter()

    def told(stage: str) -> Callable[[int, int], None] | None:
        return partial(tell, stage) if tell else None

    read, sources, doubles = _read(recipe, work, where, told)
    stages = [report_stage("read", read), _counted("unique", len(sources), doubles)]
    rejected: list[tuple[str, Sequence[Part] | Sequence[Record]]] = [("read", read), ("unique", doubles)]

    pairs: list[dict[str, Any]] = []
    if recipe.mine is not None and sources:
        from ace.data import mine

        found = mine.mine_sources(recipe, sources, work, where, told)
        sources = found.sources
        stages += found.stages
        rejected += found.rejected
        pairs = found.pairs

    sets = _sets(sources)
    made = _synthesize(recipe, sources, sets, work, where, told("synthesize"))
    stages.append(report_stage("synthesize", made))
    rejected.append(("synthesize", made))

    if recipe.label is not None:
        from ace.data import label

        made = label.label_parts(recipe, made, pairs, sources, work, where, told("label"))
        stages.append(report_stage("label", made))
        rejected.append(("label", made))

    groups = {s["id"]: s.get("set") or s["id"] for s in sources}
    return _finish(recipe, folder, made, groups, stages, rejected, start, where, tell)


def rework(recipe: DataRecipe, folder: Path | str, where: Where | None = None, tell: Tell | None = None) -> Built:
    """Label or filter a data set that is there already (the recipe's source, shards of ours) into a new folder.

    Raises as `build`."""
    folder, where, start = Path(folder), where or Where(), time.perf_counter()
    samples = read_shards(recipe.source.path)
    _claim(recipe, folder)
    work = folder / WORK
    jobs = [
        Job(f"{number:06d}", {"first": first, "last": min(first + _PICTURES_PER_JOB, len(samples))})
        for number, first in enumerate(range(0, len(samples), _PICTURES_PER_JOB))
    ]
    made = run_stage("take", jobs, partial(_take, recipe), work, where, partial(tell, "take") if tell else None)
    stages = [report_stage("take", made)]
    rejected: list[tuple[str, Sequence[Part] | Sequence[Record]]] = []
    if recipe.label is not None:
        from ace.data import label

        made = label.label_parts(recipe, made, (), (), work, where, partial(tell, "label") if tell else None)
        stages.append(report_stage("label", made))
        rejected.append(("label", made))
    return _finish(recipe, folder, made, {}, stages, rejected, start, where, tell)


def _take(recipe: DataRecipe, job: Job) -> Iterator[Record]:
    samples = read_shards(recipe.source.path)
    for number in range(job.payload["first"], job.payload["last"]):
        row = samples.row(number)
        yield Record(row["id"], task=row["task"], sample={name: row[name] for name in SCHEMA.names})


def _finish(
    recipe: DataRecipe,
    folder: Path,
    made: Sequence[Part],
    groups: dict[str, str],
    stages: list[StageReport],
    rejected: Sequence[tuple[str, Sequence[Part] | Sequence[Record]]],
    start: float,
    where: Where,
    tell: Tell | None,
) -> Built:
    """Filter, shards, report. groups: the set of every source, which stays on one side of the split."""
    work = folder / WORK
    banned = filter.benchmark_hashes(recipe.filter, work)
    jobs = [Job(f"{n:06d}", {"part": str(part.file.relative_to(work))}) for n, part in enumerate(made)]
    judge = partial(filter.judge_part, recipe, str(work), banned)
    judged = run_stage("filter", jobs, judge, work, where, partial(tell, "filter") if tell else None)
    verdicts = filter.decide(recipe, judged, groups)
    stages.append(filter.report_verdicts(judged, verdicts))
    if tell:
        tell("shards", 0, 1)
    manifest = _write(recipe, folder, made, verdicts, rejected)
    if tell:
        tell("shards", 1, 1)
    report.write_report(folder, stages, manifest, time.perf_counter() - start)
    return Built(folder, manifest, tuple(stages))


def mine_only(recipe: DataRecipe, folder: Path | str, where: Where | None = None, tell: Tell | None = None) -> Built:
    """Find sets and pairs and stop there: `metadata.jsonl` (the pictures with their sets, as a collection's caption
    file), `pairs.jsonl` and a report. Raises as `build`."""
    from ace.data import mine

    folder, where, start = Path(folder), where or Where(), time.perf_counter()
    if recipe.mine is None:
        raise ConfigError("there is no [mine] in the recipe: say how pictures are related")
    _claim(recipe, folder)

    def told(stage: str) -> Callable[[int, int], None] | None:
        return partial(tell, stage) if tell else None

    read, sources, doubles = _read(recipe, folder / WORK, where, told)
    found = mine.mine_sources(recipe, sources, folder / WORK, where, told)
    for name, lines in (("metadata.jsonl", map(mine.describe, found.sources)), ("pairs.jsonl", found.pairs)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomically(folder / name, text.encode())
    stages = [report_stage("read", read), _counted("unique", len(sources), doubles), *found.stages]
    manifest = Manifest(len(found.pairs), {}, ())
    report.write_funnel(folder, stages, {}, time.perf_counter() - start)
    return Built(folder, manifest, tuple(stages))


def _read(
    recipe: DataRecipe, work: Path, where: Where, told: Callable[[str], Callable[[int, int], None] | None]
) -> tuple[list[Part], list[dict[str, Any]], list[Record]]:
    """The parts of reading, the facts of every picture that is the first of its pixels, and the doubles."""
    pointers = _listed(recipe, work)
    slices = [pointers[i : i + _PICTURES_PER_JOB] for i in range(0, len(pointers), _PICTURES_PER_JOB)]
    jobs = [Job(f"{n:06d}", {"pictures": [p.to_json() for p in part]}) for n, part in enumerate(slices)]
    read = run_stage("read", jobs, partial(read_pictures, recipe), work, where, told("read"))
    return read, *_unique(read)


def read_pictures(recipe: DataRecipe, job: Job) -> Iterator[Record]:
    """Look at each picture once: what it is, or why it is not used."""
    reader = _reader(recipe)
    for found in job.payload["pictures"]:
        pointer = Pointer(**found)
        try:
            data = reader.read(pointer)
            image = collect.open_picture(data, pointer.name, recipe.source)
        except _OF_ONE_PICTURE as error:
            yield Record(pointer.name, reason="cannot be read", detail=str(error)[:200])
            continue
        if isinstance(image, Rejected):
            yield Record(pointer.name, reason=image.reason, detail=image.detail)
        elif recipe.source.require_caption and not pointer.caption.strip():
            yield Record(pointer.name, reason="no caption")
        else:
            facts = {
                "id": collect.picture_id(image),
                "pointer": found,
                "size": [image.width, image.height],
                "hash": f"{collect.perceptual_hash(image):016x}",
                "sharpness": round(collect.sharpness(image), 3),
            }
            if pointer.set:
                facts |= {"set": pointer.set, "relation": pointer.relation}
            yield Record(pointer.name, facts=facts)


def synthesize_slice(recipe: DataRecipe, job: Job) -> Iterator[Record]:
    """Make samples of every open task from a slice of sources, picture by picture, so that what is found in a picture
    serves all tasks.

    A sample that fails its task's own check is rejected whole. Dice belong to (seed, task, source)."""
    quota: dict[str, int] = job.payload["quota"]  # accepted samples still wanted, -1 = no limit
    for facts in job.payload["sources"]:
        for task in [task for task in quota if quota[task]]:
            record = _make(recipe, task, facts)
            if record.reason == _NOT_INSTALLED:
                quota[task] = 0  # the same for every picture
            elif not record.reason:
                quota[task] -= 1
            yield record


def _make(recipe: DataRecipe, task: str, facts: dict[str, Any]) -> Record:
    """One sample of a task from a source, or why there is none."""
    where = {"what": facts["id"], "task": task}
    dice = Random(f"{recipe.seed}:{task}:{facts['id']}")
    try:
        source = load_source(recipe, facts if task.startswith(_OF_SETS) else {**facts, "others": ()})
        sample = TASK_MAKERS[task](source, dice, _tools())
        if isinstance(sample, Rejected):
            return Record(**where, reason=sample.reason, detail=sample.detail)
        reason = check(sample, _tools())
    except MissingDependencyError as error:
        return Record(**where, reason=_NOT_INSTALLED, detail=str(error))
    except _OF_ONE_PICTURE as error:
        return Record(**where, reason=f"the maker failed ({type(error).__name__})", detail=str(error)[:200])
    provenance = {**sample.provenance, "source": facts["id"], "seed": recipe.seed}
    row = to_row(replace(sample, provenance=provenance), recipe.output.quality or None)
    return Record(**where, reason=reason or "", sample=row)


def load_source(recipe: DataRecipe, facts: dict[str, Any]) -> Source:
    """The picture of a source, decoded, with the others of its set."""
    pointer = Pointer(**facts["pointer"])
    return Source(
        _picture(recipe, pointer),
        facts["id"],
        pointer.caption,
        tuple(load_source(recipe, {**other, "others": []}) for other in facts.get("others", ())),
        facts.get("relation", ""),
        pointer.style,
    )


def tasks_of(recipe: DataRecipe) -> list[str]:
    """The tasks of a recipe that there is a maker for. Raises ConfigError if there are none."""
    found = [task for task in TASK_MAKERS if recipe.synthesize.wants(task)]
    if not found:
        raise ConfigError(f"nothing makes {', '.join(recipe.synthesize.tasks)}: use {', '.join(TASK_MAKERS)}")
    return found


def _claim(recipe: DataRecipe, folder: Path) -> None:
    """Mark the folder as this recipe's. Raises ConfigError if it is another's, OutputError if it cannot be written."""
    tasks_of(recipe)
    collect.kind_of(recipe.source)
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


def _listed(recipe: DataRecipe, work: Path) -> list[Pointer]:
    """The pictures, listed once: what is added later belongs to another run."""
    file = work / "pictures.json"
    if not file.exists():
        pointers = collect.list_pictures(recipe.source)
        write_atomically(file, json.dumps([p.to_json() for p in pointers], ensure_ascii=False).encode())
    return [Pointer(**found) for found in json.loads(file.read_text(encoding="utf-8"))]


def _unique(parts: Sequence[Part]) -> tuple[list[dict[str, Any]], list[Record]]:
    """The facts of every picture that is the first of its pixels, in order; and the doubles."""
    seen: dict[str, str] = {}
    sources, doubles = [], []
    for part in parts:
        for record in part.records(samples=False):
            if record.reason:
                continue
            first = seen.setdefault(record.facts["id"], record.what)
            if first is record.what:
                sources.append(record.facts)
            else:
                doubles.append(Record(record.what, reason="duplicate", detail=f"the same as {first}"))
    return sources, doubles


def _sets(sources: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The sources of every set, in order."""
    sets: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for facts in sources:
        if facts.get("set"):
            sets[facts["set"]].append(facts)
    return sets


def _synthesize(
    recipe: DataRecipe,
    sources: Sequence[dict[str, Any]],
    sets: dict[str, list[dict[str, Any]]],
    work: Path,
    where: Where,
    tell: Callable[[int, int], None] | None,
) -> list[Part]:
    """All parts of synthesis. With a quota there are rounds of a few slices: what a round still has to add is known
    from the rounds before, so that where and how often it ran changes nothing."""
    wanted, size = recipe.synthesize.samples_per_task, recipe.synthesize.slice
    tasks = tasks_of(recipe)
    ordered = sorted(sources, key=lambda s: hashlib.sha256(f"{recipe.seed}:{s['id']}".encode()).digest())
    ordered = [_with_others(facts, sets) for facts in ordered]
    slices = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    do = partial(synthesize_slice, recipe)

    def job(number: int, quota: dict[str, int]) -> Job:
        return Job(f"{number:06d}", {"sources": slices[number], "quota": quota})

    if not wanted:
        everything = dict.fromkeys(tasks, -1)
        return run_stage("synthesize", [job(n, everything) for n in range(len(slices))], do, work, where, tell)
    parts: list[Part] = []
    left = dict.fromkeys(tasks, wanted)
    for first in range(0, len(slices), _SLICES_PER_ROUND):
        numbers = range(first, min(first + _SLICES_PER_ROUND, len(slices)))
        quota = {task: -(-n // len(numbers)) for task, n in left.items() if n}
        if not quota:
            break
        # a round may add a few too many; the filter drops them
        new = run_stage(
            "synthesize",
            [job(number, quota) for number in numbers],
            do,
            work,
            where,
            partial(_told_after, tell, first, len(slices)) if tell else None,
        )
        parts += new
        for record in (record for part in new for record in part.records(samples=False)):
            if record.reason == _NOT_INSTALLED:
                left[record.task] = 0
            elif not record.reason:
                left[record.task] = max(left[record.task] - 1, 0)
    return parts


def _told_after(tell: Callable[[int, int], None], before: int, total: int, done: int, _: int) -> None:
    tell(before + done, total)


def _with_others(facts: dict[str, Any], sets: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    others = [other for other in sets.get(facts.get("set", ""), ()) if other["id"] != facts["id"]]
    return {**facts, "others": others[:8]}


def _counted(stage: str, kept: int, rejected: Sequence[Record]) -> StageReport:
    reasons = Counter(record.reason for record in rejected)
    return StageReport(stage, kept + len(rejected), kept, dict(sorted(reasons.items())), 0.0)


def _write(
    recipe: DataRecipe,
    folder: Path,
    made: Sequence[Part],
    verdicts: filter.Verdicts,
    rejected: Sequence[tuple[str, Sequence[Part] | Sequence[Record]]],
) -> Manifest:
    """The shards: what was dropped first, the data set last, so that its manifest says that all is there."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder)

    def samples(side: str) -> Iterator[dict[str, Any]]:
        for number, part in enumerate(made):
            if side in verdicts.sides[number].values():
                for row, record in enumerate(part.records()):
                    if verdicts.sides[number].get(row) == side and record.sample is not None:
                        yield record.sample

    def dropped() -> Iterator[dict[str, Any]]:
        for stage, found in rejected:
            for record in _records(found):
                if record.reason:
                    yield _rejected_row(stage, record)
        for number, part in enumerate(made):
            if verdicts.reasons[number]:
                for row, record in enumerate(part.records()):
                    if row in verdicts.reasons[number]:
                        reason, detail = verdicts.reasons[number][row]
                        yield _rejected_row("filter", replace(record, reason=reason, detail=detail))

    try:
        for place, rows, schema in (
            (folder / REJECTED, dropped(), REJECTED_SCHEMA),
            *([(folder / HELD_OUT, samples(HELD_OUT), SCHEMA)] if recipe.filter.held_out else []),
        ):
            if not (place / MANIFEST).exists():
                write_rows(rows, place, recipe.output.rows_per_shard, schema)
        return write_rows(samples("train"), folder, recipe.output.rows_per_shard)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}): free space and run it again") from None


def _records(found: Sequence[Part] | Sequence[Record]) -> Iterator[Record]:
    for item in found:
        if isinstance(item, Part):
            yield from item.records()
        else:
            yield item


def _rejected_row(stage: str, record: Record) -> dict[str, Any]:
    empty = dict.fromkeys(SCHEMA.names)
    what = {"stage": stage, "what": record.what, "reason": record.reason, "detail": record.detail}
    return {**empty, "task": record.task, **(record.sample or {}), **what}


@lru_cache(maxsize=2)
def _reader(recipe: DataRecipe) -> collect.PictureReader:
    return collect.PictureReader(recipe.source)


@lru_cache(maxsize=1)
def _tools() -> Tools:
    return Tools()


@lru_cache(maxsize=48)  # at 768x768 px these are 85 MB
def _picture(recipe: DataRecipe, pointer: Pointer):
    image = collect.open_picture(_reader(recipe).read(pointer), pointer.name, recipe.source)
    if isinstance(image, Rejected):
        raise OSError(f"{pointer.name} has changed since it was read: {image.reason}")
    return image
