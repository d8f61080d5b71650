"""From picture files to a picture with its recipe: what the command line and `ace replay` do around the pipeline.

`open_job` opens and checks everything that is asked for and loads no torch; `make` runs any number of jobs in packed
passes, keeps what a mask protects, measures the drift and writes down the recipe; `job_of_recipe` opens the job that a
recipe describes.

Not here: writing files, loading models, progress bars.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ace.conditions.images import OpenedImage, open_image, open_mask
from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.conversation.recipe import Environment, FileRef, Recipe, Round, Setting
from ace.conversation.session import Session
from ace.errors import MaskError
from ace.inference.preserve import DriftReport, drift_report, paste_back
from ace.weights.sources import ModelFiles

if TYPE_CHECKING:
    from ace.inference.pipeline import ACEPipeline, RequestState
    from ace.inference.refine import Refiner

PACKED_CELLS = 4096  # of target pictures in one packed pass: 64 of the small model's, one of the largest's

Progress = Callable[[int, int], None]  # denoising steps done, and in all


@dataclass(frozen=True)
class Settings:
    """How a picture is made. None = the model's default; size: (width, height) in px that the model works at, None =
    the edited picture's aspect. feather_px: width of the blend inside a mask's edge, see `paste_back`."""

    seed: int
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    negative_instruction: str = ""
    size: tuple[int, int] | None = None
    feather_px: int | None = None

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Settings:
        """The settings that a recipe records."""
        feather_px = recipe.settings.get("feather_px")
        return cls(
            seed=recipe.seed,
            num_inference_steps=recipe.num_inference_steps,
            guidance_scale=recipe.guidance_scale,
            guidance_rescale=recipe.guidance_rescale,
            negative_instruction=recipe.negative_instruction,
            size=recipe.size_px if recipe.settings.get("size") == "chosen" else None,
            feather_px=None if feather_px is None else int(feather_px),
        )


@dataclass(frozen=True)
class Job:
    """One picture to make: a checked request, and the files that it comes from.

    source: the picture being edited, with its alpha and colour profile, or None. images, masks, rounds: the same
    request as file names and hashes. parents: nodes of the session that it continues."""

    unit: LongContextConditionUnit
    settings: Settings
    source: OpenedImage | None = None
    images: tuple[FileRef, ...] = ()
    masks: tuple[FileRef | None, ...] = ()
    rounds: tuple[Round, ...] = ()
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """A finished job. drift: what changed where it should not have (without a mask: everywhere), None without a
    source. latents: (C, h, w) of the picture, for the next round to go on from."""

    job: Job
    image: Image.Image
    recipe: Recipe
    drift: DriftReport | None = None
    notes: tuple[str, ...] = ()
    latents: np.ndarray | None = None


def open_job(
    instruction: str,
    settings: Settings,
    *,
    photo: Path | None = None,
    references: Sequence[Path] = (),
    mask: Path | None = None,
    session: Session | None = None,
    start: str | None = None,
) -> Job:
    """Open and check everything that a request names.

    photo: the picture to edit; None with a session that has answers = the answer of node `start` (None: the newest).
    references: further pictures. mask: for the picture that is edited. With a session, a photo begins a new
    conversation unless `start` is given. Raises ImageError, MaskError, ConditionError or SessionError."""
    history: tuple[Turn, ...] = ()
    rounds: tuple[Round, ...] = ()
    parents: tuple[str, ...] = ()
    opened: dict[str, OpenedImage] = {}
    source: OpenedImage | None = None
    answer: FileRef | None = None
    if session is not None and start is None and photo is None:
        latest = session.latest()
        start = None if latest is None else latest.id
    if session is not None and start is not None:
        node = session.node(start)
        history, parents, source = session.history(start), (start,), session.answer(start)
        answer = FileRef.of(node.image_path)
        opened[answer.sha256] = source
        asked = node.recipe
        rounds = (
            *asked.history,
            Round(instruction=asked.instruction, images=asked.images, masks=asked.masks, answer=answer),
        )

    pictures = [open_picture(path, opened) for path in ([photo] if photo is not None else [])]
    if photo is not None:
        source = pictures[0][1]
    elif source is not None and answer is not None and (mask is not None or references):
        pictures.append((answer, source))  # a mask or further pictures: the answer itself becomes {image}
    pictures += [open_picture(path, opened) for path in references]
    if mask is not None and source is None:
        raise MaskError("a mask needs the picture that it belongs to: name the photo before the instruction")
    masks: list[Image.Image | None] = [None] * len(pictures)
    mask_files: list[FileRef | None] = [None] * len(pictures)
    if mask is not None and source is not None:
        masks[0], mask_files[0] = open_mask(mask, source.size), FileRef.of(mask)
    unit = ConditionUnit(instruction, tuple(picture.image for _, picture in pictures), tuple(masks))
    whole = LongContextConditionUnit(unit, history)
    kept = len(whole.kept_history)
    if pictures and source is None:
        source = pictures[0][1]
    return Job(
        unit=whole,
        settings=settings,
        source=source,
        images=tuple(file for file, _ in pictures),
        masks=tuple(mask_files) if mask is not None else (),
        rounds=rounds[len(rounds) - kept :],
        parents=parents,
    )


def job_of_recipe(recipe: Recipe, files: Mapping[str, Path]) -> Job:
    """The job that a recipe describes. files: SHA-256 → path, as `match_files` finds them.

    A picture that appears twice is one object, so that a round goes on from an answer as it did. Raises as
    `open_job`."""
    opened: dict[str, OpenedImage] = {}

    def open_unit(instruction: str, images: Sequence[FileRef], masks: Sequence[FileRef | None]) -> ConditionUnit:
        pictures = [open_picture(files[file.sha256], opened)[1] for file in images]
        of_size = [
            None if mask is None else open_mask(files[mask.sha256], picture.size)
            for mask, picture in zip(masks, pictures, strict=bool(masks))
        ]
        return ConditionUnit(instruction, tuple(picture.image for picture in pictures), tuple(of_size))

    turns = []
    for asked in recipe.history:
        unit = open_unit(asked.instruction, asked.images, asked.masks)
        turns.append(Turn(unit, open_picture(files[asked.answer.sha256], opened)[1].image))
    whole = LongContextConditionUnit(
        open_unit(recipe.instruction, recipe.images, recipe.masks), tuple(turns), len(turns)
    )
    edited = recipe.images[0] if recipe.images else recipe.history[-1].answer if recipe.history else None
    source = None if edited is None else opened[edited.sha256]
    return Job(whole, Settings.of_recipe(recipe), source, recipe.images, recipe.masks, recipe.history)


def open_picture(path: Path, opened: dict[str, OpenedImage] | None = None) -> tuple[FileRef, OpenedImage]:
    """A picture file and its hash; one that is in `opened` (by hash) already is the same object. Raises ImageError."""
    opened = {} if opened is None else opened
    if not os.path.isfile(path):
        open_image(path)  # says what is wrong
    file = FileRef.of(path)
    if file.sha256 not in opened:
        opened[file.sha256] = open_image(path)
    return file, opened[file.sha256]


def in_batches(count: int, model: ModelFiles) -> Iterator[range]:
    """The numbers 0 to `count` - 1 in runs of as many pictures as one packed pass of this model should hold."""
    size = max(1, min(16, PACKED_CELLS // model.budget))
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def make(
    pipeline: ACEPipeline,
    model: ModelFiles,
    jobs: Sequence[Job],
    progress: Progress | None = None,
    refiner: Refiner | None = None,
) -> list[Made]:
    """Make the pictures of all jobs in one packed pass; each as if it were alone. Raises InputError.

    refiner: sharpens each afterwards, before a mask puts back what it protects."""
    states = prepare_jobs(pipeline, jobs)
    total = max(state.num_steps for state in states)
    while running := [state for state in states if not state.done]:
        pipeline.step(running)
        if progress is not None:
            progress(running[0].step_index, total)
    return finish_jobs(pipeline, model, jobs, states, refiner)


def prepare_jobs(pipeline: ACEPipeline, jobs: Sequence[Job]) -> list[RequestState]:
    """The jobs as states to step, in whatever mixture. Raises InputError."""
    from ace.diffusion import seeded_generator  # torch, only when a model runs
    from ace.inference.pipeline import Request

    return pipeline.prepare(
        [
            Request(
                unit=job.unit,
                negative_instruction=job.settings.negative_instruction,
                num_inference_steps=job.settings.num_inference_steps,
                guidance_scale=job.settings.guidance_scale,
                guidance_rescale=job.settings.guidance_rescale,
                size=job.settings.size,
                generator=seeded_generator(job.settings.seed),
            )
            for job in jobs
        ]
    )


def finish_jobs(
    pipeline: ACEPipeline,
    model: ModelFiles,
    jobs: Sequence[Job],
    states: Sequence[RequestState],
    refiner: Refiner | None = None,
) -> list[Made]:
    """The pictures of finished states, with their drift and recipes. `jobs` are those that ran in one packed pass."""
    pictures = decode_jobs(pipeline, jobs, states)
    refined = ""
    if refiner is not None:
        refined = refiner.describe()
        pictures = [
            refiner.refine(picture, job.unit.instruction, job.settings.seed, edited=state.inputs.source is not None)
            for job, state, picture in zip(jobs, states, pictures, strict=True)
        ]
    return [
        finish_job(pipeline, model, job, state, picture, len(jobs), refined)
        for job, state, picture in zip(jobs, states, pictures, strict=True)
    ]


def decode_jobs(pipeline: ACEPipeline, jobs: Sequence[Job], states: Sequence[RequestState]) -> list[Image.Image]:
    """The model's own pictures of states, finished or not, in one pass; `finish_job` makes results of them."""
    whole = [
        state  # without a mask in the edited picture's aspect; with one as the model sees it, to be pasted back
        if _mask_of(job) is None or job.source is None
        else replace(state, request=replace(state.request, size=state.inputs.size))
        for job, state in zip(jobs, states, strict=True)
    ]
    return pipeline.decode(whole, preserve=False)


