"""A training recipe: one TOML file, read into frozen, strictly checked dataclasses; unknown keys are refused.

A recipe says what is trained, from which data, in which stages. Stages run one after the other on the same weights;
each has its own length, batch, learning rate, schedule and mixture, so that a run can be stopped and finished by a
decay stage at any time. `write_recipe` writes every setting, defaults included, as a recipe that can be run again.

Light: nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ace.data.sample import FAMILIES, TASKS
from ace.errors import ConfigError
from ace.settings import Count, Share, Text, build, read_toml, settings, shown

Schedule = Literal["constant", "linear", "cosine"]
SourceKind = Literal["world", "shards", "csv", "jsonl", "magicbrush", "instructpix2pix", "workflow"]
Optimizer = Literal["adamw", "adamw_8bit", "adafactor", "muon"]
Target = Literal["epsilon", "v_prediction", "sample", "flow"]
TimestepSampling = Literal["uniform", "logit_normal"]
WorldLevel = Literal["one", "two", "edits", "tasks", "all"]  # of the procedural world, `ace.data.world.levels`
Weight = Annotated[float, Field(ge=0, le=1e6)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Guidance = Annotated[float, Field(ge=0, le=100)]
SidePx = Annotated[int, Field(ge=0, le=8192, multiple_of=8)]
Tokens = Annotated[int, Field(ge=0, le=10**9)]
DenoisingSteps = Annotated[int, Field(ge=1, le=1000)]
Width = Annotated[int, Field(ge=4, le=8192, multiple_of=4)]
Depth = Annotated[int, Field(ge=0, le=100)]
SIZE_PX = 64  # side of the images of a model from scratch, if its recipe does not say


@settings
class DataSource:
    """One place that samples come from, `[[data]]` in a recipe; without any, the procedural world.

    name: what stages call it. path: file or folder; for "magicbrush" and "instructpix2pix" a folder of Parquet files or
    the name of a data set. weight: share of the samples, against the other sources. task: for records that name none.
    trigger: phrase put before every instruction of a "workflow" (or, if it has none, all of it)."""

    name: Text
    kind: SourceKind
    path: Text = ""
    weight: Weight = 1.0
    task: Text = "semantic_editing/style"
    trigger: Text = ""

    @model_validator(mode="after")
    def _check(self) -> DataSource:
        if self.kind != "world" and not self.path:
            raise ValueError(f"kind {self.kind!r} needs a path")
        if self.task not in TASKS:
            raise ValueError(f"unknown task {shown(self.task)}: use family/subtask, for example semantic_editing/style")
        if self.kind == "workflow" and not self.trigger.strip():
            raise ValueError("a workflow needs a trigger, the phrase that will call it")
        return self


@settings
class TrainingStage:
    """One stretch of training, `[[stage]]` in a recipe.

    Its length: samples, or steps. Its batch, over all processes: batch_size samples, or batch_tokens visual tokens
    (with steps). micro_tokens: at most this many tokens go through the model at once on one device, the gradients add
    up (0 = all of the device's share). lr: at its start, after warmup_steps; schedule: "constant", or down to zero at
    its end ("linear", "cosine"). tasks: weights by task or family; empty = as they come. data: weights by source, in
    place of those of the recipe. max_images: samples with more are left out. sequence_length: visual tokens of one
    image, 0 = from size_px. pack: folder of the world's sprites, empty = the best one found. level: how much of
    the world is shown, "one", "two", "edits", "tasks" or "all" (`ace.data.world.levels`)."""

    name: Text
    samples: Count = 0
    lr: Annotated[float, Field(gt=0, le=10)] = 0.0
    batch_size: Annotated[int, Field(ge=1, le=10**6)] = 32
    schedule: Schedule = "constant"
    warmup_steps: Count = 0
    tasks: dict[str, Weight] = field(default_factory=dict)
    steps: Count = 0
    batch_tokens: Tokens = 0
    micro_tokens: Tokens = 0
    max_images: Annotated[int, Field(ge=0, le=9)] = 9
    sequence_length: Annotated[int, Field(ge=0, le=10**6)] = 0
    data: dict[str, Weight] = field(default_factory=dict)
    pack: Text = ""
    level: WorldLevel = "all"

    @model_validator(mode="after")
    def _check(self) -> TrainingStage:
        for unknown in sorted(self.tasks.keys() - set(TASKS) - set(FAMILIES)):
            raise ValueError(f"unknown task {shown(unknown)}: use one of {', '.join(FAMILIES)}, or family/subtask")
        for name, weights in (("tasks", self.tasks), ("data", self.data)):
            if weights and not sum(weights.values()):
                raise ValueError(f"all weights of {name} are 0: nothing is left to draw from")
        if self.batch_tokens:
            if self.steps < 1 or self.samples:
                raise ValueError("give its length in steps, because its batch is given in batch_tokens")
        elif self.steps and self.samples and self.samples // self.batch_size != self.steps:
            raise ValueError("give samples or steps, not both")
        elif not self.steps:
            object.__setattr__(self, "steps", self.samples // self.batch_size)
            if self.steps < 1:
                raise ValueError(f"its length is {self.samples} samples: use at least batch_size, {self.batch_size}")
        return self

    def lr_at(self, step: int) -> float:
        """Learning rate at a step of this stage, from 0."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        left = 1 - step / self.steps
        shape = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[self.schedule]
        return self.lr * warm * shape


@settings
class Lora:
    """Train low-rank additions to some linear layers and nothing else, `[lora]` in a recipe.

    alpha: 0 = rank, a scale of 1. targets: names of layers as PEFT matches them (the end of a name); empty = every
    attention and MLP layer of the blocks (ACE), the published list (ACE++). start: an adapter to go on from, in PEFT or
    ComfyUI format."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    alpha: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    targets: tuple[Text, ...] = ()
    start: Text = ""

    @property
    def scale_alpha(self) -> float:
        """alpha, or rank if it is 0."""
        return self.alpha or float(self.rank)


@settings
class TrainingRecipe:
    """What every recipe has.

    seed: of weights, data and noise. save_minutes: between checkpoints, save_steps: the same in steps (0 = by time);
    keep_checkpoints: how many stay. betas, eps, weight_decay, clip_norm (0 = no clipping): of the optimiser. ema_decay:
    of the averaged weights, 0 = no average. tracker: what accelerate logs to. preview_steps: steps between previews,
    0 = none."""

    stages: Annotated[tuple[TrainingStage, ...], Field(min_length=1, max_length=1000)]
    size_px: SidePx = SIZE_PX
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    optimizer: Optimizer = "adamw"
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    clip_norm: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    save_minutes: Annotated[float, Field(ge=0, le=1e5)] = 5.0
    save_steps: Count = 0
    # at least one: without any, a run that was stopped would start over
    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000)] = 2
    num_workers: Annotated[int, Field(ge=0, le=256)] = 1
    mixed_precision: Literal["no", "bf16"] = "bf16"
    gradient_checkpointing: bool = False
    tracker: Literal["none", "tensorboard", "wandb", "mlflow", "aim"] = "tensorboard"
    preview_steps: Count = 0


@settings
class AutoencoderRecipe(TrainingRecipe):
    """Train the autoencoder (kind = "autoencoder").

    latent_noise: noise given to the decoder in training, in standard deviations of the latents, so that it tolerates
    the denoiser's small errors. Channels and layers are those of diffusers' AutoencoderDC, from the finest of its four
    stages."""

    latent_channels: Annotated[int, Field(ge=1, le=1024)] = 16
    encoder_channels: tuple[Width, Width, Width, Width] = (32, 32, 64, 128)
    encoder_layers: tuple[Depth, Depth, Depth, Depth] = (0, 1, 2, 2)
    decoder_channels: tuple[Width, Width, Width, Width] = (32, 32, 64, 128)
    decoder_layers: tuple[Depth, Depth, Depth, Depth] = (0, 3, 3, 3)
    latent_noise: Annotated[float, Field(ge=0, le=10)] = 0.05

    @model_validator(mode="after")
    def _check(self) -> AutoencoderRecipe:
        if self.size_px < 8:
            raise ValueError("size_px is 0: use a side in px, for example 64")
        if any(stage.batch_tokens for stage in self.stages):
            raise ValueError("an autoencoder's batches are counted in images: use batch_size, not batch_tokens")
        return self


@settings
class ModelRecipe(TrainingRecipe):
    """Train the transformer (kind = "model"), from scratch, from PixArt-alpha, or on from a model folder.

    init: a model folder (or name) to go on from; sizes, autoencoder, text encoder and all that belongs to the model
    then come from it, except patch_size: larger than the model's, its layers in and out are fitted anew on images of
    the procedural world, and an image of size_px has as many tokens as a smaller one had. Else preset: sizes in
    `ace.model.config.PRESETS`; autoencoder and text_encoder: folders (or, for the encoder, a package that carries one);
    text_layers: how many layers of the encoder are kept, 0 = all; pixart: a PixArt-alpha file to start the transformer
    from. text_lr_scale: factor on the encoder's learning rate, 0 = frozen.
    text_dropout: share of samples whose instruction is replaced by the empty one, for guidance.
    change_weight: weight in the loss of latent cells that differ from the edited image, against 1 for those copied.
    prediction_type: what the network learns; "flow" is rectified flow. timestep_sampling: how noisy the samples are;
    noise_share: of them that are nothing but noise, where words alone decide. kept_tokens: of a target that are trained
    on, those that change first; 0 = all. A preset with a memory begins without a trained autoencoder or encoder
    (autoencoder = "pixels"): text_encoder then gives the word pieces; memory_lr_scale: factor on the learning rate of
    its tables; memory_start: they begin as principal components of the world's own drawings; place_lessons: samples on
    which its text encoder first learns where things are wanted, without pictures (`places.py`).
    min_snr_gamma: weights of min-SNR, 0 = none. published_noise: the published code's noising with its defect, for
    comparison only. cache: folder where latents and texts of frozen encoders are kept, empty = none.
    size_px: 0 = the model's own, or `SIZE_PX` from scratch. patch_size: 0 = the model's own."""

    size_px: SidePx = 0
    init: Text = ""
    patch_size: Annotated[int, Field(ge=0, le=16)] = 0
    preset: Text = "tiny"
    autoencoder: Text = ""
    text_encoder: Text = ""
    text_layers: Annotated[int, Field(ge=0, le=1000)] = 3
    text_lr_scale: Annotated[float, Field(ge=0, le=100)] = 0.1
    text_dropout: Share = 0.1
    max_text_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    spell_quoted: bool = True
    enlarge: bool = True
    mask_by_area: bool = True
    pixart: Text = ""
    prediction_type: Target = "v_prediction"
    change_weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    timestep_sampling: TimestepSampling = "uniform"
    min_snr_gamma: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    noise_share: Share = 0.0
    kept_tokens: Annotated[int, Field(ge=0, le=10**6)] = 0
    memory_lr_scale: Annotated[float, Field(ge=0, le=100)] = 1.0
    memory_start: bool = True
    place_lessons: Annotated[int, Field(ge=0, le=10**9)] = 0
    published_noise: bool = False
    source_on_channels: bool = True
    cache: Text = ""
    num_inference_steps: DenoisingSteps = 10
    guidance_scale: Guidance = 2.0
    guidance_rescale: Share = 0.0
    data: tuple[DataSource, ...] = ()
    lora: Lora | None = None

    @model_validator(mode="after")
    def _check(self) -> ModelRecipe:
        if self.place_lessons and self.init:
            raise ValueError("place_lessons are for a text encoder from scratch: leave them out with init")
        if self.lora and not self.init:
            raise ValueError("a lora adapts a trained model: name it with init")
        if self.prediction_type == "flow" and (self.min_snr_gamma or self.published_noise):
            raise ValueError("min_snr_gamma and published_noise belong to diffusion, not to flow")
        _check_sources(self.data, self.stages)
        return self


@settings
class PlusRecipe(TrainingRecipe):
    """Train ACE++ (kind = "plus"): FLUX.1-Fill with a canvas of reference and edited image side by side.

    init: a FLUX.1-Fill model folder in diffusers' layout. in_channels: 384 as FLUX.1-Fill, or 448, with the image's
    changed part on channels of its own (FFT); a model of 384 is widened. lora: None = all weights.
    max_sequence: tokens of a canvas. repainting_scale: how much of the masked part is hidden (without a reference).
    modify_mode: show the masked part on the extra channels only. guidance: value given to the guidance embedding.
    presampled_timesteps: draw from 1000 fixed levels, as the published trainer, else afresh."""

    init: Text = ""
    in_channels: Literal[384, 448] = 384
    max_sequence: Annotated[int, Field(ge=16, le=2**20)] = 4096
    max_text_tokens: Annotated[int, Field(ge=1, le=4096)] = 512
    repainting_scale: Share = 0.5
    modify_mode: bool = True
    guidance: Guidance = 1.0
    presampled_timesteps: bool = True
    cache: Text = ""
    num_inference_steps: DenoisingSteps = 28
    guidance_scale: Guidance = 50.0
    data: tuple[DataSource, ...] = ()
    lora: Lora | None = None

    @model_validator(mode="after")
    def _check(self) -> PlusRecipe:
        if not self.init:
            raise ValueError("kind plus trains on from FLUX.1-Fill: name its folder with init")
        if not self.data:
            raise ValueError("kind plus needs [[data]]: the procedural world is too small for FLUX")
        _check_sources(self.data, self.stages)
        return self


@settings
class VideoRecipe:
    """Train a LoRA of a VACE model (kind = "vace"), without stages.

    init: its folder. clips: a folder of `ace data world --video`, or its list. steps: of one clip each; rank, alpha: of
    the adapter; shift: of the noise's times towards noise; frames, area_px: of a clip at most; save_steps: between
    checkpoints."""

    init: Text
    clips: Text
    steps: Annotated[int, Field(ge=1, le=10**7)] = 1000
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[int, Field(ge=1, le=1024)] = 16
    shift: Annotated[float, Field(gt=0, le=100)] = 3.0
    frames: Annotated[int, Field(ge=1, le=401)] = 81
    area_px: Annotated[int, Field(ge=256, le=2**22)] = 832 * 480
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    save_steps: Annotated[int, Field(ge=1, le=10**6)] = 100
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _check(self) -> VideoRecipe:
        if (self.frames - 1) % 4:
            raise ValueError(f"frames is {self.frames}: the model makes 4n+1")
        return self


Recipe = AutoencoderRecipe | ModelRecipe | PlusRecipe | VideoRecipe
_KINDS: dict[str, type[Recipe]] = {
    "autoencoder": AutoencoderRecipe,
    "model": ModelRecipe,
    "plus": PlusRecipe,
    "vace": VideoRecipe,
}
_KEYS = {"stages": "stage"}  # field → key in the file
# Keys of a stage that say the same thing in two ways: the one that is overridden replaces the others.
_ALTERNATIVES = {
    "steps": ("samples",),
    "samples": ("steps", "batch_tokens"),
    "batch_size": ("batch_tokens",),
    "batch_tokens": ("batch_size",),
}


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    overrides: "KEY=VALUE", in place of what the file says, the value as TOML or plain text: `seed=3`, `lora.rank=8`,
    `stage.lr=1e-4` (every stage), `stage.2.steps=500` (the second). Raises ConfigError for a missing file, broken TOML,
    an unknown kind or key, a wrong value, or an override of nothing."""
    table = read_toml(path)
    for override in overrides:
        _override(table, override, path.name)
    kind = table.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"{path.name}: kind is {shown(kind)}: use one of {', '.join(_KINDS)}")
    if kind != "vace" and not table.get("stage"):
        raise ConfigError(f"{path.name}: no [[stage]] given")
    return build(_KINDS[kind], table, path.name, _KEYS)


