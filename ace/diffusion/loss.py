"""What the network is trained to predict, and how far it is from it.

Three prediction types, named as in diffusers: "epsilon" (the noise), "v_prediction" (Salimans and Ho 2022, arXiv
2202.00512, appendix D) and "sample" (the clean latents). The loss is a mean over each sample's own entries and then
over samples, so that a large picture weighs as much as a small one and padding never counts.

Not here: losses in pixel space, the optimiser, text dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ace.diffusion.noise import NoiseSchedule, broadcast_rows, linear_schedule, per_token
from ace.errors import ConfigError, ShapeError

PredictionType = Literal["epsilon", "v_prediction", "sample"]


def check_prediction_type(prediction_type: str) -> None:
    """Raises ConfigError for anything but "epsilon", "v_prediction" and "sample"."""
    if prediction_type not in get_args(PredictionType):
        raise ConfigError(f"unknown prediction type {prediction_type!r}: one of {', '.join(get_args(PredictionType))}")


def prediction_target(
    latents: Tensor,
    noise: Tensor,
    timestep: Tensor,
    prediction_type: PredictionType = "epsilon",
    schedule: NoiseSchedule | None = None,
) -> Tensor:
    """The network's target, (N, …) as latents and noise; timestep (N,) int, one per row.

    v = sqrt(alpha_bar) noise - sigma x_0 for "v_prediction"."""
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    schedule = schedule or linear_schedule(device=latents.device)
    alpha = broadcast_rows(schedule.alpha[timestep], latents)
    sigma = broadcast_rows(schedule.sigma[timestep], latents)
    return (alpha * noise.float() - sigma * latents.float()).to(latents.dtype)


def min_snr_weight(
    timestep: Tensor,
    prediction_type: PredictionType = "epsilon",
    gamma: float = 5.0,
    schedule: NoiseSchedule | None = None,
) -> Tensor:
    """Loss weight per sample, (N,) float32 (min-SNR, Hang et al. 2023, arXiv 2303.09556).

    min(SNR, gamma) as a weight of the clean-latents error, restated for each prediction type: divided by SNR for
    "epsilon", by SNR + 1 for "v_prediction", by 1 for "sample"."""
    check_prediction_type(prediction_type)
    if gamma <= 0:
        raise ConfigError(f"min-SNR gamma is {gamma}: give a positive number, 5 is usual")
    schedule = schedule or linear_schedule(device=timestep.device)
    snr = schedule.snr[timestep]
    weight = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        return weight / snr
    if prediction_type == "v_prediction":
        return weight / (snr + 1)
    return weight


def mean_per_sample(values: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
    """Mean over each sample's own entries, (N,) float32.

    values: (N, …) with lengths None, or packed rows (T, …) with lengths (N,): sample n owns the next
    lengths[n] rows."""
    rows = values.float().reshape(values.shape[0], -1).mean(dim=1)
    if lengths is None:
        return rows
    lengths = torch.as_tensor(lengths, device=values.device)
    if int(lengths.sum()) != values.shape[0]:
        raise ShapeError(f"lengths add up to {int(lengths.sum())} rows, there are {values.shape[0]}")
    if int(lengths.min()) < 1:
        raise ShapeError("a sample without rows has no loss: leave it out of the batch")
    sample = per_token(torch.arange(len(lengths), device=values.device), lengths)
    total = torch.zeros(len(lengths), dtype=torch.float32, device=values.device).index_add(0, sample, rows)
    return total / lengths


def diffusion_losses(
    prediction: Tensor,
    latents: Tensor,
    noise: Tensor,
    timestep: Tensor,
    prediction_type: PredictionType = "epsilon",
    *,
    lengths: Tensor | Sequence[int] | None = None,
    row_weights: Tensor | None = None,
    min_snr_gamma: float | None = None,
    schedule: NoiseSchedule | None = None,
) -> Tensor:
    """Squared error to the target per sample, (N,) float32; its mean is the training loss.

    prediction, latents, noise: (N, …), or packed (T, …) with lengths (N,), rows per sample. timestep: (N,) int, per
    sample in both forms. row_weights: positive, one per row; a sample's loss is then the weighted mean over its rows.
    min_snr_gamma: None for equal weights. Raises ShapeError if the shapes differ."""
    if not prediction.shape == latents.shape == noise.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (prediction, latents, noise))
        raise ShapeError(
            f"prediction, latents and noise differ, {shapes}: the second half of a learned-sigma output is not part "
            "of the prediction"
        )
    per_row = timestep if lengths is None else per_token(timestep, lengths)
    if per_row.shape[0] != latents.shape[0]:
        raise ShapeError(
            f"{per_row.shape[0]} timesteps for {latents.shape[0]} rows: one per sample, with lengths if packed"
        )
    target = prediction_target(latents, noise, per_row, prediction_type, schedule)
    errors = (prediction.float() - target.float()) ** 2
    if row_weights is None:
        losses = mean_per_sample(errors, lengths)
    else:
        rows = errors.reshape(errors.shape[0], -1).mean(dim=1)
        losses = mean_per_sample(rows * row_weights, lengths) / mean_per_sample(row_weights, lengths)
    if min_snr_gamma is not None:
        losses = losses * min_snr_weight(timestep, prediction_type, min_snr_gamma, schedule)
    return losses


def diffusion_loss(
    prediction: Tensor,
    latents: Tensor,
    noise: Tensor,
    timestep: Tensor,
    prediction_type: PredictionType = "epsilon",
    *,
    lengths: Tensor | Sequence[int] | None = None,
    min_snr_gamma: float | None = None,
    schedule: NoiseSchedule | None = None,
) -> Tensor:
    """Batch mean of `diffusion_losses`: a scalar."""
    return diffusion_losses(
        prediction,
        latents,
        noise,
        timestep,
        prediction_type,
        lengths=lengths,
        min_snr_gamma=min_snr_gamma,
        schedule=schedule,
    ).mean()
