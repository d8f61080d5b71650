"""Inputs that people have and that were once misread: drawn here, so that a test can say what is right.

`SELECTED` is what the masks select: a rectangle of the scene.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FILES = Path(__file__).parent / "cases"
SIZE = (160, 120)
BOX = (50, 40, 99, 89)  # inclusive, as Pillow draws
SELECTED = 50 * 50 / (160 * 120)
BLUE = (49, 107, 209)


def scene(size: tuple[int, int] = SIZE) -> Image.Image:
    """A house on a meadow."""
    image = Image.new("RGB", size, (90, 160, 220))
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.rectangle((0, height * 2 // 3, width, height), fill=(80, 150, 60))
    draw.rectangle((width // 3, height // 3, width * 2 // 3, height * 5 // 6), fill=(200, 90, 60))
    draw.polygon(
        [(width // 3 - 6, height // 3), (width // 2, height // 8), (width * 2 // 3 + 6, height // 3)], fill=(90, 50, 40)
    )
    return image


def plain_mask() -> Image.Image:
    """White where it changes, else black."""
    mask = Image.new("L", SIZE, 0)
    ImageDraw.Draw(mask).rectangle(BOX, fill=255)
    return mask


def _with(colour: tuple[int, int, int], alpha: Image.Image) -> Image.Image:
    image = Image.new("RGBA", SIZE, (*colour, 255))
    image.putalpha(alpha)
    return image


def masks() -> dict[str, Image.Image]:
    """One selection, as different programs write it."""
    plain = plain_mask()
    hole = plain.point(lambda level: 255 - level)
    photo = scene().convert("RGBA")
    photo.putalpha(hole)
    opaque = plain.convert("RGB").convert("RGBA")
    two_greys = plain.point(lambda level: 255 if level else 90)
    return {
        "plain": plain,
        "a black ground with a hole, as OpenAI has it": _with((0, 0, 0), hole),
        "a white ground with a hole": _with((255, 255, 255), hole),
        "white strokes on nothing": _with((255, 255, 255), plain),
        "black strokes on nothing": _with((0, 0, 0), plain),
        "half transparent red strokes": _with((255, 0, 0), plain.point(lambda level: level // 2)),
        "alpha that is full everywhere, as a browser's canvas writes it": opaque,
        "the photograph with a hole": photo,
        "white on dark grey": two_greys,
        "a palette": plain.convert("P"),
        "one bit": plain.convert("1"),
        "sixteen bits": Image.fromarray(np.asarray(plain).astype(np.uint16) * 257),
    }


def soft_mask() -> Image.Image:
    """A mask with a wide soft edge."""
    return plain_mask().filter(ImageFilter.GaussianBlur(8))


def write_turned(folder: Path) -> tuple[Path, Path, Path]:
    """A phone's picture that lies on its side in the file; its mask drawn upright, and drawn on what is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    scene().save(folder / "phone.jpg", exif=exif, quality=95)
    stored = plain_mask()
    stored.save(folder / "stored.png")
    stored.transpose(Image.Transpose.ROTATE_270).save(folder / "upright.png")
    return folder / "phone.jpg", folder / "upright.png", folder / "stored.png"


def write_mpo(path: Path) -> Path:
    """A phone's JPEG of two pictures; the first is the scene."""
    scene().save(path, "MPO", save_all=True, append_images=[Image.new("RGB", SIZE, (255, 0, 255))], quality=95)
    return path


def with_ball(clean: bool = False) -> tuple[Image.Image, Image.Image]:
    """(a meadow with a red ball, or without it, the ball's exact mask), 640x480, the ball's edge smooth."""
    large = Image.new("RGB", (1280, 960))
    rows = np.linspace(0, 1, 960)[:, None, None]
    sky = np.array([120, 170, 220]) * (1 - rows) + np.array([90, 160, 70]) * rows
    large = Image.fromarray(np.repeat(sky, 1280, axis=1).astype(np.uint8))
    mask = Image.new("L", large.size, 0)
    ImageDraw.Draw(mask).ellipse((460, 300, 820, 660), fill=255)
    if not clean:
        large.paste((220, 30, 30), (0, 0), mask)
    size = (640, 480)
    touched = np.asarray(mask.resize(size, Image.Resampling.BOX)) > 0
    return large.resize(size, Image.Resampling.BOX), Image.fromarray(touched.astype(np.uint8) * 255)
