"""Text drawn into pictures, English and Chinese, with the fonts that ship in the package (OFL).

`draw_text` gives the picture with the text and the mask of its box. Used by both text tasks; whether it can be read is
for OCR to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ace.data.tasks.common import pixels
from ace.data.tasks.describe import COLORS, name_place

FONTS = Path(__file__).parents[2] / "tiny" / "world" / "fonts"
LATIN = ("sans", "serif", "mono", "comic")  # script and pixel are hard to read, for OCR too
TEXT_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
ENGLISH = (
    "HELLO", "WELCOME", "SALE", "OPEN", "SUMMER", "COFFEE", "MUSIC", "TRAVEL", "Good Morning", "New Arrivals",
    "Thank You", "Happy Birthday", "No Parking", "Road 66", "Best Price", "Grand Opening", "Since 1984", "Season 3",
    "Love", "FRESH", "Live Show", "Art Fair", "Book Club", "Night Market", "Limited", "Nature", "Adventure",
    "STOP", "Level 12", "Fun Day",
)  # fmt: skip
CHINESE = (
    "你好", "欢迎", "生日快乐", "春天", "开心", "北京", "音乐", "火车", "大海", "山水", "世界", "花园", "新年好",
    "中国", "明天见", "热门", "最新消息", "安全第一", "学习", "时间", "电影", "公园", "星星", "手机", "家庭",
    "设计", "艺术", "食品", "快乐", "今日价格",
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """image: (H, W, 3) uint8 with the text. mask: (H, W) bool, a box around it. color, place: their words."""

    image: np.ndarray
    mask: np.ndarray
    color: str
    place: str


def choose_text(rng: Random, chinese: bool) -> str:
    """Something short to write."""
    if chinese:
        return rng.choice(CHINESE)
    if rng.random() < 0.8:
        return rng.choice(ENGLISH)
    return "".join(rng.choice("ABCDEFGHKLMNPRSTUVXYZ") for _ in range(4))


def draw_text(image: np.ndarray, text: str, rng: Random) -> Written | None:
    """The picture with a text in a colour that shows, somewhere; None if the text does not fit legibly."""
    height, width = image.shape[:2]
    name = rng.choice(LATIN) if text.isascii() else "chinese"
    size = round(min(height, width) * rng.uniform(0.09, 0.2))
    while size >= 14:
        left, top, right, bottom = _font(name, size).getbbox(text)
        if right - left <= 0.9 * width:
            break
        size = round(size * 0.85)
    else:
        return None
    text_w, text_h = int(right - left), int(bottom - top)
    pad = max(3, size // 6)
    if text_w + 2 * pad >= width or text_h + 2 * pad >= height:
        return None
    x = rng.randint(pad, width - text_w - pad)
    y = rng.randint(pad, height - text_h - pad)
    under = image[y : y + text_h, x : x + text_w].reshape(-1, 3).mean(0)
    showing = [c for c in TEXT_COLORS if np.abs(_luma(COLORS[c]) - _luma(under)) > 70]
    if not showing:
        return None
    color = rng.choice(showing)
    canvas = Image.fromarray(image)
    ImageDraw.Draw(canvas).text((x - left, y - top), text, fill=COLORS[color], font=_font(name, size))
    mask = np.zeros((height, width), bool)
    mask[max(0, y - pad) : y + text_h + pad, max(0, x - pad) : x + text_w + pad] = True
    return Written(pixels(canvas), mask, color, name_place((x + text_w / 2) / width, (y + text_h / 2) / height))


def _luma(color) -> float:
    return float(np.dot(color, (0.299, 0.587, 0.114)))


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS / f"{name}.ttf"), size)
