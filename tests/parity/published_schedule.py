"""The published sampler's tables as they were recorded, for runs that are to follow a recording to its last digits.

The published code takes sigma from alpha_bar and sqrt(1 - sigma^2) from sigma again, in float32. Near pure noise that
loses nearly all digits (k at t = 999 is known to 2e-3 only), and what is left depends on the processor; ours are
computed in float64. Recorded runs are compared from the recorded tables.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ace.diffusion import ACEDDIMScheduler
from ace.diffusion.ddim import DDIMPlan, ddim_plan
from tests.parity.conftest import SHIPPED, cases

UNIT = 2.0**-24  # half a step of float32 at 1


def plan_from(tables: dict[str, Tensor]) -> DDIMPlan:
    """The plan that a case recorded under the published names."""
    sigma = tables["sigmas_vp"]
    return DDIMPlan(
        timesteps=tables["t"],
        model_timesteps=tables["t_model"].reshape(len(tables["t"]), -1)[:, 0],
        floor_alpha=tables["alpha_bar_init"],
        floor_sigma=tables["sigma_init"],
        k=tables["sigmas_k"],
        alpha=torch.sqrt(1 - sigma**2),
        sigma=sigma,
    )


def published_plan(steps: int) -> DDIMPlan:
    """The plan of any number of steps as published (PUBLISHED_MODELS 5.3), from the recorded sigma and alpha_bar."""
    kind = "ddim_schedule"
    (case, *_) = cases(kind) or cases(kind, SHIPPED)
    sigma, alpha = case.tensors["out.sigmas"], case.tensors["out.alphas_bar"]
    ours = ddim_plan(steps)
    floor, ceil = ours.timesteps.floor().long(), ours.timesteps.ceil().long()
    log_k = torch.log(sigma / alpha)
    k = torch.exp(torch.lerp(log_k[floor], log_k[ceil], ours.timesteps - floor))
    return plan_from(
        {
            "t": ours.timesteps,
            "t_model": ours.model_timesteps,
            "alpha_bar_init": alpha[floor],
            "sigma_init": sigma[floor],
            "sigmas_k": k,
            "sigmas_vp": torch.cat([torch.sqrt(k**2 / (1 + k**2)), torch.zeros(1)]),
        }
    )


def recorded_scheduler(tables: dict[str, Tensor] | None = None, prediction_type: str = "epsilon") -> ACEDDIMScheduler:
    """Our scheduler on a case's own plan, or on the published one of any number of steps."""
    scheduler = ACEDDIMScheduler(prediction_type=prediction_type)  # type: ignore[arg-type]
    scheduler.plan_for = published_plan if tables is None else lambda _: plan_from(tables)
    return scheduler


def allowed(timestep: Tensor, alpha: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """How far published float32 tables may be from exact ones, relative to each entry: 1e-6 where well conditioned.

    alpha_bar is a product of t + 1 rounded factors, whose errors add up like a random walk; sigma = sqrt(1 - alpha_bar)
    magnifies that error by alpha_bar / sigma^2, and sqrt(1 - sigma^2) that of sigma by sigma^2 / alpha_bar."""
    alpha_bar, noise = alpha.double() ** 2, sigma.double() ** 2
    product = 2 * UNIT * torch.sqrt(timestep.double() + 1)
    in_sigma = UNIT + (product + UNIT) * alpha_bar / noise
    in_alpha = UNIT + (in_sigma + UNIT) * noise / alpha_bar
    return {"sigma": 1e-6 + in_sigma, "alpha": 1e-6 + in_alpha, "k": 1e-6 + in_sigma + in_alpha}
