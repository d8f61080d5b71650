"""Pictures drawn during training, by the same pipeline as inference: what a preview shows is what the finished model
would draw from the same weights, bit for bit. ACE++'s are in `previews_plus.py`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ace.data.sample import EditSample
from ace.diffusion import seeded_generator
from ace.inference.pipeline import ACEPipeline, Request
from ace.training.sources import Mixture

APART = 2**40  # sample numbers that no training reaches
CELL_PX, TEXT_PX, GAP_PX = 128, 58, 8


def draw_previews(pipeline: ACEPipeline, mixture: Mixture, path: Path, count: int = 6) -> Path:
    """Draw `count` requests of a mixture onto a sheet."""
    samples = preview_samples(mixture, count)
    requests = [Request(s.request, generator=seeded_generator(n)) for n, s in enumerate(samples)]
    return save_sheet(samples, pipeline(requests=requests).images, path)


def preview_samples(mixture: Mixture, count: int) -> list[EditSample]:
    """The same samples all through a run: of the world, ones that are never trained on."""
    return [mixture[APART + number][1] for number in range(count)]


def save_sheet(samples: Sequence[EditSample], answers: Sequence[Image.Image], path: Path) -> Path:
    """Write a sheet of one column per sample: edited image, answer, truth, instruction."""
    size = len(samples) * (CELL_PX + GAP_PX) + GAP_PX, 3 * (CELL_PX + GAP_PX) + GAP_PX + TEXT_PX
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
        left = GAP_PX + column * (CELL_PX + GAP_PX)
        source = sample.request.source_index
        shown = (None if source is None else sample.request.frames()[source].image, answer, sample.target)
        for row, picture in enumerate(shown):
            if picture is not None:
                sheet.paste(_fitted(picture), (left, GAP_PX + row * (CELL_PX + GAP_PX)))
        lines = textwrap.wrap(sample.request.current.instruction, 21, max_lines=4, placeholder=" …")
        pen.multiline_text((left, GAP_PX + 3 * (CELL_PX + GAP_PX)), "\n".join(lines), fill="black", spacing=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _fitted(picture: Image.Image) -> Image.Image:
    """As large as a cell allows; small pictures show their pixels."""
    scale = CELL_PX / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
