"""From picture files to a picture of an ACE++ model with its recipe: what the command line does around the pipeline.

`open_plus_job` opens and checks everything that is asked for and uses no weights; `make_plus` makes pictures, keeps
what masks protect, measures the drift and writes down the recipes. A round of a session edits the answer before it:
these models see one canvas and no conversation.

Not here: writing files, what a recipe says (`plus_recipe.py`), models by name (`plus/sources.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ace.conditions.colour import in_profile_of
from ace.conditions.images import OpenedImage
from ace.conditions.masks import open_mask
from ace.conditions.units import ConditionUnit
from ace.conversation.edit import open_picture
from ace.conversation.recipe import FileRef, Recipe
from ace.conversation.session import Session
from ace.errors import ConditionError, ConfigError, ImageError, MaskError
from ace.families.plus_recipe import recipe_of
from ace.inference.preserve import DriftReport, drift_report, paste_back
from ace.plus.canvas import Fit, Place, Reference, arrange, check_seq_length, name_places
from ace.plus.controls import CONTROLS, draw_control
from ace.weights.adapters import check_adapter

if TYPE_CHECKING:
    from ace.plus.pipeline import ACEPlusPipeline, PlusRequest, PlusState
    from ace.plus.sources import PlusFiles

DEFAULT_SIZE = (1024, 1024)
DEFAULT_SEQ_LENGTH = 4096

Progress = Callable[[int, int], None]  # denoising steps done, and in all


@dataclass(frozen=True)
class ReferenceFile:
    """A reference's file, its place and its size rule: "FILE", "FILE@right", "FILE@above,keep=0.5"."""

    path: Path
    place: Place = "left"
    fit: Fit = "align"
    rate: float = 0.8

    @classmethod
    def parse(cls, text: str) -> ReferenceFile:
        """Read it as it is written on a command line. Raises ConfigError."""
        name, separator, rule = text.rpartition("@")
        if not separator or "/" in rule or "\\" in rule or Path(text).is_file():
            return cls(Path(text))
        place, fit, rate = "left", "align", 0.8
        for word in rule.split(","):
            key, _, value = word.strip().partition("=")
            if key in ("left", "right", "above", "below") and not value:
                place = key
            elif key == "keep":
                fit = "keep"
                try:
                    rate = float(value) if value else rate
                except ValueError:
                    rate = -1.0
            elif key == "align" and not value:
                fit = "align"
            else:
                raise ConfigError(
                    f"reference {text!r}: after @ write left, right, above or below, and ,keep=0.8 if wanted"
                )
        reference = cls(Path(name), place, fit, rate)  # type: ignore[arg-type]
        Reference(Image.new("RGB", (1, 1)), reference.place, reference.fit, reference.rate)  # checks the values
        return reference


@dataclass(frozen=True)
class PlusSettings:
    """How a picture is made. None = the model's default. size: (width, height) of a new picture. control: one of
    `CONTROLS`, what the edited picture is turned into inside the mask before the model sees it."""

    seed: int
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    repainting_scale: float | None = None
    control: str | None = None
    size: tuple[int, int] | None = None
    max_seq_length: int | None = None


@dataclass(frozen=True)
class PlusJob:
    """One picture to make: opened and checked. shown: the edited picture as the model sees it, its control drawn.
    images: the edited picture's file, if any, then the references'. parents: the node of a session that it goes on
    from."""

    instruction: str
    settings: PlusSettings
    source: OpenedImage | None
    mask: Image.Image | None
    references: tuple[Reference, ...]
    shown: Image.Image | None = None
    images: tuple[FileRef, ...] = ()
    mask_file: FileRef | None = None
    parents: tuple[str, ...] = ()

    def unit(self) -> ConditionUnit:
        """The request as a session keeps it. Raises ConditionError for more than nine pictures."""
        edited = () if self.source is None else (self.source.image,)
        pictures = (*edited, *(reference.image for reference in self.references))
        return ConditionUnit(self.instruction, pictures, (self.mask, *[None] * (len(pictures) - 1)))


