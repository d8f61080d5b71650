"""The sampler ACE was published with: DDIM (Song et al. 2020, arXiv 2010.02502), eta = 0, on "trailing" timesteps.

It differs from diffusers' `DDIMScheduler(timestep_spacing="trailing")` where the number of steps does not divide 1000.
The timesteps are then fractional: the network gets them rounded (half to even), the clean estimate uses the tables at
the floor, and the update interpolates log(sigma / alpha) between floor and ceiling. Rounding makes some counts one step
longer (61, 103, 121, …); that is kept.

`ddim_plan` holds what is fixed for a number of steps, `ddim_step` is the pure step over any mixture of samples at
different steps of different plans, and `ACEDDIMScheduler` is the diffusers scheduler that stands on both.

Other solvers are diffusers' own on the same betas:
    DPMSolverMultistepScheduler(**DIFFUSERS_SCHEDULE, prediction_type=…, final_sigmas_type="zero")
    UniPCMultistepScheduler(**DIFFUSERS_SCHEDULE, prediction_type=…)

Not here: noise in the step (eta > 0), clipping or thresholding, image-to-image starts.
"""

# torch types `tolist`, `from_numpy` and `split` only in part.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config  # pyright: ignore[reportUnknownVariableType]
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from ace.diffusion.loss import PredictionType, check_prediction_type
from ace.diffusion.noise import (
    BETA_END,
    BETA_START,
    NUM_TRAIN_TIMESTEPS,
    NoiseSchedule,
    add_noise,
    broadcast_rows,
    exact_tables,
    linear_schedule,
)
from ace.errors import ConfigError, ShapeError

# ACE's betas and spacing as keyword arguments of any diffusers scheduler with a beta schedule.
DIFFUSERS_SCHEDULE: dict[str, str | int | float | list[float]] = {
    "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    "beta_schedule": "linear",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "trained_betas": linear_schedule().betas.tolist(),  # theirs would be computed by torch
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True)
class DDIMPlan:
    """What is fixed for one number of steps. All tensors are on the CPU; S = number of network evaluations.

    timesteps: (S,) float32, fractional, falling. model_timesteps: (S,) int64, what the network is given.
    floor_alpha, floor_sigma: (S,) float32, sqrt(alpha_bar) and sigma at floor(t): prediction -> clean latents.
    k: (S,) float32, sigma / alpha interpolated at t. alpha, sigma: (S + 1,) float32, the update's levels of signal and
    noise, last 1 and 0."""

    timesteps: Tensor
    model_timesteps: Tensor
    floor_alpha: Tensor
    floor_sigma: Tensor
    k: Tensor
    alpha: Tensor
    sigma: Tensor

    def __len__(self) -> int:
        return self.timesteps.shape[0]


@lru_cache(maxsize=64)
def ddim_plan(
    num_inference_steps: int,
    num_train_timesteps: int = NUM_TRAIN_TIMESTEPS,
    beta_start: float = BETA_START,
    beta_end: float = BETA_END,
) -> DDIMPlan:
    """The plan for a number of steps, made once and shared: do not write to it.

    Its length is `num_inference_steps`, or one more for the counts where the published spacing gains a step at t = 0.
    Raises ConfigError unless 1 <= num_inference_steps <= num_train_timesteps."""
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ConfigError(f"{num_inference_steps} steps: choose 1 to {num_train_timesteps}")
    _, alpha_bar, noise = exact_tables(num_train_timesteps, beta_start, beta_end)
    last = num_train_timesteps - 1
    spacing = num_train_timesteps / num_inference_steps
    timesteps = _falling(last, spacing, math.ceil(num_train_timesteps / spacing)).clip(0, last)
    floor, ceil = np.floor(timesteps).astype(int), np.ceil(timesteps).astype(int)
    every_k = np.sqrt(noise / alpha_bar)
    k = every_k[floor] * _power(every_k[ceil] / every_k[floor], (timesteps - floor).astype(np.float64))
    rounded = {
        "timesteps": timesteps,
        "floor_alpha": np.sqrt(alpha_bar[floor]),
        "floor_sigma": np.sqrt(noise[floor]),
        "k": k,
        "alpha": np.append(1 / np.sqrt(1 + k**2), 1.0),
        "sigma": np.append(k / np.sqrt(1 + k**2), 0.0),
    }
    return DDIMPlan(
        model_timesteps=torch.from_numpy(np.rint(timesteps).astype(np.int64)),  # half to even
        **{name: torch.from_numpy(table.astype(np.float32)) for name, table in rounded.items()},
    )


