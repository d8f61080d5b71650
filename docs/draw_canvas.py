"""Draws `docs/images/plus-canvas.png`: what an ACE++ model reads for one request, and where its answer is cut out.

python docs/draw_canvas.py     sprites of the package's own pack, no model
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ace.data.world import SpriteLibrary, World
from ace.plus.canvas import Reference, arrange, prepare_published

OUT = Path(__file__).parent / "images" / "plus-canvas.png"


def as_picture(array: np.ndarray) -> Image.Image:
    """(3, H, W) in [-1, 1] as a picture."""
    return Image.fromarray(np.round((array.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8))


def sprite(library: SpriteLibrary, slug: str, size: tuple[int, int]) -> Image.Image:
    """A sprite on white."""
    style = library.styles_of(slug)[0]
    drawn = Image.fromarray(library.sprite(slug, style, 160))
    ground = Image.new("RGB", size, "white")
    drawn = drawn.resize((min(size), min(size)))
    ground.paste(
        drawn,
        ((size[0] - min(size)) // 2, (size[1] - min(size)) // 2),
        drawn.getchannel("A") if drawn.mode == "RGBA" else None,
    )
    return ground


def panel(canvas, title: str) -> Image.Image:
    """Content (its masked part veiled in magenta) and the cut, with a title."""
    picture = as_picture(canvas.content)
    veil = Image.fromarray((canvas.mask[0] * 110).astype(np.uint8))
    picture.paste((255, 0, 200), (0, 0), veil)
    draw = ImageDraw.Draw(picture)
    for box in canvas.references:
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=(0, 90, 255), width=2)
    left, top, right, bottom = canvas.target
    draw.rectangle((left, top, right - 1, bottom - 1), outline=(0, 160, 0), width=3)
    whole = Image.new("RGB", (max(picture.width, 420), picture.height + 22), "white")
    whole.paste(picture, (0, 22))
    ImageDraw.Draw(whole).text((4, 5), title, fill="black")
    return whole


def main() -> None:
    """Draw."""
    library = SpriteLibrary()
    photo = World(256, "held_out").sample(7).target.crop((0, 0, 250, 187))
    mask = Image.new("L", photo.size, 0)
    mask.paste(255, (80, 60, 190, 150))
    slugs = ["red-apple", "cat", "guitar"]
    first, second, third = (
        sprite(library, slug, size) for slug, size in zip(slugs, ((120, 160), (90, 90), (260, 90)), strict=True)
    )
    ours = arrange(
        photo, mask, [Reference(first), Reference(second, "right", "keep", 0.5), Reference(third, "above", "keep", 0.8)]
    )
    published = prepare_published(first, photo, mask)
    new = arrange(None, None, [Reference(first)], size=(256, 192))
    panels = [
        panel(ours, "three references (blue), one photo (green), its mask"),
        panel(published, "as published: the answer begins 30 px inside"),
        panel(new, "a new picture: made wider, then cut to 256 x 192"),
    ]
    sheet = Image.new("RGB", (max(p.width for p in panels) + 20, sum(p.height + 14 for p in panels) + 10), "white")
    top = 10
    for one in panels:
        sheet.paste(one, (10, top))
        top += one.height + 14
    OUT.parent.mkdir(exist_ok=True)
    sheet.save(OUT, optimize=True)


if __name__ == "__main__":
    main()