@dataclass(frozen=True)
class PlusMade:
    """A finished job. drift: what changed where it should not have, None without an edited picture."""

    job: PlusJob
    image: Image.Image
    recipe: Recipe
    drift: DriftReport | None = None
    notes: tuple[str, ...] = ()


def open_plus_job(
    instruction: str,
    settings: PlusSettings,
    *,
    photo: Path | None = None,
    mask: Path | None = None,
    references: Sequence[ReferenceFile] = (),
    session: Session | None = None,
    start: str | None = None,
) -> PlusJob:
    """Open and check everything that a request names, its canvas included.

    photo: the picture to edit; None with a session that has answers = the answer of node `start` (None: the newest).
    Raises ImageError, MaskError, ConditionError, ConfigError or SessionError, MissingDependencyError for a control
    whose weights are not here."""
    opened: dict[str, OpenedImage] = {}
    if session is not None and start is None and photo is None:
        latest = session.latest()
        start = None if latest is None else latest.id
    files: list[FileRef] = []
    source = None
    if photo is not None:
        file, source = open_picture(photo, opened)
        files.append(file)
    elif session is not None and start is not None:
        source = session.answer(start)
        files.append(FileRef.of(session.node(start).image_path))
    placed = []
    for reference in references:
        file, picture = open_picture(reference.path, opened)
        files.append(file)
        placed.append(Reference(picture.image, reference.place, reference.fit, reference.rate))
    _check_parts(source, mask, placed, settings.control)
    opened_mask = open_mask(mask, source) if mask is not None and source is not None else None
    job = PlusJob(
        instruction,
        settings,
        source,
        opened_mask,
        tuple(placed),
        images=tuple(files),
        mask_file=None if mask is None else FileRef.of(mask),
        parents=() if start is None else (start,),
    )
    _check(job)
    return job if source is None else replace(job, shown=_shown(settings.control, source.image, opened_mask))


def _check_parts(
    source: OpenedImage | None, mask: Path | None, references: Sequence[Reference], control: str | None
) -> None:
    """Raise InputError if something is asked for that needs a picture, and there is none."""
    name_it = "name the photo before the instruction"
    if source is None and mask is not None:
        raise MaskError(f"a mask needs the picture that it belongs to: {name_it}")
    if source is None and not references:
        raise ConditionError("there is nothing to work on: name a photo before the instruction, or a --reference")
    if control is not None and control not in CONTROLS:
        raise ConfigError(f"control {control!r}: use {', '.join(CONTROLS)}")
    if source is None and control is not None:
        raise ImageError(f"a control needs the picture that it is drawn from: {name_it}")


def _check(job: PlusJob) -> None:
    """Everything about a request that needs no model."""
    settings = job.settings
    if settings.max_seq_length is not None:
        check_seq_length(settings.max_seq_length)
    name_places(job.instruction, job.references, job.source is not None)
    arrange(
        None if job.source is None else job.source.image,
        job.mask,
        job.references,
        size=settings.size or DEFAULT_SIZE,
        repainting_scale=1.0 if settings.repainting_scale is None else settings.repainting_scale,
        max_seq_length=settings.max_seq_length or DEFAULT_SEQ_LENGTH,
    )


def _shown(control: str | None, source: Image.Image, mask: Image.Image | None) -> Image.Image:
    return source if control is None else draw_control(control, source, mask)


def repainting_of(model: PlusFiles, settings: PlusSettings) -> float:
    """How much of the old picture is hidden: as asked, else the model's default; with a control the fully tuned model
    sees all of it and an adapter half, as published."""
    if settings.repainting_scale is not None:
        return settings.repainting_scale
    if settings.control is not None:
        return 0.0 if model.is_fft else 0.5
    return model.repainting_scale


