"""PREDICTION ↔ LATENTS. Imports: errors.

In: latents, noise, timesteps and the network's predictions. Out: noisy latents and a loss (training), or the next latents
of a sampling trajectory (inference).
"""

from ace.diffusion.loss import diffusion_loss
from ace.diffusion.noise import add_noise, linear_schedule, sample_noise

__all__ = ["add_noise", "diffusion_loss", "linear_schedule", "sample_noise"]
