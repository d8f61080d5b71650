"""Pictures of edits: inputs, instruction and result on one card, cards in a grid, a conversation as a strip.

Type is the package's own open font. Small pictures are enlarged, masks are outlined on the picture they belong to.

Not here: choosing what is shown, running a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ace.conditions.prompt import in_words
from ace.data.world.sprites import SHIPPED_PACK, SpriteLibrary

PICTURE_PX = 192
ARROW_PX = 40
PAD = 16
GAP = 18
MARGIN = 40
CARD_PX = 2 * PAD + 2 * PICTURE_PX + ARROW_PX
TRUTH_PX = PICTURE_PX + 28  # that a card is wider with its true answer
CAPTION_PX = 22

PAPER, CARD, EDGE = (244, 243, 239), (255, 255, 255), (222, 219, 211)
INK, SOFT, ACCENT = (34, 36, 40), (120, 122, 126), (196, 68, 40)
MASK_LINE = (255, 0, 128)

Line = list[tuple[str, ImageFont.FreeTypeFont]]  # words with the font that has their letters


@dataclass(frozen=True)
class Panel:
    """One edit to show. title: what kind it is; images and masks: as the request has them; result: the answer; truth:
    the true one beside it, or None."""

    title: str
    instruction: str
    images: tuple[Image.Image, ...]
    masks: tuple[Image.Image | None, ...]
    result: Image.Image
    truth: Image.Image | None = None


def draw_grid(panels: Sequence[Panel], columns: int) -> Image.Image:
    """Cards in rows; each row is as high as its longest instruction needs."""
    with_truth = any(panel.truth is not None for panel in panels)
    wide, caption = (CARD_PX + TRUTH_PX, CAPTION_PX) if with_truth else (CARD_PX, 0)
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    texts = [[wrap(in_words(panel.instruction), wide - 2 * PAD, 22) for panel in row] for row in rows]
    heights = [_text_height(max(len(lines) for lines in row)) + caption + PICTURE_PX + 2 * PAD for row in texts]
    sheet = Image.new("RGB", (columns * wide + (columns - 1) * GAP, sum(heights) + GAP * (len(rows) - 1)), PAPER)
    top = 0
    for row, lines, height in zip(rows, texts, heights, strict=True):
        for column, (panel, text) in enumerate(zip(row, lines, strict=True)):
            sheet.paste(_card(panel, text, wide, height), (column * (wide + GAP), top))
        top += height + GAP
    return sheet


def draw_conversation(
    title: str, first: Image.Image, turns: Sequence[tuple[str, Image.Image]], width: int
) -> Image.Image:
    """One card: the first picture, then every turn's instruction, an arrow and its answer. turns: (instruction,
    answer)."""
    step = (width - 2 * PAD - PICTURE_PX) / len(turns)
    space = int(step) - PICTURE_PX
    texts = [wrap(f"{number}. {in_words(text)}", space - 28, 20) for number, (text, _) in enumerate(turns, 1)]
    inner = max(PICTURE_PX, max(len(lines) for lines in texts) * _line_px(20) + 40)
    top = PAD + 34
    card, draw = _blank(width, top + inner + PAD)
    draw.text((PAD, PAD), title, font=_font(18), fill=ACCENT)
    picture_top = top + (inner - PICTURE_PX) // 2
    _paste(card, first, None, (PAD, picture_top, PICTURE_PX))
    for number, (lines, (_, answer)) in enumerate(zip(texts, turns, strict=True)):
        left = PAD + round(number * step) + PICTURE_PX
        height = len(lines) * _line_px(20) + 30
        text_top = top + (inner - height) // 2
        write(draw, lines, (left + 16, text_top), 20)
        _arrow(draw, left + space // 2, text_top + height - 8)
        _paste(card, answer, None, (PAD + round((number + 1) * step), picture_top, PICTURE_PX))
    return card


def draw_page(title: str, subtitle: str, parts: Sequence[Image.Image], footer: str) -> Image.Image:
    """Parts one below the other under a title, with a line at the foot."""
    width = max(part.width for part in parts) + 2 * MARGIN
    height = 2 * MARGIN + 108 + sum(part.height + GAP for part in parts) + 34
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN - 8), title, font=_font(44), fill=INK)
    draw.text((MARGIN, MARGIN + 50), subtitle, font=_font(22), fill=SOFT)
    top = MARGIN + 100
    for part in parts:
        page.paste(part, (MARGIN, top))
        top += part.height + GAP
    draw.text((MARGIN, top + 8), footer, font=_font(18), fill=SOFT)
    return page


# One card


def _card(panel: Panel, lines: list[Line], width: int, height: int) -> Image.Image:
    card, draw = _blank(width, height)
    draw.text((PAD, PAD), panel.title, font=_font(18), fill=ACCENT)
    write(draw, lines, (PAD, PAD + 28), 22)
    top = height - PAD - PICTURE_PX
    result_left = PAD + PICTURE_PX + ARROW_PX
    if panel.images:
        cells = 1 if len(panel.images) == 1 else 2 if len(panel.images) <= 4 else 3
        side = (PICTURE_PX - (cells - 1) * 8) // cells
        rows = -(-len(panel.images) // cells)
        start = top + (PICTURE_PX - rows * side - (rows - 1) * 8) // 2
        for number, (image, mask) in enumerate(zip(panel.images, panel.masks, strict=True)):
            place = (PAD + number % cells * (side + 8), start + number // cells * (side + 8), side)
            _paste(card, image, mask, place)
        _arrow(draw, PAD + PICTURE_PX + ARROW_PX // 2, top + PICTURE_PX // 2)
    else:
        note = wrap("from words alone", PICTURE_PX, 18)
        write(draw, note, (PAD, top + PICTURE_PX // 2 - 13), 18, SOFT)
        _arrow(draw, PAD + PICTURE_PX + ARROW_PX // 2, top + PICTURE_PX // 2)
    _paste(card, panel.result, None, (result_left, top, PICTURE_PX))
    if panel.truth is not None:
        truth_left = width - PAD - PICTURE_PX
        _paste(card, panel.truth, None, (truth_left, top, PICTURE_PX))
        for text, left in (("the model", result_left), ("the true answer", truth_left)):
            draw.text((left, top - CAPTION_PX), text, font=_font(16), fill=SOFT)
    return card


def _blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    card = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(card)
    draw.rounded_rectangle((0, 0, width - 1, height - 1), 12, fill=CARD, outline=EDGE)
    return card, draw


def _paste(card: Image.Image, image: Image.Image, mask: Image.Image | None, place: tuple[int, int, int]) -> None:
    """A picture with its mask's outline into a square (left, top, side), whole, centred, with a thin frame."""
    left, top, side = place
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shown = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    if mask is not None:
        shown = _outlined(shown, mask)
    left, top = left + (side - size[0]) // 2, top + (side - size[1]) // 2
    card.paste(shown, (left, top))
    ImageDraw.Draw(card).rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=EDGE)