def is_of_clips(path: Path) -> bool:
    """Whether a recipe's kind is "vace", which has no stages. Raises ConfigError."""
    return read_toml(path).get("kind") == "vace"


def _override(table: dict[str, Any], override: str, where: str) -> None:
    """Put "KEY=VALUE" into a recipe's table."""
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"{shown(override)}: write KEY=VALUE, for example seed=3 or stage.lr=1e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError, RecursionError, ValueError):
        value = text.strip()  # plain text needs no quotes
    tables: list[Any] = [table]
    for part in parts[:-1]:
        tables = [inner for outer in tables for inner in _inside(outer, part)]
    tables = [inner for outer in tables for inner in (outer if isinstance(outer, list) else [outer])]
    if not tables or not all(isinstance(inner, dict) for inner in tables):
        raise ConfigError(f"{where} has no {shown('.'.join(parts[:-1]))} to set {shown(parts[-1])} in")
    for inner in tables:
        for other in _ALTERNATIVES.get(parts[-1], ()) if parts[0] == "stage" else ():
            inner.pop(other, None)
        inner[parts[-1]] = value


def _inside(outer: Any, part: str) -> list[Any]:
    """What stands behind one part of an override's key; of a list its member by number from 1, else in all members."""
    if isinstance(outer, list):
        if part.isdecimal():
            return outer[int(part) - 1 : int(part)] if len(part) < 9 and int(part) else []
        return [inner for member in outer for inner in _inside(member, part)]
    inner = outer.get(part) if isinstance(outer, dict) else None
    return [inner] if inner is not None else []


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every setting of a recipe, defaults included, as the table of its TOML file."""
    table: dict[str, Any] = {"kind": next(kind for kind, cls in _KINDS.items() if type(recipe) is cls)}
    for key, value in dataclasses.asdict(recipe).items():
        if value is not None:
            table[_KEYS.get(key, key)] = value
    for stage in table.get("stage", ()):
        del stage["steps" if stage["samples"] else "samples"]  # one of them says it
    return {k: table[k] for k in sorted(table, key=lambda k: isinstance(table[k], tuple | list | dict))}


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as TOML; `read_recipe` gives the same recipe again."""
    import tomli_w

    path.write_text(tomli_w.dumps(resolved(recipe)), encoding="utf-8")


def keep_recipe(recipe: Recipe, path: Path) -> list[str]:
    """Write the resolved recipe beside its run; returns the keys that differ from the one that was there."""
    changed: list[str] = []
    if path.exists():
        try:
            before, now = resolved(read_recipe(path)), resolved(recipe)
            changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        except ConfigError:  # an unfinished file, or one of another version
            changed = ["all of it"]
    write_recipe(recipe, path)
    return changed


def _check_sources(sources: tuple[DataSource, ...], stages: tuple[TrainingStage, ...]) -> None:
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ValueError("two [[data]] have the same name")
    for stage in stages:
        if unknown := sorted(stage.data.keys() - set(names)):
            raise ValueError(f"stage {shown(stage.name)}: no [[data]] is called {', '.join(map(shown, unknown[:3]))}")
