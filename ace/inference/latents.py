"""Pictures ↔ latents, for diffusers' autoencoders (`AutoencoderKL` published, `AutoencoderDC` small).

Pictures of one size go through the autoencoder together; each result is the same as alone up to float32 rounding. The
posterior's mean is used, not a sample of it, so that latents depend on the picture only (upstream samples it from the
global generator).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor

Autoencoder = AutoencoderKL | AutoencoderDC


def encode_pictures(autoencoder: Autoencoder, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Pictures (3, H_k, W_k) in [-1, 1] → scaled latents (C, H_k / f, W_k / f), float32."""

    def encode(batch: Tensor) -> Tensor:
        output = autoencoder.encode(batch)
        latents = output.latent if isinstance(autoencoder, AutoencoderDC) else output.latent_dist.mode()
        return (latents.float() - _shift(autoencoder)) * autoencoder.config.scaling_factor

    return _by_shape(pictures, autoencoder, encode)


def decode_latents(autoencoder: Autoencoder, latents: Sequence[Tensor]) -> list[Tensor]:
    """Scaled latents (C, h_k, w_k) → pictures (3, h_k f, w_k f) in [-1, 1], float32, clamped."""

    def decode(batch: Tensor) -> Tensor:
        batch = batch / autoencoder.config.scaling_factor + _shift(autoencoder)
        return autoencoder.decode(batch.to(autoencoder.dtype)).sample.float().clamp(-1, 1)

    return _by_shape(latents, autoencoder, decode)


def scale_factor(autoencoder: Autoencoder) -> int:
    """Pixels per latent cell side."""
    config = autoencoder.config
    levels = len(
        config.encoder_block_out_channels if isinstance(autoencoder, AutoencoderDC) else config.block_out_channels
    )
    return 2 ** (levels - 1)


def _shift(autoencoder: Autoencoder) -> float:
    return getattr(autoencoder.config, "shift_factor", None) or 0.0


def _by_shape(items: Sequence[Tensor], autoencoder: Autoencoder, function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    results: dict[int, Tensor] = {}
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, item in enumerate(items):
        by_shape.setdefault(tuple(item.shape), []).append(number)
    for numbers in by_shape.values():
        batch = torch.stack([items[n] for n in numbers]).to(autoencoder.device, autoencoder.dtype)
        results.update(zip(numbers, function(batch), strict=True))
    return [results[n] for n in range(len(items))]
