"""Pictures ↔ latents, for diffusers' autoencoders (`AutoencoderKL` published, `AutoencoderDC`) and `Pixels` (small).

Small pictures of one size go through the autoencoder together, and never fewer than two: on CPUs a batch of one takes
other kernels, whose sums round differently, so that a picture alone would not be the same as in a batch. Large ones,
where a batch saves nothing, go one by one. The posterior's mean is used, not a sample of it, so that latents depend
on the picture only (upstream samples it from the global generator). So they can be kept: a `LatentCache` knows the
pictures of a conversation by their content, and none is encoded twice.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor

from ace.inference.pixels import Pixels
from ace.model.devices import working_device

ALONE_PX = 256 * 256  # pictures with more pixels go one by one

Autoencoder = AutoencoderKL | AutoencoderDC | Pixels


def encode_pictures(autoencoder: Autoencoder, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Pictures (3, H_k, W_k) in [-1, 1] → scaled latents (C, H_k / f, W_k / f), float32."""
    if isinstance(autoencoder, Pixels):
        return [picture.to(working_device(autoencoder), torch.float32) for picture in pictures]

    def encode(batch: Tensor) -> Tensor:
        output = autoencoder.encode(batch)
        latents = output.latent if isinstance(autoencoder, AutoencoderDC) else output.latent_dist.mode()
        return (latents.float() - _shift(autoencoder)) * autoencoder.config.scaling_factor

    return _by_shape(pictures, autoencoder, encode, ALONE_PX)


class LatentCache:
    """Latents of the pictures encoded last, found by content; bounded, the longest unused go first.

    max_bytes: of latents kept (64 MiB: a thousand pictures of 512 px). Encoding is deterministic, so a kept result is
    the one that encoding again would give, on several CPU threads and GPUs up to rounding in another batch."""

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.num_encoded = 0
        self._kept: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()
        self._num_bytes = 0

    def encode(self, autoencoder: Autoencoder, pictures: Sequence[np.ndarray]) -> list[Tensor]:
        """As `encode_pictures`, from arrays; only those pictures go through the autoencoder that are not kept."""
        setting = (
            id(autoencoder),
            autoencoder.dtype,
            str(working_device(autoencoder)),
            getattr(autoencoder, "use_tiling", False),
        )
        keys = [(*setting, p.shape, hashlib.blake2b(np.ascontiguousarray(p).data).digest()) for p in pictures]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: torch.from_numpy(p) for key, p in zip(keys, pictures, strict=True) if key not in found}
        self.num_encoded += len(missing)
        found.update(zip(missing, encode_pictures(autoencoder, list(missing.values())), strict=True))
        for key, latents in found.items():
            self._num_bytes += 0 if key in self._kept else latents.nbytes
            self._kept[key] = latents
            self._kept.move_to_end(key)
        while self._num_bytes > self.max_bytes:
            self._num_bytes -= self._kept.popitem(last=False)[1].nbytes
        return [found[key] for key in keys]

    def clear(self) -> None:
        """Forget everything: needed only if the autoencoder's weights were changed in place."""
        self._kept.clear()
        self._num_bytes = 0


def decode_latents(autoencoder: Autoencoder, latents: Sequence[Tensor]) -> list[Tensor]:
    """Scaled latents (C, h_k, w_k) → pictures (3, h_k f, w_k f) in [-1, 1], float32, clamped."""
    if isinstance(autoencoder, Pixels):
        return [own.float().clamp(-1, 1) for own in latents]

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


def tile_px(autoencoder: Autoencoder, size: tuple[int, int]) -> int:
    """Side of the tiles that pictures of (width, height) px go through it in, 0 = whole."""
    tiled = getattr(autoencoder, "use_tiling", False) and max(size) > autoencoder.tile_sample_min_size
    return autoencoder.tile_sample_min_size if tiled else 0


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
        batch = torch.stack([items[n] for n in rows]).to(working_device(autoencoder), autoencoder.dtype)
        results.update(zip(rows, function(batch), strict=True))
    return [results[n] for n in range(len(items))]
