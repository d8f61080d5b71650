"""The one denoising loop: jobs in, progress after every step, finished images out.

`run` makes any number of jobs with a loaded family in packed passes of a sensible size; `make` is the same for callers
that want the results only. `conclude` is what every answer goes through: pasted back where a mask keeps the original,
carried to the original's size without one, measured, described in a recipe.

Not here: writing files, loading models, many clients at once (`ace/server/engine.py`, which steps a family itself).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from ace.conversation.family import Answer, Family
from ace.conversation.job import Job, Made, Progress
from ace.conversation.media import FinishedAnswer
from ace.conversation.recipe import Environment, Recipe, Setting

MOST_TOGETHER = 16
_TIFF = (b"II*\0", b"MM\0*")

OnProgress = Callable[[Progress], None]


def run(
    family: Family,
    jobs: Sequence[Job],
    *,
    previews: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Progress | Made]:
    """Make the images of all jobs: progress after every step, and each image when its pass is finished, in order.

    previews: with every progress one image per answer in the making. cancelled: asked before every step; once it is
    true nothing more is made. Raises InputError."""
    started, done, total = time.monotonic(), 0, 0
    for batch in batches(family, jobs):
        if cancelled():
            return
        states = family.prepare([job.worked for job in batch])
        here = max(state.num_steps for state in states)
        total = total or here * -(-len(jobs) // len(batch))
        yield Progress(done, total, None)
        while running := [state for state in states if not state.done]:
            if cancelled():
                return
            family.step(running)
            done += 1
            shown = tuple(family.preview(state) for state in states) if previews and done < total else ()
            each = (time.monotonic() - started) / done
            yield Progress(done, total, each * max(total - done, 0), shown)
        for job, answer in zip(batch, family.finish(states), strict=True):
            yield conclude(family, job, answer)


def make(family: Family, jobs: Sequence[Job], on_progress: OnProgress = lambda progress: None) -> list[Made]:
    """The images of all jobs, in order. Raises InputError."""
    finished: list[Made] = []
    for one in run(family, jobs):
        if isinstance(one, Progress):
            on_progress(one)
        else:
            finished.append(one)
    return finished


def batches(family: Family, jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """The jobs in runs of as many as one pass of this family should hold."""
    first = 0
    while first < len(jobs):
        size = max(1, min(MOST_TOGETHER, family.most_together(jobs[first].worked)))
        yield jobs[first : first + size]
        first += size


def conclude(family: Family, job: Job, answer: Answer) -> Made:
    """A family's answer as a result. Runs no model, so any thread may do it."""
    medium = family.traits.medium
    finished = medium.finish(job, answer)
    recipe = _recipe(family, job, answer, finished)
    return Made(
        job,
        finished.content,
        recipe,
        medium.drift(job, finished.content),
        (*job.notes, *answer.notes, *notes_on(family, job), *notes_of(recipe), *finished.notes),
        answer.latents if finished.own else None,
        finished.unpasted,
        medium,
        finished.delivered,
    )


def _recipe(family: Family, job: Job, answer: Answer, finished: FinishedAnswer) -> Recipe:
    given = {**answer.settings, **finished.settings}
    settings: dict[str, Setting] = {name: value for name, value in given.items() if value not in ("", None)}
    if job.settings.size is not None:
        settings["size"] = "chosen"
    settings |= job.settings.images.as_settings()
    return Recipe(
        family=family.kind,
        model=family.name,
        model_sha256=family.sha256,
        instruction=job.instruction,
        negative_instruction=job.settings.negative_instruction,
        seed=job.settings.seed,
        num_inference_steps=answer.num_steps,
        guidance_scale=answer.guidance_scale,
        guidance_rescale=answer.guidance_rescale,
        size_px=answer.size_px,
        images=job.images,
        masks=job.masks,
        history=job.rounds,
        settings=settings,
        rules=dict(job.settings.rules),
        environment=Environment.here(device=answer.device, dtype=answer.dtype),
    )


def notes_of(recipe: Recipe) -> tuple[str, ...]:
    """What a recipe says of how the answer came to its size, a line each."""
    notes, made = [], "{}x{}".format(*recipe.size_px)
    if changes := recipe.settings.get("changes"):
        notes.append(f"made at {made}: {changes}")
    if box := recipe.settings.get("focus_box"):
        notes.append(f"worked on the part {box} (left, top, right, bottom) at {made}")
    return tuple(notes)


def notes_on(family: Family, job: Job) -> tuple[str, ...]:
    """What the user should know of a request: what happened to it on the way, and what the model cannot draw."""
    notes = []
    if job.mask is not None and not family.traits.sees_masks:
        notes.append(f"{family.name} does not see masks: what it made was put inside yours, all else is the original")
    if job.source is not None and job.source.converted:
        notes.append(f"{job.source.name}: {job.source.converted}")
    dropped = job.unit.num_dropped_rounds
    if dropped:
        rounds = "1 earlier round was" if dropped == 1 else f"{dropped} earlier rounds were"
        notes.append(f"{rounds} left out: at most {job.unit.max_history} rounds and nine images fit")
    vocabulary = family.traits.vocabulary
    unlearnt = None if vocabulary is None else vocabulary.note(family.name, job.instruction)
    return tuple(notes) if unlearnt is None else (*notes, unlearnt)
