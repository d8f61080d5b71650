"""Go on at a larger size with larger patches: a token then stands for the same part of the picture as before.

A model that has learned at one size keeps all its blocks; only the two layers that touch latents have another shape.
They start from a least-squares fit between the latents of the same pictures at both sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ace.errors import ConfigError
from ace.inference.inputs import prepare_image
from ace.inference.latents import Autoencoder, encode_pictures
from ace.model.tokens import patchify
from ace.model.transformer import ACETransformer


@torch.no_grad()
def repatched(
    transformer: ACETransformer, autoencoder: Autoencoder, pictures: Sequence[Image.Image], patch_size: int
) -> ACETransformer:
    """The transformer with larger patches, for pictures as many times as large.

    pictures: what it will be trained on, at the larger size (RGB, sides that fit both patch sizes); they are shrunk for
    the fit. Raises ConfigError if the patch size is no multiple of the model's own, or if it predicts its variance."""
    sizes = transformer.sizes
    factor = patch_size // sizes.patch_size
    if factor * sizes.patch_size != patch_size or sizes.learned_sigma:
        raise ConfigError(
            f"patch_size {patch_size} must be a multiple of the model's {sizes.patch_size}, without a learned variance"
        )
    small = [p.resize((p.width // factor, p.height // factor), Image.Resampling.LANCZOS) for p in pictures]
    before = _patches(autoencoder, small, sizes.patch_size)  # (N, C p p)
    after = _patches(autoencoder, pictures, patch_size)  # (N, C P P)
    made = ACETransformer(**dataclasses.asdict(dataclasses.replace(sizes, patch_size=patch_size)))
    old = transformer.state_dict()
    new = {key: value for key, value in old.items() if not key.startswith(("patch_embed.", "final.linear."))}

    shrink, grow = _fit(after, before), _fit(before, after)  # (C P P, C p p), (C p p, C P P)
    cells = sizes.patch_size**2
    planes = (sizes.latent_channels, 1, *([sizes.latent_channels] if sizes.source_on_channels else []))
    latents, mask, *source = old["patch_embed.weight"].split([cells * plane for plane in planes], dim=1)
    parts = [latents @ shrink.T, _spread(mask, sizes.patch_size, factor) / factor**2]
    parts += [part @ shrink.T for part in source]
    new["patch_embed.weight"] = torch.cat(parts, dim=1)
    new["patch_embed.bias"] = old["patch_embed.bias"]

    weight, bias = (_by_channel(old[f"final.linear.{kind}"], cells) for kind in ("weight", "bias"))
    new["final.linear.weight"] = _by_cell(grow.T @ weight, patch_size**2)
    new["final.linear.bias"] = _by_cell(grow.T @ bias, patch_size**2)
    made.load_state_dict(new)
    return made


def _patches(autoencoder: Autoencoder, pictures: Sequence[Image.Image], patch_size: int) -> Tensor:
    latents = encode_pictures(autoencoder, [torch.from_numpy(prepare_image(p, p.size)) for p in pictures])
    return torch.cat([patchify(own, patch_size) for own in latents])


def _fit(inputs: Tensor, outputs: Tensor) -> Tensor:
    """The matrix that brings inputs nearest to outputs, means aside."""
    return torch.linalg.lstsq(inputs - inputs.mean(dim=0), outputs - outputs.mean(dim=0)).solution


def _spread(weight: Tensor, patch_size: int, factor: int) -> Tensor:
    """Weights of one channel's cells, (D, p p), on the cells that each is cut into, (D, P P)."""
    cells = weight.unflatten(1, (patch_size, patch_size))
    return cells.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2).flatten(1)


def _by_channel(rows: Tensor, cells: int) -> Tensor:
    """Rows in the order (cell, channel) of what the model gives → (channel, cell) of what it takes."""
    return rows.unflatten(0, (cells, -1)).transpose(0, 1).flatten(0, 1)


def _by_cell(rows: Tensor, cells: int) -> Tensor:
    return rows.unflatten(0, (-1, cells)).transpose(0, 1).flatten(0, 1)
