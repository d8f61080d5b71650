"""The grid: unselected samples as a person reads them. Inputs | instruction | output | target, family by family.

Not here: choosing the samples (`report.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ace.data.sample import EditSample
from ace.data.world.sprites import SHIPPED_PACK
from ace.evaluation.panels import wrap, write
from ace.evaluation.scores import Row, edited_input

TILE_PX = 96
GAP_PX = 8
TEXT_PX = 208
MAX_INPUTS = 3
_HEADING_PX = 38
_MARGIN_PX = 24
_INK, _SOFT, _PAPER, _LINE = (28, 30, 36), (116, 120, 130), (250, 250, 248), (222, 222, 218)
_COLUMN_PX = MAX_INPUTS * (TILE_PX + GAP_PX) + TEXT_PX + 2 * (TILE_PX + GAP_PX)

Case = tuple[Row, EditSample, Image.Image]  # scores, sample, answer


def draw_grid(cases: Sequence[Case]) -> Image.Image:
    """One picture of all cases, in the order given, with a heading wherever the family changes; two columns."""
    blocks: list[list[Case]] = []
    for case in cases:
        if not blocks or blocks[-1][0][0].family != case[0].family:
            blocks.append([])
        blocks[-1].append(case)
    heights = [_HEADING_PX + len(block) * (TILE_PX + GAP_PX) + GAP_PX for block in blocks]
    split = min(range(len(blocks) + 1), key=lambda i: max(sum(heights[:i]), sum(heights[i:])))
    columns = [part for part in (list(range(split)), list(range(split, len(blocks)))) if part]
    top = _MARGIN_PX + 22
    height = top + max(sum(heights[b] for b in column) for column in columns) + _MARGIN_PX
    width = _MARGIN_PX + len(columns) * (_COLUMN_PX + _MARGIN_PX)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, column in enumerate(columns):
        left, y = _MARGIN_PX + number * (_COLUMN_PX + _MARGIN_PX), top
        _captions(pen, left)
        for block in column:
            pen.text((left, y + 10), blocks[block][0][0].family.replace("_", " "), _INK, _font(17))
            pen.line((left, y + _HEADING_PX - 5, left + _COLUMN_PX - GAP_PX, y + _HEADING_PX - 5), _LINE)
            for place, case in enumerate(blocks[block]):
                _draw_case(sheet, pen, case, left, y + _HEADING_PX + place * (TILE_PX + GAP_PX))
            y += heights[block]
    return sheet


def _captions(pen: ImageDraw.ImageDraw, left: int) -> None:
    step = TILE_PX + GAP_PX
    text_left = left + MAX_INPUTS * step
    for x, words in (
        (left, "inputs"),
        (text_left, "instruction"),
        (text_left + TEXT_PX, "output"),
        (text_left + TEXT_PX + step, "target"),
    ):
        pen.text((x, _MARGIN_PX - 6), words, _SOFT, _font(13))


def _draw_case(sheet: Image.Image, pen: ImageDraw.ImageDraw, case: Case, left: int, top: int) -> None:
    row, sample, answer = case
    step = TILE_PX + GAP_PX
    frames = sample.request.frames()
    mask = edited_input(sample)[1]
    inputs = [frame.image for frame in frames]
    if mask is not None:
        inputs.append(mask)
    shown = inputs[-MAX_INPUTS:]
    for number, picture in enumerate(shown):
        _paste(sheet, picture, left + (MAX_INPUTS - len(shown) + number) * step, top)
    if len(inputs) > MAX_INPUTS:
        pen.text(
            (left, top + TILE_PX - 14),
            f"+{len(inputs) - MAX_INPUTS} before",
            _INK,
            _font(11),
            stroke_width=2,
            stroke_fill=_PAPER,
        )
    text_left = left + MAX_INPUTS * step
    turns = len(sample.request.kept_history)
    words = f"(turn {turns + 1}) {row.instruction}" if turns else row.instruction
    write(pen, wrap(words, TEXT_PX - 2 * GAP_PX, 13, max_lines=4), (text_left, top), 13, _INK)
    pen.text((text_left, top + TILE_PX - 28), f"{row.task.split('/')[1].replace('_', ' ')}", _SOFT, _font(11))
    score = row.model.l1 if row.model.l1_changed is None else row.model.l1_changed
    base = row.copy.l1 if row.copy.l1_changed is None else row.copy.l1_changed
    pen.text((text_left, top + TILE_PX - 14), f"error {score:.3f}, copying {base:.3f}", _SOFT, _font(11))
    _paste(sheet, answer, text_left + TEXT_PX, top)
    _paste(sheet, sample.target, text_left + TEXT_PX + step, top)


def _paste(sheet: Image.Image, picture: Image.Image, left: int, top: int) -> None:
    scale = TILE_PX / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    shown = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    sheet.paste(shown, (left, top))
    ImageDraw.Draw(sheet).rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=_LINE)


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(SHIPPED_PACK / "fonts" / "sans.ttf", size_px)
