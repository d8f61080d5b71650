"""ACE models as a `Family`: any mixture of requests in one packed pass, with history, masks and several images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ace.conversation.family import Answer, Cost, Family, Loading, OnLoaded, OnNote, Traits
from ace.conversation.job import Job
from ace.conversation.recipe import Recipe, Setting
from ace.families.running import Running
from ace.weights.adapters import AdapterChoice, AdapterSwitch
from ace.weights.sources import ModelFiles, cache_folder, known_models

if TYPE_CHECKING:
    from ace.inference.pipeline import ACEPipeline, RequestState
    from ace.inference.refine import Refiner

PACKED_CELLS = 4096  # of target images in one packed pass: 64 of the small model's, one of the largest's
WORKING_WIDTHS = 16  # arrays of the model's width that a token needs during a block, with its MLP, q, k and v
EXACT_PREVIEW_BUDGET = 256  # cells: previews of models up to this go through the decoder, a small part of a step there


class AceFamily(Family):
    """One ACE model. `pipeline` is there once it is loaded, or given."""

    kind = "ace"

    def __init__(self, model: ModelFiles, pipeline: ACEPipeline | None = None, sha256: str | None = None) -> None:
        self.model = model
        self._pipeline = pipeline
        self._sha256 = sha256
        self._refiner: Refiner | None = None
        self._switch: AdapterSwitch | None = None

    @classmethod
    def of(cls, pipeline: ACEPipeline, sha256: str, name: str = "") -> AceFamily:
        """A pipeline that is in memory and in no folder. sha256: of its weights and settings."""
        config, geometry = pipeline.config, pipeline.geometry
        files = ModelFiles(
            name, Path(), config.budget, geometry.cell_px, config.num_inference_steps, config.guidance_scale
        )
        return cls(files, pipeline, sha256)

    @property
    def name(self) -> str:
        """The model as recipes name it."""
        return self.model.name

    @property
    def sha256(self) -> str:
        """Hash of the model's files."""
        return self._sha256 or self.model.sha256

    @cached_property
    def traits(self) -> Traits:
        """What it can do."""
        return Traits(
            vocabulary=self.model.vocabulary,
            options=frozenset({"negative_instruction", "guidance_rescale"}),
            loading=frozenset({"adapters", "fast", "compile", "refine", "refine_strength"}),
            switches_adapters=True,
        )

    @property
    def pipeline(self) -> ACEPipeline:
        """The loaded pipeline."""
        assert self._pipeline is not None, "load() comes first"
        return self._pipeline

    def open(self, job: Job) -> Job:
        """Check the size asked for. Raises ConfigError."""
        if job.settings.size is not None:
            self.model.check_size(job.settings.size)
        return job

    def load(
        self,
        loading: Loading,
        on_note: OnNote = lambda line: None,
        on_loaded: OnLoaded = lambda done, total: None,
    ) -> None:
        """Bring the weights into memory. Raises ConfigError or CheckpointError."""
        from ace.weights.sources import choose_memory, load_pipeline

        adapters = [AdapterChoice.parse(text) for text in loading.adapters]
        mode = loading.memory if loading.like is None else _memory_of(loading.like)
        memory = choose_memory(self.model, device=loading.device, dtype=loading.dtype, memory=mode)
        if not memory.plain:
            on_note(f"memory: {memory}")
        if loading.refine is not None:
            self._refiner = _load_refiner(loading)
        self._pipeline = load_pipeline(
            self.model, device=loading.device, dtype=loading.dtype, memory=memory, adapters=adapters
        )
        if loading.compile:
            from ace.inference.accelerate import compile_blocks

            compile_blocks(self.pipeline.transformer)
        if loading.like is not None:
            from ace.inference.accelerate import fast_again

            self.pipeline.fast = fast_again(str(loading.like.settings.get("fast", "")))
        elif loading.fast is not None:
            from ace.inference.accelerate import fast_by_name
            from ace.inference.fast_error import known_error

            self.pipeline.fast = fast_by_name(loading.fast)
            error = known_error(self.pipeline, self.sha256, cache_folder() / "fast")
            on_note(f"--fast {loading.fast} is approximate: {error.line()}")

    def prepare(self, jobs: Sequence[Job]) -> list[Running[RequestState]]:
        """Encode texts and images and draw each one's noise, with the adapters of these jobs. Raises InputError."""
        from ace.diffusion import seeded_generator  # torch, only when a model runs
        from ace.inference.pipeline import Request

        if self._switch is None and jobs[0].settings.adapters:
            self._switch = AdapterSwitch(self.pipeline)
        if self._switch is not None:
            self._switch.use([AdapterChoice(path, weight) for path, weight in jobs[0].settings.adapters])
        states = self.pipeline.prepare(
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
        return [Running(job, state) for job, state in zip(jobs, states, strict=True)]

    def step(self, states: Sequence[Running[RequestState]]) -> None:
        """One denoising step of every state, in one packed pass."""
        self.pipeline.step([running.state for running in states])

    def preview(self, state: Running[RequestState]) -> Image.Image:
        """The clean image that the last step predicted."""
        return self.pipeline.preview(state.state, exact=self.model.budget <= EXACT_PREVIEW_BUDGET)

    def finish(self, states: Sequence[Running[RequestState]]) -> list[Answer]:
        """The model's own images: in the edited image's aspect, or with a mask as the model sees it."""
        own = [
            replace(running.state, request=replace(running.state.request, size=running.state.inputs.size))
            if running.job.mask is not None or running.job.delivers
            else running.state
            for running in states
        ]
        images = self.pipeline.decode(own, preserve=False)
        if self._refiner is not None:
            images = [
                self._refiner.refine(image, job.instruction, job.settings.seed, edited=job.source is not None)
                for job, image in zip([running.job for running in states], images, strict=True)
            ]
        return [self._answer(running, image) for running, image in zip(states, images, strict=True)]

    def cost(self, job: Job) -> Cost:
        """From the sizes of its images; a text counts as long as it could be at most. Raises ImageError."""
        from ace.conditions.images import fit_size
        from ace.model.cost import step_cost, text_cost

        pipeline = self.pipeline
        geometry, sizes, frames = pipeline.geometry, pipeline.transformer.sizes, job.unit.frames()
        source, budget, cell = job.unit.source_index, geometry.budget, geometry.cell_px
        side = int(budget**0.5)
        edited = frames[source].image.size if source is not None else (side, side)
        enlarge = geometry.enlarge or source is None
        target = job.settings.size or fit_size(*edited, budget, cell, enlarge=enlarge)
        shown = [
            target if number == source else fit_size(*frame.image.size, budget, cell, enlarge=geometry.enlarge)
            for number, frame in enumerate(frames)
        ]
        tokens = [(width // cell) * (height // cell) for width, height in (target, *shown)]
        most = pipeline.config.max_text_tokens
        texts = [min(most, len(text.encode()) + 2) for text in (job.unit.instruction, *(f.instruction for f in frames))]
        scale = job.settings.guidance_scale
        branches = 2 if (pipeline.config.guidance_scale if scale is None else scale) > 1 else 1
        numbers = sizes.hidden_size * (WORKING_WIDTHS * sum(tokens) + 2 * sizes.depth * sum(texts))
        return Cost(
            image_tokens=sum(tokens[1:]),
            text_tokens=sum(texts),
            target_tokens=tokens[0],
            num_steps=job.settings.num_inference_steps or pipeline.config.num_inference_steps,
            start_operations=branches * text_cost(sizes, texts),
            step_operations=branches * step_cost(sizes, tokens, texts).total,
            num_bytes=branches * numbers * pipeline.transformer.dtype.itemsize,
        )

    def working_px(self, job: Job) -> int:
        """All cells of its budget."""
        return self.model.budget * self.model.cell_px**2

    def most_together(self, job: Job) -> int:
        """As many as keep one pass to a sensible size."""
        return max(1, PACKED_CELLS // self.model.budget)

    def describe(self) -> dict[str, Any]:
        """The model's size, steps, guidance and adapters."""
        fixed = self._switch.fixed if self._switch else self._pipeline.adapters if self._pipeline else ""
        about = {model.name: model.description for model in known_models()}.get(self.name)
        return {
            "family": self.kind,
            "name": self.name,
            **({} if about is None else {"about": about}),
            "size": f"{self.model.side_px}x{self.model.side_px}",
            "size_step_px": self.model.cell_px,
            "steps": self.model.num_inference_steps,
            "guidance": self.model.guidance_scale,
            "adapters": json.loads(fixed or "[]"),
        }

    def _answer(self, running: Running[RequestState], image: Image.Image) -> Answer:
        pipeline, state = self.pipeline, running.state
        goes_on = not pipeline.published and self._refiner is None
        return Answer(
            content=image,
            size_px=state.inputs.size,
            num_steps=state.num_steps,
            guidance_scale=state.guidance_scale,
            guidance_rescale=state.guidance_rescale,
            settings=self._how_it_ran(state.inputs.size),
            latents=pipeline.turn(state, image).latents if goes_on else None,
            device=pipeline._execution_device.type,
            dtype=str(pipeline.transformer.dtype).removeprefix("torch."),
            notes=(*pipeline.unread_words(state.request), *pipeline.adapter_notes),
            round_trip=pipeline.round_trip(state) if running.job.delivers else None,
        )

    def _how_it_ran(self, size: tuple[int, int]) -> dict[str, Setting]:
        """What a recipe says of the model beside its weights, where that changes the image."""
        from ace.inference.latents import tile_px

        pipeline = self.pipeline
        settings: dict[str, Setting] = {
            "adapters": pipeline.adapters,
            "fast": pipeline.fast.name if pipeline.fast else "",
            "quantize_text": pipeline.text_quantization,
            "tile_px": tile_px(pipeline.vae, size),
            "refine": "" if self._refiner is None else self._refiner.describe(),
        }
        return {name: value for name, value in settings.items() if value}


def _memory_of(recipe: Recipe) -> str:
    """The memory mode that loads weights as a recipe says; all exact modes give the same result."""
    if recipe.settings.get("quantize_text"):
        return "8bit"
    return "lean" if recipe.settings.get("tile_px") else "auto"


def _load_refiner(loading: Loading) -> Refiner:
    from ace.inference.refine import RefineSettings, load_refiner
    from ace.model.devices import find_device

    strength = loading.refine_strength
    settings = RefineSettings() if strength is None else RefineSettings(strength=strength)
    return load_refiner(str(loading.refine), find_device(loading.device), settings)
