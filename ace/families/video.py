"""VACE on Wan 2.1 as a `Family`: clips from words, clips, masks and references (arXiv 2503.07598).

What is asked of a clip is a job's `clip`, opened by `ace.video.request`. A message of a conversation is understood too:
its photo is the first frame, its other images are references. A clip longer than one pass of the model is made in
windows, one after the other, each given the last frames of the one before; its steps are those of all windows.

What a recipe records beside the request: `clip`, its options; `pipeline`, the class; `adapters`; `tile_px` and
`quantize` where they change the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ace.conversation.family import Answer, Cost, Family, Loading, OnLoaded, OnNote, Traits
from ace.conversation.job import Job
from ace.conversation.media import CLIP
from ace.errors import CheckpointError, ConfigError, MissingDependencyError
from ace.families.folder import HUB, PipelineFolder, read_index
from ace.model.devices import find_device
from ace.model.sizes import BYTES
from ace.video import prepare
from ace.video.clips import Clip
from ace.video.made import Spool, paste_frames
from ace.video.request import ClipRequest, OpenedRequest, open_request
from ace.weights.adapters import AdapterChoice, describe, find_adapter

if TYPE_CHECKING:
    from ace.video.pipeline import VideoPipeline, VideoState
    from ace.video.prepare import Draft

PIPELINE = "WanVACEPipeline"
DEFAULT_STEPS, DEFAULT_GUIDANCE = 50, 5.0
TILED_PX = 832 * 480  # frames larger than this go through the autoencoder in tiles
TILE_PX = 256
_MEMORY_MODES = ("auto", "full", "offload", "lean")
_QUANTIZED = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}
_WORKING_WIDTHS = 16
_SEED_STEP = 0x9E3779B97F4A7C15  # between the seeds of windows


def is_video(name: str, *, download: bool = True) -> bool:
    """Whether a model's name is the folder or the hub address of a VACE pipeline. Raises ModelNotFoundError."""
    if name.startswith(HUB):
        return PipelineFolder(name, download=download).index["_class_name"] == PIPELINE
    folder = Path(name).expanduser()
    return (folder / "model_index.json").is_file() and read_index(folder)["_class_name"] == PIPELINE


@dataclass(eq=False)
class ClipState:
    """A clip on its way: window by window. drafts: of the windows that are left; steps: of each window."""

    job: Job
    opened: OpenedRequest
    pipeline: VideoPipeline
    settings: dict[str, Any]
    spool: Spool
    drafts: Iterator[Draft]
    windows: int
    window: int = 0
    steps_done: int = 0
    draft: Draft | None = None
    state: VideoState | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def step_index(self) -> int:
        """Steps done."""
        return self.steps_done

    @property
    def num_steps(self) -> int:
        """Steps of all windows."""
        return self.windows * self.settings["num_steps"]

    @property
    def done(self) -> bool:
        """True when nothing is left but `finish`."""
        return self.window >= self.windows

    def begin(self) -> None:
        """Encode the next window."""
        window = self.opened.windows[self.window]
        self.draft = next(self.drafts)
        before = self.spool.tail(window.given) if window.given else None
        shown = self.opened.prepared(self.draft, window, before)
        seed = (self.job.settings.seed + self.window * _SEED_STEP) % 2**64
        self.state = self.pipeline.start(self.job.instruction, shown, seed, **self.settings)

    def advance(self) -> None:
        """One denoising step; after a window's last one its frames are pasted back and kept."""
        if self.state is None:
            self.begin()
        assert self.state is not None and self.draft is not None
        self.pipeline.step(self.state)
        self.steps_done += 1
        if self.state.done:
            made, given = self.pipeline.finish(self.state), self.opened.windows[self.window].given
            draft = replace_frames(self.draft, given)
            kept = (
                paste_frames(draft, made[given:], self.job.settings.images.feather_px)
                if self.opened.keeps
                else made[given:]
            )
            self.spool.add(iter(kept))
            self.state, self.draft, self.window = None, None, self.window + 1


def replace_frames(draft: Draft, given: int) -> Draft:
    """A draft without the frames that are there already."""
    return replace(draft, frames=draft.frames[given:], masks=draft.masks[given:], fill=draft.fill[given:])


