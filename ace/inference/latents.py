"""Pictures ↔ latents, for diffusers' autoencoders (`AutoencoderKL` published, `AutoencoderDC`) and `Pixels` (small).

On CPUs, where a batch saves nothing, pictures go through the autoencoder one by one: a picture's latents and pixels are
then the same to the bit in any company. Elsewhere small ones of one size go together, unless asked not to. The
posterior's mean is used, not a sample of it, so that latents depend on the picture only (upstream samples it from the
global generator). So they can be kept: a `LatentCache` knows the pictures of a conversation by their content, and none
is encoded twice.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor

from ace.errors import CheckpointError
from ace.inference.pixels import Pixels
from ace.model.devices import working_device

ALONE_PX = 256 * 256  # pictures with more pixels go one by one everywhere

Autoencoder = AutoencoderKL | AutoencoderDC | Pixels


def check_finite(values: Tensor) -> None:
    """Raise CheckpointError if latents or a decoded picture hold anything but numbers."""
    if not torch.isfinite(values).all():
        raise CheckpointError(
            "the model's answer is not finite: its weights or an adapter's are damaged, or the number type is too "
            "small for them (try --dtype float32)"
        )


def encode_pictures(autoencoder: Autoencoder, pictures: Sequence[Tensor], alone: bool | None = None) -> list[Tensor]:
    """Pictures (3, H_k, W_k) in [-1, 1] → scaled latents (C, H_k / f, W_k / f), float32.

    alone: one at a time; None = on CPUs."""
    if isinstance(autoencoder, Pixels):
        return [picture.to(working_device(autoencoder), torch.float32) for picture in pictures]

    def encode(batch: Tensor) -> Tensor:
        output = autoencoder.encode(batch)
        latents = output.latent if isinstance(autoencoder, AutoencoderDC) else output.latent_dist.mode()
        return (latents.float() - _shift(autoencoder)) * autoencoder.config.scaling_factor

    return _by_shape(pictures, autoencoder, encode, ALONE_PX, alone)


class LatentCache:
    """Latents of the pictures encoded last, found by content; bounded, the longest unused go first.

    max_bytes: of latents kept (64 MiB: a thousand pictures of 512 px). Encoding is deterministic, so a kept result is
    the one that encoding again would give, on GPUs up to rounding in another batch unless encoded alone."""

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.num_encoded = 0
        self._kept: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()
        self._num_bytes = 0

    def encode(
        self, autoencoder: Autoencoder, pictures: Sequence[np.ndarray], alone: bool | None = None
    ) -> list[Tensor]:
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
        found.update(zip(missing, encode_pictures(autoencoder, list(missing.values()), alone), strict=True))
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


def decode_latents(autoencoder: Autoencoder, latents: Sequence[Tensor], alone: bool | None = None) -> list[Tensor]:
    """Scaled latents (C, h_k, w_k) → pictures (3, h_k f, w_k f) in [-1, 1], float32, clamped. alone: as above."""
    if isinstance(autoencoder, Pixels):
        return [own.float().clamp(-1, 1) for own in latents]

    def decode(batch: Tensor) -> Tensor:
        batch = batch / autoencoder.config.scaling_factor + _shift(autoencoder)
        output = autoencoder.decode(batch.to(autoencoder.dtype))  # type: ignore[arg-type]  # diffusers asks for FloatTensor
        return output.sample.float().clamp(-1, 1)

    return _by_shape(latents, autoencoder, decode, ALONE_PX // scale_factor(autoencoder) ** 2, alone)


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
    items: Sequence[Tensor],
    autoencoder: Autoencoder,
    function: Callable[[Tensor], Tensor],
    most_cells: int,
    alone: bool | None,
) -> list[Tensor]:
    """One result per item; all of them, or those with more than `most_cells` pixels or latent cells, by themselves."""
    device = working_device(autoencoder)
    alone = device.type == "cpu" if alone is None else alone
    batches: dict[tuple[int, ...], list[int]] = {}
    for number, item in enumerate(items):
        apart = alone or item.shape[-2] * item.shape[-1] > most_cells
        batches.setdefault((*item.shape, number if apart else -1), []).append(number)
    results: dict[int, Tensor] = {}
    for rows in batches.values():
        batch = torch.stack([items[n] for n in rows]).to(device, autoencoder.dtype)
        results.update(zip(rows, function(batch), strict=True))
    return [results[n] for n in range(len(items))]
