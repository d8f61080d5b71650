"""A training recipe: one TOML file, read into frozen dataclasses; unknown keys are refused.

A recipe is a model and a list of stages. Stages run one after the other on the same weights; each has its own number of
samples, learning rate and schedule, so that a run can be stopped and finished by a decay stage at any time.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ace.diffusion.loss import PredictionType
from ace.errors import ConfigError

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    samples: how many samples it sees. lr: at its start, after warmup_steps; schedule: "constant", or down to zero at
    its end ("linear", "cosine"). tasks: weights by task or family for this stage; empty = the world's own mixture."""

    name: str
    samples: int
    lr: float
    batch_size: int = 32
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    tasks: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ConfigError(
                f"stage {self.name!r}: schedule {self.schedule!r} is not one of {', '.join(get_args(Schedule))}"
            )
        if self.samples < self.batch_size or self.batch_size < 1 or self.lr <= 0:
            raise ConfigError(f"stage {self.name!r}: samples must reach batch_size, and lr be above 0")

    @property
    def steps(self) -> int:
        """Optimiser steps of this stage."""
        return self.samples // self.batch_size

    def lr_at(self, step: int) -> float:
        """Learning rate at a step of this stage, from 0."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        left = 1 - step / self.steps
        shape = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[self.schedule]
        return self.lr * warm * shape


@dataclass(frozen=True)
class _Run:
    """What every recipe has. seed: of weights, data and noise. save_minutes: between checkpoints."""

    stages: tuple[Stage, ...]
    size_px: int = 64
    seed: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    save_minutes: float = 5.0
    num_workers: int = 1
    mixed_precision: Literal["no", "bf16"] = "bf16"


@dataclass(frozen=True)
class AutoencoderRecipe(_Run):
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
class ModelRecipe(_Run):
    """Train the transformer and its text encoder (kind = "model").

    preset: sizes in `ace.model.config.PRESETS`. autoencoder: folder of a trained one. text_encoder: folder of the
    encoder to start from; text_layers: how many of its layers are kept; text_lr_scale: factor on their learning rate.
    text_dropout: share of samples whose instruction is replaced by the empty one, for guidance. change_weight: weight
    in the loss of cells that differ from the edited image, against 1 for those that are copied."""

    preset: str = "tiny"
    autoencoder: str = ""
    text_encoder: str = ""
    text_layers: int = 3
    text_lr_scale: float = 0.1
    text_dropout: float = 0.1
    prediction_type: PredictionType = "v_prediction"
    change_weight: float = 1.0
    source_on_channels: bool = True
    num_inference_steps: int = 10
    guidance_scale: float = 2.0
    guidance_rescale: float = 0.0


_KINDS = {"autoencoder": AutoencoderRecipe, "model": ModelRecipe}


def read_recipe(path: Path) -> AutoencoderRecipe | ModelRecipe:
    """Read and check a recipe. Raises ConfigError for a missing file, broken TOML, an unknown kind or an unknown
    key."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path.name}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}") from error
    kind = table.pop("kind", None)
    if kind not in _KINDS:
        raise ConfigError(f"{path.name}: kind is {kind!r}, use one of {', '.join(_KINDS)}")
    stages = table.pop("stage", [])
    if not stages:
        raise ConfigError(f"{path.name}: no [[stage]] given")
    recipe = _KINDS[kind]
    table = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return _build(recipe, {**table, "stages": tuple(_build(Stage, s, path) for s in stages)}, path)


def _build(kind: type, table: dict, path: Path):
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(table.keys() - known):
        raise ConfigError(f"{path.name}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    try:
        return kind(**table)
    except TypeError as error:
        raise ConfigError(f"{path.name}: {error}") from error
