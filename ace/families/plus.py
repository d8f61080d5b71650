"""ACE++ models as a `Family`: the edited image and its references on one canvas, which FLUX.1-Fill repaints.

These models see one canvas and no conversation, so a round of a session edits the answer before it. A request may
consist of references only. What its recipe records beside the request: `edits`, `repainting_scale`, `max_seq_length`,
`canvas_cells`, `places`, `fits` and `control` of the canvas; `transformer`, `quantize`, `quantize_text`, `tile_px` and
`adapters` of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ace.conversation.family import Answer, Cost, Family, Loading, OnLoaded, OnNote, Traits
from ace.conversation.job import Job, Settings
from ace.conversation.recipe import Recipe, Setting
from ace.errors import ConditionError, ConfigError, ImageError, InputError
from ace.families.running import Running
from ace.plus.canvas import CELL_PX, Reference, arrange, check_seq_length, name_places
from ace.plus.controls import CONTROLS, draw_control
from ace.plus.models import PLUS_MODELS
from ace.plus.sources import PlusFiles, find_plus, read_adapter_option
from ace.weights.adapters import check_adapter, match_adapters

if TYPE_CHECKING:
    from ace.plus.pipeline import ACEPlusPipeline, PlusRequest, PlusState

DEFAULT_SIZE = (1024, 1024)
DEFAULT_SEQ_LENGTH = 4096
WORKING_WIDTHS = 16  # arrays of the model's width that a token needs during a block


def read_placement(text: str) -> tuple[str, str]:
    """ "right", "above,keep=0.5", "" → (place, fit) as recipes write them: "left" and "align" by default.

    Raises ConfigError."""
    place, fit = "left", "align"
    for word in (word.strip() for word in text.split(",") if word.strip()):
        key, _, value = word.partition("=")
        if key in ("left", "right", "above", "below") and not value:
            place = key
        elif key == "keep":
            fit = f"keep={value or '0.8'}"
        elif key != "align" or value:
            raise ConfigError(f"reference place {text!r}: write left, right, above or below, and ,keep=0.8 if wanted")
    _reference(Image.new("RGB", (1, 1)), place, fit)  # checks the values
    return place, fit


class PlusFamily(Family):
    """One ACE++ model with its adapters and, if it was asked for, other weights."""

    kind = "ace-plus"

    def __init__(
        self,
        name: str,
        adapters: Sequence[str] = (),
        transformer: str | None = None,
        pipeline: ACEPlusPipeline | None = None,
    ) -> None:
        self._asked = (name, tuple(adapters), transformer)
        self._pipeline = pipeline

    @cached_property
    def files(self) -> PlusFiles:
        """The model's files; fetched on first use where they are neither named nor cached. Raises InputError."""
        name, adapters, transformer = self._asked
        return find_plus(name, [read_adapter_option(text) for text in adapters], transformer)

    @property
    def name(self) -> str:
        """The model as recipes name it."""
        name = self._asked[0]
        return name if name in PLUS_MODELS else Path(name).expanduser().resolve().name

    @property
    def sha256(self) -> str:
        """Hash of the parts' and weights' names and contents, and of the adapters' strengths."""
        return self.files.sha256

    @cached_property
    def traits(self) -> Traits:
        """What it can do."""
        return Traits(
            history=False,
            text_to_image=False,
            references_apart=True,
            options=frozenset({"control", "max_seq_length", "repainting_scale", "places", "fits"}),
            loading=frozenset({"adapters", "transformer", "quantize"}),
        )

    @property
    def pipeline(self) -> ACEPlusPipeline:
        """The loaded pipeline."""
        assert self._pipeline is not None, "load() comes first"
        return self._pipeline

    def open(self, job: Job) -> Job:
        """Lay out the canvas and draw the control. Raises ConditionError, ConfigError or ImageError, and
        MissingDependencyError for a control whose weights are not here."""
        options = job.settings.options
        control = options.get("control")
        if not job.unit.current.images:
            raise ConditionError("there is nothing to work on: name a photo before the instruction, or a --reference")
        if control is not None and control not in CONTROLS:
            raise ConfigError(f"control {control!r}: use {', '.join(CONTROLS)}")
        if control is not None and job.source is None:
            raise ImageError("a control needs the image that it is drawn from: name the photo before the instruction")
        if job.settings.size is not None and job.source is not None:
            raise ConfigError("--size is for new images; an edited image keeps its own size (see --max-seq-length)")
        if "max_seq_length" in options:
            check_seq_length(int(options["max_seq_length"]))
        references = references_of(job)
        name_places(job.instruction, references, job.source is not None)
        arrange(
            None if job.source is None else job.source.image,
            job.mask,
            references,
            size=job.settings.size or DEFAULT_SIZE,
            repainting_scale=float(options.get("repainting_scale", 1.0)),
            max_seq_length=_seq_length(job.settings),
        )
        if control is None or job.source is None:
            return job
        return replace(job, shown=draw_control(str(control), job.source.image, job.mask))

    def load(
        self,
        loading: Loading,
        on_note: OnNote = lambda line: None,
        on_loaded: OnLoaded = lambda done, total: None,
    ) -> None:
        """Bring the weights into memory, spread over what is free. Raises InputError, CheckpointError or
        MissingDependencyError."""
        from ace.model.devices import find_device
        from ace.plus.load import find_plus_dtype, load_plus
        from ace.plus.memory import plan_plus
        from ace.plus.quantize import check_quantization

        like = {} if loading.like is None else loading.like.settings
        quantize = loading.quantize or str(like.get("quantize", "")) or None
        check_quantization(quantize)
        device = find_device(loading.device)
        dtype = find_plus_dtype(device, loading.dtype)
        tokens = loading.max_tokens or DEFAULT_SEQ_LENGTH
        memory = plan_plus(
            self.files, loading.memory, device=device, dtype=dtype, quantization=quantize, max_seq_length=tokens
        )
        if not memory.plain:
            on_note(f"memory: {memory}")
        text = memory.text_quantization
        if loading.like is not None and text is not None:
            text = str(like.get("quantize_text", "")) or None
        self._pipeline = load_plus(
            self.files,
            device=device,
            dtype=dtype,
            quantization=memory.quantization,
            text_quantization=text,
            offload=memory.offload,
            tile_px=memory.tile_px if loading.like is None else int(like.get("tile_px", 0)),
            progress=on_loaded,
        )
        self._pipeline.set_progress_bar_config(disable=True)

    def prepare(self, jobs: Sequence[Job]) -> list[Running[PlusState]]:
        """Lay out and encode canvases and texts and draw each one's noise. Raises InputError."""
        states = self.pipeline.prepare([self._request(job) for job in jobs])
        return [Running(job, state) for job, state in zip(jobs, states, strict=True)]

    def step(self, states: Sequence[Running[PlusState]]) -> None:
        """One denoising step of every state; canvases of one size together."""
        self.pipeline.step(*(running.state for running in states))

    def preview(self, state: Running[PlusState]) -> Image.Image:
        """The answer as the latents are now, cut out of the decoded canvas."""
        return state.state.canvas.cut(self.pipeline.decode_canvas(state.state))

    def finish(self, states: Sequence[Running[PlusState]]) -> list[Answer]:
        """The answers, cut out of their canvases."""
        pipeline = self.pipeline
        answers = []
        for running in states:
            state, job, trip = running.state, running.job, None
            whole = job.source is not None and job.mask is None and job.settings.rules.get("detail", 1) > 1
            canvas = pipeline.decode_canvas(state)
            image = canvas.crop(state.canvas.target) if whole else pipeline.finish(state, canvas, preserve=False)
            if job.source is not None and job.delivers:
                trip = pipeline.round_trip(job.source.image, image.size)
            answers.append(
                Answer(
                    content=image,
                    size_px=image.size if whole else state.canvas.output_size,
                    num_steps=state.num_steps,
                    guidance_scale=state.guidance_scale,
                    settings={**self._of_the_request(running), **self._of_the_weights()},
                    device=pipeline._execution_device.type,
                    dtype=str(pipeline.transformer.dtype).removeprefix("torch."),
                    notes=self._left_out(running),
                    round_trip=trip,
                )
            )
        pipeline.maybe_free_model_hooks()
        return answers

    def cost(self, job: Job) -> Cost:
        """From the tokens of its canvas, as `ace.model.cost` counts: two operations per multiply-add. Raises as
        `open`."""
        pipeline = self.pipeline
        sizes = pipeline.transformer.config
        width, depth = sizes.num_attention_heads * sizes.attention_head_dim, sizes.num_layers + sizes.num_single_layers
        _, canvas = pipeline.lay_out(self._request(job))
        texts = pipeline.config.max_text_tokens
        left, top, right, bottom = canvas.target
        target = max(1, (right - left) * (bottom - top) * canvas.num_cells // (canvas.size[0] * canvas.size[1]))
        tokens = canvas.num_cells + texts
        steps = job.settings.num_inference_steps
        return Cost(
            image_tokens=canvas.num_cells,
            text_tokens=texts,
            target_tokens=target,
            num_steps=pipeline.config.num_inference_steps if steps is None else steps,
            start_operations=0,
            step_operations=depth * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width),  # q, k, v, o: 4; the MLP: 8
            num_bytes=tokens * width * WORKING_WIDTHS * pipeline.transformer.dtype.itemsize,
        )

    def working_px(self, job: Job) -> int:
        """The whole canvas, without what the references take of it."""
        options, references = job.settings.options, references_of(job)
        if not references or job.source is None:
            return _seq_length(job.settings) * CELL_PX**2
        left, top, right, bottom = arrange(
            job.source.image,
            job.mask,
            references,
            repainting_scale=float(options.get("repainting_scale", 1.0)),
            max_seq_length=_seq_length(job.settings),
        ).target
        return (right - left) * (bottom - top)

    def most_together(self, job: Job) -> int:
        """As many canvases as one pass holds, whatever they are."""
        from ace.plus.pipeline import BATCH_CELLS

        return max(1, BATCH_CELLS // _seq_length(job.settings))

    def describe(self) -> dict[str, Any]:
        """The model's name and what it is for."""
        model = PLUS_MODELS.get(self._asked[0])
        about: dict[str, Any] = {} if model is None else {"about": model.description}
        if self._pipeline is not None:
            config = self._pipeline.config
            about |= {"steps": config.num_inference_steps, "guidance": config.guidance_scale}
        return {"family": self.kind, "name": self.name, **about, "controls": list(CONTROLS)}

    def repainting_of(self, settings: Settings) -> float:
        """How much of the old image is hidden: as asked, else the model's default; with a control the fully tuned model
        sees all of it and an adapter half, as published."""
        options = settings.options
        if "repainting_scale" in options:
            return float(options["repainting_scale"])
        if "control" in options:
            return 0.0 if self.files.is_fft else 0.5
        return self.files.repainting_scale

    def _request(self, job: Job) -> PlusRequest:
        from ace.diffusion import seeded_generator  # torch, only when a model runs
        from ace.plus.pipeline import PlusRequest

        settings, source = job.settings, job.source
        limit = settings.options.get("max_seq_length")
        return PlusRequest(
            instruction=job.instruction,
            image=job.shown or (None if source is None else source.image),
            mask=job.mask,
            references=references_of(job),
            size=settings.size or DEFAULT_SIZE,
            repainting_scale=self.repainting_of(settings),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            max_seq_length=None if limit is None else int(limit),
            generator=seeded_generator(settings.seed),
        )

    def _of_the_request(self, running: Running[PlusState]) -> dict[str, Setting]:
        job, state = running.job, running.state
        options = job.settings.options
        references = state.request.references
        settings: dict[str, Setting] = {
            "edits": job.source is not None,
            "repainting_scale": float(state.request.repainting_scale or 0.0),
            "max_seq_length": int(options.get("max_seq_length", self.pipeline.config.max_seq_length)),
            "canvas_cells": state.canvas.num_cells,
            "places": ",".join(reference.place for reference in references),
            "fits": ",".join("align" if r.fit == "align" else f"keep={r.rate:g}" for r in references),
        }
        return settings if "control" not in options else {**settings, "control": options["control"]}

    def _left_out(self, running: Running[PlusState]) -> tuple[str, ...]:
        """What of the words and of the adapters' files is not read."""
        job = running.job
        text = name_places(job.instruction, running.state.request.references, job.source is not None)
        adapters = (note for adapter in self.files.adapters for note in check_adapter(adapter.path))
        return (*self.pipeline.unread_words(text), *adapters)

    def _of_the_weights(self) -> dict[str, Setting]:
        files, pipeline = self.files, self.pipeline
        adapters = [{"name": a.name, "sha256": a.sha256, "weight": a.strength} for a in files.adapters]
        settings: dict[str, Setting] = {
            "transformer": files.transformer.name if files.other_transformer else "",
            "quantize": pipeline.quantization,
            "quantize_text": pipeline.text_quantization,
            "tile_px": pipeline.vae.tile_sample_min_size if pipeline.vae.use_tiling else 0,
            "adapters": json.dumps(adapters) if adapters else "",
        }
        return {name: value for name, value in settings.items() if value}


def plus_of_recipe(
    recipe: Recipe, model: str | None = None, adapters: Sequence[Path] = (), transformer: Path | None = None
) -> PlusFamily:
    """The model that a recipe names, or another, with the adapters and the transformer that it had.

    adapters: where they are now, found by hash; those that have a name are found by it. Raises InputError, naming what
    is missing."""
    other = str(recipe.settings.get("transformer", ""))
    if other and transformer is None:
        raise InputError(f"the image was made with the weights of {other}: name the file with --transformer")
    return PlusFamily(
        model or recipe.model, _adapters_again(recipe, adapters), None if transformer is None else str(transformer)
    )


def _adapters_again(recipe: Recipe, given: Sequence[Path]) -> list[str]:
    """The adapters beside the model's own, in their order, as options."""
    try:
        recorded = json.loads(str(recipe.settings.get("adapters", "[]")))
        others = [one for one in recorded if one["name"] not in PLUS_MODELS]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError("the recipe's adapters cannot be read: it was changed since") from None
    matched = iter(match_adapters(json.dumps(others) if others else "", given))
    found = []
    for one in recorded:
        if one["name"] in PLUS_MODELS:
            found.append(f"{one['name']}:{float(one['weight'])!r}")
        else:
            choice = next(matched)
            found.append(f"{choice.path}:{choice.weight!r}")
    return found[1:] if recorded and recorded[0]["name"] == recipe.model else found


def references_of(job: Job) -> tuple[Reference, ...]:
    """The request's references with their places and size rules. Raises ConfigError."""
    images = job.unit.current.images[0 if job.source is None else 1 :]
    options = job.settings.options
    places = [word for word in str(options.get("places", "")).split(",") if word] or ["left"] * len(images)
    fits = [word for word in str(options.get("fits", "")).split(",") if word] or ["align"] * len(images)
    if len(places) != len(images) or len(fits) != len(images):
        raise ConfigError(f"{len(places)} places, {len(fits)} size rules, {len(images)} references: give one each")
    return tuple(_reference(image, place, fit) for image, place, fit in zip(images, places, fits, strict=True))


def _reference(image: Image.Image, place: str, fit: str) -> Reference:
    kind, _, rate = fit.partition("=")
    try:
        number = float(rate or 0.8)
    except ValueError:
        number = -1.0
    return Reference(image, place, kind, number)  # type: ignore[arg-type]  # which checks them


def _seq_length(settings: Settings) -> int:
    return int(settings.options.get("max_seq_length", DEFAULT_SEQ_LENGTH))