def finish_job(
    pipeline: ACEPipeline,
    model: ModelFiles,
    job: Job,
    state: RequestState,
    picture: Image.Image,
    batch_size: int = 1,
    refined: str = "",
) -> Made:
    """A finished state and its picture from `decode_jobs` as a result; runs no model, so any thread may do it.

    batch_size: how many requests shared a pass with it, if they did, refined: what sharpened it; both for the
    recipe."""
    mask = _mask_of(job)
    if mask is not None and job.source is not None:
        image = paste_back(job.source, picture, mask, feather_px=job.settings.feather_px)
    else:
        image = picture
        if job.source is not None and job.source.icc_profile is not None:
            image.info["icc_profile"] = job.source.icc_profile
    environment = Environment.here(
        device=pipeline._execution_device.type, dtype=str(pipeline.transformer.dtype).removeprefix("torch.")
    )
    also = _how_it_ran(pipeline, state.inputs.size, refined)
    recipe = _recipe(model, job, state, 1 if pipeline.exact else batch_size, environment, also)
    latents = None if pipeline.published or refined else pipeline.turn(state, image).latents
    return Made(job, image, recipe, drift_of(job, image), _notes(job), latents)


def drift_of(job: Job, image: Image.Image) -> DriftReport | None:
    """How far the picture made moved from the one that was edited, outside its mask; None if nothing was edited."""
    if job.source is None:
        return None
    mask = _mask_of(job)
    before = job.source.image if mask is None else job.source.stored  # what the model saw, or what is kept
    return drift_report(before, image.convert("RGB"), mask)