def _falling(start: float, spacing: float, count: int) -> np.ndarray:
    """start - spacing * i, (count,) float32, rounded as the published timesteps were: it decides which of them fall on
    an integer, and below it which table entries count.

    torch's `arange` fills two vectors of 8 at a time (AVX2), each from a first value that is rounded already; what is
    left over is computed one by one. Other processors' vectors have other lengths."""
    index = np.arange(count)
    lane = np.where(index < count // 16 * 16, index % 8, 0)
    first = (start - spacing * (index - lane)).astype(np.float32)
    return (first - spacing * lane).astype(np.float32)


def _power(base: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """base^exponent, base > 0, 0 <= exponent < 1, float64: roots multiplied as the exponent's binary digits say.

    IEEE 754 fixes roots and products to the bit; libraries' powers differ by processor."""
    result = np.ones_like(base)
    for _ in range(40):
        base, exponent = np.sqrt(base), 2 * exponent
        digit = exponent >= 1
        result, exponent = np.where(digit, result * base, result), exponent - digit
    return result


@dataclass
class DDIMStep(BaseOutput):
    """prev_sample: the latents one step further. pred_original_sample: the clean latents estimated at this step."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


def ddim_step(
    model_output: Tensor,
    sample: Tensor,
    plan: DDIMPlan | Sequence[DDIMPlan],
    step_index: int | Sequence[int],
    prediction_type: PredictionType = "epsilon",
    *,
    lengths: Sequence[int] | None = None,
) -> DDIMStep:
    """One DDIM step for samples that may be at different steps of different plans.

    model_output, sample: (N, …), or packed rows (T, …) with lengths (N,): sample n owns the next lengths[n] rows.
    plan, step_index: one for all, or one per sample; 0 <= step_index < len(plan).
    Returns tensors of sample's shape and dtype, computed in float32. Every operation is elementwise, so neighbours
    change nothing. Raises ShapeError if shapes or counts do not fit, ConfigError for a step outside its plan."""
    check_prediction_type(prediction_type)
    if model_output.shape != sample.shape:
        raise ShapeError(f"model output {tuple(model_output.shape)} and sample {tuple(sample.shape)} differ")
    num_samples = sample.shape[0] if lengths is None else len(lengths)
    plans = [plan] * num_samples if isinstance(plan, DDIMPlan) else list(plan)
    indices = [step_index] * num_samples if isinstance(step_index, int) else [int(index) for index in step_index]
    if not len(plans) == len(indices) == num_samples:
        raise ShapeError(
            f"{len(plans)} plans and {len(indices)} step indices for {num_samples} samples: one per sample"
        )
    for one_plan, index in zip(plans, indices, strict=True):
        if not 0 <= index < len(one_plan):
            raise ConfigError(f"step {index} of a plan of {len(one_plan)} steps: the sample is finished")

    rows = [
        torch.stack([p.floor_alpha[i], p.floor_sigma[i], p.alpha[i], p.sigma[i], p.alpha[i + 1], p.sigma[i + 1]])
        for p, i in zip(plans, indices, strict=True)
    ]
    table = torch.stack(rows)  # (N, 6) on the CPU, one transfer
    if lengths is not None:
        table = table.repeat_interleave(torch.as_tensor(list(lengths)), dim=0)
        if table.shape[0] != sample.shape[0]:
            raise ShapeError(f"lengths add up to {table.shape[0]} rows, there are {sample.shape[0]}")
    alpha_0, sigma_0, alpha, sigma, alpha_next, sigma_next = (
        broadcast_rows(column, sample) for column in table.to(sample.device).unbind(dim=1)
    )

    x, output = sample.float(), model_output.float()
    if prediction_type == "epsilon":
        clean = (x - sigma_0 * output) / alpha_0
    elif prediction_type == "v_prediction":
        clean = alpha_0 * x - sigma_0 * output
    else:
        clean = output
    direction = (x - alpha * clean) / sigma
    previous = alpha_next * clean + sigma_next * direction
    return DDIMStep(previous.to(sample.dtype), clean.to(sample.dtype))


class ACEDDIMScheduler(SchedulerMixin, ConfigMixin):
    """ACE's published sampler as a diffusers scheduler (deterministic, eta = 0).

    `timesteps` holds what the network is given (int64, rounded); `plan.timesteps` the fractional ones of the update.

    prediction_type: "epsilon", "v_prediction" or "sample". Raises ConfigError for anything else."""

    config_name = "scheduler_config.json"
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = NUM_TRAIN_TIMESTEPS,
        beta_start: float = BETA_START,
        beta_end: float = BETA_END,
        prediction_type: PredictionType = "epsilon",
    ) -> None:
        check_prediction_type(prediction_type)
        self.schedule: NoiseSchedule = linear_schedule(num_train_timesteps, beta_start, beta_end)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._plan: DDIMPlan | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None

    def plan_for(self, num_inference_steps: int) -> DDIMPlan:
        """The plan for a number of steps on this scheduler's betas."""
        config = self.config
        return ddim_plan(num_inference_steps, config["num_train_timesteps"], config["beta_start"], config["beta_end"])

    @property
    def plan(self) -> DDIMPlan:
        """The plan that `set_timesteps` chose. Raises ConfigError before that."""
        if self._plan is None:
            raise ConfigError("the scheduler has no timesteps yet: call set_timesteps first")
        return self._plan

    @property
    def step_index(self) -> int | None:
        """Index of the next step, None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, None for 0 or for what the first timestep says."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at a later step than the first (diffusers' own name)."""
        self._begin_index = begin_index

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose the number of steps and start anew; `timesteps` goes to `device`."""
        self._plan = self.plan_for(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = self._plan.model_timesteps.to(device)
        self._step_index = None
        self._begin_index = None

    def scale_model_input(self, sample: Tensor, timestep: Tensor | int | None = None) -> Tensor:
        """The sample itself: DDIM does not scale the network's input."""
        return sample

    def index_for_timestep(self, timestep: Tensor | int) -> int:
        """First step whose network timestep is `timestep`. Raises ConfigError if none is."""
        found = (self.plan.model_timesteps == int(timestep)).nonzero()
        if found.numel() == 0:
            raise ConfigError(f"timestep {int(timestep)} is not one of this scheduler's: take them from `timesteps`")
        return int(found[0])

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        return_dict: bool = True,
    ) -> DDIMStep | tuple[Tensor, Tensor | None]:
        """One step for a batch whose samples are all at the same timestep; see `ddim_step` for mixtures.

        The first call finds its step by `timestep` (or by `set_begin_index`), the following ones count on: where steps
        are dense two of them can round to one network timestep."""
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        result = ddim_step(model_output, sample, self.plan, self._step_index, self.config["prediction_type"])
        self._step_index += 1
        return result if return_dict else (result.prev_sample, result.pred_original_sample)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Diffuse clean latents (N, …) to integer timesteps (N,) on this scheduler's betas."""
        schedule = linear_schedule(
            self.config["num_train_timesteps"],
            self.config["beta_start"],
            self.config["beta_end"],
            original_samples.device,
        )
        return add_noise(original_samples, noise, timesteps, schedule)

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]
