"""What a recipe will cost, from its numbers alone: parameters, operations, memory, time. Loads nothing.

Memory is that of one device without sharding; time is operations divided by a device's rate: both are estimates. Where
steps of the recipe could be run, `with_steps` puts in their place what was measured.
Not here: this machine's rate (`speed.py`); frozen encoders' work, which a cache of features takes out of the steps.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace.errors import ConfigError
from ace.model.config import PRESETS, ACEConfig
from ace.model.cost import activation_bytes, num_parameters, step_cost, text_cost
from ace.training.config import SIZE_PX, AutoencoderRecipe, ModelRecipe, PlusRecipe, Recipe, TrainingStage, VideoRecipe
from ace.weights.sources import find_model

TEXT_TOKENS = 30  # of an instruction, about
TINY_CELLS_PX = 8
PUBLISHED_BUDGETS = {"ace-0.6b-512": 1024, "ace-0.6b-1024": 4096}
FLUX_PARAMETERS = 11_901_408_320  # of FLUX.1-dev
FLUX_WIDTH = 3072
_STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "adafactor": 1, "muon": 4}  # per trained weight


@dataclass(frozen=True)
class Device:
    """What a plan is for. name: in words, and where its rate is from; tflops: operations that training gets out of one,
    10^12 per second; memory_bytes: of one, 0 = not known."""

    name: str
    tflops: float
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.tflops < math.inf:
            raise ConfigError(f"a device of {self.tflops:g} TFLOP/s: use more than 0")


@dataclass(frozen=True)
class StagePlan:
    """One stage. samples, tokens: per step, visual tokens of targets and one image each; operations: of one step, there
    and back; hours: at the given rate, or as measured; step_s: of one step, where it was measured."""

    name: str
    steps: int
    samples: int
    tokens: int
    operations: float
    hours: float
    step_s: float | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """What a recipe will do. devices: how many. weight_bytes: weights, gradients, optimiser state and averages;
    activation_bytes: of the largest piece that goes through at once."""

    kind: str
    device: Device
    devices: int
    parameters: int
    trained: int
    weight_bytes: int
    activation_bytes: int
    stages: tuple[StagePlan, ...]

    @property
    def hours(self) -> float:
        """All stages."""
        return sum(stage.hours for stage in self.stages)

    def lines(self) -> list[str]:
        """The plan in words."""
        share = "" if self.trained == self.parameters else f", of which {_count(self.trained)} are trained"
        lines = [
            f"transformer of {_count(self.parameters)} parameters{share}",
            f"memory of a device: {_size(self.weight_bytes)} for weights, gradients, optimiser and averages, "
            f"about {_size(self.activation_bytes)} for activations{self._room()}",
        ]
        if all(stage.step_s is not None for stage in self.stages):
            lines.append("time on this machine, from steps of this recipe that were run here just now:")
        else:
            lines.append(
                f"time on {self.devices} x {self.device.name}, {_operations(self.device.tflops)}/s delivered by each:"
            )
        width = max(len(stage.name) for stage in self.stages)
        for stage in self.stages:
            lines.append(
                f"{stage.name:<{width}}  {stage.steps:>9,} steps of {stage.samples:,} samples, {_count(stage.tokens)} "
                f"tokens, {_operations(stage.operations / 1e12)}"
                f"{'' if stage.step_s is None else f', {stage.step_s:.2g} s each'}; {_time(stage.hours)}"
            )
        lines.append(f"{'in all':<{width}}  {_time(self.hours)}")
        return lines

    def _room(self) -> str:
        """Whether it fits, where that is known."""
        if not self.device.memory_bytes:
            return ""
        needed = self.weight_bytes + self.activation_bytes
        verdict = "enough" if needed < self.device.memory_bytes else "too little: share it (FSDP2)"
        return f"; there are {_size(self.device.memory_bytes)}, {verdict}"


def plan(recipe: Recipe, device: Device, devices: int = 1) -> TrainingPlan:
    """Plan a recipe for a number of devices of one kind. Raises ConfigError for an unknown preset."""
    if devices < 1:
        raise ConfigError(f"{devices} devices: use at least 1")
    if isinstance(recipe, AutoencoderRecipe):
        return _autoencoder(recipe, device, devices)
    if isinstance(recipe, VideoRecipe):
        raise ConfigError("a recipe for clips has no plan: start it, its first steps tell its time")
    config, parameters = _sizes(recipe)
    trained = _trained(recipe, config, parameters)
    frozen_bytes = 4 if isinstance(recipe, ModelRecipe) else 2
    state = _bytes_per_weight(recipe)
    stages, most = [], 0
    for stage in recipe.stages:
        cells = stage.sequence_length or _default_cells(recipe, config)
        frames = [cells] * (2 if stage.max_images else 1)
        if isinstance(recipe, PlusRecipe):
            frames = [min(recipe.max_sequence, 2 * cells)]
        samples = max(1, stage.batch_tokens // sum(frames)) if stage.batch_tokens else stage.batch_size
        texts = [TEXT_TOKENS] * len(frames)
        operations = 3.0 * samples * (step_cost(config, frames, texts).total + text_cost(config, texts))
        if isinstance(recipe, PlusRecipe):  # two streams or fused, every weight meets about every token
            operations = 6.0 * samples * (sum(frames) + recipe.max_text_tokens) * parameters
        if recipe.lora:
            operations *= 2 / 3  # no gradients of the base's weights
        seconds = stage.steps * operations / (devices * device.tflops * 1e12)
        stages.append(StagePlan(stage.name, stage.steps, samples, samples * sum(frames), operations, seconds / 3600))
        local = max(sum(frames), samples * sum(frames) // devices)
        most = max(most, min(stage.micro_tokens, local) if stage.micro_tokens else local)
    values = activation_bytes(config, most, 2 if recipe.mixed_precision == "bf16" else 4, recipe.gradient_checkpointing)
    kind = "ACE" if isinstance(recipe, ModelRecipe) else "ACE++"
    weights = trained * state + (parameters - trained) * frozen_bytes
    return TrainingPlan(kind, device, devices, parameters, trained, weights, values, tuple(stages))


def with_steps(made: TrainingPlan, seconds: Sequence[float]) -> TrainingPlan:
    """A plan with the measured duration of one step of each stage."""
    stages = tuple(
        dataclasses.replace(stage, step_s=step_s, hours=stage.steps * step_s / 3600)
        for stage, step_s in zip(made.stages, seconds, strict=True)
    )
    return dataclasses.replace(made, stages=stages)


def _sizes(recipe: ModelRecipe | PlusRecipe) -> tuple[ACEConfig, int]:
    if isinstance(recipe, PlusRecipe):
        config = ACEConfig(hidden_size=FLUX_WIDTH, depth=19 + 38, num_heads=24, latent_channels=16)
        return config, FLUX_PARAMETERS + (recipe.in_channels - 64) * FLUX_WIDTH
    if recipe.init in PUBLISHED_BUDGETS:  # nobody needs its weights for a plan
        config = PRESETS[recipe.init.removeprefix("ace-")]
    elif recipe.init and not _is_to_come(recipe):
        written = json.loads((find_model(recipe.init).folder / "transformer" / "config.json").read_text())
        config = ACEConfig(**{f.name: written[f.name] for f in dataclasses.fields(ACEConfig) if f.name in written})
    elif recipe.preset in PRESETS:
        config = dataclasses.replace(PRESETS[recipe.preset], source_on_channels=recipe.source_on_channels)
    else:
        raise ConfigError(f"unknown preset {recipe.preset!r}: one of {', '.join(PRESETS)}")
    config = dataclasses.replace(config, patch_size=recipe.patch_size or config.patch_size)
    return config, num_parameters(config)


def _is_to_come(recipe: ModelRecipe | PlusRecipe) -> bool:
    """Whether a run begins with what another run will have made; it is planned by its preset then."""
    return recipe.init.startswith("runs/") and not Path(recipe.init).exists()


def _trained(recipe: ModelRecipe | PlusRecipe, config: ACEConfig, parameters: int) -> int:
    if not recipe.lora:
        return parameters
    width = config.hidden_size
    if isinstance(
        recipe, PlusRecipe
    ):  # modulation, qkv, projection and MLP of both streams; two linears and modulation
        double = 2 * ((width + 6 * width) + (width + 3 * width) + 2 * width + 2 * (width + 4 * width))
        single = (width + 7 * width) + (5 * width + width) + (width + 3 * width)
        return recipe.lora.rank * (19 * double + 38 * single)
    per_block = 8 * 2 * width + 2 * int(width * (1 + config.mlp_ratio))
    return recipe.lora.rank * config.depth * per_block


def _bytes_per_weight(recipe: Recipe) -> int:
    """Of a trained one: itself, its gradient, the optimiser's state, its average."""
    return 4 + 4 + _STATE_BYTES[recipe.optimizer] + (4 if recipe.ema_decay else 0)