class VideoFamily(Family):
    """One VACE model. adapters: "FILE" or "FILE:STRENGTH" each; work: where windows are kept, None = nowhere."""

    kind = "vace"

    def __init__(self, name: str, adapters: Sequence[str] = (), *, download: bool = True) -> None:
        self.files = PipelineFolder(name, download=download)
        if self.files.index["_class_name"] != PIPELINE:
            raise ConfigError(f"{name} holds a {self.files.index['_class_name']}: name a VACE model for clips")
        self.adapters = tuple(AdapterChoice.parse(text) for text in adapters)
        self.work: Path | None = None
        self._pipeline: VideoPipeline | None = None
        self._settings: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The model as recipes name it: the address, or the folder's name."""
        return self.files.name

    @property
    def sha256(self) -> str:
        """Hash of the settings and of all parts, names and contents."""
        return self.files.sha256

    @property
    def traits(self) -> Traits:
        """Clips: from words, images as first frame or references, and what `Job.clip` says."""
        return Traits(
            masks=False,
            max_images=prepare.MAX_REFERENCES,
            history=False,
            references_apart=True,
            options=frozenset({"negative_instruction", "frames", "fps", "shift", "strength"}),
            loading=frozenset({"adapters", "quantize"}),
            medium=CLIP,
        )

    @property
    def pipeline(self) -> VideoPipeline:
        """The loaded pipeline."""
        assert self._pipeline is not None, "load() comes first"
        return self._pipeline

    @cached_property
    def own_size(self) -> tuple[int, int]:
        """(width, height) whose area the model was made for: 480p; of a model narrower than 512, which is a small one
        for tests, 64x64."""
        settings = self.files.settings_of("transformer")
        width = int(settings.get("num_attention_heads", 12)) * int(settings.get("attention_head_dim", 128))
        return prepare.SIZES["480p"] if width >= 512 else (64, 64)

    @property
    def own_frames(self) -> int:
        """Frames of one pass."""
        return prepare.DEFAULT_FRAMES if self.own_size != (64, 64) else 9

    def open(self, job: Job) -> Job:
        """Open what is asked of the clip. Raises InputError."""
        settings = job.settings
        if settings.num_inference_steps is not None and settings.num_inference_steps < 1:
            raise ConfigError("a clip needs at least one denoising step: leave --steps out")
        for name in ("shift", "strength"):
            value = settings.options.get(name)
            if value is not None and not 0 < float(value) <= 100:
                raise ConfigError(f"{name} {value}: use a number above 0, at most 100")
        if isinstance(job.clip, OpenedRequest):
            return job
        return replace(job, clip=self.open_clip(job.clip) if job.clip is not None else self._of_images(job))

    def open_clip(self, request: ClipRequest) -> OpenedRequest:
        """A request opened for this model's size and frames. Raises InputError."""
        if request.size is None and self.own_size == (64, 64):
            request = replace(request, size=self.own_size)
        if request.frames is None and request.video is None and not request.file_of("control"):
            request = replace(request, frames=self.own_frames)
        area = prepare.SIZES["720p"] if self.own_size != (64, 64) else self.own_size
        return open_request(request, area if request.size else self.own_size, most_frames=self.own_frames)

    def _of_images(self, job: Job) -> OpenedRequest:
        """A message's photo as first frame, its other images as references."""
        options = job.settings.options
        asked = ClipRequest(
            size=job.settings.size,
            frames=int(options["frames"]) if "frames" in options else None,
            fps=None if "fps" not in options else _rate(str(options["fps"])),
        )
        opened = self.open_clip(asked)
        images = [np.asarray(image.convert("RGB")) for image in job.unit.current.images]
        first = None if job.source is None else np.asarray(job.source.image.convert("RGB"))
        if first is not None:
            images = images[1:] if job.unit.current.images else images
            shape = first.shape[1], first.shape[0]
            area = opened.size[0] * opened.size[1]
            _, width, height = prepare.working_size(shape, opened.num_frames, area, self.own_frames)
            opened = replace(opened, size=(width, height), base_size=shape, first=first[None], keeps=True)
        references = [prepare.letterbox(image, opened.size) for image in images]
        return replace(opened, references=np.stack(references)) if references else opened

    def load(
        self,
        loading: Loading,
        on_note: OnNote = lambda line: None,
        on_loaded: OnLoaded = lambda done, total: None,
    ) -> None:
        """Bring the weights into memory, fetched first where they are not here: the licence is told before that.

        Raises InputError, CheckpointError or MissingDependencyError."""
        if loading.memory not in _MEMORY_MODES:
            raise ConfigError(f"memory {loading.memory!r}: {self.name} takes {', '.join(_MEMORY_MODES)}")
        if loading.dtype not in ("auto", *BYTES):
            raise ConfigError(f"dtype {loading.dtype!r}: use one of auto, {', '.join(BYTES)}")
        if loading.quantize not in (None, *_QUANTIZED):
            raise ConfigError(f"weights {loading.quantize!r}: {self.name} takes {' or '.join(_QUANTIZED)}")
        device = find_device(loading.device)
        self.files.fetch(on_note)
        dtype = ("float32" if device == "cpu" else "bfloat16") if loading.dtype == "auto" else loading.dtype
        mode = self.files.place(loading.memory, device, dtype)
        parts = self._load_parts(dtype, loading.quantize)
        names = []
        for number, choice in enumerate(self.adapters):
            names.append(f"adapter{number}")
            self._attach(parts, choice, names[-1])
        if names:
            parts.set_adapters(names, [choice.weight for choice in self.adapters])
        if mode == "offload":
            parts.enable_model_cpu_offload(device=device)
        elif mode == "lean":
            parts.enable_sequential_cpu_offload(device=device)
        else:
            parts.to(device)
        if mode != "full":
            on_note(f"memory: {mode}")
        from ace.video.pipeline import VideoPipeline

        self._pipeline = VideoPipeline(parts)
        self._settings = {"pipeline": PIPELINE}
        if self.adapters:
            self._settings["adapters"] = describe(self.adapters)
        if loading.quantize is not None:
            self._settings["quantize"] = loading.quantize

    def _load_parts(self, dtype: str, quantize: str | None) -> Any:
        import torch
        from diffusers import TorchAoConfig, WanVACEPipeline, WanVACETransformer3DModel
        from safetensors import SafetensorError

        options: dict[str, Any] = {"dtype": getattr(torch, dtype), "local_files_only": True, "use_safetensors": True}
        given = {}
        try:
            if quantize is not None:
                try:
                    import torchao.quantization as quantization
                except ModuleNotFoundError:
                    raise MissingDependencyError(
                        "weights in 8 bits need torchao: pip install 'ace-allround[quant]'"
                    ) from None
                config = TorchAoConfig(getattr(quantization, _QUANTIZED[quantize])())
                folder = self.files.folder / "transformer"
                given["transformer"] = WanVACETransformer3DModel.from_pretrained(
                    folder, quantization_config=config, **options
                )
            parts = WanVACEPipeline.from_pretrained(self.files.folder, **given, **options)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise CheckpointError(f"the model {self.name} cannot be loaded ({reason}): fetch it again") from error
        parts.set_progress_bar_config(disable=True)
        return parts

    def _attach(self, parts: Any, choice: AdapterChoice, name: str) -> None:
        file = find_adapter(choice.path)
        try:
            parts.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name, local_files_only=True)
        except (ValueError, KeyError, RuntimeError, TypeError, OSError, AttributeError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise CheckpointError(f"the adapter {choice.path.name} does not fit {self.name} ({reason})") from error
        if name not in parts.get_list_adapters().get("transformer", []):
            raise CheckpointError(f"the adapter {choice.path.name} has no weights for a VACE transformer: use another")

    def prepare(self, jobs: Sequence[Job]) -> list[ClipState]:
        """The states, none of them begun: a window is encoded at its first step. Raises InputError."""
        states = []
        for job in jobs:
            opened = job.clip
            assert isinstance(opened, OpenedRequest), "open() comes first"
            asked, options = job.settings, job.settings.options
            settings = {
                "negative": asked.negative_instruction,
                "num_steps": asked.num_inference_steps or DEFAULT_STEPS,
                "guidance_scale": DEFAULT_GUIDANCE if asked.guidance_scale is None else asked.guidance_scale,
                "strength": float(options.get("strength", 1.0)),
                "shift": None if "shift" not in options else float(options["shift"]),
            }
            vae = self.pipeline.parts.vae
            if opened.size[0] * opened.size[1] > TILED_PX:
                vae.enable_tiling()
            else:
                vae.disable_tiling()
            key = {"instruction": job.instruction, "settings": repr(sorted(settings.items())), "seed": str(asked.seed)}
            key |= {"clip": opened.request.options(), "model": self.sha256, **self._settings}
            key |= {f"file{number}": file.sha256 for number, file in enumerate(job.images)}
            spool = Spool(len(opened.windows), opened.fps, self.work, key)
            drafts = opened.drafts()
            windows = 0 if opened.makes_nothing else len(opened.windows)
            for _ in range(min(spool.num_windows, windows)):
                next(drafts)
            done = min(spool.num_windows, windows)
            state = ClipState(
                job, opened, self.pipeline, settings, spool, drafts, windows, done, done * settings["num_steps"]
            )
            states.append(state)
        return states

    def step(self, states: Sequence[ClipState]) -> None:
        """One step of every clip, one after the other."""
        for state in states:
            state.advance()

    def preview(self, state: ClipState) -> Image.Image:
        """The middle frame of the window in the making."""
        if state.state is not None:
            return Image.fromarray(self.pipeline.preview(state.state))
        return Image.new("RGB", state.opened.size, (127, 127, 127))

    def finish(self, states: Sequence[ClipState]) -> list[Answer]:
        """The clips, with what goes before them and the sound that belongs to them."""
        answers = []
        for state in states:
            opened = state.opened
            if state.windows:
                frames: Any = state.spool.frames()
            else:
                assert opened.source is not None
                frames = np.stack(list(opened.source.take(opened.ids)))
                state.notes.append("the mask selects nothing: the answer is the source")
            if opened.before and opened.source is not None:
                frames = np.concatenate(
                    [np.stack(list(opened.source.take(range(opened.before)))), *[np.asarray(frames)]]
                )
            settings: dict[str, Any] = dict(self._settings)
            if not state.job.unit.current.images:
                settings["clip"] = opened.request.options()
            if opened.size[0] * opened.size[1] > TILED_PX:
                settings["tile_px"] = TILE_PX
            settings |= {name: state.job.settings.options[name] for name in state.job.settings.options}
            answers.append(
                Answer(
                    content=Clip(frames, opened.fps, self.name, opened.sound),
                    size_px=opened.size,
                    num_steps=state.settings["num_steps"],
                    guidance_scale=float(state.settings["guidance_scale"]),
                    settings=settings,
                    device=self.pipeline.device.type,
                    dtype=str(self.pipeline.parts.transformer.dtype).removeprefix("torch."),
                    notes=(*opened.notes, *state.notes),
                )
            )
        self.pipeline.free()
        return answers

    def cost(self, job: Job) -> Cost:
        """Of all windows; two operations per weight and token, and attention."""
        assert isinstance(job.clip, OpenedRequest), "open() comes first"
        opened = job.clip
        cells = (opened.size[0] // prepare.STEP_PX) * (opened.size[1] // prepare.STEP_PX)
        longest = max(window.num_frames for window in opened.windows)
        target = prepare.latent_frames(longest) * cells
        references = len(opened.references) * cells
        settings = self.files.settings_of("transformer")
        width = int(settings.get("num_attention_heads", 40)) * int(settings.get("attention_head_dim", 128))
        layers = int(settings.get("num_layers", 40)) + len(settings.get("vace_layers", ()))
        feed = int(settings.get("ffn_dim", 4 * width))
        tokens = target + references
        per_token = 2 * (8 * width * width + 2 * width * feed) + 4 * tokens * width
        guided = (job.settings.guidance_scale or DEFAULT_GUIDANCE) > 1
        steps = (job.settings.num_inference_steps or DEFAULT_STEPS) * len(opened.windows)
        return Cost(
            image_tokens=references,
            text_tokens=512,
            target_tokens=target,
            num_steps=steps,
            start_operations=0,
            step_operations=(2 if guided else 1) * layers * tokens * per_token,
            num_bytes=tokens * width * _WORKING_WIDTHS * 4 + longest * opened.size[0] * opened.size[1] * 3 * 4 * 8,
        )

    def working_px(self, job: Job) -> int:
        """Those of the model's own size."""
        width, height = self.own_size
        return width * height

    def most_together(self, job: Job) -> int:
        """One: nothing is gained by making several at a time."""
        return 1

    def describe(self) -> dict[str, Any]:
        """The pipeline's class, size, frames and steps."""
        width, height = self.own_size
        return {
            "family": self.kind,
            "name": self.name,
            "pipeline": PIPELINE,
            "medium": "clip",
            "size": f"{width}x{height}",
            "size_step_px": prepare.STEP_PX,
            "frames": self.own_frames,
            "fps": float(prepare.DEFAULT_FPS),
            "steps": DEFAULT_STEPS,
            "guidance": DEFAULT_GUIDANCE,
        }


def _rate(text: str) -> Any:
    from fractions import Fraction

    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"fps {text!r}: use a number of frames per second, for example 16") from None
