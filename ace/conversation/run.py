"""The one denoising loop: jobs in, progress after every step, finished images out.

`run` makes any number of jobs with a loaded family in packed passes of a sensible size; `make` is the same for callers
that want the results only. `conclude` is what every answer goes through: pasted back where a mask keeps the original,
carried to the original's size without one, measured, described in a recipe.

Not here: writing files, loading models, many clients at once (`ace/server/engine.py`, which steps a family itself).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from PIL import Image

from ace.conditions.colour import in_profile_of, to_srgb
from ace.conditions.images import open_bytes
from ace.conditions.rules import MOST_PIXELS
from ace.conditions.sixteen import can_write_tiff
from ace.conversation.family import Answer, Family
from ace.conversation.job import Job, Made, Progress
from ace.conversation.recipe import Environment, Recipe, Setting
from ace.inference.detail import Delivered, deliver, size_note
from ace.inference.focus import uncrop
from ace.inference.preserve import DriftReport, drift_report, paste_back

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
    image, mask, unpasted, delivered = answer.image, job.mask, None, None
    if job.source is not None and mask is not None:
        unpasted = image if job.part is None else uncrop(job.source, image, job.part.box)
        rule, feather_px = job.settings.rules.get("blend", 1), job.settings.images.feather_px
        image = paste_back(job.source, unpasted, mask, feather_px=feather_px, rule=rule)
    elif job.source is not None and job.delivers:
        delivered = deliver(job.source, image, answer.round_trip)
        image = delivered.image
    elif job.source is not None:
        image = in_profile_of(image, job.source.icc_profile)
    recipe = _recipe(family, job, answer, delivered)
    notes = [*job.notes, *answer.notes, *notes_on(family, job), *notes_of(recipe)]
    if job.source is not None and mask is None and delivered is None and image.size != job.source.size:
        notes.append(size_note(image.size, job.source.size))
    if job.source is not None and job.source.deep is not None and "sixteen_bit" not in image.info:
        notes.append(f"{job.source.name} has 16 bits per channel, the answer 8")
    # what holds pixels of the edited image goes on from them: they are exact, and the latents' are not
    merged = mask is not None if delivered is None else delivered.redrawn < 1
    latents = None if merged and job.source is not None else answer.latents
    return Made(job, image, recipe, drift_of(job, image), tuple(notes), latents, unpasted, delivered)


def as_written(made: Made, data: bytes) -> Made:
    """A result with its drift measured in a written file's bytes: JPEG is lossy, so that no pixel need be the input's.

    Other formats keep every value, but 16 bits per channel are kept by PNG and TIFF alone."""
    keeps = data.startswith(b"\x89PNG") or (data.startswith(_TIFF) and can_write_tiff())
    if "sixteen_bit" in made.image.info and not keeps:
        made = replace(made, notes=(*made.notes, "this file has 8 bits per channel: write .png to keep 16"))
    if made.drift is None or not data.startswith(b"\xff\xd8"):
        return made
    drift = drift_of(made.job, open_bytes(data, max_pixels=MOST_PIXELS).stored)
    notes = made.notes
    if made.job.mask is not None:
        notes += ("JPEG is lossy: what the mask kept is near the input, not equal to it; write .png to keep it",)
    return replace(made, drift=drift, notes=notes)


def drift_of(job: Job, image: Image.Image) -> DriftReport | None:
    """How far the image made moved from the one that was edited, outside its mask; None if nothing was edited."""
    if job.source is None:
        return None
    if job.mask is not None:  # what is kept, in the file's own values
        return drift_report(job.source.stored, image.convert("RGB"), job.mask)
    return drift_report(job.source.image, to_srgb(image.convert("RGB"), job.source.icc_profile))


def _recipe(family: Family, job: Job, answer: Answer, delivered: Delivered | None) -> Recipe:
    settings: dict[str, Setting] = {name: value for name, value in answer.settings.items() if value not in ("", None)}
    if job.settings.size is not None:
        settings["size"] = "chosen"
    settings |= job.settings.images.as_settings()
    if job.part is not None:
        settings["focus_box"] = str(job.part.box)
    if delivered is not None:
        settings["changes"] = str(delivered)
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
