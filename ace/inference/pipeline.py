"""`ACEPipeline`: requests in, pictures out, as a diffusers pipeline.

Sampling is a list of named steps over per-request state: `prepare → step → … → decode`. `step` takes any mixture of
requests, each at its own timestep, with its own sizes, images, history, guidance and number of steps. A request is
computed as if it were alone: its own generator, its own scheduler, its own statistics.

Matrix products round differently by the number of their rows. So an `exact` pipeline gives every request passes of its
own through the networks, one text, one picture, one request with its guidance branches at a time: whatever a network
does, no neighbour can change a bit. On CPUs that costs little and is the default; elsewhere all requests share one
packed pass, and a neighbour moves a result by rounding.

Not here: file handling, sessions, recipes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ace.conditions.images import aspect_size, normalise_image, prepare_mask
from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.diffusion import guide, sample_noise, seeded_generator
from ace.errors import ConditionError, ConfigError, ShapeError
from ace.inference.accelerate import Fast, continue_series, end_series, set_step_cache
from ace.inference.inputs import Geometry, Inputs, prepare_inputs
from ace.inference.latents import Autoencoder, LatentCache, check_finite, decode_latents, scale_factor
from ace.inference.pixels import Pixels
from ace.inference.preserve import paste_back
from ace.inference.previews import LatentColours, fit_colours, predicted_clean
from ace.inference.published import (
    PublishedUnit,
    cut_to_levels,
    guide_over_padding,
    lost_text_states,
    prepare_published_inputs,
    sample_posteriors,
)
from ace.model.frames import FrameCache, joined, num_tokens
from ace.model.lexicon import LexiconEncoder, LexiconTokenizer  # diffusers loads only what is imported already
from ace.model.text import encode_texts, unread_part
from ace.model.tokens import (
    ConditionPatches,
    Layout,
    RequestFrames,
    condition_patches,
    make_layout,
    pack_latents,
    unpack_latents,
)
from ace.model.transformer import ACETransformer, FrameKeysValues, TextKeysValues


@dataclass(frozen=True)
class Request:
    """One picture to make.

    unit: what is asked, with its history (`PublishedUnit`: for published pipelines only). negative_instruction: what
    guidance leads away from. num_inference_steps, guidance_scale, guidance_rescale: None = the model's own defaults.
    size: (width, height) in px, whole cells, or None. generator: of this picture alone; None = a random one."""

    unit: LongContextConditionUnit | PublishedUnit
    negative_instruction: str = ""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    size: tuple[int, int] | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Branch:
    """One guidance branch of a request: its frames as the model sees them, its text keys and values, and with
    `frames_once` those of its image frames, which are then no frames of the request any more."""

    frames: RequestFrames
    patches: ConditionPatches
    text: TextKeysValues
    before: FrameKeysValues | None = None


@dataclass
class RequestState:
    """A request on its way: everything fixed, and the latents at the current step.

    latents: (C, h, w) float32. denoised: the clean latents predicted by the last step, None before the first.
    branches: the conditional one and, with guidance, the unconditional one. fast: the approximation that was asked for
    (`accelerate.py`). num_runs: branches that the network has computed so far. number: unlike any other request's.
    packed: what its own passes read, once it has had one."""

    request: Request
    inputs: Inputs
    branches: tuple[Branch, ...]
    scheduler: SchedulerMixin
    guidance_scale: float
    guidance_rescale: float
    latents: Tensor
    step_index: int = 0
    denoised: Tensor | None = None
    fast: Fast | None = None
    num_runs: int = 0
    number: int = field(default_factory=itertools.count().__next__)
    packed: _Packed | None = field(default=None, repr=False)

    @property
    def num_steps(self) -> int:
        """Denoising steps of this request."""
        return len(self.scheduler.timesteps)

    @property
    def active_branches(self) -> tuple[Branch, ...]:
        """The branches that the next step computes."""
        guided = self.fast is None or self.fast.guides(self.step_index, self.num_steps)
        return self.branches if guided else self.branches[:1]

    @property
    def series(self) -> str:
        """The name of its predictions in a step cache; with another number of branches they are another series."""
        return f"request {self.number}, {len(self.active_branches)} branches"

    @property
    def done(self) -> bool:
        """True when there is nothing left but decoding."""
        return self.step_index >= self.num_steps


@dataclass
class ACEPipelineOutput(BaseOutput):
    """images: one picture per request (RGB). latents: (C, h, w) each, as sampled. num_dropped_rounds: rounds left out,
    each. turns: each request as a finished round with its picture's latents, to put into the next request's history."""

    images: list[Image.Image]
    latents: list[Tensor] = field(default_factory=list)
    num_dropped_rounds: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)


@dataclass(frozen=True)
class _Packed:
    """A mixture of requests, packed: made once and used while the same requests are stepped together."""

    branches: tuple[tuple[Branch, ...], ...]
    layout: Layout
    patches: tuple[ConditionPatches, ...]
    owners: tuple[int, ...]  # of every entry of patches: the number of its request
    text: TextKeysValues
    before: FrameKeysValues | None


class ACEPipeline(DiffusionPipeline):
    """Create and edit images from instructions.

    transformer, vae, text_encoder, tokenizer, scheduler: the model; the scheduler may be any of diffusers' on the same
    betas. budget: cells of one picture. enlarge, mask_by_area: see `Geometry`. max_text_tokens, spell_quoted: see
    `model/text.py`. num_inference_steps, guidance_scale, guidance_rescale: defaults of this model. published: reproduce
    the original with its bugs (`published.py`); not part of the saved configuration. Its attention of float32 models in
    float16 can be turned off alone: `pipeline.float16_attention = False`."""

    model_cpu_offload_seq = "text_encoder->vae->transformer->vae"

    def __init__(
        self,
        transformer: ACETransformer,
        vae: Autoencoder,
        text_encoder: PreTrainedModel | LexiconEncoder,
        tokenizer: PreTrainedTokenizerBase | LexiconTokenizer,
        scheduler: SchedulerMixin,
        budget: int = 1024,
        enlarge: bool = False,
        mask_by_area: bool = False,
        max_text_tokens: int = 120,
        spell_quoted: bool = False,
        num_inference_steps: int = 20,
        guidance_scale: float = 4.5,
        guidance_rescale: float = 0.5,
        published: bool = False,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.register_to_config(
            budget=budget,
            enlarge=enlarge,
            mask_by_area=mask_by_area,
            max_text_tokens=max_text_tokens,
            spell_quoted=spell_quoted,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
        )
        self.published = published
        self.float16_attention = published
        self.adapters = ""  # what `attach_adapters` stacked, for recipes
        self.adapter_notes: tuple[str, ...] = ()  # what of their files was left out
        self.text_quantization = ""  # "int8" if the text encoder has 8-bit weights, for recipes
        self._fast: Fast | None = None
        self._exact: bool | None = None
        self.latent_cache = LatentCache()
        self.frame_cache = FrameCache()
        self._packed: _Packed | None = None
        self._colours: tuple[Autoencoder, LatentColours] | None = None

    @property
    def fast(self) -> Fast | None:
        """Approximate sampling of what is prepared from now on; None = exact."""
        return self._fast

    @fast.setter
    def fast(self, fast: Fast | None) -> None:
        if fast != self._fast:
            set_step_cache(self.transformer, fast)
            self._fast = fast

    @property
    def exact(self) -> bool:
        """Whether every request has passes of its own, so that neighbours change no bit of it; default: on CPUs."""
        return self._execution_device.type == "cpu" if self._exact is None else self._exact

    @exact.setter
    def exact(self, exact: bool | None) -> None:
        self._exact = exact

    @property
    def geometry(self) -> Geometry:
        """How this model reads pictures."""
        factor = scale_factor(self.vae)
        config = self.config
        return Geometry(
            config.budget, factor * self.transformer.config.patch_size, factor, config.enlarge, config.mask_by_area
        )

    @torch.no_grad()
    def __call__(
        self,
        instruction: str | Sequence[str] | None = None,
        image: Image.Image | Sequence[Image.Image] | None = None,
        mask: Image.Image | Sequence[Image.Image | None] | None = None,
        history: Sequence[Turn] = (),
        *,
        requests: Sequence[Request] | None = None,
        negative_instruction: str = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        size: tuple[int, int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        preserve: bool = True,
        callback_on_step_end: Callable[[ACEPipeline, int, Sequence[RequestState]], None] | None = None,
    ) -> ACEPipelineOutput:
        """Make pictures.

        Either an instruction with its images, masks and history (a list of instructions shares them; one picture each),
        or `requests`, a list of different `Request`s, in one packed pass. generator: one per picture, or one that
        several pictures draw from in turn. preserve: with a mask, keep every pixel outside it exactly, at the input's
        own resolution. callback_on_step_end: called with the pipeline, the number of steps done and the states, which
        it may read (`preview` shows them). Raises ConditionError if neither or both are given."""
        if (instruction is None) == (requests is None):
            raise ConditionError("give either an instruction or a list of requests")
        if requests is None:
            instructions = [instruction] if isinstance(instruction, str) else list(instruction or ())
            generators = [generator] * len(instructions) if not isinstance(generator, Sequence) else list(generator)
            if len(generators) != len(instructions):
                raise ConditionError(
                    f"{len(generators)} generators for {len(instructions)} instructions: give one each"
                )
            images = (image,) if isinstance(image, Image.Image) else tuple(image or ())
            masks = (mask,) if isinstance(mask, Image.Image) else tuple(mask or ())
            requests = [
                Request(
                    LongContextConditionUnit(ConditionUnit(text, images, masks), tuple(history)),
                    negative_instruction,
                    num_inference_steps,
                    guidance_scale,
                    guidance_rescale,
                    size,
                    own,
                )
                for text, own in zip(instructions, generators, strict=True)
            ]
        states = self.prepare(requests)
        with self.progress_bar(total=max(state.num_steps for state in states)) as bar:
            while running := [state for state in states if not state.done]:
                self.step(running)
                bar.update()
                if callback_on_step_end is not None:
                    callback_on_step_end(self, running[0].step_index, states)
        images = self.decode(states, preserve)
        self._packed = None
        self.maybe_free_model_hooks()
        return ACEPipelineOutput(
            images,
            [s.latents for s in states],
            [s.request.unit.num_dropped_rounds for s in states],
            [
                self.turn(state, image, preserve)
                for state, image in zip(states, images, strict=True)
                if isinstance(state.request.unit, LongContextConditionUnit)
            ],
        )

    @torch.no_grad()
    def prepare(self, requests: Sequence[Request]) -> list[RequestState]:
        """Encode texts and images of all requests and draw each one's noise; a request's neighbours change nothing."""
        if self.published:
            inputs = [prepare_published_inputs(r.unit, self.geometry, r.size) for r in requests]
        else:
            inputs = [prepare_inputs(_own_unit(r), self.geometry, r.size) for r in requests]
        scales = [self._or_default(r.guidance_scale, "guidance_scale") for r in requests]
        texts = self._text_states(requests, inputs, scales)
        prepared = []
        for request, own, scale, branches, images in zip(
            requests, inputs, scales, texts, self._frame_latents(inputs), strict=True
        ):
            scheduler = copy.deepcopy(self.scheduler) if self.fast is None else self.fast.scheduler(self.scheduler)
            steps = self._num_steps(request) if self.fast is None else self.fast.num_steps(self._num_steps(request))
            scheduler.set_timesteps(steps, device=self._execution_device)
            generator = request.generator or seeded_generator(int(torch.randint(2**31, ())))
            factor = self.geometry.latent_px
            shape = (self.transformer.config.latent_channels, own.size[1] // factor, own.size[0] // factor)
            noise = sample_noise(shape, generator).to(self._execution_device)
            prepared.append(
                RequestState(
                    request=request,
                    inputs=own,
                    branches=tuple(self._branch(own, images, branch) for branch in branches),
                    scheduler=scheduler,
                    guidance_scale=scale,
                    guidance_rescale=self._or_default(request.guidance_rescale, "guidance_rescale"),
                    latents=noise * getattr(scheduler, "init_noise_sigma", 1.0),  # flow schedulers have none
                    fast=self.fast,
                )
            )
        return prepared

    @torch.no_grad()
    def step(self, states: Sequence[RequestState]) -> None:
        """One denoising step of every state, whatever mixture they are; latents change in place.

        In one packed pass, or in one each: where the pipeline is `exact`, and with a step cache; the published
        guidance, which reads its neighbours, takes all of them. Raises ConfigError if a state is already done, or was
        prepared with another `fast` than the pipeline's."""
        if any(state.done for state in states):
            raise ConfigError("a finished request cannot be stepped: decode it")
        if any(state.fast != self.fast for state in states):
            raise ConfigError(
                "a request is stepped as it was prepared: set the pipeline's `fast` back, or prepare it again"
            )
        apart = self.transformer.is_cache_enabled or (self.exact and not self.published)
        passes = [[state] for state in states] if apart else [states]
        predictions = [prediction for own in passes for prediction in self._predict(own)]
        for state, prediction in zip(states, predictions, strict=True):
            timestep = state.scheduler.timesteps[state.step_index]
            state.denoised = predicted_clean(prediction, state.latents, timestep, state.scheduler)
            (latents, *_) = state.scheduler.step(prediction[None], timestep, state.latents[None], return_dict=False)
            state.latents = latents[0]
            series, state.step_index = state.series, state.step_index + 1
            if self.transformer.is_cache_enabled and (state.done or state.series != series):
                end_series(self.transformer, series)

    def _predict(self, states: Sequence[RequestState]) -> list[Tensor]:
        """The guided prediction of every state, (C, h, w), in one packed pass."""
        packed = self._pack(states)
        timesteps = [state.scheduler.timesteps[state.step_index] for state in states]
        noisy = [_scaled(state.scheduler, state.latents, t) for state, t in zip(states, timesteps, strict=True)]
        config = self.transformer.config
        noisy, timesteps = ([own[n] for n in packed.owners] for own in (noisy, timesteps))
        tokens = pack_latents(noisy, packed.patches, config.patch_size).to(self.transformer.dtype)

        def compute() -> Tensor:
            return self.transformer(
                tokens, torch.stack(timesteps), packed.layout, text_keys_values=packed.text, before=packed.before
            )

        predicted, computed = self._in_series(states, compute)
        for state in states:
            state.num_runs += len(state.active_branches) if computed else 0
        outputs = iter(unpack_latents(predicted.float(), packed.layout, config.patch_size, config.latent_channels))
        return self._guided(states, [[next(outputs) for _ in state.active_branches] for state in states])

    def _in_series(self, states: Sequence[RequestState], compute: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """What the transformer answers, continued from its earlier answers if a step cache says so; and whether not."""
        if not self.transformer.is_cache_enabled:
            return compute(), True
        (state,) = states
        return continue_series(self.transformer, state.series, compute, last=state.step_index == state.num_steps - 1)

    @torch.no_grad()
    def decode(self, states: Sequence[RequestState], preserve: bool = True) -> list[Image.Image]:
        """Pictures of the states' latents, finished or not.

        preserve: where the edited image has a mask, the result is that image, at its own resolution, changed inside the
        mask only; else the model's own picture, in the edited image's aspect."""
        for state in states:
            check_finite(state.latents)
        pictures = decode_latents(self.vae, [state.latents for state in states], self.exact)
        for picture in pictures:
            check_finite(picture)
        if self.published:
            return [cut_to_levels(picture) for picture in pictures]
        return [self._finish(state, picture, preserve) for state, picture in zip(states, pictures, strict=True)]

    @torch.no_grad()
    def round_trip(self, state: RequestState) -> Image.Image | None:
        """The edited image encoded and decoded, at the model's size: what an answer is where nothing is edited (see
        `ace/inference/detail.py`). None if nothing is edited."""
        if state.inputs.source is None:
            return None
        frames = state.branches[0].frames  # of some models the edited image is on channels, and no frame
        latents = frames.images[state.inputs.source] if frames.source is None else frames.source
        return _to_image(decode_latents(self.vae, [latents.to(state.latents)])[0])

    def unread_words(self, request: Request) -> tuple[str, ...]:
        """What of a request's texts the text encoder does not read, a line each; nothing where all of it fits.

        Only the newest instruction and the negative one count: earlier rounds said theirs."""
        unit, config = request.unit, self.config
        text = unit.instruction if isinstance(unit, LongContextConditionUnit) else unit.prompts[-1]
        texts = {"the instruction": text, "what to avoid": request.negative_instruction}
        return tuple(
            f"{what}: only its first {config.max_text_tokens} tokens are read, not {unread!r}"
            for what, words in texts.items()
            if (unread := unread_part(words, self.tokenizer, config.max_text_tokens, config.spell_quoted))
        )

    @torch.no_grad()
    def preview(self, state: RequestState, exact: bool = False) -> Image.Image:
        """What a state's picture is going to look like, at any step: small (4 px per latent cell) and cheap.

        exact: through the decoder, at the model's size; the last step's is then the picture itself before `decode`
        resizes it or puts it back where a mask kept the input. Before the first step it is the noise."""
        latents = state.latents if state.done or state.denoised is None else state.denoised
        if exact or isinstance(self.vae, Pixels):
            return _to_image(decode_latents(self.vae, [latents], self.exact)[0])
        if self._colours is None or self._colours[0] is not self.vae:
            self._colours = (self.vae, fit_colours(self.vae))
        return _to_image(self._colours[1].picture(latents))

    def turn(self, state: RequestState, answer: Image.Image, preserve: bool = True) -> Turn:
        """The finished round of a state and its picture from `decode`, with the latents to go on from.

        Where a mask kept the edited image, they are that image's latents; on the mask's edge a mixture by area. None
        with `published`, which encodes every picture again."""
        unit = state.request.unit
        if isinstance(unit, PublishedUnit):
            raise ConfigError("a PublishedUnit is no round of a conversation: use LongContextConditionUnit")
        latents, source = state.latents, state.inputs.source
        mask = None if source is None else unit.frames()[source].mask
        if self.published:
            return Turn(unit.current, answer)
        if preserve and mask is not None and source is not None:
            cells = F.avg_pool2d(torch.from_numpy(prepare_mask(mask, state.inputs.size)), self.geometry.latent_px)
            changed = cells.to(latents)
            kept = state.branches[0].frames.source
            assert kept is not None  # what is edited is shown on the target's channels, or could be
            latents = torch.lerp(kept.to(latents), latents, changed)
        return Turn(unit.current, answer, latents.cpu().numpy())

    def _finish(self, state: RequestState, picture: Tensor, preserve: bool) -> Image.Image:
        made = _to_image(picture)
        source = state.inputs.source
        if source is None:
            return made
        frame = state.request.unit.frames()[source]
        if preserve and frame.mask is not None:
            return paste_back(normalise_image(frame.image), made, frame.mask)
        if state.request.size is None:
            return made.resize(aspect_size(frame.image.size, made.size), Image.Resampling.BICUBIC)
        return made

    def _frame_latents(self, inputs: Sequence[Inputs]) -> list[tuple[Tensor, ...]]:
        """Latents of every request's frames: those that came with a turn, or are kept from before, or new ones."""
        if self.published:
            pictures = [torch.from_numpy(frame) for own in inputs for frame in own.frames]
            drawn = iter(sample_posteriors(self.vae, pictures))
            return [tuple(next(drawn) for _ in own.frames) for own in inputs]
        known = [latents for own in inputs for latents in own.frame_latents]
        channels = self.transformer.config.latent_channels
        for latents in known:
            if latents is not None and len(latents) != channels:
                raise ShapeError(
                    f"a turn's latents have {len(latents)} channels, this model {channels}: leave them out"
                )
        frames = [frame for own in inputs for frame in own.frames]
        unknown = [frame for frame, latents in zip(frames, known, strict=True) if latents is None]
        encoded = iter(self.latent_cache.encode(self.vae, unknown, self.exact))
        latents = iter([next(encoded) if own is None else own for own in known])
        return [tuple(next(latents) for _ in own.frames) for own in inputs]

    def _text_states(
        self, requests: Sequence[Request], inputs: Sequence[Inputs], scales: Sequence[float]
    ) -> list[tuple[tuple[Tensor, ...], ...]]:
        """Per request and guidance branch, the states of every segment; each distinct text is encoded once."""
        nulls = [
            tuple(request.negative_instruction if c else t for t, c in zip(own.texts, own.current, strict=True))
            for request, own in zip(requests, inputs, strict=True)
        ]
        branch_texts = [
            (own.texts, null) if scale > 1 else (own.texts,)
            for own, null, scale in zip(inputs, nulls, scales, strict=True)
        ]
        texts = [text for branches in branch_texts for branch in branches for text in branch]
        config = self.config
        encoded = encode_texts(
            texts, self.tokenizer, self.text_encoder, config.max_text_tokens, config.spell_quoted, alone=self.exact
        )
        states_of = {t: self._as_transformer(s) for t, s in zip(texts, encoded, strict=True)}
        states = [tuple(tuple(states_of[t] for t in branch) for branch in branches) for branches in branch_texts]
        if self.published:
            for number, (own, null, scale) in enumerate(zip(inputs, nulls, scales, strict=True)):
                if scale <= 1:
                    lost = lost_text_states(own.texts, null, self.tokenizer, self.text_encoder, config.max_text_tokens)
                    states[number] = (tuple(self._as_transformer(s) for s in lost),)
        return states

    def _guided(self, states: Sequence[RequestState], branches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """One prediction (C, h, w) per request from its one or two branches."""
        if self.published:
            return guide_over_padding(
                branches, [s.guidance_scale for s in states], [s.guidance_rescale for s in states]
            )
        return [
            guide(own[0][None], own[-1][None], state.guidance_scale, state.guidance_rescale)[0]
            for state, own in zip(states, branches, strict=True)
        ]

    def _as_transformer(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._execution_device, self.transformer.dtype)

    def _branch(self, inputs: Inputs, images: tuple[Tensor, ...], texts: tuple[Tensor, ...]) -> Branch:
        images = tuple(self._as_transformer(image) for image in images)
        sizes = self.transformer.sizes
        factor = self.geometry.latent_px
        frames = RequestFrames(
            size=(inputs.size[1] // factor, inputs.size[0] // factor),
            texts=texts,
            target_mask=inputs.target_mask,
            images=images,
            image_masks=inputs.frame_masks,
            source=None if inputs.source is None else images[inputs.source],
        )
        if inputs.source is not None and not sizes.source_as_frame:
            frames = frames.without_source(inputs.source)
        before = None
        if sizes.frames_once:
            before = self.frame_cache.encode(self.transformer, frames)
            frames = frames.alone()
        text = self.transformer.encode_text(torch.cat(frames.texts), self._layout([frames]))
        source_channels = sizes.latent_channels if sizes.source_on_channels else 0
        return Branch(frames, condition_patches(frames, sizes.patch_size, source_channels), text, before)

    def _layout(
        self, frames: Sequence[RequestFrames], repeats: Sequence[bool] = (), before: Sequence[int] = ()
    ) -> Layout:
        sizes = self.transformer.sizes
        layout = make_layout(
            frames, sizes.patch_size, sizes.head_dim, repeats, sizes.rotary, bool(sizes.memory_blocks), before
        ).to(self._execution_device)
        return layout.in_float16() if self.float16_attention else layout

    def _pack(self, states: Sequence[RequestState]) -> _Packed:
        active = tuple(state.active_branches for state in states)
        kept = states[0].packed if len(states) == 1 else self._packed
        if kept is not None and len(kept.branches) == len(active):
            pairs = [pair for own in zip(kept.branches, active, strict=True) for pair in itertools.zip_longest(*own)]
            if all(first is second for first, second in pairs):
                return kept
        branches = [branch for own in active for branch in own]
        shares = not self.transformer.sizes.pooled_text  # else branches differ from the first block on
        repeats = [number > 0 and shares for own in active for number in range(len(own))]
        before = [num_tokens(branch.before) for branch in branches]
        layout = self._layout([branch.frames for branch in branches], repeats, before)
        entering = [number for number, repeat in enumerate(repeats) if not repeat]
        owners = [number for number, own in enumerate(active) for _ in own]
        packed = _Packed(
            active,
            layout,
            tuple(branches[number].patches for number in entering),
            tuple(owners[number] for number in entering),
            TextKeysValues.joined([branch.text for branch in branches]),
            joined([branch.before for branch in branches]),
        )
        if len(states) == 1:
            states[0].packed = packed
        else:
            self._packed = packed
        return packed

    def _num_steps(self, request: Request) -> int:
        steps = request.num_inference_steps
        steps = self.config.num_inference_steps if steps is None else steps
        if not 1 <= steps <= self.scheduler.config.num_train_timesteps:
            raise ConfigError(f"{steps} steps: use 1 to {self.scheduler.config.num_train_timesteps}")
        return steps

    def _or_default(self, value: float | None, name: str) -> float:
        return float(self.config[name] if value is None else value)


def _to_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] → RGB, rounded."""
    levels = (picture.permute(1, 2, 0).cpu().numpy() + 1) * 127.5
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _scaled(scheduler: SchedulerMixin, latents: Tensor, timestep: Tensor) -> Tensor:
    """Latents as the network reads them; flow schedulers leave them as they are and have no word for it."""
    scale = getattr(scheduler, "scale_model_input", None)
    return latents if scale is None else scale(latents, timestep)


def _own_unit(request: Request) -> LongContextConditionUnit:
    if isinstance(request.unit, PublishedUnit):
        raise ConfigError("a PublishedUnit needs a pipeline made with published=True: use LongContextConditionUnit")
    return request.unit
