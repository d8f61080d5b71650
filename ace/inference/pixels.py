"""`Pixels`: an autoencoder that encodes nothing. Latents are the picture itself, so nothing decays over turns.

It has the place and the ways of diffusers' `AutoencoderKL`, so that pipeline, caches and training need not know.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class Pixels(ModelMixin, ConfigMixin):
    """The identity on pictures (N, 3, H, W) in [-1, 1]. Arguments are constants, in `AutoencoderKL`'s names."""

    @register_to_config
    def __init__(
        self, latent_channels: int = 3, block_out_channels: tuple[int, ...] = (3,), scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1), requires_grad=False)  # says device and precision, and fills the file

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures → the same."""
        return pictures

    def decode(self, latents: Tensor) -> Tensor:
        """The same → pictures."""
        return latents
