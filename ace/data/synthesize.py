"""Synthesis: samples of every task out of every source, in slices that can be resumed (appendix B of the paper).

How a picture becomes a pair is in `tasks/`, a file for each; here it is decided which source is tried for which task,
when a task has enough, and what becomes of a sample that fails its own check.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any

from ace.data.engine import DataJob, OnProgress, Part, Record, Where, run_stage
from ace.data.recipe import GENERATORS, DataRecipe, Models
from ace.data.shards import to_row
from ace.data.sources import OF_ONE_PICTURE, load_source
from ace.data.tasks import TASK_MAKERS, Rejected, Tools, check
from ace.data.tasks.generators import Generators
from ace.errors import ConfigError, MissingDependencyError

_SLICES_PER_ROUND = 4  # of synthesis with a quota; decides what is made, so never the number of workers
_NOT_INSTALLED = "something is not installed"
# families whose makers look at the other pictures of a mined set
_OF_SETS = ("semantic_editing", "reference_generation", "multi_turn")


def tasks_of(recipe: DataRecipe) -> list[str]:
    """The tasks of a recipe that there is a maker for. Raises ConfigError if there are none, and as `tools_of` does."""
    found = [task for task in TASK_MAKERS if recipe.synthesize.wants(task)]
    if not found:
        raise ConfigError(f"nothing makes {', '.join(recipe.synthesize.tasks)}: use {', '.join(TASK_MAKERS)}")
    tools_of(recipe.models)
    return found


def synthesize(
    recipe: DataRecipe, sources: Sequence[dict[str, Any]], work: Path, where: Where, on_progress: OnProgress | None
) -> list[Part]:
    """All parts of synthesis, in an order of sources that the seed decides."""
    sets = _sets(sources)
    ordered = sorted(sources, key=lambda s: hashlib.sha256(f"{recipe.seed}:{s['id']}".encode()).digest())
    ordered = [_with_others(facts, sets) for facts in ordered]
    size = recipe.synthesize.slice
    slices = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    do = partial(synthesize_slice, recipe)
    if recipe.synthesize.samples_per_task:
        return _in_rounds(
            recipe, slices, lambda jobs, told: run_stage("synthesize", jobs, do, work, where, told), on_progress
        )
    everything = dict.fromkeys(tasks_of(recipe), -1)
    return run_stage(
        "synthesize", [_job(n, part, everything) for n, part in enumerate(slices)], do, work, where, on_progress
    )


def _job(number: int, sources: Sequence[dict[str, Any]], quota: dict[str, int]) -> DataJob:
    return DataJob(f"{number:06d}", {"sources": sources, "quota": quota})


def _in_rounds(
    recipe: DataRecipe,
    slices: Sequence[Sequence[dict[str, Any]]],
    run: Callable[[Sequence[DataJob], OnProgress | None], list[Part]],
    on_progress: OnProgress | None,
) -> list[Part]:
    """Parts until every task has its quota, in rounds of a few slices: what a round still has to add is known from the
    rounds before, so that where and how often it ran changes nothing."""
    parts: list[Part] = []
    left = dict.fromkeys(tasks_of(recipe), recipe.synthesize.samples_per_task)
    for first in range(0, len(slices), _SLICES_PER_ROUND):
        numbers = range(first, min(first + _SLICES_PER_ROUND, len(slices)))
        quota = {task: -(-n // len(numbers)) for task, n in left.items() if n}
        if not quota:
            break
        # a round may add a few too many; the filter drops them
        told = partial(_told_after, on_progress, first, len(slices)) if on_progress else None
        new = run([_job(number, slices[number], quota) for number in numbers], told)
        parts += new
        for record in (record for part in new for record in part.records(samples=False)):
            if record.reason == _NOT_INSTALLED:
                left[record.task] = 0
            elif not record.reason:
                left[record.task] = max(left[record.task] - 1, 0)
    return parts


def _told_after(on_progress: OnProgress, before: int, total: int, done: int, _: int) -> None:
    on_progress(before + done, total)


def synthesize_slice(recipe: DataRecipe, job: DataJob) -> Iterator[Record]:
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
    rng = Random(f"{recipe.seed}:{task}:{facts['id']}")
    tools = tools_of(recipe.models)
    try:
        source = load_source(recipe, facts if task.startswith(_OF_SETS) else {**facts, "others": ()})
        sample = TASK_MAKERS[task](source, rng, tools)
        if isinstance(sample, Rejected):
            return Record(**where, reason=sample.reason, detail=sample.detail)
        reason = check(sample, tools)
    except MissingDependencyError as error:
        return Record(**where, reason=_NOT_INSTALLED, detail=str(error))
    except OF_ONE_PICTURE as error:
        return Record(**where, reason=f"the maker failed ({type(error).__name__})", detail=str(error)[:200])
    provenance = {**sample.provenance, "source": facts["id"], "seed": recipe.seed}
    row = to_row(replace(sample, provenance=provenance), recipe.output.quality or None)
    return Record(**where, reason=reason or "", sample=row)


def _sets(sources: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The sources of every set, in order."""
    sets: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for facts in sources:
        if facts.get("set"):
            sets[facts["set"]].append(facts)
    return sets


def _with_others(facts: dict[str, Any], sets: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    others = [other for other in sets.get(facts.get("set", ""), ()) if other["id"] != facts["id"]]
    return {**facts, "others": others[:8]}


@lru_cache(maxsize=1)
def tools_of(models: Models) -> Tools:
    """The extractors and generators that a recipe names. Raises ConfigError for a file that is not there,
    MissingDependencyError for a generator that is not."""
    files = {
        name: Path(getattr(models, name)) if getattr(models, name) else None for name in ("lama", "line_art", "face")
    }
    for name, file in files.items():
        if file is not None and not file.is_file():
            raise ConfigError(f"models: {name}: there is no file {file}")
    folders = {name: Path(getattr(models, name)) for name in GENERATORS if getattr(models, name)}
    run = {"device": models.device, "steps": models.steps, "side_px": models.side_px}
    return Tools(
        lama=files["lama"],
        depth_model=models.depth or None,
        line_art=files["line_art"],
        face_embedder=files["face"],
        generators=Generators(**folders, **run) if folders else None,
        segment=models.segment,
        object_regions=models.object_regions,
    )