def _mask_of(job: Job) -> Image.Image | None:
    """The mask of the picture that is edited, which is the current unit's first image."""
    return job.unit.current.masks[0] if job.unit.current.images else None


def _how_it_ran(pipeline: ACEPipeline, size: tuple[int, int], refined: str) -> dict[str, Setting]:
    """What a recipe says of the model beside its weights, where that changes the picture."""
    from ace.inference.latents import tile_px

    settings: dict[str, Setting] = {
        "adapters": pipeline.adapters,
        "fast": pipeline.fast.name if pipeline.fast else "",
        "quantize_text": pipeline.text_quantization,
        "tile_px": tile_px(pipeline.vae, size),
        "refine": refined,
    }
    return {name: value for name, value in settings.items() if value}


def _recipe(
    model: ModelFiles,
    job: Job,
    state: RequestState,
    batch_size: int,
    environment: Environment,
    also: Mapping[str, Setting],
) -> Recipe:
    settings: dict[str, Setting] = {**also}
    if job.settings.size is not None:
        settings["size"] = "chosen"
    if job.settings.feather_px is not None:
        settings["feather_px"] = job.settings.feather_px
    if batch_size > 1:
        settings["batch_size"] = batch_size  # neighbours change float32 rounding, and so perhaps a last bit
    if any(turn.latents is not None for turn in job.unit.kept_history):
        settings["latents"] = "kept"  # went on from the latents of earlier answers, which their files do not hold
    return Recipe(
        model=model.name,
        model_sha256=model.sha256,
        instruction=job.unit.current.instruction,
        negative_instruction=job.settings.negative_instruction,
        seed=job.settings.seed,
        num_inference_steps=state.num_steps,
        guidance_scale=state.guidance_scale,
        guidance_rescale=state.guidance_rescale,
        size_px=state.inputs.size,
        images=job.images,
        masks=job.masks,
        history=job.rounds,
        settings=settings,
        environment=environment,
    )


def _notes(job: Job) -> tuple[str, ...]:
    """What happened on the way that the user should know."""
    notes = []
    if job.source is not None and job.source.converted:
        notes.append(f"{job.source.name}: {job.source.converted}")
    dropped = job.unit.num_dropped_rounds
    if dropped:
        rounds = "1 earlier round was" if dropped == 1 else f"{dropped} earlier rounds were"
        notes.append(f"{rounds} left out: at most {job.unit.max_history} rounds and nine images fit")
    return tuple(notes)
