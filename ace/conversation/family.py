"""`Family`: what a conversation needs of a model, and the one interface to every kind of model.

A family is found from files alone and says what it can do (`traits`), so that a request is refused before anything is
loaded: `open` checks one request. `load` brings the weights into memory. Then `prepare → step → … → finish` makes
images over per-request states, in any mixture and each at its own step, so that requests join and leave between steps,
and cancelling, progress and previews are the caller's (`run.py`, `ace/server/engine.py`). `cost` tells a server what
it takes on. `describe` is for people.

A class is this interface or a leaf; nothing in between. The leaves are in `ace/families`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from ace.conditions.units import MAX_IMAGES
from ace.conditions.vocabulary import Vocabulary
from ace.conversation.job import OPTIONAL_SETTINGS, FocusedPart, Job
from ace.conversation.media import IMAGE, Medium
from ace.conversation.recipe import Recipe, Setting
from ace.errors import ConditionError, ConfigError, MaskError
from ace.inference.focus import crop_mask, crop_opened, focus_box


class State(Protocol):
    """A request on its way through a family."""

    @property
    def step_index(self) -> int:
        """Steps done."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        ...

    @property
    def done(self) -> bool:
        """True when there is nothing left but `finish`."""
        ...


@dataclass(frozen=True)
class Loading:
    """How a model is held in memory and what is added to it, as it was asked for; see `ace/cli/options.py`.

    adapters: "FILE" or "FILE:STRENGTH" each; transformer: another file for the weights; quantize: bits of the
    transformer's weights; max_tokens: the largest request that must fit into memory; fast: an approximation by name;
    refine: a folder or hub id of a second stage. like: a recipe whose weights are held in memory as they were."""

    device: str = "auto"
    dtype: str = "auto"
    memory: str = "auto"
    adapters: tuple[str, ...] = ()
    transformer: str | None = None
    quantize: str | None = None
    max_tokens: int | None = None
    fast: str | None = None
    compile: bool = False
    refine: str | None = None
    refine_strength: float | None = None
    like: Recipe | None = None

    def asked(self) -> tuple[str, ...]:
        """The names of what was asked for beyond the defaults."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != f.default)


# Of `Loading`, what every family takes, and what the rest are called in messages.
COMMON_LOADING = frozenset({"device", "dtype", "memory", "max_tokens", "like"})
LOADING_NAMES = {
    "adapters": "adapters (LoRA)",
    "transformer": "another transformer file",
    "quantize": "quantised weights",
    "fast": "approximate sampling",
    "compile": "compilation",
    "refine": "a refiner",
    "refine_strength": "a refiner's strength",
}


@dataclass(frozen=True)
class Traits:
    """What a model can do, known before it is loaded.

    masks: a request may have one; sees_masks: the model is shown it, else its image is made without and pasted back
    inside it; max_images: of one request; history: it sees earlier rounds (else a round edits the answer
    before it); text_to_image: it works without an image; references_apart: a request may consist of references only,
    none of which is edited; vocabulary: what it has learnt to draw from words, None if nobody says. options: of
    `OPTIONAL_SETTINGS`; loading: of `Loading`, beyond `COMMON_LOADING`. switches_adapters: a request may bring adapters
    of its own; those that are made together bring the same. medium: what its answers are."""

    medium: Medium = IMAGE

    masks: bool = True
    sees_masks: bool = True
    max_images: int = MAX_IMAGES
    history: bool = True
    text_to_image: bool = True
    references_apart: bool = False
    vocabulary: Vocabulary | None = None
    options: frozenset[str] = frozenset()
    loading: frozenset[str] = frozenset()
    switches_adapters: bool = False


@dataclass(frozen=True)
class Answer:
    """What a family made of a request, before anything is pasted back.

    content: the model's own, of the family's medium; with a source of the whole scene, at any size. latents: (C, h, w)
    to go on from, or None. size_px: (width, height) the model worked at; num_steps, guidance_scale, guidance_rescale:
    as they were used. settings: whatever else of the model or the request changes the image, for the recipe. device,
    dtype: where and in what numbers it was computed. notes: what of the request or the weights was left out, a line
    each. round_trip: RGB of the answer's size, what the model makes of the edited image where nothing is edited; None =
    unknown."""

    content: Any
    size_px: tuple[int, int]
    num_steps: int
    guidance_scale: float
    guidance_rescale: float = 0.0
    settings: Mapping[str, Setting] = field(default_factory=dict)
    latents: np.ndarray | None = None
    device: str = "cpu"
    dtype: str = "float32"
    notes: tuple[str, ...] = ()
    round_trip: Image.Image | None = None


@dataclass(frozen=True)
class Cost:
    """What one image costs, counted before it is made: a server refuses what is too much and shares time by it.

    image_tokens, text_tokens: that are read; target_tokens: of the image itself. start_operations: once, before the
    first of `num_steps` steps; step_operations: of each; num_bytes: of memory while it runs, the weights not
    counted."""

    image_tokens: int
    text_tokens: int
    target_tokens: int
    num_steps: int
    start_operations: int
    step_operations: int
    num_bytes: int

    @property
    def operations(self) -> int:
        """All of them (autoencoders and text encoders not counted)."""
        return self.start_operations + self.num_steps * self.step_operations


OnNote = Callable[[str], None]  # told what people should know, a line each
OnLoaded = Callable[[int, int], None]  # parts of the weights loaded, and in all


class Family(ABC):
    """One model of one kind. `kind` is its name in recipes."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def name(self) -> str:
        """The model as recipes name it."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash of everything that makes its images. May read large files, once."""

    @property
    @abstractmethod
    def traits(self) -> Traits:
        """What it can do."""

    @abstractmethod
    def open(self, job: Job) -> Job:
        """Check a request against this model, without its weights. Returns the request as it will be made.

        Use `open_job`, which checks the traits first. Raises InputError."""

    @abstractmethod
    def load(
        self,
        loading: Loading,
        on_note: OnNote = lambda line: None,
        on_loaded: OnLoaded = lambda done, total: None,
    ) -> None:
        """Bring the weights into memory. Raises InputError, CheckpointError or MissingDependencyError."""

    @abstractmethod
    def prepare(self, jobs: Sequence[Job]) -> list[Any]:
        """One `State` per request: texts and images encoded, noise drawn. All bring the same adapters, and those of
        states that are not finished yet. Raises InputError."""

    @abstractmethod
    def step(self, states: Sequence[Any]) -> None:
        """One denoising step of every state, whatever mixture they are; none may be done."""

    @abstractmethod
    def preview(self, state: Any) -> Image.Image:
        """What a state's image is going to look like, RGB, small and cheap."""

    @abstractmethod
    def finish(self, states: Sequence[Any]) -> list[Answer]:
        """The answers of finished states."""

    @abstractmethod
    def cost(self, job: Job) -> Cost:
        """What a request that `open` has checked will cost once it runs on the loaded weights. Runs no model."""

    @abstractmethod
    def working_px(self, job: Job) -> int:
        """Pixels, width times height, that the model works at: a larger image is reduced to about as many."""

    @abstractmethod
    def most_together(self, job: Job) -> int:
        """How many such requests one step should hold at most."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What this model is: for `ace models`, `/v1/models` and the studio. Values are plain JSON. Where requests may
        bring adapters, `adapters` are those that it was loaded with, as recipes record them."""


