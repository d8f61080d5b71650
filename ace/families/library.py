"""Any image-editing pipeline of diffusers as a `Family`: a folder that it was saved to, or `hf://owner/name`.

The library owns the denoising loop, so its call runs in `Stepwise`; every request has its own copy of the pipeline with
its own scheduler, around the same weights. These models see no earlier rounds: a round edits the answer before it.
A mask goes to those that take one; for all others the image is made without it and pasted back inside it afterwards.

The edited image is scaled to the size that the model works at (its aspect, at most the model's own area), so that the
answer lies exactly over it. What its recipe records beside the request: `pipeline`, the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ace.conditions.units import MAX_IMAGES
from ace.conversation.family import Answer, Cost, Family, Loading, OnLoaded, OnNote, Traits
from ace.conversation.job import Job
from ace.errors import CheckpointError, ConfigError, ModelNotFoundError
from ace.families.folder import HUB, PipelineFolder, read_index
from ace.families.library_call import arguments, call_pipeline, decode_small, round_trip
from ace.families.signature import read_signature
from ace.families.stepwise import Stepwise
from ace.model.devices import find_device
from ace.model.sizes import BYTES

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

OURS = ("ACEPipeline", "ACEPlusPipeline", "FluxFillPipeline", "WanVACEPipeline")  # which have families of their own
_MEMORY_MODES = ("auto", "full", "offload", "lean")
_MAX_TEXT_TOKENS = 512
_WORKING_WIDTHS = 16  # arrays of the network's width that a token needs during a block


def is_library(name: str) -> bool:
    """Whether a model's name is a hub address or the folder of a diffusers pipeline that has no family of its own."""
    if name.startswith(HUB):
        return True
    folder = Path(name).expanduser()
    return (folder / "model_index.json").is_file() and read_index(folder)["_class_name"] not in OURS


def _width_of(settings: Any) -> int:
    """The width of a network's tokens, by its settings."""
    heads, size = settings.get("num_attention_heads"), settings.get("attention_head_dim")
    return heads * size if isinstance(heads, int) and isinstance(size, int) else 1280  # Stable Diffusion's


@dataclass(eq=False)
class LibraryState:
    """A request on its way. size: (width, height) in px the model works at; asked: what the pipeline is called with."""

    job: Job
    call: Stepwise
    size: tuple[int, int]
    asked: dict[str, Any]
    pipeline: DiffusionPipeline

    @property
    def step_index(self) -> int:
        """Steps done."""
        return self.call.num_steps

    @property
    def num_steps(self) -> int:
        """Steps in all; until the first one is done, as they were asked for."""
        if self.call.num_steps == 0:
            return self.asked["num_inference_steps"]
        return int(getattr(self.pipeline, "_num_timesteps", None) or len(self.pipeline.scheduler.timesteps))

    @property
    def done(self) -> bool:
        """True when only decoding is left."""
        return self.call.ended or 0 < self.num_steps <= self.step_index


