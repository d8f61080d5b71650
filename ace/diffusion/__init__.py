"""PREDICTION ↔ LATENTS. Imports: errors.

In: latents, noise, timesteps and the network's predictions. Out: noisy latents and a loss (training), or the next
latents of a sampling trajectory (inference).
"""

from ace.diffusion.ddim import DIFFUSERS_SCHEDULE, ACEDDIMScheduler, ddim_plan, ddim_step
from ace.diffusion.guidance import guide
from ace.diffusion.loss import diffusion_loss, diffusion_losses
from ace.diffusion.noise import SCHEDULE_RULES, add_noise, linear_schedule, sample_noise, seeded_generator
from ace.diffusion.refine import flow_euler, refiner_sigmas

__all__ = [
    "DIFFUSERS_SCHEDULE",
    "SCHEDULE_RULES",
    "ACEDDIMScheduler",
    "add_noise",
    "ddim_plan",
    "ddim_step",
    "diffusion_loss",
    "diffusion_losses",
    "flow_euler",
    "guide",
    "linear_schedule",
    "refiner_sigmas",
    "sample_noise",
    "seeded_generator",
]