def _outlined(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with a line along the inner edge of what the mask selects."""
    inside = np.asarray(mask.convert("L").resize(picture.size, Image.Resampling.BICUBIC)) > 128
    core = np.pad(inside, 3)
    height, width = inside.shape
    core = np.logical_and.reduce(
        [core[3 + y : 3 + y + height, 3 + x : 3 + x + width] for y in (-3, 0, 3) for x in (-3, 0, 3)]
    )
    pixels = np.array(picture)
    pixels[inside & ~core] = MASK_LINE
    return Image.fromarray(pixels)


def _arrow(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.line((x - 11, y, x + 5, y), fill=SOFT, width=3)
    draw.polygon(((x + 12, y), (x + 2, y - 7), (x + 2, y + 7)), fill=SOFT)


# Text


@cache
def _library() -> SpriteLibrary:
    return SpriteLibrary(SHIPPED_PACK)


def _font(size_px: int, name: str = "sans") -> ImageFont.FreeTypeFont:
    return _library().font(name, size_px)


def _line_px(size_px: int) -> int:
    return round(size_px * 1.22)


def _text_height(lines: int) -> int:
    return 28 + lines * _line_px(22) + 12


def _fitting(word: str, size_px: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The word and a font that has its letters; letters that none has become a question mark."""
    for name in ("sans", "chinese"):
        if set(word) <= _library().font_characters(name) | {" "}:
            return word, _font(size_px, name)
    known = _library().font_characters("sans")
    return "".join(letter if letter in known else "?" for letter in word), _font(size_px)


def wrap(text: str, width_px: int, size_px: int, max_lines: int = 0) -> list[Line]:
    """Lines of whole words; a word that is longer than a line is broken. max_lines: of more, the last kept one ends in
    "..."; 0 = all."""
    lines: list[Line] = [[]]
    room = float(width_px)
    space = _font(size_px).getlength(" ")
    for word in text.split():
        shown, font = _fitting(word, size_px)
        while font.getlength(shown) > width_px:
            cut = next(n for n in range(len(shown), 0, -1) if n == 1 or font.getlength(shown[:n]) <= width_px)
            lines += [[(shown[:cut], font)], []]
            shown, room = shown[cut:], float(width_px)
        length = font.getlength(shown)
        if length > room and lines[-1]:
            lines.append([])
            room = float(width_px)
        lines[-1].append((shown, font))
        room -= length + space
    lines = [line for line in lines if line] or [[("", _font(size_px))]]
    if 0 < max_lines < len(lines):
        last, more = lines[max_lines - 1], ("...", _font(size_px))
        while len(last) > 1 and sum(font.getlength(word) + space for word, font in [*last, more]) > width_px:
            last.pop()
        lines = [*lines[: max_lines - 1], [*last, more]]
    return lines


def write(
    draw: ImageDraw.ImageDraw, lines: list[Line], place: tuple[int, int], size_px: int, fill: tuple[int, int, int] = INK
) -> None:
    """Draw wrapped lines from their top left corner."""
    x, y = place
    space = _font(size_px).getlength(" ")
    for number, line in enumerate(lines):
        at = float(x)
        for word, font in line:
            draw.text((at, y + number * _line_px(size_px) + size_px), word, font=font, fill=fill, anchor="ls")
            at += font.getlength(word) + space
