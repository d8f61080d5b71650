"""`ACEPlusPipeline`: ACE++ on diffusers' FLUX classes, as a diffusers pipeline.

Sampling is a list of named steps, `prepare → step → … → decode`, over per-request state. The components carry
FluxFillPipeline's names, so that a folder of FLUX.1-Fill-dev is a folder of this pipeline. Requests whose canvases have
one size take their steps together on a GPU, up to `BATCH_CELLS` tokens; an `exact` pipeline (default on CPUs) takes
them one by one, so that neighbours change no bit of a result.

Notable choices: the number of input channels says which model it is (384: FLUX.1-Fill with or without an adapter, 448:
ACE++ FFT with change channels); the canvas keeps the target where it was and the result has the input's own size;
outside a mask every pixel stays (`preserve.py`); latents are the posterior's mean, noise is the request's own.

Not here: files and names of models (`plus/sources.py`), weights (`plus/weights.py`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput, is_peft_available
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from ace.conditions.images import OpenedImage, normalise_image, prepare_image
from ace.conditions.masks import normalise_mask
from ace.diffusion import sample_noise, seeded_generator
from ace.errors import CheckpointError, ConditionError, ConfigError, MissingDependencyError
from ace.extras import install_command
from ace.inference.latents import check_finite
from ace.inference.preserve import paste_back
from ace.model.text import unread_part
from ace.plus.canvas import CELL_PX, Canvas, Reference, arrange, name_places, prepare_published
from ace.plus.inputs import (
    LATENT_CHANNELS,
    LATENT_PX,
    condition_tokens,
    pack,
    position_ids,
    shift_mu,
    unpack,
)
from ace.plus.layouts import FFT_CHANNELS, LORA_CHANNELS, FluxAdapter
from ace.plus.memory import MappedWeights

BATCH_CELLS = 16384  # tokens of the canvases in one pass: four of the default budget

# What the published text encoders know as one token each: rows of T5's table beyond its vocabulary.
LORA_WORDS = ("{image}",)
FFT_WORDS = ("<img>", "{image}", "{caption}", "{mask}", "{ref_image}", *(f"{{image{n}}}" for n in range(1, 10)))


@dataclass(frozen=True)
class PlusRequest:
    """One picture to make.

    image: the picture to edit (RGB, or as `open_image` opened it), None = a new one of `size` (width, height) px.
    mask: "L" of its size, white = change. references: see `Reference`. repainting_scale: how much of the old picture
    is hidden inside the mask, 1 = all. None = the pipeline's own value. generator: of this picture; None = a random
    one."""

    instruction: str
    image: Image.Image | OpenedImage | None = None
    mask: Image.Image | None = None
    references: tuple[Reference, ...] = ()
    size: tuple[int, int] = (1024, 1024)
    repainting_scale: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    max_seq_length: int | None = None
    generator: torch.Generator | None = None


@dataclass
class PlusState:
    """A request on its way. condition: (T, C) beside the noise; text: (L, D); pooled: (P,); latents: (16, h, w) float32
    at the current step."""

    request: PlusRequest
    source: OpenedImage | None
    canvas: Canvas
    condition: Tensor = field(repr=False)
    text: Tensor = field(repr=False)
    pooled: Tensor = field(repr=False)
    scheduler: SchedulerMixin
    guidance_scale: float
    latents: Tensor = field(repr=False)
    step_index: int = 0

    @property
    def num_steps(self) -> int:
        """Network evaluations of this request."""
        return len(self.scheduler.timesteps)

    @property
    def done(self) -> bool:
        """True when there is nothing left but decoding."""
        return self.step_index >= self.num_steps


@dataclass
class ACEPlusPipelineOutput(BaseOutput):
    """images: one picture per request, at the edited picture's size. canvases: the whole canvases as the model made
    them."""

    images: list[Image.Image]
    canvases: list[Image.Image] = field(default_factory=list)


class ACEPlusPipeline(DiffusionPipeline, FluxLoraLoaderMixin):
    """Create and edit pictures with FLUX.1-Fill, an ACE++ LoRA on it, or ACE++ FFT.

    scheduler … transformer: as in diffusers' FluxFillPipeline. max_seq_length: cells of 16 px of the whole canvas.
    max_text_tokens: of T5. num_inference_steps, guidance_scale, repainting_scale: defaults of this model. published:
    the original's canvas and margin instead of ours; one reference, on the left. Raises CheckpointError for a
    transformer with another number of input channels than 384 or 448."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->vae->transformer->vae"
    _lora_loadable_modules = ["transformer"]

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: T5TokenizerFast,
        transformer: FluxTransformer2DModel,
        max_seq_length: int = 4096,
        max_text_tokens: int = 512,
        num_inference_steps: int = 28,
        guidance_scale: float = 50.0,
        repainting_scale: float = 1.0,
        published: bool = False,
    ) -> None:
        super().__init__()
        channels = transformer.config.in_channels
        if channels not in (LORA_CHANNELS, FFT_CHANNELS):
            raise CheckpointError(
                f"this transformer has {channels} input channels: ACE++ needs FLUX.1-Fill-dev ({LORA_CHANNELS}) "
                f"or ACE++ FFT ({FFT_CHANNELS})"
            )
        self.register_modules(
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            transformer=transformer,
        )
        self.register_to_config(
            max_seq_length=max_seq_length,
            max_text_tokens=max_text_tokens,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            repainting_scale=repainting_scale,
        )
        self.published = published
        self._exact: bool | None = None
        self.quantization = self.text_quantization = ""  # of what it was loaded with, for recipes
        self.mapped: MappedWeights | None = None  # where its weights are, as long as it lives, if not in memory
        words = FFT_WORDS if self.has_change_channels else LORA_WORDS
        tokenizer_2.add_tokens(list(words), special_tokens=True)
        if len(tokenizer_2) > text_encoder_2.config.vocab_size:
            raise CheckpointError("the T5 tokenizer has more words than its encoder: use FLUX.1-Fill-dev's own pair")

    @property
    def exact(self) -> bool:
        """Whether every request has passes of its own, so that neighbours change no bit of it; default: on CPUs."""
        return self._execution_device.type == "cpu" if self._exact is None else self._exact

    @exact.setter
    def exact(self, exact: bool | None) -> None:
        self._exact = exact

    @property
    def has_change_channels(self) -> bool:
        """Whether this is an FFT model, which sees what the mask hides in channels of its own."""
        return self.transformer.config.in_channels == FFT_CHANNELS

    @torch.no_grad()
    def __call__(
        self,
        instruction: str | None = None,
        image: Image.Image | OpenedImage | None = None,
        mask: Image.Image | None = None,
        references: Sequence[Reference | Image.Image] = (),
        *,
        requests: Sequence[PlusRequest] | None = None,
        size: tuple[int, int] = (1024, 1024),
        repainting_scale: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        max_seq_length: int | None = None,
        generator: torch.Generator | None = None,
        preserve: bool = True,
        callback_on_step_end: Callable[[ACEPlusPipeline, int, PlusState], None] | None = None,
    ) -> ACEPlusPipelineOutput:
        """Make pictures: either an instruction with its picture, mask and references, or a list of `PlusRequest`s.

        A reference given as a bare picture stands on the left, at the full height. preserve: with a mask, keep every
        pixel outside it exactly. callback_on_step_end: called with the pipeline, the steps done and the state, which it
        may read. Raises ConditionError if neither or both are given, and what `arrange` raises."""
        if (instruction is None) == (requests is None):
            raise ConditionError("give either an instruction or a list of requests")
        if requests is None:
            placed = tuple(r if isinstance(r, Reference) else Reference(r) for r in references)
            requests = [
                PlusRequest(
                    instruction or "",
                    image,
                    mask,
                    placed,
                    size,
                    repainting_scale,
                    num_inference_steps,
                    guidance_scale,
                    max_seq_length,
                    generator,
                )
            ]
        states = self.prepare(requests)
        images, canvases = [], []
        with self.progress_bar(total=sum(state.num_steps for state in states)) as bar:
            while running := [state for state in states if not state.done]:
                self.step(*running)
                bar.update(len(running))
                if callback_on_step_end is not None:
                    for state in running:
                        callback_on_step_end(self, state.step_index, state)
            for state in states:
                canvases.append(self.decode_canvas(state))
                images.append(self.finish(state, canvases[-1], preserve))
        self.maybe_free_model_hooks()
        return ACEPlusPipelineOutput(images, canvases)

    @torch.no_grad()
    def prepare(self, requests: Sequence[PlusRequest]) -> list[PlusState]:
        """Lay out and encode the canvases and texts of all requests and draw each one's noise."""
        layouts = [self.lay_out(request) for request in requests]  # all checks before anything is encoded
        texts = [
            self.encode_instruction(name_places(r.instruction, r.references, r.image is not None)) for r in requests
        ]
        states = []
        for request, (source, canvas), (text, pooled) in zip(requests, layouts, texts, strict=True):
            pictures = [canvas.content] if canvas.change is None else [canvas.content, canvas.change]
            latents = [self._encode(torch.from_numpy(picture)) for picture in pictures]
            mask = torch.from_numpy(canvas.mask).to(self._execution_device)
            condition = condition_tokens(latents[0], mask, latents[1] if len(latents) == 2 else None)
            scheduler = copy.deepcopy(self.scheduler)
            steps = self._or_default(request.num_inference_steps, "num_inference_steps")
            if steps < 1:
                raise ConfigError(f"{steps} steps: use at least 1")
            sigmas = np.linspace(1.0, 1.0 / steps, steps).tolist()
            # a scheduler without dynamic shifting (a distilled model's) has its own fixed one
            mu = shift_mu(canvas.num_cells) if scheduler.config.use_dynamic_shifting else None
            scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=self._execution_device)
            width, height = canvas.size
            states.append(
                PlusState(
                    request=request,
                    source=source,
                    canvas=canvas,
                    condition=condition,
                    text=text,
                    pooled=pooled,
                    scheduler=scheduler,
                    guidance_scale=self._or_default(request.guidance_scale, "guidance_scale"),
                    latents=self._noise((LATENT_CHANNELS, height // LATENT_PX, width // LATENT_PX), request.generator),
                )
            )
        return states

    @torch.no_grad()
    def step(self, *states: PlusState) -> None:
        """One denoising step of each state, in whatever mixture; latents change in place. Canvases of one size go
        through the network together unless the pipeline is `exact`. Raises ConfigError if a state is already done."""
        if any(state.done for state in states):
            raise ConfigError("a finished request cannot be stepped: decode it")
        sizes: dict[torch.Size, list[PlusState]] = {}
        for state in states:
            sizes.setdefault(state.latents.shape, []).append(state)
        for alike in sizes.values():
            count = 1 if self.exact else max(1, BATCH_CELLS // alike[0].canvas.num_cells)
            for first in range(0, len(alike), count):
                self._step_together(alike[first : first + count])

    def _step_together(self, states: Sequence[PlusState]) -> None:
        """The same for N states whose canvases have one size."""
        device, dtype = self._execution_device, self.transformer.dtype
        timesteps = [state.scheduler.timesteps[state.step_index] for state in states]
        _, height, width = states[0].latents.shape
        tokens = torch.stack([torch.cat([pack(s.latents), s.condition], dim=1) for s in states])  # (N, T, 384 or 448)
        text = torch.stack([state.text for state in states])  # (N, L, D)
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.tensor([state.guidance_scale for state in states], device=device, dtype=torch.float32)
        velocities = self.transformer(
            tokens.to(dtype),
            encoder_hidden_states=text.to(dtype),
            pooled_projections=torch.stack([state.pooled for state in states]).to(dtype),
            timestep=torch.stack(timesteps) / 1000,
            guidance=guidance,
            img_ids=position_ids(height, width, device),
            txt_ids=torch.zeros(text.shape[1], 3, device=device),
            return_dict=False,
        )[0]  # (N, T, 64)
        for state, timestep, velocity in zip(states, timesteps, velocities, strict=True):
            velocity = unpack(velocity.float(), height, width)
            state.latents = state.scheduler.step(velocity, timestep, state.latents, return_dict=False)[0]  # type: ignore[arg-type]
            state.step_index += 1

    def lay_out(self, request: PlusRequest) -> tuple[OpenedImage | None, Canvas]:
        """The picture to edit as it came in, and the canvas; no weights are used. Raises what `arrange` raises."""
        if not request.instruction.strip() and not request.references:
            raise ConditionError("the instruction is empty: say what to create or change")
        source = request.image
        if source is not None and not isinstance(source, OpenedImage):
            source = normalise_image(source)
        mask = request.mask
        if mask is not None and source is not None:
            mask = normalise_mask(mask, source)
        edit = None if source is None else source.image
        scale = self._or_default(request.repainting_scale, "repainting_scale")
        budget = self._or_default(request.max_seq_length, "max_seq_length")
        if not self.published:
            canvas = arrange(
                edit,
                mask,
                [_upright(reference) for reference in request.references],
                size=request.size,
                repainting_scale=scale,
                use_change=self.has_change_channels,
                max_seq_length=budget,
            )
            return source, canvas
        if len(request.references) > 1 or any(r.place != "left" for r in request.references):
            raise ConfigError("the published canvas takes one reference, on the left: leave `published` off")
        reference = _upright(request.references[0]) if request.references else None
        canvas = prepare_published(
            None if reference is None else reference.image,
            edit,
            mask,
            size=request.size,
            repainting_scale=scale,
            keep_pixels=reference is not None and reference.fit == "keep",
            keep_pixels_rate=0.8 if reference is None else reference.rate,
            use_change=self.has_change_channels,
            max_seq_length=budget,
        )
        return source, canvas

    @torch.no_grad()
    def encode_instruction(self, text: str) -> tuple[Tensor, Tensor]:
        """T5's features (max_text_tokens, D), padding included as published, and CLIP's pooled ones (P,)."""
        device = self._execution_device
        words = self.tokenizer_2(
            text, padding="max_length", max_length=self.config.max_text_tokens, truncation=True, return_tensors="pt"
        )
        features = self.text_encoder_2(words.input_ids.to(device)).last_hidden_state[0]
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        words = self.tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        pooled = self.text_encoder(words.input_ids.to(device)).pooler_output[0]
        return features.to(device), pooled.to(device)

    def unread_words(self, text: str) -> tuple[str, ...]:
        """What of an instruction T5 does not read, a line; nothing where all of it fits."""
        most = self.config.max_text_tokens
        unread = unread_part(text, self.tokenizer_2, most, clean=False)
        return (f"the instruction: only its first {most} tokens are read, not {unread!r}",) if unread else ()

    @torch.no_grad()
    def decode_canvas(self, state: PlusState) -> Image.Image:
        """The whole canvas of a state's latents, finished or not."""
        check_finite(state.latents)
        return self._decode(state.latents)

    @torch.no_grad()
    def round_trip(self, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """An RGB picture encoded and decoded at (width, height): what an answer is where nothing is edited."""
        width, height = (max(CELL_PX, side // CELL_PX * CELL_PX) for side in size)
        trip = self._decode(self._encode(torch.from_numpy(prepare_image(picture, (width, height)))))
        return trip if trip.size == tuple(size) else trip.resize(size, Image.Resampling.BICUBIC)

    def _decode(self, latents: Tensor) -> Image.Image:
        """Scaled latents (16, h, w) as a picture."""
        config = self.vae.config
        latents = latents / config.scaling_factor + (config.shift_factor or 0.0)
        picture = self.vae.decode(latents[None].to(self._execution_device, self.vae.dtype)).sample[0]
        check_finite(picture)
        levels = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())

    def finish(self, state: PlusState, canvas: Image.Image, preserve: bool = True) -> Image.Image:
        """The answer out of a generated canvas; with a mask and `preserve`, the edited picture changed inside it
        only, at its own size, with its alpha and colour profile."""
        answer = state.canvas.cut(canvas)
        if not preserve or state.source is None or state.request.mask is None:
            return answer
        return paste_back(state.source, answer, normalise_mask(state.request.mask, state.source))

    def attach(self, adapter: FluxAdapter, strength: float = 1.0) -> str:
        """Attach an adapter beside the weights (peft), to switch or weigh it later; returns the name it has in
        `set_adapters`. For one that stays, merging at load time needs no peft and no extra time per step.

        Raises MissingDependencyError without peft, CheckpointError for an adapter that has more than pairs."""
        if not is_peft_available():
            raise MissingDependencyError(f"attaching an adapter needs peft: {install_command('train')}, or merge it")
        name = adapter.name.rsplit(".", 1)[0].replace(".", "_").replace(" ", "_") or "adapter"
        known = set(getattr(self.transformer, "peft_config", {}))
        count = sum(1 for other in known if other == name or other.startswith(f"{name}_"))
        name = f"{name}_{count + 1}" if count else name
        weights = self._adapter_weights() | {name: strength}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several at once are meant
            self.transformer.load_lora_adapter(adapter.peft_state(), prefix=None, adapter_name=name)
        self.transformer.set_adapters(list(weights), list(weights.values()))
        self._strengths = weights
        return name

    def _adapter_weights(self) -> dict[str, float]:
        return dict(getattr(self, "_strengths", {}))

    def _encode(self, picture: Tensor) -> Tensor:
        """(3, H, W) in [-1, 1] → scaled latents (16, h, w), float32: the posterior's mean."""
        config = self.vae.config
        batch = picture[None].to(self._execution_device, self.vae.dtype)
        latents = self.vae.encode(batch).latent_dist.mode()[0].float()
        return (latents - (config.shift_factor or 0.0)) * config.scaling_factor

    def _noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        generator = generator or seeded_generator(int(torch.randint(2**31, ())))
        return sample_noise(shape, generator).to(self._execution_device, torch.float32)

    def _or_default(self, value, name: str):
        return getattr(self.config, name) if value is None else value


def _upright(reference: Reference) -> Reference:
    """The reference with its picture as intake gives it: upright 8-bit RGB."""
    return Reference(normalise_image(reference.image).image, reference.place, reference.fit, reference.rate)