def _default_cells(recipe: ModelRecipe | PlusRecipe, config: ACEConfig) -> int:
    """A run that goes on from a model and names no size has that model's cells, whatever its patches (`start.py`)."""
    if recipe.init and not recipe.size_px and not _is_to_come(recipe):
        return PUBLISHED_BUDGETS.get(recipe.init) or find_model(recipe.init).budget
    return ((recipe.size_px or SIZE_PX) // (TINY_CELLS_PX * config.patch_size)) ** 2


def _autoencoder(recipe: AutoencoderRecipe, device: Device, devices: int) -> TrainingPlan:
    """A residual block is two 3x3 convolutions."""
    sides = [recipe.size_px // 2**level for level in range(len(recipe.encoder_channels))]
    parameters, per_picture, kept = 0, 0.0, 0
    for layers, channels in (
        (recipe.encoder_layers, recipe.encoder_channels),
        (recipe.decoder_layers, recipe.decoder_channels),
    ):
        for side, count, width in zip(sides, layers, channels, strict=True):
            weights = (2 * count + 1) * 9 * width * width
            parameters += weights
            per_picture += 2.0 * weights * side * side
            kept += (4 * count + 2) * width * side * side
    state = parameters * _bytes_per_weight(recipe)
    rate = devices * device.tflops * 1e12
    stages = tuple(_picture_stage(stage, recipe.size_px, per_picture, rate) for stage in recipe.stages)
    local = max(stage.batch_size for stage in recipe.stages) // devices or 1
    return TrainingPlan("autoencoder", device, devices, parameters, parameters, state, 2 * kept * local, stages)


def _picture_stage(stage: TrainingStage, size_px: int, per_picture: float, rate: float) -> StagePlan:
    operations = 3 * per_picture * stage.batch_size
    tokens = stage.batch_size * (size_px // TINY_CELLS_PX) ** 2
    hours = stage.steps * operations / rate / 3600
    return StagePlan(stage.name, stage.steps, stage.batch_size, tokens, operations, hours)


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _size(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.1f} seconds"
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    if hours < 72:
        return f"{hours:.1f} hours"
    return f"{hours / 24:,.0f} days" if hours < 24 * 1000 else f"{hours / 24 / 365:,.0f} years"


def _operations(tera: float) -> str:
    return f"{tera:,.1f} Tflop" if tera >= 1 else f"{1000 * tera:,.1f} Gflop"
