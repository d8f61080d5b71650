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

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from ace.diffusion.loss import PredictionType, check_prediction_type
from ace.diffusion.noise import (
    BETA_END,
    BETA_START,
    NUM_TRAIN_TIMESTEPS,
    NoiseSchedule,
    add_noise,
    broadcast_rows,
    linear_schedule,
)
from ace.errors import ConfigError, ShapeError

# ACE's betas and spacing as keyword arguments of any diffusers scheduler with a beta schedule.
DIFFUSERS_SCHEDULE: dict[str, str | int | float] = {
    "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    "beta_schedule": "linear",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True)
class DDIMPlan:
    """What is fixed for one number of steps. All tensors are on the CPU; S = number of network evaluations.

    timesteps: (S,) float32, fractional, falling. model_timesteps: (S,) int64, what the network is given.
    floor_alpha, floor_sigma: (S,) float32, sqrt(1 - sigma^2) and sigma at floor(t): prediction -> clean latents.
    k: (S,) float32, sigma / alpha interpolated at t. sigma: (S + 1,) float32, the update's noise levels, last 0."""

    timesteps: Tensor
    model_timesteps: Tensor
    floor_alpha: Tensor
    floor_sigma: Tensor
    k: Tensor
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
    schedule = linear_schedule(num_train_timesteps, beta_start, beta_end)
    last = num_train_timesteps - 1
    timesteps = torch.arange(last, -1, -num_train_timesteps / num_inference_steps, dtype=torch.float32).clamp(0, last)
    floor, ceil = timesteps.floor().long(), timesteps.ceil().long()
    # sqrt(1 - sigma^2) and not sqrt(alpha_bar): the same number but for float32 rounding, which at t = 999 (signal
    # 0.006) moves the clean estimate by 1e-3. The published sampler computes it this way.
    alpha = torch.sqrt(1 - schedule.sigma**2)
    log_k = torch.log(schedule.sigma / alpha)
    k = torch.exp(torch.lerp(log_k[floor], log_k[ceil], timesteps - floor))
    sigma = torch.sqrt(k**2 / (1 + k**2))
    return DDIMPlan(
        timesteps=timesteps,
        model_timesteps=timesteps.round().long(),  # torch rounds half to even
        floor_alpha=alpha[floor],
        floor_sigma=schedule.sigma[floor],
        k=k,
        sigma=torch.cat([sigma, torch.zeros(1)]),
    )


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
        torch.stack([p.floor_alpha[i], p.floor_sigma[i], p.sigma[i], p.sigma[i + 1]])
        for p, i in zip(plans, indices, strict=True)
    ]
    table = torch.stack(rows)  # (N, 4) on the CPU, one transfer
    if lengths is not None:
        table = table.repeat_interleave(torch.as_tensor(list(lengths)), dim=0)
        if table.shape[0] != sample.shape[0]:
            raise ShapeError(f"lengths add up to {table.shape[0]} rows, there are {sample.shape[0]}")
    alpha_0, sigma_0, sigma, sigma_next = (
        broadcast_rows(column, sample) for column in table.to(sample.device).unbind(dim=1)
    )

    x, output = sample.float(), model_output.float()
    if prediction_type == "epsilon":
        clean = (x - sigma_0 * output) / alpha_0
    elif prediction_type == "v_prediction":
        clean = alpha_0 * x - sigma_0 * output
    else:
        clean = output
    direction = (x - torch.sqrt(1 - sigma**2) * clean) / sigma
    previous = torch.sqrt(1 - sigma_next**2) * clean + sigma_next * direction
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
        return ddim_plan(num_inference_steps, config.num_train_timesteps, config.beta_start, config.beta_end)

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
        result = ddim_step(model_output, sample, self.plan, self._step_index, self.config.prediction_type)
        self._step_index += 1
        return result if return_dict else (result.prev_sample, result.pred_original_sample)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Diffuse clean latents (N, …) to integer timesteps (N,) on this scheduler's betas."""
        schedule = linear_schedule(
            self.config.num_train_timesteps, self.config.beta_start, self.config.beta_end, original_samples.device
        )
        return add_noise(original_samples, noise, timesteps, schedule)

    def __len__(self) -> int:
        return self.config.num_train_timesteps