def open_job(family: Family, job: Job) -> Job:
    """Check a request against a family, before it is loaded. Raises InputError, one line saying what it cannot do."""
    traits, unit = family.traits, job.unit
    if job.mask is not None and not traits.masks:
        raise MaskError(f"{family.name} takes no mask: leave it out")
    if unit.kept_history and not traits.history:
        raise ConditionError(f"{family.name} sees no earlier rounds: leave them out")
    if len(unit.current.images) > traits.max_images:
        most = "one image" if traits.max_images == 1 else f"{traits.max_images} images"
        raise ConditionError(f"{family.name} takes {most}, {len(unit.current.images)} given: leave some out")
    if not unit.current.images and not unit.history and not traits.text_to_image:
        raise ConditionError(f"{family.name} makes nothing from words alone: name an image to work on")
    if job.settings.adapters and not traits.switches_adapters:
        raise ConfigError(f"{family.name} takes its adapters when it is loaded: name them with --lora")
    for name in job.settings.optional():
        if name not in traits.options:
            raise ConfigError(f"{family.name} does not take {OPTIONAL_SETTINGS.get(name, name)}: leave it out")
    part = _part_of(family, job)
    return family.open(job) if part is None else replace(job, part=replace(part, job=family.open(part.job)))


def _part_of(family: Family, job: Job) -> FocusedPart | None:
    """The part of the edited image around its mask, where the model is to work on that alone."""
    settings, rules, source, mask = job.settings, job.settings.images, job.source, job.mask
    current = job.unit.current
    if source is None or mask is None or settings.size is not None or settings.rules.get("focus", 1) < 2:
        return None
    box = focus_box(mask, below=rules.focus_below, margin=rules.focus_margin, working_px=family.working_px(job))
    if box is None:
        return None
    part = crop_opened(source, box)
    images, masks = (part.image, *current.images[1:]), (crop_mask(mask, box), *current.masks[1:])
    unit = replace(job.unit, current=replace(current, images=images, masks=masks), target_index=None)
    return FocusedPart(box, replace(job, unit=unit, source=part))


def check_loading(family: Family, loading: Loading) -> None:
    """Raise ConfigError for something asked of loading that a family does not take."""
    for name in loading.asked():
        if name not in COMMON_LOADING | family.traits.loading:
            raise ConfigError(f"{family.name} does not take {LOADING_NAMES.get(name, name)}: leave it out")
