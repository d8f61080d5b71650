"""Styles that image processing can make, each a function of a picture (H, W, 3) uint8 that returns the like.

They stand in for the diffusion stylers of the paper (`generators.py`), which need weights; each is named for what it
looks like, no more.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from ace.extract.exact import gray


def pencil(image: np.ndarray) -> np.ndarray:
    """Grey strokes on white: the picture divided by its own blur."""
    light = gray(image)[..., 0]
    smooth = cv2.GaussianBlur(255 - light, (0, 0), max(2.0, min(light.shape) / 40))
    return np.repeat(cv2.divide(light, 255 - np.minimum(smooth, 254), scale=250)[..., None], 3, 2)


def colored_pencil(image: np.ndarray) -> np.ndarray:
    """The strokes of `pencil` over pale colours."""
    strokes = (pencil(image).astype(np.float32) / 255) ** 1.5
    height, width = image.shape[:2]
    grain = np.random.default_rng(5).normal(0, 1, (height, width)).astype(np.float32)
    hatching = cv2.filter2D(grain, -1, np.eye(max(7, min(height, width) // 30), dtype=np.float32) / 7)[..., None]
    flat = _vivid(cv2.bilateralFilter(image, 9, 60, 9), 1.3).astype(np.float32)
    pale = 255 - (255 - flat) * (0.62 + 0.3 * hatching.clip(-1, 1))
    return (pale * (0.25 + 0.75 * strokes)).clip(0, 255).astype(np.uint8)


def watercolor(image: np.ndarray) -> np.ndarray:
    """Flat washes with soft borders on grained paper."""
    washed = cv2.stylization(cv2.pyrMeanShiftFiltering(image, 9, 24), sigma_s=40, sigma_r=0.5).astype(np.float32)
    grain = np.random.default_rng(7).normal(0, 1, image.shape[:2]).astype(np.float32)
    grain = cv2.GaussianBlur(grain, (0, 0), 0.8)[..., None] * 6
    return (washed * 0.88 + 30 + grain).clip(0, 255).astype(np.uint8)


def oil_painting(image: np.ndarray) -> np.ndarray:
    """Each pixel the mean colour of the commonest brightness around it (a mode filter in eight levels)."""
    radius = max(2, min(image.shape[:2]) // 90)
    size = (2 * radius + 1, 2 * radius + 1)
    levels = gray(image)[..., 0] >> 5
    best = np.full(levels.shape, -1.0, np.float32)
    out = np.zeros(image.shape, np.float32)
    for level in range(8):
        here = (levels == level).astype(np.float32)
        count = cv2.boxFilter(here, -1, size, normalize=False)
        mean = cv2.boxFilter(image * here[..., None], -1, size, normalize=False) / np.maximum(count, 1)[..., None]
        won = count > best
        best, out = np.where(won, count, best), np.where(won[..., None], mean, out)
    return out.clip(0, 255).astype(np.uint8)


def cartoon(image: np.ndarray) -> np.ndarray:
    """Few flat colours and black outlines."""
    flat = image
    for _ in range(3):
        flat = cv2.bilateralFilter(flat, 9, 50, 9)
    flat = _vivid(_levels(flat, 6), 1.35)
    light = cv2.medianBlur(gray(image)[..., 0], 5)
    block = max(7, (min(light.shape) // 50) | 1)
    lines = cv2.adaptiveThreshold(light, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, block, 6)
    return np.where(lines[..., None] == 0, np.uint8(25), flat)


def pixel_art(image: np.ndarray) -> np.ndarray:
    """About sixty blocks a side in few colours."""
    height, width = image.shape[:2]
    factor = max(2, min(height, width) // 60)
    small = cv2.resize(image, (max(1, width // factor), max(1, height // factor)), interpolation=cv2.INTER_AREA)
    return cv2.resize(_vivid(_levels(small, 6), 1.25), (width, height), interpolation=cv2.INTER_NEAREST)


def pop_art(image: np.ndarray) -> np.ndarray:
    """Brightness as four loud colours with black dots in the shade."""
    light = cv2.bilateralFilter(gray(image)[..., 0], 9, 60, 9)
    palette = np.array(((60, 20, 110), (230, 40, 120), (255, 160, 40), (255, 240, 120)), np.uint8)
    colored = palette[np.minimum(light // 64, 3)]
    step = max(4, min(light.shape) // 64)
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
    distance = np.hypot(rows % step - step / 2, columns % step - step / 2)
    dots = distance < step * 0.45 * (1 - light / 255) ** 0.7
    return np.where((dots & (light < 110))[..., None], np.uint8(20), colored)


def sepia(image: np.ndarray) -> np.ndarray:
    """Brown tones, darker corners, a little grain."""
    brown = gray(image)[..., :1].astype(np.float32) * np.array((1.07, 0.88, 0.66), np.float32) + (8, 4, 0)
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    corner = np.hypot((rows / height - 0.5) * 2, (columns / width - 0.5) * 2)
    grain = np.random.default_rng(3).normal(0, 5, (height, width, 1))
    return (brown * (1 - 0.25 * (corner.clip(0.6, 1.4) - 0.6))[..., None] + grain).clip(0, 255).astype(np.uint8)


def ink(image: np.ndarray) -> np.ndarray:
    """Black and white, light against dark, as a woodcut."""
    light = cv2.bilateralFilter(gray(image)[..., 0], 9, 80, 9)
    local = cv2.GaussianBlur(light, (0, 0), max(3.0, min(light.shape) / 30)).astype(np.int16)
    black = (light.astype(np.int16) < local - 4) | (light < 60)
    return np.repeat(np.where(black, np.uint8(15), np.uint8(250))[..., None], 3, 2)


def stained_glass(image: np.ndarray) -> np.ndarray:
    """Cells of one colour each with dark leading between them."""
    height, width = image.shape[:2]
    step = max(6, min(height, width) // 26)
    jitter = np.random.default_rng(11).uniform(-0.45, 0.45, (height // step + 2, width // step + 2, 2))
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    best = np.full((height, width), np.inf, np.float32)
    second, owner = best.copy(), np.zeros((height, width), np.int32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            r = (rows // step + dy).astype(int).clip(0, jitter.shape[0] - 1)
            c = (columns // step + dx).astype(int).clip(0, jitter.shape[1] - 1)
            far = np.hypot(
                rows - (r + 0.5 + jitter[r, c, 0]) * step, columns - (c + 0.5 + jitter[r, c, 1]) * step
            ).astype(np.float32)
            index = r * jitter.shape[1] + c
            same = index == owner
            closer = far < best
            second = np.where(closer & ~same, best, np.where(~closer & ~same, np.minimum(second, far), second))
            owner, best = np.where(closer, index, owner), np.minimum(best, far)
    flat = owner.ravel()
    counts = np.bincount(flat, minlength=flat.max() + 1)
    means = np.stack([np.bincount(flat, image[..., k].ravel(), len(counts)) for k in range(3)], -1)
    cells = (means / np.maximum(counts, 1)[:, None]).clip(0, 255).astype(np.uint8)[owner]
    return np.where((second - best < max(1.5, step / 9))[..., None], np.uint8(25), _vivid(cells, 1.5))


def negative(image: np.ndarray) -> np.ndarray:
    """Every colour its opposite."""
    return 255 - image


def _levels(image: np.ndarray, count: int) -> np.ndarray:
    """The picture in so many levels of brightness, its hues kept."""
    step = 255 / (count - 1)
    brightness = image.max(2, keepdims=True).astype(np.float32)
    target = np.maximum(np.round(brightness / step) * step, 12)
    return (image * (target / np.maximum(brightness, 1))).clip(0, 255).astype(np.uint8)


def _vivid(image: np.ndarray, factor: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 1] = (hsv[..., 1] * factor).clip(0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


# how people call it -> how it is made
STYLERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pencil sketch": pencil,
    "colored pencil drawing": colored_pencil,
    "watercolor painting": watercolor,
    "oil painting": oil_painting,
    "cartoon": cartoon,
    "pixel art": pixel_art,
    "pop art print": pop_art,
    "old sepia photo": sepia,
    "woodcut print": ink,
    "stained glass window": stained_glass,
    "photo negative": negative,
}
