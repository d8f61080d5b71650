"""Draws `docs/images/plus-examples.png`: the canvas that each command of docs/plus-examples.md hands to the model.

python docs/draw_examples.py     sprites of the package's own pack, no model

Blue: references; green: what is cut out as the answer; magenta: the mask. Below a canvas of the fully tuned model, what
its change channels see. Controls that need fetched weights are drawn as edges.
"""

import re
import shlex
import tempfile
from pathlib import Path

import numpy as np
from draw_canvas import as_picture, panel, sprite
from PIL import Image, ImageDraw

from ace.conversation import Mask, Message, Picture, Settings, open_message
from ace.data.world import SpriteLibrary, World
from ace.extract import exact
from ace.families.plus import PlusFamily, read_placement, references_of
from ace.plus.canvas import Canvas, arrange
from ace.plus.models import PLUS_MODELS

PAGE = Path(__file__).parent / "plus-examples.md"
OUT = Path(__file__).parent / "images" / "plus-examples.png"
COLUMNS, WIDTH = 5, 300
SPRITES = ("cat", "guitar", "red-apple", "mushroom", "rocket", "owl", "crown", "dress")
CONTROLS = {"gray": exact.gray, "mosaic": exact.mosaic}


def examples() -> list[tuple[str, list[str]]]:
    """(use, arguments after `ace edit`) of every row."""
    rows = re.findall(r"^\| (.*?) \| `ace edit (.*?)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [(use, shlex.split(command)) for use, command in rows]


def draw_inputs(folder: Path, names: list[str]) -> None:
    """A picture for every name: scenes to edit, boxes as masks, sprites as references."""
    library, world = SpriteLibrary(), World(256, "held_out")
    for number, name in enumerate(names):
        if name.endswith("-mask.png"):
            picture = Image.new("L", (256, 192), 0)
            picture.paste(255, (90, 50, 200, 150))
        elif re.search(rf"--reference {re.escape(name)}", PAGE.read_text(encoding="utf-8")):
            picture = sprite(library, SPRITES[number % len(SPRITES)], (160, 200))
        else:
            picture = world.sample(number).target.crop((0, 0, 256, 192))
        picture.save(folder / name)


def canvas_of(arguments: list[str], folder: Path) -> Canvas:
    """What a command lays out, as the pipeline does it."""
    positional, options = [], {"--reference": []}
    words = iter(arguments)
    for word in words:
        if not word.startswith("--"):
            positional.append(word)
        elif word in ("--reference", "--lora"):
            options.setdefault(word, []).append(next(words))
        else:
            options[word] = next(words)
    *photos, instruction = positional
    model = PLUS_MODELS[options["--model"]]
    named = [text.partition("@")[::2] for text in options["--reference"]]
    placed = [read_placement(place) for _, place in named]
    places = {"places": ",".join(p for p, _ in placed), "fits": ",".join(fit for _, fit in placed)} if named else {}
    message = Message(
        instruction,
        Settings(0, options=places),
        Picture.of_file(folder / photos[0]) if photos else None,
        tuple(Picture.of_file(folder / name) for name, _ in named),
        Mask.of_file(folder / options["--mask"]) if "--mask" in options else None,
    )
    job = open_message(PlusFamily(model.name), message)
    control = options.get("--control")
    repaint = float(options.get("--repaint", model.repainting_scale if control is None else 0.5 * model.is_lora))
    edit = None if job.source is None else job.source.image
    if control is not None and edit is not None:
        signal = Image.fromarray(CONTROLS.get(control, exact.canny)(np.asarray(edit)))
        edit = signal if job.mask is None else Image.composite(signal, edit, job.mask)
    return arrange(
        edit, job.mask, references_of(job), size=(256, 192), repainting_scale=repaint, use_change=not model.is_lora
    )


def drawn(use: str, canvas: Canvas) -> Image.Image:
    """A canvas with its boxes and, below, what the change channels see."""
    above = panel(canvas, "")
    pictures = [above.crop((0, 22, canvas.size[0], above.height))]
    if canvas.change is not None:
        pictures.append(as_picture(canvas.change))
    scale = min(1.0, (WIDTH - 10) / canvas.size[0])
    small = [p.resize((round(p.width * scale), round(p.height * scale))) for p in pictures]
    cell = Image.new("RGB", (WIDTH, 20 + sum(p.height + 4 for p in small)), "white")
    ImageDraw.Draw(cell).text((2, 4), use, fill="black")
    top = 20
    for picture in small:
        cell.paste(picture, (2, top))
        top += picture.height + 4
    return cell


def main() -> None:
    """Draw."""
    rows = examples()
    names = sorted(set(re.findall(r"[\w-]+\.png", PAGE.read_text(encoding="utf-8"))))
    with tempfile.TemporaryDirectory() as folder:
        draw_inputs(Path(folder), names)
        cells = [drawn(use, canvas_of(arguments, Path(folder))) for use, arguments in rows]
    lines = [cells[first : first + COLUMNS] for first in range(0, len(cells), COLUMNS)]
    heights = [max(cell.height for cell in line) + 8 for line in lines]
    sheet = Image.new("RGB", (COLUMNS * WIDTH, sum(heights)), "white")
    top = 4
    for line, height in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            sheet.paste(cell, (column * WIDTH + 4, top))
        top += height
    sheet.quantize(128).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