class LibraryFamily(Family):
    """One pipeline of diffusers. download: whether what is not on this machine may be fetched from the hub."""

    kind = "diffusers"

    def __init__(self, name: str, *, download: bool = True) -> None:
        self.files = PipelineFolder(name, download=download)
        self._pipeline: DiffusionPipeline | None = None
        self._offloads = False
        class_name = self.files.index["_class_name"]
        if class_name in OURS:
            raise ModelNotFoundError(f"{name} holds a {class_name}: download it and name its folder")
        self.signature = read_signature(class_name)  # which refuses what edits no images

    @property
    def name(self) -> str:
        """The model as recipes name it: the address, or the folder's name."""
        return self.files.name

    @property
    def sha256(self) -> str:
        """Hash of the settings and of all parts, names and contents."""
        return self.files.sha256

    @cached_property
    def traits(self) -> Traits:
        """What it can do, by the signature of its class."""
        call = self.signature
        options = {"guidance_rescale"} if "guidance_rescale" in call else set()
        if "negative_prompt" in call and self._guidance is not None:
            options.add("negative_instruction")
        return Traits(
            sees_masks="mask_image" in call,
            max_images=MAX_IMAGES if call.several_images else 1,
            history=False,
            text_to_image=call.without_image,
            options=frozenset(options),
        )

    @property
    def pipeline(self) -> DiffusionPipeline:
        """The loaded pipeline."""
        assert self._pipeline is not None, "load() comes first"
        return self._pipeline

    def open(self, job: Job) -> Job:
        """Check size and guidance. Raises ConfigError."""
        settings = job.settings
        if settings.size is not None:
            self._check_size(settings.size)
        if self._guidance is None and settings.guidance_scale not in (None, 1.0):
            raise ConfigError(f"{self.name} takes no guidance scale: leave it out")
        return job

    def load(
        self,
        loading: Loading,
        on_note: OnNote = lambda line: None,
        on_loaded: OnLoaded = lambda done, total: None,
    ) -> None:
        """Bring the weights into memory, fetched first where they are not here: the licence is told before that.

        Raises InputError or CheckpointError."""
        if loading.memory not in _MEMORY_MODES:
            raise ConfigError(f"memory {loading.memory!r}: {self.name} takes {', '.join(_MEMORY_MODES)}")
        if loading.dtype not in ("auto", *BYTES):
            raise ConfigError(f"dtype {loading.dtype!r}: use one of auto, {', '.join(BYTES)}")
        device = find_device(loading.device)
        self.files.fetch(on_note)
        dtype = ("float32" if device == "cpu" else "bfloat16") if loading.dtype == "auto" else loading.dtype
        mode = self.files.place(loading.memory, device, dtype)
        import diffusers
        import torch
        from safetensors import SafetensorError

        try:
            pipeline = getattr(diffusers, self.signature.class_name).from_pretrained(
                self.files.folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise CheckpointError(f"the model {self.name} cannot be loaded ({reason}): fetch it again") from error
        pipeline.set_progress_bar_config(disable=True)
        self._offloads = mode != "full"
        if mode == "offload":
            pipeline.enable_model_cpu_offload(device=device)
        elif mode == "lean":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            pipeline.to(device)
        if self._offloads:
            on_note(f"memory: {mode}")
        self._pipeline = pipeline

    def prepare(self, jobs: Sequence[Job]) -> list[LibraryState]:
        """The calls, none of them begun. Raises InputError."""
        from copy import copy

        states = []
        for job in jobs:
            own = copy(self.pipeline)  # the same weights; a call keeps its state on the pipeline and its scheduler
            own.scheduler = type(own.scheduler).from_config(own.scheduler.config)
            own.maybe_free_model_hooks = lambda: None  # `finish` does, once no call is in the middle of its work
            size = self._working_size(job)
            asked = arguments(self.signature, job, size, self._own_size[0] ** 2, self._guidance)
            call = Stepwise(lambda on_step, own=own, asked=asked: call_pipeline(own, asked, on_step))
            states.append(LibraryState(job, call, size, asked, own))
        return states

    def step(self, states: Sequence[LibraryState]) -> None:
        """One step of every state, one after the other: the library's loops cannot be packed."""
        for state in states:
            self._on(state.call.step)

    def preview(self, state: LibraryState) -> Image.Image:
        """The latents as they are now, reduced and decoded; the edited image, or grey, where that is not cheap."""
        image = None if self._offloads else decode_small(self.pipeline, state.call.made, state.size)
        if image is not None:
            return image
        source = state.job.source
        shown = Image.new("RGB", state.size, (127, 127, 127)) if source is None else source.image.copy()
        shown.thumbnail((256, 256))
        return shown

    def finish(self, states: Sequence[LibraryState]) -> list[Answer]:
        """Decode the answers."""
        answers = []
        for state in states:
            image, asked = self._on(state.call.result), state.asked
            guidance = asked.get("true_cfg_scale", asked.get("guidance_scale", 1.0))
            answers.append(
                Answer(
                    content=image,
                    size_px=state.size,
                    num_steps=asked["num_inference_steps"],
                    guidance_scale=float(guidance),
                    guidance_rescale=float(asked.get("guidance_rescale", 0.0)),
                    settings={"pipeline": self.signature.class_name},
                    device=self.pipeline._execution_device.type,
                    dtype=str(self.pipeline.dtype).removeprefix("torch."),
                    round_trip=self._round_trip(state, image),
                )
            )
        self.pipeline.maybe_free_model_hooks()
        return answers

    def _round_trip(self, state: LibraryState, image: Image.Image) -> Image.Image | None:
        """The edited image through the autoencoder, where the answer is to be compared with it."""
        source = state.job.source
        if source is None or not state.job.delivers:
            return None
        return round_trip(state.pipeline, source.image, image.size)

    def cost(self, job: Job) -> Cost:
        """Roughly, for networks of any kind: two operations per weight and token, whatever its attention adds."""
        network = getattr(self.pipeline, "transformer", None) or self.pipeline.unet
        width = _width_of(network.config)
        size = self._working_size(job)
        target, most = (max(1, w * h // self._step_px**2) for w, h in (size, self._own_size))
        shown = sum(min(most, max(1, i.width * i.height // self._step_px**2)) for i in job.unit.current.images)
        texts = min(_MAX_TEXT_TOKENS, len(job.instruction.encode()) + 2)
        branches = 2 if job.settings.negative_instruction or self._guidance == "true_cfg_scale" else 1
        tokens = target + shown + texts
        weights = sum(parameter.numel() for parameter in network.parameters())
        return Cost(
            image_tokens=shown,
            text_tokens=texts,
            target_tokens=target,
            num_steps=job.settings.num_inference_steps or int(self.signature.number("num_inference_steps") or 50),
            start_operations=0,
            step_operations=branches * 2 * weights * tokens,
            num_bytes=tokens * width * _WORKING_WIDTHS * network.dtype.itemsize,
        )

    def working_px(self, job: Job) -> int:
        """The model's own area."""
        return self._own_size[0] * self._own_size[1]

    def most_together(self, job: Job) -> int:
        """One: nothing is gained by making several at a time."""
        return 1

    def describe(self) -> dict[str, Any]:
        """The pipeline's class, size and steps."""
        width, height = self._own_size
        return {
            "family": self.kind,
            "name": self.name,
            "pipeline": self.signature.class_name,
            "size": f"{width}x{height}",
            "size_step_px": self._step_px,
            "steps": int(self.signature.number("num_inference_steps") or 50),
            "guidance": self.signature.number(self._guidance) if self._guidance else 1.0,
        }

    @property
    def _guidance(self) -> str | None:
        """The parameter that is this model's guidance scale; None if it was distilled to do without."""
        if self.files.index.get("is_distilled") is True:
            return None
        for name in ("guidance_scale", "true_cfg_scale"):
            if self.signature.number(name) is not None:
                return name
        return None

    # Sizes

    @cached_property
    def _cell_px(self) -> int:
        """Side of the autoencoder's cells."""
        settings = self.files.settings_of("vae")
        levels = settings.get("block_out_channels")
        return 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else 8

    @property
    def _step_px(self) -> int:
        return 2 * self._cell_px

    @cached_property
    def _own_size(self) -> tuple[int, int]:
        cells = self.files.settings_of("unet").get("sample_size", 128)
        side = self._cell_px * (cells if isinstance(cells, int) else 128)
        return side, side

    def _check_size(self, size: tuple[int, int]) -> None:
        step, (width, height) = self._step_px, size
        if "height" not in self.signature:
            raise ConfigError(f"{self.name} does not take a size: leave it out")
        if min(size) < step or width % step or height % step:
            nearest = "x".join(str(max(1, round(side / step)) * step) for side in size)
            raise ConfigError(f"size {width}x{height} px: {self.name} works in steps of {step} px, use {nearest}")
        own = self._own_size[0]
        if width * height > 4 * own**2:
            raise ConfigError(f"size {width}x{height} px is far beyond what {self.name} was made for: {own}x{own}")

    def _working_size(self, job: Job) -> tuple[int, int]:
        """As asked, else the edited image's aspect on at most the model's own area."""
        if job.settings.size is not None or job.source is None:
            return job.settings.size or self._own_size
        (width, height), step, own = job.source.size, self._step_px, self._own_size[0]
        ratio = min(max(width / height, 0.125), 8.0) ** 0.5
        return max(step, int(own * ratio) // step * step), max(step, int(own / ratio) // step * step)

    def _on(self, work: Any) -> Any:
        """Run part of a call; what the library refuses is told in one line. Raises ConfigError."""
        try:
            return work()
        except (ValueError, TypeError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise ConfigError(f"{self.name} cannot make this ({reason}): ask for something else") from error
