"""What travels through a model family: a `Job`, one answer to make, and `Made`, the answer with its recipe.

A job is checked and opened; it holds pixels and where they came from. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ace.conditions.images import OpenedImage
from ace.conditions.rules import ImageRules
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.conversation.credentials import Origin
from ace.conversation.media import IMAGE, Medium
from ace.conversation.recipe import CURRENT_RULES, FileRef, Recipe, Round, Setting
from ace.conversation.seeds import seeds_of
from ace.errors import ConfigError
from ace.inference.detail import Delivered
from ace.inference.focus import Box
from ace.inference.preserve import DriftReport
from ace.video.files import hash_clip
from ace.video.request import ClipRequest, OpenedRequest

MAX_VARIANTS = 16

# Settings that not every family takes -> their names in messages.
OPTIONAL_SETTINGS = {
    "negative_instruction": "a negative instruction",
    "guidance_rescale": "guidance rescale",
    "control": "a control",
    "fits": "size rules of references",
    "max_seq_length": "a canvas size (max_seq_length)",
    "places": "places of references",
    "repainting_scale": "a repainting scale",
    "frames": "a number of frames",
    "fps": "a frame rate",
    "shift": "a shift of the schedule",
    "strength": "a strength of the conditioning",
}


@dataclass(frozen=True)
class Settings:
    """How an image is made. None = the model's default.

    seed: 0 to 2^64 - 1. size: (width, height) in px that the model works at; None = the edited image's aspect.
    images: how pictures and masks are read, worked on and given back. adapters: (file or folder, strength) of LoRA
    adapters for this image alone, on top of those that the model was loaded with. options: of some families only, by
    name (see `OPTIONAL_SETTINGS`). rules: of an older recipe that is made again, see `Recipe.rules`."""

    seed: int
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    negative_instruction: str = ""
    size: tuple[int, int] | None = None
    images: ImageRules = field(default_factory=ImageRules)
    adapters: tuple[tuple[Path, float], ...] = ()
    options: Mapping[str, Setting] = field(default_factory=dict)
    rules: Mapping[str, int] = field(default_factory=lambda: CURRENT_RULES)

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Settings:
        """The settings that a recipe records."""
        recorded = recipe.settings
        return cls(
            seed=recipe.seed,
            num_inference_steps=recipe.num_inference_steps,
            guidance_scale=recipe.guidance_scale,
            guidance_rescale=recipe.guidance_rescale,
            negative_instruction=recipe.negative_instruction,
            size=recipe.size_px if recorded.get("size") == "chosen" or recorded.get("edits") is False else None,
            images=ImageRules.of_settings(recorded),
            options={name: recorded[name] for name in OPTIONAL_SETTINGS if name in recorded},
            rules=recipe.rules,
        )

    def optional(self) -> dict[str, Setting]:
        """The settings asked for that not every family takes."""
        given: dict[str, Any] = {
            "negative_instruction": self.negative_instruction or None,
            "guidance_rescale": self.guidance_rescale or None,  # 0 is none
            **self.options,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Job:
    """One image to make: a checked request, and the files that it comes from.

    unit: the request with its history; source: the image being edited, with its alpha and colour profile, or None.
    images, masks, rounds: the same request as file names and hashes. parents: nodes of the session that it
    continues. shown: the edited image as the model is shown it, where that is another (a control drawn on it).
    clip: what is asked of a clip, opened by its family. notes: how its files were read, a line each. origins: the
    files of its images as they came, the edited one first, for content credentials. part: what of the edited image is
    worked on, None = all of it."""

    unit: LongContextConditionUnit
    settings: Settings
    source: OpenedImage | None = None
    images: tuple[FileRef, ...] = ()
    masks: tuple[FileRef | None, ...] = ()
    rounds: tuple[Round, ...] = ()
    parents: tuple[str, ...] = ()
    shown: Image.Image | None = None
    clip: ClipRequest | OpenedRequest | None = None
    notes: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()
    part: FocusedPart | None = None

    @property
    def instruction(self) -> str:
        """What is asked."""
        return self.unit.current.instruction

    @property
    def mask(self) -> Image.Image | None:
        """The mask of the image that is edited, which is the request's first one; None = no mask."""
        return self.unit.current.masks[0] if self.source is not None and self.unit.current.images else None

    @property
    def worked(self) -> Job:
        """The job as the family gets it: about the part that is worked on."""
        return self if self.part is None else self.part.job

    @property
    def delivers(self) -> bool:
        """Whether the answer gets the edited image's size and what of it did not change (`ace/inference/detail.py`)."""
        settings = self.settings
        wanted = settings.images.detail == "full" and settings.rules.get("detail", 1) > 1
        return wanted and self.source is not None and self.mask is None and settings.size is None

    def with_seed(self, seed: int) -> Job:
        """The same job with another seed."""
        part = None if self.part is None else replace(self.part, job=self.part.job.with_seed(seed))
        return replace(self, settings=replace(self.settings, seed=seed), part=part)

    def held_bytes(self) -> int:
        """Memory that the images of this job hold while it waits and runs."""
        frames = self.unit.frames()
        pixels = {id(frame.image): frame.image.width * frame.image.height for frame in frames}
        masks = {id(frame.mask): frame.mask.width * frame.mask.height for frame in frames if frame.mask is not None}
        return 4 * sum(pixels.values()) + sum(masks.values())


@dataclass(frozen=True)
class FocusedPart:
    """A part of the edited image that is worked on alone (`ace/inference/focus.py`). box: in px of the image; job: the
    request about that part."""

    box: Box
    job: Job


@dataclass(frozen=True)
class Made:
    """A finished job. content: the answer, of the given medium. drift: what changed where it should not have (without a
    mask: everywhere), None without a source. latents: (C, h, w) for the next round to go on from; None where the answer
    holds pixels of the edited image, from which it then goes on. unpasted: with a mask, the model's own content before
    it was pasted back. delivered: how an edit of the whole image was carried to its full size."""

    job: Job
    content: Any
    recipe: Recipe
    drift: DriftReport | None = None
    notes: tuple[str, ...] = ()
    latents: np.ndarray | None = None
    unpasted: Any = None
    medium: Medium = IMAGE
    delivered: Delivered | None = None

    @property
    def image(self) -> Image.Image:
        """The answer, or an image that stands for it."""
        return self.medium.still(self.content)


@dataclass(frozen=True)
class Progress:
    """Where the answers are. step, total: denoising steps of all of them; eta_s: remaining seconds, None before the
    first step; previews: RGB, one per answer in the making, empty if they were not asked for."""

    step: int
    total: int
    eta_s: float | None
    previews: tuple[Image.Image, ...] = ()


def clip_job(
    instruction: str, settings: Settings, request: ClipRequest, files: tuple[FileRef, ...] | None = None
) -> Job:
    """The job of a clip. files: the request's as recipes name them; None = they are hashed. Raises InputError."""
    if files is None:
        files = tuple(FileRef(name=path.resolve().name, sha256=hash_clip(path)) for path in request.files())
    unit = LongContextConditionUnit(ConditionUnit(instruction))
    return Job(unit, settings, images=files, clip=request)


def variants(job: Job, count: int, most: int = MAX_VARIANTS) -> list[Job]:
    """The job with its seed and the following ones. Raises ConfigError for a count that is not 1 to `most`."""
    if not 1 <= count <= most:
        raise ConfigError(f"{count} variants: use 1 to {most}")
    return [job.with_seed(seed) for seed in seeds_of(job.settings.seed, count)]
