"""Small pictures of latents on their way, cheap enough for every step.

A `LatentColours` is a linear map from the channels of one latent cell to a few pixels, fitted by least squares on the
autoencoder's own latents of smooth, blocky and edged colour pictures: one matrix product in place of the decoder.
What is shown is the clean picture that the network predicts at a step, not the noise it stands in (Ho et al. 2020,
eq. 15): the outcome can be seen after a few steps.

Not here: the decoder itself (`latents.py`), which gives the exact picture of the same latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ace.diffusion import linear_schedule
from ace.inference.latents import Autoencoder, encode_pictures, scale_factor

CELL_PX = 4  # preview pixels per latent cell side
_CELLS = 8  # sides of the pictures that are fitted, in latent cells
_PICTURES = 32
_RIDGE = 1e-3  # keeps channels that say nothing about colour from being used


@dataclass(frozen=True)
class LatentColours:
    """Linear map from one latent cell to `CELL_PX` x `CELL_PX` pixels of three colours in [-1, 1].

    weight: (3 · CELL_PX², C), bias: (3 · CELL_PX²,), ordered (colour, row, column)."""

    weight: Tensor
    bias: Tensor

    def picture(self, latents: Tensor) -> Tensor:
        """Latents (C, h, w) → colours (3, h · CELL_PX, w · CELL_PX), clamped."""
        colours = torch.einsum("kc,chw->khw", self.weight, latents.float().to(self.weight.device))
        return F.pixel_shuffle(colours + self.bias[:, None, None], CELL_PX).clamp(-1, 1)


@torch.no_grad()
def fit_colours(autoencoder: Autoencoder) -> LatentColours:
    """The linear map of an autoencoder; the same at every call. Some pictures of 8x8 cells are encoded, once."""
    factor = scale_factor(autoencoder)
    generator = torch.Generator().manual_seed(0)
    pictures = [_colour_picture(n, _CELLS * factor, generator) for n in range(_PICTURES)]
    latents = torch.stack(encode_pictures(autoencoder, pictures)).cpu().double()
    wanted = F.interpolate(torch.stack(pictures), size=(_CELLS * CELL_PX,) * 2, mode="area")
    wanted = F.pixel_unshuffle(wanted, CELL_PX).double()
    cells, colours = (x.transpose(0, 1).flatten(1).T for x in (latents, wanted))  # (P, C), (P, 3 · CELL_PX²)
    mean, spread = cells.mean(0), cells.std(0).clamp_min(1e-6)
    inputs = (cells - mean) / spread
    gram = inputs.T @ inputs / len(inputs) + _RIDGE * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    offset = colours.mean(0)
    weight = torch.linalg.solve(gram, inputs.T @ (colours - offset) / len(inputs)).T / spread
    return LatentColours(weight.float(), (offset - weight @ mean).float())


def _colour_picture(number: int, side: int, generator: torch.Generator) -> Tensor:
    """(3, side, side): a smooth or blocky field of colours, with a straight edge to another one through it."""
    coarse = (1, 2, 4, 8)[number // 2 % 4]
    mode = "nearest" if number // 8 % 2 else "bilinear"
    fields = torch.rand(2, 3, coarse, coarse, generator=generator) * 2 - 1
    if number % 2:  # half of them near a grey, as most of a photograph is
        fields = 0.3 * fields + 0.7 * fields.mean(dim=(1, 2, 3), keepdim=True).mul(3).clamp(-1, 1)
    first, second = F.interpolate(fields, size=(side, side), mode=mode)
    angle = 2 * torch.pi * torch.rand((), generator=generator)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    return torch.where(rows * angle.sin() + columns * angle.cos() > 0.2, first, second)


def predicted_clean(prediction: Tensor, latents: Tensor, timestep: Tensor, scheduler: SchedulerMixin) -> Tensor:
    """The clean latents that a network's prediction stands for, for schedulers on DDPM betas and for flows.

    prediction, latents: (C, h, w); timestep: as the network was given it."""
    config = scheduler.config
    if "beta_start" not in config:  # a flow: the prediction leads from the clean latents to the noise
        return latents - timestep.to(latents) / config.num_train_timesteps * prediction
    if config.prediction_type == "sample":
        return prediction
    schedule = linear_schedule(config.num_train_timesteps, config.beta_start, config.beta_end, latents.device)
    alpha, sigma = (table[timestep.long().to(latents.device)] for table in (schedule.alpha, schedule.sigma))
    if config.prediction_type == "v_prediction":
        return alpha * latents - sigma * prediction
    return (latents - sigma * prediction) / alpha