def make_plus(
    pipeline: ACEPlusPipeline, model: PlusFiles, jobs: Sequence[PlusJob], progress: Progress | None = None
) -> list[PlusMade]:
    """Make the pictures of all jobs, canvases of one size together; each as if it were alone. Raises InputError."""
    states = pipeline.prepare([_request_of(job, model) for job in jobs])
    total = max(state.num_steps for state in states)
    while running := [state for state in states if not state.done]:
        pipeline.step(*running)
        if progress is not None:
            progress(running[0].step_index, total)
    answers = [pipeline.finish(state, pipeline.decode_canvas(state), preserve=False) for state in states]
    pipeline.maybe_free_model_hooks()
    return [
        _finish(pipeline, model, job, state, answer, len(jobs))
        for job, state, answer in zip(jobs, states, answers, strict=True)
    ]


def in_plus_batches(count: int, max_seq_length: int | None) -> Iterator[range]:
    """The numbers 0 to `count` - 1 in runs of as many pictures as one pass holds, whatever their canvases are."""
    from ace.plus.pipeline import BATCH_CELLS

    size = max(1, BATCH_CELLS // (max_seq_length or DEFAULT_SEQ_LENGTH))
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def _request_of(job: PlusJob, model: PlusFiles) -> PlusRequest:
    from ace.diffusion import seeded_generator  # torch, only when a model runs
    from ace.plus.pipeline import PlusRequest

    settings = job.settings
    return PlusRequest(
        instruction=job.instruction,
        image=job.shown,
        mask=job.mask,
        references=job.references,
        size=settings.size or DEFAULT_SIZE,
        repainting_scale=repainting_of(model, settings),
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        max_seq_length=settings.max_seq_length,
        generator=seeded_generator(settings.seed),
    )


def _finish(
    pipeline: ACEPlusPipeline, model: PlusFiles, job: PlusJob, state: PlusState, answer: Image.Image, batch_size: int
) -> PlusMade:
    """A finished state and the answer cut out of its canvas as a result."""
    drift = None
    if job.source is not None:
        if job.mask is not None:
            answer = paste_back(job.source, answer, job.mask)
            drift = drift_report(job.source.stored, answer.convert("RGB"), job.mask)
        else:
            drift = drift_report(job.source.image, answer.convert("RGB"))
            answer = in_profile_of(answer, job.source.icc_profile)
    notes = pipeline.unread_words(name_places(job.instruction, job.references, job.source is not None))
    notes += tuple(note for adapter in model.adapters for note in check_adapter(adapter.path))
    if job.source and job.source.converted:
        notes += (f"{job.source.name}: {job.source.converted}",)
    return PlusMade(job, answer, recipe_of(pipeline, model, job, state, batch_size), drift, notes)


def plus_job_of_recipe(recipe: Recipe, files: Mapping[str, Path]) -> PlusJob:
    """The job that a recipe describes. files: SHA-256 → path, as `match_files` finds them. Raises as
    `open_plus_job`."""
    settings = recipe.settings
    images = list(recipe.images)
    edited = images.pop(0) if settings.get("edits") else None
    places = [word for word in str(settings.get("places", "")).split(",") if word]
    fits = [word for word in str(settings.get("fits", "")).split(",") if word]
    if len(places) != len(images) or len(fits) != len(images):
        raise ConfigError("the recipe's references do not fit its images: use the original file")
    references = []
    for file, place, fit in zip(images, places, fits, strict=True):
        kind, _, rate = fit.partition("=")
        references.append(ReferenceFile(files[file.sha256], place, kind, float(rate or 0.8)))  # type: ignore[arg-type]
    mask = recipe.masks[0] if recipe.masks else None
    control = settings.get("control")
    return open_plus_job(
        recipe.instruction,
        PlusSettings(
            recipe.seed,
            recipe.num_inference_steps,
            recipe.guidance_scale,
            float(settings["repainting_scale"]),
            None if control is None else str(control),
            None if edited is not None else recipe.size_px,
            int(settings["max_seq_length"]),
        ),
        photo=None if edited is None else files[edited.sha256],
        mask=None if mask is None else files[mask.sha256],
        references=references,
    )
