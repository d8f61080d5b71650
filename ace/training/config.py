"""A training recipe: one TOML file, read into frozen dataclasses; unknown keys are refused.

A recipe says what is trained, from which data, in which stages. Stages run one after the other on the same weights;
each has its own length, batch, learning rate, schedule and mixture, so that a run can be stopped and finished by a
decay stage at any time. `write_recipe` writes every setting, defaults included, as a recipe that can be run again.

Light: nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ace.errors import ConfigError

Schedule = Literal["constant", "linear", "cosine"]
SourceKind = Literal["world", "shards", "csv", "jsonl", "magicbrush", "instructpix2pix", "workflow"]
Optimizer = Literal["adamw", "adamw_8bit", "adafactor", "muon"]
Target = Literal["epsilon", "v_prediction", "sample", "flow"]
TimestepSampling = Literal["uniform", "logit_normal"]
SIZE_PX = 64  # side of the pictures of a model from scratch, if its recipe says nothing


@dataclass(frozen=True)
class Source:
    """One place that samples come from, `[[data]]` in a recipe; without any, the procedural world.

    name: what stages call it. path: file or folder; for "magicbrush" and "instructpix2pix" a folder of Parquet files or
    the name of a data set. weight: share of the samples, against the other sources. task: for records that name none.
    trigger: phrase put before every instruction of a "workflow" (or, if it has none, all of it)."""

    name: str
    kind: SourceKind
    path: str = ""
    weight: float = 1.0
    task: str = "semantic_editing/style"
    trigger: str = ""

    def __post_init__(self) -> None:
        _check_choice(f"data {self.name!r}: kind", self.kind, SourceKind)
        if self.kind != "world" and not self.path:
            raise ConfigError(f"data {self.name!r}: kind {self.kind!r} needs a path")
        if self.weight < 0:
            raise ConfigError(f"data {self.name!r}: weight is {self.weight}, use 0 or more")
        if self.kind == "workflow" and not self.trigger.strip():
            raise ConfigError(f"data {self.name!r}: a workflow needs a trigger, the phrase that will call it")


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    Its length: samples, or steps. Its batch, over all processes: batch_size samples, or batch_tokens visual tokens
    (with steps). micro_tokens: at most so many tokens go through the model at once on one device, the gradients add up
    (0 = all of the device's share). lr: at its start, after warmup_steps; schedule: "constant", or down to zero at its
    end ("linear", "cosine"). tasks: weights by task or family; empty = as they come. data: weights by source, over
    those of the recipe. max_images: samples with more are left out. sequence_length: visual tokens of one picture, 0 =
    from size_px. pack: folder of the world's sprites, empty = the best at hand. level: how much of the world is shown,
    "one", "two", "edits", "tasks" or "all" (`ace.data.world.levels`)."""

    name: str
    samples: int = 0
    lr: float = 0.0
    batch_size: int = 32
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    tasks: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    batch_tokens: int = 0
    micro_tokens: int = 0
    max_images: int = 9
    sequence_length: int = 0
    data: dict[str, float] = field(default_factory=dict)
    pack: str = ""
    level: str = "all"

    def __post_init__(self) -> None:
        where = f"stage {self.name!r}"
        _check_choice(f"{where}: schedule", self.schedule, Schedule)
        if self.lr <= 0:
            raise ConfigError(f"{where}: lr is {self.lr}, it must be above 0")
        if self.batch_tokens:
            if self.steps < 1 or self.samples:
                raise ConfigError(f"{where}: with batch_tokens say its length in steps")
        elif self.batch_size < 1:
            raise ConfigError(f"{where}: batch_size is {self.batch_size}, use at least 1")
        elif self.steps and self.samples and self.samples // self.batch_size != self.steps:
            raise ConfigError(f"{where}: say samples or steps, not both")
        elif not self.steps:
            object.__setattr__(self, "steps", self.samples // self.batch_size)
            if self.steps < 1:
                raise ConfigError(f"{where}: samples must reach batch_size")
        if not 0 <= self.max_images <= 9:
            raise ConfigError(f"{where}: max_images is {self.max_images}, use 0 to 9")
        if min(self.batch_tokens, self.micro_tokens, self.sequence_length, self.warmup_steps) < 0:
            raise ConfigError(f"{where}: tokens and steps are counts, 0 or more")

    def lr_at(self, step: int) -> float:
        """Learning rate at a step of this stage, from 0."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        left = 1 - step / self.steps
        shape = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[self.schedule]
        return self.lr * warm * shape


@dataclass(frozen=True)
class Lora:
    """Train low-rank additions to some linear layers and nothing else, `[lora]` in a recipe.

    targets: names of layers as PEFT matches them (the end of a name); empty = every attention and MLP layer of the
    blocks (ACE), the published list (ACE++). start: an adapter to go on from, in PEFT or ComfyUI format."""

    rank: int = 16
    alpha: float = 0.0  # 0 = rank, a scale of 1
    targets: tuple[str, ...] = ()
    start: str = ""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 0:
            raise ConfigError(f"lora: rank {self.rank} and alpha {self.alpha} must be positive")

    @property
    def scale_alpha(self) -> float:
        """alpha, rank if none was said."""
        return self.alpha or float(self.rank)


@dataclass(frozen=True)
class Run:
    """What every recipe has.

    seed: of weights, data and noise. save_minutes: between checkpoints, save_steps: the same in steps (0 = by time);
    keep_checkpoints: how many stay. betas, eps, weight_decay, clip_norm: of the optimiser. ema_decay: of the averaged
    weights. tracker: what accelerate logs to. preview_steps: steps between previews, 0 = none."""

    stages: tuple[Stage, ...]
    size_px: int = SIZE_PX
    seed: int = 0
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    save_minutes: float = 5.0
    save_steps: int = 0
    keep_checkpoints: int = 2
    num_workers: int = 1
    mixed_precision: Literal["no", "bf16"] = "bf16"
    gradient_checkpointing: bool = False
    tracker: Literal["none", "tensorboard", "wandb", "mlflow", "aim"] = "tensorboard"
    preview_steps: int = 0

    def __post_init__(self) -> None:
        _check_choice("optimizer", self.optimizer, Optimizer)
        if self.keep_checkpoints < 1:
            raise ConfigError("keep_checkpoints must be at least 1: without one a stopped run starts over")


@dataclass(frozen=True)
class AutoencoderRecipe(Run):
    """Train the autoencoder (kind = "autoencoder").

    latent_noise: noise given to the decoder in training, in standard deviations of the latents, so that it forgives the
    denoiser's small errors. Channels and layers are those of diffusers' AutoencoderDC, from the finest stage."""

    latent_channels: int = 16
    encoder_channels: tuple[int, ...] = (32, 32, 64, 128)
    encoder_layers: tuple[int, ...] = (0, 1, 2, 2)
    decoder_channels: tuple[int, ...] = (32, 32, 64, 128)
    decoder_layers: tuple[int, ...] = (0, 3, 3, 3)
    latent_noise: float = 0.05


@dataclass(frozen=True)
class ModelRecipe(Run):
    """Train the transformer (kind = "model"), from scratch, from PixArt-alpha, or on from a model folder.

    init: a model folder (or name) to go on from; sizes, autoencoder, text encoder and all that belongs to the model
    then come from it, except patch_size: larger than the model's, its layers in and out are fitted anew on pictures of
    the procedural world, and a picture of size_px has as many tokens as a smaller one had. Else preset: sizes in
    `ace.model.config.PRESETS`; autoencoder and text_encoder: folders (or, for the encoder, a package that carries one);
    text_layers: how many layers of the encoder are kept, 0 = all; pixart: a PixArt-alpha file to start the transformer
    from. text_lr_scale: factor on the encoder's learning rate, 0 = frozen.
    text_dropout: share of samples whose instruction is replaced by the empty one, for guidance.
    change_weight: weight in the loss of cells that differ from the edited image, against 1 for those that are copied.
    prediction_type: what the network learns; "flow" is rectified flow. timestep_sampling: how noisy the samples are;
    noise_share: of them that are nothing but noise, where words alone decide. kept_tokens: of a target that are trained
    on, those that change first; 0 = all. A preset with a memory begins without a trained autoencoder or encoder
    (autoencoder = "pixels"): text_encoder then gives the word pieces; memory_lr_scale: factor on the learning rate of
    its tables; memory_start: they begin as principal components of the world's own drawings; place_lessons: samples on
    which its text encoder first learns where things are wanted, without pictures (`places.py`).
    min_snr_gamma: weights of min-SNR, 0 = none. published_noise: the published code's noising with its defect, for
    comparison only. cache: folder where latents and texts of frozen encoders are kept, empty = none."""

    size_px: int = 0  # 0 = the model's own, `SIZE_PX` from scratch
    init: str = ""
    patch_size: int = 0  # 0 = the model's own
    preset: str = "tiny"
    autoencoder: str = ""
    text_encoder: str = ""
    text_layers: int = 3
    text_lr_scale: float = 0.1
    text_dropout: float = 0.1
    max_text_tokens: int = 64
    spell_quoted: bool = True
    enlarge: bool = True
    mask_by_area: bool = True
    pixart: str = ""
    prediction_type: Target = "v_prediction"
    change_weight: float = 1.0
    timestep_sampling: TimestepSampling = "uniform"
    min_snr_gamma: float = 0.0
    noise_share: float = 0.0
    kept_tokens: int = 0
    memory_lr_scale: float = 1.0
    memory_start: bool = True
    place_lessons: int = 0
    published_noise: bool = False
    source_on_channels: bool = True
    cache: str = ""
    num_inference_steps: int = 10
    guidance_scale: float = 2.0
    guidance_rescale: float = 0.0
    data: tuple[Source, ...] = ()
    lora: Lora | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("prediction_type", self.prediction_type, Target)
        _check_choice("timestep_sampling", self.timestep_sampling, TimestepSampling)
        if self.place_lessons and self.init:
            raise ConfigError("place_lessons are for a text encoder from scratch: leave them out with init")
        if self.lora and not self.init:
            raise ConfigError("a lora adapts a trained model: name it with init")
        if self.prediction_type == "flow" and (self.min_snr_gamma or self.published_noise):
            raise ConfigError("min_snr_gamma and published_noise belong to diffusion, not to flow")
        _check_sources(self.data, self.stages)


@dataclass(frozen=True)
class PlusRecipe(Run):
    """Train ACE++ (kind = "plus"): FLUX.1-Fill with a canvas of reference and edited picture side by side.

    init: a FLUX.1-Fill model folder in diffusers' layout. in_channels: 384 as FLUX.1-Fill, or 448, with the picture's
    changed part on channels of its own (FFT); a model of 384 is widened. lora: None = all weights.
    max_sequence: tokens of a canvas. repainting_scale: how much of the masked part is hidden (without a reference).
    modify_mode: show the masked part on the extra channels only. guidance: value given to the guidance embedding.
    presampled_timesteps: draw from 1000 fixed levels, as the published trainer, else afresh."""

    init: str = ""
    in_channels: Literal[384, 448] = 384
    max_sequence: int = 4096
    max_text_tokens: int = 512
    repainting_scale: float = 0.5
    modify_mode: bool = True
    guidance: float = 1.0
    presampled_timesteps: bool = True
    cache: str = ""
    num_inference_steps: int = 28
    guidance_scale: float = 50.0
    data: tuple[Source, ...] = ()
    lora: Lora | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.init:
            raise ConfigError("kind plus trains on from FLUX.1-Fill: name its folder with init")
        if not self.data:
            raise ConfigError("kind plus needs [[data]]: the procedural world is too small for FLUX")
        _check_sources(self.data, self.stages)


Recipe = AutoencoderRecipe | ModelRecipe | PlusRecipe
_KINDS: dict[str, type] = {"autoencoder": AutoencoderRecipe, "model": ModelRecipe, "plus": PlusRecipe}


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises ConfigError for a missing file, broken TOML, an unknown kind or an unknown
    key."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not a text file: a recipe is TOML") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}") from error
    kind = table.pop("kind", None)
    if kind not in _KINDS:
        raise ConfigError(f"{path.name}: kind is {kind!r}, use one of {', '.join(_KINDS)}")
    stages = table.pop("stage", [])
    if not stages:
        raise ConfigError(f"{path.name}: no [[stage]] given")
    table["stages"] = [_build(Stage, stage, path) for stage in stages]
    if "data" in table:
        table["data"] = [_build(Source, source, path) for source in table["data"]]
    if "lora" in table:
        table["lora"] = _build(Lora, table["lora"], path)
    return _build(_KINDS[kind], table, path)


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every setting of a recipe, defaults included, as the table of its TOML file."""
    table: dict[str, Any] = {"kind": next(kind for kind, cls in _KINDS.items() if type(recipe) is cls)}
    for key, value in dataclasses.asdict(recipe).items():
        if value is not None:
            table["stage" if key == "stages" else key] = value
    for stage in table["stage"]:
        del stage["steps" if stage["samples"] else "samples"]  # one of them says it
    return {k: table[k] for k in sorted(table, key=lambda k: isinstance(table[k], tuple | list | dict))}


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as TOML; `read_recipe` gives the same recipe again."""
    import tomli_w

    path.write_text(tomli_w.dumps(resolved(recipe)), encoding="utf-8")


def keep_recipe(recipe: Recipe, path: Path) -> list[str]:
    """Write the resolved recipe beside its run; returns what differs from the one that lay there, by key."""
    changed: list[str] = []
    if path.exists():
        try:
            before, now = resolved(read_recipe(path)), resolved(recipe)
            changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        except ConfigError:  # an unfinished file, or one of another version
            changed = ["all of it"]
    write_recipe(recipe, path)
    return changed


def _build(kind: type, table: dict[str, Any], path: Path) -> Any:
    known = {f.name: f for f in dataclasses.fields(kind)}
    if not isinstance(table, dict):
        raise ConfigError(f"{path.name}: expected a table of {', '.join(known)}")
    if unknown := sorted(table.keys() - known.keys()):
        raise ConfigError(f"{path.name}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    table = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    for key, value in table.items():
        _check_type(f"{path.name}: {key}", value, str(known[key].type))
    try:
        return kind(**table)
    except TypeError as error:
        raise ConfigError(f"{path.name}: {error}") from error


def _check_type(what: str, value: Any, annotation: str) -> None:
    """Numbers, words and switches must be what the recipe's class says: TOML knows the difference."""
    wanted: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    kinds = wanted.get(annotation)
    if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and annotation != "bool")):
        raise ConfigError(f"{what} is {value!r}, it must be of type {annotation}")


def _check_choice(what: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{what} {value!r} is not one of {', '.join(map(str, get_args(choices)))}")


def _check_sources(sources: tuple[Source, ...], stages: tuple[Stage, ...]) -> None:
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ConfigError("two [[data]] have the same name")
    for stage in stages:
        if unknown := sorted(stage.data.keys() - set(names)):
            raise ConfigError(f"stage {stage.name!r}: no [[data]] is called {', '.join(unknown)}")
