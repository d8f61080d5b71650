"""Small pictures with something in them, drawn for tests: no two alike, in colour, with edges."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def draw(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A gradient with a disc and a bar; the seed decides places and colours."""
    dice = np.random.default_rng(seed)
    width, height = size
    first, second, third, fourth = (tuple(int(v) for v in dice.integers(20, 236, 3)) for _ in range(4))
    ramp = np.linspace(0, 1, width)[None, :, None] * np.linspace(0.3, 1, height)[:, None, None]
    image = Image.fromarray((np.array(first) * ramp + np.array(second) * (1 - ramp)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    x, y, r = int(dice.integers(25, width - 25)), int(dice.integers(25, height - 25)), int(dice.integers(12, 22))
    pen.ellipse((x - r, y - r, x + r, y + r), fill=third)
    x = int(dice.integers(0, width - 20))
    pen.rectangle((x, 5, x + 14, height - 10), fill=fourth)
    return image


def collection(folder: Path, count: int) -> Path:
    """A folder of pictures with captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        draw(seed).save(folder / f"{seed:03d}.png")
        (folder / f"{seed:03d}.txt").write_text(f"disc number {seed}", encoding="utf-8")
    return folder
