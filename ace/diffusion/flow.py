"""Rectified flow for training (Liu et al. 2022, arXiv 2209.03003): straight paths from noise to picture.

`sigma` runs from 0, the clean latents, to 1, pure noise. The network learns the velocity `noise - x_0` and is told
`1000 sigma`. Levels are drawn uniformly or logit-normally (Esser et al. 2024, arXiv 2403.03206), most often half-way.

Not here: samplers, which are diffusers' `FlowMatchEulerDiscreteScheduler` and its kin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ace.diffusion.loss import mean_per_sample
from ace.diffusion.noise import broadcast_rows
from ace.errors import ShapeError


def flow_noise(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_t = (1 - sigma) x_0 + sigma noise. latents, noise: (N, …); sigma: (N,) in [0, 1].

    Raises ShapeError if they do not fit."""
    if latents.shape != noise.shape or sigma.shape != latents.shape[:1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (latents, noise, sigma))
        raise ShapeError(f"latents, noise and sigma have shapes {shapes}: noise as latents, one sigma per row")
    level = broadcast_rows(sigma.float(), latents)
    return ((1 - level) * latents.float() + level * noise.float()).to(latents.dtype)


def flow_losses(
    prediction: Tensor,
    latents: Tensor,
    noise: Tensor,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Squared error to the velocity `noise - x_0` per sample, (N,) float32.

    Shapes, lengths and row_weights as in `diffusion_losses`. Raises ShapeError if the shapes differ."""
    if not prediction.shape == latents.shape == noise.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (prediction, latents, noise))
        raise ShapeError(f"prediction, latents and noise differ: {shapes}")
    errors = (prediction.float() - (noise.float() - latents.float())) ** 2
    if row_weights is None:
        return mean_per_sample(errors, lengths)
    rows = errors.reshape(errors.shape[0], -1).mean(dim=1)
    return mean_per_sample(rows * row_weights, lengths) / mean_per_sample(row_weights, lengths)


def sample_sigma(generator: torch.Generator, logit_normal: bool) -> float:
    """One noise level in (0, 1), from a sample's own generator."""
    if logit_normal:
        return float(torch.sigmoid(torch.randn((), generator=generator)))
    return float(torch.rand((), generator=generator))


def published_levels(generator: torch.Generator) -> Tensor:
    """The noise levels that the ACE++ trainer fixes at its start, (1000,) falling: 1 - sigmoid of a normal draw each.

    A step then takes one of the entries 1 to 998 evenly."""
    return (1 - torch.sigmoid(torch.randn(1000, generator=generator))).sort(descending=True).values
