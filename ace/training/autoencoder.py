"""Train the small model's autoencoder (diffusers' AutoencoderDC) on pictures of the procedural world.

The loss is in pixels: absolute error, plus the absolute error of the picture's differences at three scales, which keeps
edges sharp. The decoder sees slightly noisy latents in training.

Not here: adversarial or perceptual losses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor, nn
from torch.utils.data import Dataset

from ace.data.world import World
from ace.data.world.chance import Split
from ace.training.config import AutoencoderRecipe
from ace.training.loop import Task, train
from ace.training.stream import Item


class Pictures(Dataset):
    """Pictures of the world by number, (3, H, W) in [-1, 1]."""

    def __init__(self, size_px: int, split: Split) -> None:
        self.world = World(size_px=size_px, split=split)
        self.split = split

    def __getitem__(self, number: int) -> Item:
        picture = np.asarray(self.world.picture(number), dtype=np.float32)
        content = torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1
        return Item(number, f"{self.split} {number}", "pictures", content.shape[1] * content.shape[2] // 64, content)


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


def reconstruction_losses(output: Tensor, target: Tensor) -> Tensor:
    """Absolute error per picture, (N,), of the pictures and of their horizontal and vertical differences at three
    scales."""
    error = output.float() - target

    def mean(values: Tensor) -> Tensor:
        return values.flatten(1).mean(dim=1)

    losses = mean(error.abs()) + mean(error.square())
    for _ in range(3):
        across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        losses = losses + 0.5 * (mean(across.abs()) + mean(down.abs()))
        error = F.avg_pool2d(error, 2)
    return losses


def train_autoencoder(
    recipe: AutoencoderRecipe, folder: Path, quiet: bool = False, on_warning: Callable[[str], None] = lambda line: None
) -> AutoencoderDC:
    """Run the recipe; writes `folder/autoencoder` (diffusers format, scaling_factor set to 1 / std of the latents)."""
    torch.manual_seed(recipe.seed)
    autoencoder = build_autoencoder(recipe)

    def collate(items: tuple[Item, ...]) -> tuple[Tensor, Tensor]:
        pictures = torch.stack([item.content for item in items])
        shape = (recipe.latent_channels, pictures.shape[-2] // 8, pictures.shape[-1] // 8)
        seeds = [torch.Generator().manual_seed((recipe.seed << 32) + item.number) for item in items]
        return pictures, torch.stack([torch.randn(shape, generator=seed) for seed in seeds])

    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        device = autoencoder.device
        pictures, noise = (part.to(device) for part in batch)
        output, latents = model(pictures, noise)
        return reconstruction_losses(output, pictures) + 1e-4 * latents.float().square().flatten(1).mean(dim=1)

    task = Task(
        Reconstruction(autoencoder, recipe.latent_noise),
        lambda stage: Pictures(recipe.size_px, "train"),
        collate,
        losses,
    )
    train(task, recipe, folder, quiet, on_warning)
    autoencoder.eval()
    held_out = Pictures(recipe.size_px, "held_out")
    with torch.no_grad():
        pictures = torch.stack([held_out[number].content for number in range(256)]).to(autoencoder.device)
        std = float(autoencoder.encode(pictures).latent.std())
    autoencoder.register_to_config(scaling_factor=1 / std)
    autoencoder.save_pretrained(folder / "autoencoder")
    return autoencoder
