"""Pictures ↔ latents, for diffusers' autoencoders (`AutoencoderKL` published, `AutoencoderDC` small).

Small pictures of one size go through the autoencoder together, and never fewer than two: on CPUs a batch of one takes
other kernels, whose sums round differently, so that a picture alone would not be the same as in a batch. Large ones,
where a batch saves nothing, go one by one. The posterior's mean is used, not a sample of it, so that latents depend
on the picture only (upstream samples it from the global generator).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor

ALONE_PX = 256 * 256  # pictures with more pixels go one by one

Autoencoder = AutoencoderKL | AutoencoderDC


def encode_pictures(autoencoder: Autoencoder, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Pictures (3, H_k, W_k) in [-1, 1] → scaled latents (C, H_k / f, W_k / f), float32."""

    def encode(batch: Tensor) -> Tensor:
        output = autoencoder.encode(batch)
        latents = output.latent if isinstance(autoencoder, AutoencoderDC) else output.latent_dist.mode()
        return (latents.float() - _shift(autoencoder)) * autoencoder.config.scaling_factor

    return _by_shape(pictures, autoencoder, encode, ALONE_PX)


def decode_latents(autoencoder: Autoencoder, latents: Sequence[Tensor]) -> list[Tensor]:
    """Scaled latents (C, h_k, w_k) → pictures (3, h_k f, w_k f) in [-1, 1], float32, clamped."""

    def decode(batch: Tensor) -> Tensor:
        batch = batch / autoencoder.config.scaling_factor + _shift(autoencoder)
        output = autoencoder.decode(batch.to(autoencoder.dtype))  # type: ignore[arg-type]  # diffusers asks for FloatTensor
        return output.sample.float().clamp(-1, 1)

    return _by_shape(latents, autoencoder, decode, ALONE_PX // scale_factor(autoencoder) ** 2)


def scale_factor(autoencoder: Autoencoder) -> int:
    """Pixels per latent cell side."""
    config = autoencoder.config
    levels = len(
        config.encoder_block_out_channels if isinstance(autoencoder, AutoencoderDC) else config.block_out_channels
    )
    return 2 ** (levels - 1)


def _shift(autoencoder: Autoencoder) -> float:
    return getattr(autoencoder.config, "shift_factor", None) or 0.0


def _by_shape(
    items: Sequence[Tensor], autoencoder: Autoencoder, function: Callable[[Tensor], Tensor], most_cells: int
) -> list[Tensor]:
    """One result per item; items with more than `most_cells` pixels or latent cells by themselves."""
    batches: dict[tuple[int, ...], list[int]] = {}
    for number, item in enumerate(items):
        alone = item.shape[-2] * item.shape[-1] > most_cells
        batches.setdefault((*item.shape, number if alone else -1), []).append(number)
    results: dict[int, Tensor] = {}
    for (*_, alone), numbers in batches.items():
        rows = numbers if alone >= 0 or len(numbers) > 1 else numbers * 2
        batch = torch.stack([items[n] for n in rows]).to(autoencoder.device, autoencoder.dtype)
        results.update(zip(rows, function(batch), strict=True))
    return [results[n] for n in range(len(items))]
