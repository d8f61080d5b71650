"""Synthesis: samples of every task out of every source, in slices that can be resumed (appendix B of the paper).

How a picture becomes a pair is in `tasks/`, a file for each; here it is decided which source is tried for which task,
when a task has enough, and what becomes of a sample that fails its own check.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
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
    """All parts of synthesis. With `samples_per_task`, every task draws from its own order of all the pictures, which
    the seed decides; without, every picture is tried for every task."""
    sets = _sets(sources)
    pictures = [_with_others(facts, sets) for facts in sources]
    do = partial(synthesize_slice, recipe)

    def run(jobs: Sequence[DataJob], told: OnProgress | None) -> list[Part]:
        return run_stage("synthesize", jobs, do, work, where, told)

    if recipe.synthesize.samples_per_task:
        return _in_rounds(recipe, pictures, run, on_progress)
    tasks = tasks_of(recipe)
    ordered = sorted(pictures, key=lambda facts: _rank(recipe.seed, "", facts))
    return run(_jobs([(facts, tasks) for facts in ordered], recipe.synthesize.slice), on_progress)


def _jobs(tried: Sequence[tuple[dict[str, Any], list[str]]], size: int, first: int = 0) -> list[DataJob]:
    """Jobs of `size` pictures, each with the tasks that it is tried for; first: number of the first."""
    return [
        DataJob(f"{first + number:06d}", {"tried": tried[start : start + size]})
        for number, start in enumerate(range(0, len(tried), size))
    ]


def _in_rounds(
    recipe: DataRecipe,
    pictures: Sequence[dict[str, Any]],
    run: Callable[[Sequence[DataJob], OnProgress | None], list[Part]],
    on_progress: OnProgress | None,
) -> list[Part]:
    """Parts until every task has its quota or has tried every picture.

    In each round, each open task takes as many pictures as it lacks samples, twice as many as in the round before if
    those did not do. What a round tries is known from the rounds before, so that where and how often it ran changes
    nothing; a few samples too many are dropped by the filter."""
    left = dict.fromkeys(tasks_of(recipe), recipe.synthesize.samples_per_task)
    untried = {task: list(pictures) for task in left}
    stands_on = Counter[str]()  # samples by picture
    parts: list[Part] = []
    wanted, generosity = sum(left.values()), 1
    while open_tasks := [task for task in left if left[task] and untried[task]]:
        asked = stands_on.copy()
        chosen: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for task in open_tasks:
            ordered = _least_used_first(recipe.seed, task, untried[task], asked)
            some, untried[task] = ordered[: generosity * left[task]], ordered[generosity * left[task] :]
            for facts in some:
                chosen.setdefault(facts["id"], (facts, []))[1].append(task)
                asked[facts["id"]] += 1
        told = partial(_told_after, on_progress, sum(left.values()), wanted) if on_progress else None
        new = run(_jobs(list(chosen.values()), recipe.synthesize.slice, first=len(parts)), told)
        parts += new
        generosity *= 2
        for record in (record for part in new for record in part.records(samples=False)):
            if record.reason == _NOT_INSTALLED:
                left[record.task] = 0
            elif not record.reason:
                left[record.task] = max(left[record.task] - 1, 0)
                stands_on[record.what] += 1
    return parts


def _least_used_first(
    seed: int, task: str, pictures: Sequence[dict[str, Any]], used: Counter[str]
) -> list[dict[str, Any]]:
    """A task's own order of pictures: those first that fewer samples stand on, and one of every set or style before a
    second of any."""
    earlier = Counter[str]()
    places: dict[str, int] = {}
    ranked = sorted(pictures, key=lambda facts: _rank(seed, task, facts))
    for facts in ranked:
        group = facts.get("set") or facts.get("style") or facts["id"]
        places[facts["id"]] = earlier[group]
        earlier[group] += 1
    return sorted(ranked, key=lambda facts: (used[facts["id"]], places[facts["id"]]))


def _rank(seed: int, task: str, facts: dict[str, Any]) -> bytes:
    return hashlib.sha256(f"{seed}:{task}:{facts['id']}".encode()).digest()


def _told_after(on_progress: OnProgress, left: int, wanted: int, done: int, jobs: int) -> None:
    """Samples made, as far as is known: those of earlier rounds, and this round's share of what was left."""
    on_progress(wanted - left + left * done // max(jobs, 1), wanted)


def synthesize_slice(recipe: DataRecipe, job: DataJob) -> Iterator[Record]:
    """Make samples from a few pictures, each for some tasks, picture by picture, so that what is found in a picture
    serves all of its tasks.

    A sample that fails its task's own check is rejected whole. The random numbers of one belong to (seed, task,
    picture)."""
    closed = set[str]()
    for facts, tasks in job.payload["tried"]:
        for task in tasks:
            if task in closed:
                continue
            record = _make(recipe, task, facts)
            if record.reason == _NOT_INSTALLED:
                closed.add(task)  # the same for every picture
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
