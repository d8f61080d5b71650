"""Train the small model's autoencoder (diffusers' AutoencoderDC) on pictures of the procedural world.

The loss is in pixels: absolute error, plus the absolute error of the picture's differences at three scales, which keeps
edges sharp. The decoder sees slightly noisy latents in training.

Not here: adversarial or perceptual losses.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor, nn
from torch.utils.data import Dataset

from ace.data.world import World
from ace.data.world.chance import Split
from ace.training.config import AutoencoderRecipe, Stage
from ace.training.loop import train


class Pictures(Dataset):
    """Pictures of the world by number, (3, H, W) in [-1, 1]."""

    def __init__(self, size_px: int, split: Split, first: int, count: int) -> None:
        self.world = World(size_px=size_px, split=split)
        self.first = first
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        picture = np.asarray(self.world.picture(self.first + index), dtype=np.float32)
        return torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1


def build_autoencoder(recipe: AutoencoderRecipe) -> AutoencoderDC:
    """A fresh autoencoder of the recipe's size: factor 8 for four stages."""
    stages = len(recipe.encoder_channels)
    return AutoencoderDC(
        in_channels=3,
        latent_channels=recipe.latent_channels,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=recipe.encoder_channels,
        decoder_block_out_channels=recipe.decoder_channels,
        encoder_layers_per_block=recipe.encoder_layers,
        decoder_layers_per_block=recipe.decoder_layers,
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=1.0,
    )


class Reconstruction(nn.Module):
    """Encode, disturb, decode."""

    def __init__(self, autoencoder: AutoencoderDC, latent_noise: float) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.latent_noise = latent_noise

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """pictures (N, 3, H, W), noise (N, C, H/8, W/8) → reconstructions, latents."""
        latents = self.autoencoder.encode(pictures).latent
        disturbed = latents + self.latent_noise * latents.detach().float().std() * noise
        return self.autoencoder.decode(disturbed.to(latents.dtype)).sample, latents


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Absolute error, of the pictures and of their horizontal and vertical differences at three scales."""
    error = output.float() - target
    loss = error.abs().mean() + error.square().mean()
    for _ in range(3):
        loss = loss + 0.5 * (
            (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        )
        error = F.avg_pool2d(error, 2)
    return loss


def train_autoencoder(recipe: AutoencoderRecipe, folder: Path, quiet: bool = False) -> AutoencoderDC:
    """Run the recipe; writes `folder/autoencoder` (diffusers format, scaling_factor set to 1 / std of the latents)."""
    torch.manual_seed(recipe.seed)
    autoencoder = build_autoencoder(recipe)
    module = Reconstruction(autoencoder, recipe.latent_noise)

    def loss(model: nn.Module, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        shape = (len(batch), recipe.latent_channels, batch.shape[-2] // 8, batch.shape[-1] // 8)
        output, latents = model(batch, torch.randn(shape, generator=generator).to(batch.device))
        figures = {"psnr": 10 * math.log10(4 / F.mse_loss(output.detach().float(), batch).item())}
        return reconstruction_loss(output, batch) + 1e-4 * latents.float().square().mean(), figures

    def dataset(stage: Stage, first: int) -> Dataset:
        return Pictures(recipe.size_px, "train", first, stage.samples)

    train(module, recipe, dataset, loss, _stack, folder, quiet)
    autoencoder.eval()
    held_out = torch.stack([Pictures(recipe.size_px, "held_out", 0, 256)[i] for i in range(256)])
    with torch.no_grad():
        std = float(autoencoder.encode(held_out).latent.std())
    autoencoder.register_to_config(scaling_factor=1 / std)
    autoencoder.save_pretrained(folder / "autoencoder")
    return autoencoder


def _stack(items: list[Any]) -> Tensor:
    return torch.stack(items)
