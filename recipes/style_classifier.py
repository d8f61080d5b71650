"""The style classifier of ace-world (`ace/evaluation/styles.safetensors`), from the sprites in the package.

    python recipes/style_classifier.py            # trains, measures, writes the weights; about ten minutes on one core
    python recipes/style_classifier.py --measure  # only measures the weights that are there

Scenes of one to three things are drawn in every style and under every look. The things to train on are the concepts of
the world's training side, those to measure on are its held-out ones, so accuracy is on drawings that were never seen.
Pictures of models are softer than sprites: half of the training pictures are blurred a little and made noisy. The
second accuracy is on pictures that went through ace-tiny's autoencoder.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ace import load_tiny
from ace.conditions.images import prepare_image
from ace.data.world import SpriteLibrary
from ace.data.world.chance import Chance, Material
from ace.data.world.scene import LOOKS, apply_look, draw
from ace.data.world.sprites import SHIPPED_PACK
from ace.evaluation.styles import SIDE_PX, STYLES, WEIGHTS, StyleClassifier, StyleNetwork
from ace.inference.latents import decode_latents, encode_pictures

PER_STYLE, PER_STYLE_HELD_OUT = 2400, 100
EPOCHS, BATCH, LEARNING_RATE = 14, 64, 3e-3


def draw_picture(material: Material, style: str, number: int, held_out: bool) -> Image.Image:
    """Scene `number` in a style or look; its concepts come from one side of the world's split."""
    chance = Chance(material, "train", random.Random(f"styles:{held_out}:{style}:{number}"), SIDE_PX)
    chance.held_out_concept = held_out
    drawn = chance.style() if style in LOOKS else style
    scene, _ = chance.scene(style=drawn)
    picture = draw(scene, material.library, SIDE_PX)
    return Image.fromarray(apply_look(picture, style) if style in LOOKS else picture)


def draw_set(material: Material, per_style: int, held_out: bool) -> tuple[list[Image.Image], Tensor]:
    """Pictures of all styles, and their labels."""
    pictures = [draw_picture(material, style, n, held_out) for style in STYLES for n in range(per_style)]
    return pictures, torch.arange(len(STYLES)).repeat_interleave(per_style)


def soften(pictures: Tensor, dice: torch.Generator) -> Tensor:
    """Half of the pictures mirrored, half brought to 0.6 to 0.95 of their side and back, half of them with noise."""
    count = len(pictures)
    mirrored = torch.rand(count, generator=dice) < 0.5
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
    side = int(SIDE_PX * (0.6 + 0.35 * torch.rand((), generator=dice)))
    small = F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)
    soft = F.interpolate(small, size=(SIDE_PX, SIDE_PX), mode="bicubic").clamp(-1, 1)
    blurred = torch.rand(count, generator=dice) < 0.5
    pictures = torch.where(blurred[:, None, None, None], soft, pictures)
    strength = 0.06 * torch.rand(count, 1, 1, 1, generator=dice) * (torch.rand(count, 1, 1, 1, generator=dice) < 0.5)
    return pictures + strength * torch.randn(pictures.shape, generator=dice)


def train(pictures: Tensor, labels: Tensor) -> StyleNetwork:
    """Train from nothing with AdamW under one cosine."""
    torch.manual_seed(0)
    dice = torch.Generator().manual_seed(0)
    network = StyleNetwork().train()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.01)
    steps = EPOCHS * (len(pictures) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    for epoch in range(EPOCHS):
        total = 0.0
        for chosen in torch.randperm(len(pictures), generator=dice)[: steps // EPOCHS * BATCH].split(BATCH):
            loss = F.cross_entropy(network(soften(pictures[chosen].float() / 127.5 - 1, dice)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total * BATCH / len(pictures):.4f}", flush=True)
    return network.eval()


@torch.no_grad()
def through_autoencoder(pictures: list[Image.Image]) -> list[Image.Image]:
    """The pictures encoded and decoded by ace-tiny."""
    vae, made = load_tiny().vae, []
    for start in range(0, len(pictures), 32):
        part = pictures[start : start + 32]
        tensors = [torch.from_numpy(prepare_image(picture, picture.size)) for picture in part]
        for output in decode_latents(vae, encode_pictures(vae, tensors)):
            levels = (output.float().permute(1, 2, 0).numpy() * 127.5 + 127.5).round().clip(0, 255)
            made.append(Image.fromarray(levels.astype(np.uint8)))
    return made


def measure(pictures: list[Image.Image], labels: Tensor, what: str) -> None:
    """Print the accuracy, per style, and what a wrong picture was taken for."""
    found = StyleClassifier().classify(pictures)
    true = [STYLES[number] for number in labels.tolist()]
    print(f"{what}: {np.mean([a == b for a, b in zip(found, true, strict=True)]):.1%} of {len(true)} pictures")
    for style in STYLES:
        taken = Counter(f for f, t in zip(found, true, strict=True) if t == style)
        print(f"  {style:16s} {taken[style] / taken.total():6.1%}  {dict(taken.most_common(3))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="only measure the weights that are there")
    material = Material(SpriteLibrary(SHIPPED_PACK))
    if not parser.parse_args().measure:
        pictures, labels = draw_set(material, PER_STYLE, held_out=False)
        inputs = torch.stack([torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) for picture in pictures])
        weights = train(inputs, labels).state_dict()
        save_file(
            {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}, WEIGHTS
        )
    pictures, labels = draw_set(material, PER_STYLE_HELD_OUT, held_out=True)
    measure(pictures, labels, "held-out concepts")
    measure(through_autoencoder(pictures), labels, "the same through ace-tiny's autoencoder")


if __name__ == "__main__":
    main()
