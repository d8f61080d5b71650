"""What a VACE model is shown: source, mask and references, prepared as the published tools do (arXiv 2503.07598).

A preparation starts at the source's own size as a `Draft`: frames, masks (255 = make) and where a frame is only filled
with grey because the model is to invent it. `fit` brings it to a size and a number of frames that the model works at:
width and height in steps of 16 px, 4n+1 frames. References are letterboxed on white, one frame each.

Where the published tools paint grey 127, 127.5 or 128 depending on the task, the model is shown 127.5 here, which is
zero; all else is theirs to the level (tests/video/test_prepare.py). Not here: finding or tracking what a mask selects
(`track.py`), drawing controls (`controls.py`), the five compositions (`compose.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ace.errors import ConfigError, ImageError, MaskError
from ace.video.clips import DEFAULT_FPS

GREY = 128  # how fill is shown in 8 bits
STEP_FRAMES, STEP_PX = 4, 16  # a token of latents: 4 frames (1 for the first), 8 px cells in patches of 2
DEFAULT_FRAMES = 81
SIZES = {"480p": (832, 480), "720p": (1280, 720)}
MAX_REFERENCES = 9
PLACES = ("first", "last", "firstlast", "random")


@dataclass(frozen=True)
class Draft:
    """A request at its source's size. frames: (T, H, W, 3) uint8; masks: (T, H, W) uint8, 255 = make, 0 = keep;
    fill: (T, H, W) bool, where the frames say nothing."""

    frames: np.ndarray
    masks: np.ndarray
    fill: np.ndarray

    def __post_init__(self) -> None:
        if not self.frames.shape[:3] == self.masks.shape == self.fill.shape:
            raise MaskError(f"masks of shape {self.masks.shape} for frames of shape {self.frames.shape[:3]}")


@dataclass(frozen=True)
class PreparedClip:
    """A request as the model sees it; as `Draft`, at the model's size. references: (N, H, W, 3) float32, 0 to 255,
    already letterboxed. fps: of the answer."""

    frames: np.ndarray
    masks: np.ndarray
    fill: np.ndarray
    references: np.ndarray
    fps: Fraction = DEFAULT_FPS

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in px."""
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def num_tokens(self) -> int:
        """Visual tokens of one pass, references included."""
        width, height = self.size
        return (latent_frames(len(self.frames)) + len(self.references)) * (width // STEP_PX) * (height // STEP_PX)

    def model_frames(self) -> np.ndarray:
        """(T, H, W, 3) float32, -1 to 1; fill is 0."""
        values = self.frames.astype(np.float32) / 127.5 - 1
        values[self.fill] = 0
        return values

    def model_references(self) -> np.ndarray:
        """(N, H, W, 3) float32, -1 to 1."""
        return self.references / np.float32(127.5) - 1


def latent_frames(num_frames: int) -> int:
    """Frames of latents for so many frames."""
    return (num_frames - 1) // STEP_FRAMES + 1


def check_frames(num_frames: int) -> int:
    """Raise ConfigError unless a number of frames is 4n+1."""
    if num_frames < 1 or (num_frames - 1) % STEP_FRAMES:
        lower = max(1, (num_frames - 1) // STEP_FRAMES * STEP_FRAMES + 1)
        raise ConfigError(f"{num_frames} frames: the model makes 4n+1, use {lower} or {lower + STEP_FRAMES}")
    return num_frames


# Sizes and times


def working_size(
    size: tuple[int, int], num_frames: int, area_px: int, most_frames: int = DEFAULT_FRAMES
) -> tuple[int, int, int]:
    """(frames, width, height) that the model works at for a source of `num_frames` frames of size (width, height).

    The aspect is the source's, the area at most `area_px` and never larger than the source; the frames are at most
    as many as the tokens of `most_frames` frames of that area allow, so that a smaller clip may be longer."""
    width, height = size
    if min(size) < STEP_PX:
        raise ImageError(f"frames of {width}x{height} px are too small: at least {STEP_PX} px a side are needed")
    most_tokens = latent_frames(most_frames) * (area_px // STEP_PX**2)
    area = min(most_tokens, area_px / STEP_PX**2, (height // STEP_PX) * (width // STEP_PX))
    frames = min((num_frames - 1) // STEP_FRAMES + 1, int(most_tokens / area))
    target = min(area, int(most_tokens / frames))
    rows = max(1, round(math.sqrt(target * height / width)))
    columns = max(1, int(target / rows))
    return (frames - 1) * STEP_FRAMES + 1, columns * STEP_PX, rows * STEP_PX


def pick_frames(spans: np.ndarray, count: int) -> tuple[list[int], Fraction]:
    """The numbers of `count` frames spread evenly from the first to the middle of the last, and their rate.

    spans: (T, 2) seconds, from when to when each frame is shown."""
    spans = spans.astype(np.float32)
    length = spans[-1].mean()
    moments = np.linspace(0.0, length, count)
    shown = (moments[:, None] >= spans[None, :, 0]) & (moments[:, None] <= spans[None, :, 1])
    return shown.argmax(axis=1).tolist(), Fraction(count / float(length)).limit_denominator(1001)


def fit(draft: Draft, size: tuple[int, int]) -> PreparedClip:
    """A draft scaled to cover a size (width, height) and cut in the middle, without references."""
    masks = resize_cover(draft.masks[..., None].repeat(3, -1), size)[..., 0]
    fill = resize_cover(draft.fill[..., None].repeat(3, -1).astype(np.uint8) * 255, size)[..., 0] == 255
    return PreparedClip(
        resize_cover(draft.frames, size),
        np.where(masks > 127, 255, 0).astype(np.uint8),  # above 0.5 of 255
        fill,
        np.zeros((0, size[1], size[0], 3), np.float32),
    )


def resize_cover(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, H, W, 3) uint8 frames scaled (bicubic, antialiased) to cover a size (width, height), cut in the middle."""
    width, height = size
    if frames.shape[1:3] == (height, width):
        return frames
    import torch
    from torch.nn import functional

    scale = max(width / frames.shape[2], height / frames.shape[1])
    scaled_size = round(scale * frames.shape[1]), round(scale * frames.shape[2])
    tensor = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    scaled = functional.interpolate(tensor, size=scaled_size, mode="bicubic", antialias=True)
    top, left = (scaled_size[0] - height) // 2, (scaled_size[1] - width) // 2
    return scaled[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1).contiguous().numpy()


def letterbox(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A reference (H, W, 3) uint8 as large as fits a size (width, height), in the middle of white; float32, to 255."""
    width, height = size
    if image.shape[:2] == (height, width):
        return image.astype(np.float32)
    import torch
    from torch.nn import functional

    scale = min(height / image.shape[0], width / image.shape[1])
    inner = int(image.shape[0] * scale), int(image.shape[1] * scale)
    if min(inner) < 1:
        raise ImageError(f"a reference of {image.shape[1]}x{image.shape[0]} px is too narrow: cut it to a fuller shape")
    tensor = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    small = functional.interpolate(tensor, size=inner, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    canvas = np.full((height, width, 3), 255, np.float32)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = small.numpy()
    return canvas


# Drafts of single tasks


def nothing(num_frames: int, size: tuple[int, int]) -> Draft:
    """Text to video: nothing is given."""
    shape = (num_frames, size[1], size[0])
    return Draft(np.full((*shape, 3), GREY, np.uint8), np.full(shape, 255, np.uint8), np.ones(shape, bool))


def controlled(frames: np.ndarray) -> Draft:
    """A control clip (depth, pose, …): all is made anew along what the frames show."""
    return Draft(frames, np.full(frames.shape[:3], 255, np.uint8), np.zeros(frames.shape[:3], bool))


def repainted(frames: np.ndarray, masks: np.ndarray) -> Draft:
    """A clip in which what the masks (T, H, W), > 0, select is made anew."""
    selected = masks > 0
    shown = frames.copy()
    shown[selected] = GREY
    return Draft(shown, selected.astype(np.uint8) * 255, selected)


def extended(frames: np.ndarray, left: float = 0, right: float = 0, up: float = 0, down: float = 0) -> Draft:
    """A clip with room around it, in shares of its own sides."""
    for share in (left, right, up, down):
        if not 0 <= share <= 2:
            raise ConfigError(f"extend by {share:g}: use 0 to 2 of the side")
    num_frames, height, width = frames.shape[:3]
    left_px, right_px, up_px, down_px = (
        int(left * width), int(right * width), int(up * height), int(down * height),
    )  # fmt: skip
    if not any((left_px, right_px, up_px, down_px)):
        raise ConfigError("extend by nothing: name a side, for example left=0.25")
    shape = (num_frames, height + up_px + down_px, width + left_px + right_px)
    shown = np.full((*shape, 3), GREY, np.uint8)
    outside = np.ones(shape, bool)
    inner = (slice(None), slice(up_px, up_px + height), slice(left_px, left_px + width))
    shown[inner] = frames
    outside[inner] = False
    return Draft(shown, outside.astype(np.uint8) * 255, outside)


def continued(first: np.ndarray | None, last: np.ndarray | None, num_new: int) -> Draft:
    """Given frames at the start, the end or both, (T, H, W, 3), and `num_new` frames to invent beside or between."""
    given = first if first is not None else last
    if given is None:
        raise ConfigError("continue from nothing: give frames at the start, the end or both")
    size = given.shape[1:3]
    new = np.full((num_new, *size, 3), GREY, np.uint8)
    parts = [part for part in (first, new, last) if part is not None]
    is_new = np.concatenate([np.full(len(part), part is new) for part in parts])
    flags = np.broadcast_to(is_new[:, None, None], (len(is_new), *size))
    return Draft(np.concatenate(parts), flags.astype(np.uint8) * 255, flags.copy())


def kept_frames(frames: np.ndarray, ids: Sequence[int]) -> Draft:
    """A clip of which only the frames of these numbers are given."""
    missing = np.ones(len(frames), bool)
    missing[list(ids)] = False
    shown = frames.copy()
    shown[missing] = GREY
    flags = np.broadcast_to(missing[:, None, None], frames.shape[:3])
    return Draft(shown, flags.astype(np.uint8) * 255, flags.copy())


def place_ids(num_frames: int, place: str, count: int, seed: int = 0) -> list[int]:
    """Which frames are given: the `count` "first", "last", both ("firstlast") or "random" ones."""
    if place not in PLACES:
        raise ConfigError(f"no place is called {place!r}: use one of {', '.join(PLACES)}")
    if not 1 <= count <= num_frames:
        raise ConfigError(f"{count} of {num_frames} frames: use 1 to {num_frames}")
    if place == "random":
        return sorted(np.random.default_rng(seed).choice(num_frames, count, replace=False).tolist())
    first, last = list(range(count)), list(range(num_frames - count, num_frames))
    return first if place == "first" else last if place == "last" else sorted({*first, *last})


# Masks and layouts

SHAPES = ("original", "original_expand", "hull", "hull_expand", "bbox", "bbox_expand")


def grow_mask(
    mask: np.ndarray, shape: str, ratio: float = 0.3, steps: int = 5, sides: Sequence[float] = (1, 1, 1, 1)
) -> np.ndarray:
    """A mask (H, W) uint8, > 0 = selected, made coarser: its hull or its box, and grown where the shape says "expand".

    ratio: of its box by which it grows at most; steps: in so many steps; sides: share of that to the left, right, top
    and bottom. Never beyond half the way to the border. An empty mask stays empty."""
    import cv2

    if shape not in SHAPES:
        raise ConfigError(f"no mask shape is called {shape!r}: use one of {', '.join(SHAPES)}")
    if not 0 <= ratio <= 1:
        raise ConfigError(f"a mask cannot grow by {ratio:g} of its box: use 0 to 1")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return mask.astype(np.uint8)
    height, width = mask.shape
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
    grown = mask.astype(np.uint8)
    if shape.startswith("bbox"):
        grown = np.zeros((height, width), np.uint8)
        grown[top : bottom + 1, left : right + 1] = 255
    elif shape.startswith("hull"):
        grown = _hull(grown)
    if not shape.endswith("expand") or not ratio:
        return grown
    wide, high = (right - left + 1) * ratio, (bottom - top + 1) * ratio
    room = (
        min(wide, left / 2), min(wide, (width - right) / 2), min(high, top / 2), min(high, (height - bottom) / 2),
    )  # fmt: skip
    to_left, to_right, to_top, to_bottom = (int(share * px / steps) for share, px in zip(sides, room, strict=True))
    reach = max(to_left, to_right, to_top, to_bottom)
    if reach > 0:
        kernel = np.zeros((2 * reach, 2 * reach), np.uint8)
        kernel[reach - to_bottom : reach + to_top + 1, reach - to_right : reach + to_left + 1] = 1
        grown = cv2.dilate(grown, kernel, iterations=steps)
    return grown


def _hull(mask: np.ndarray) -> np.ndarray:
    import cv2
    from PIL import Image, ImageDraw

    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    points = cv2.convexHull(np.concatenate(contours))[:, 0].astype(float)
    drawn = Image.new("L", (mask.shape[1], mask.shape[0]))
    corners = [tuple(point) for point in points.tolist()]
    if len(corners) > 1:
        ImageDraw.Draw(drawn).polygon(corners, fill=255)
    else:
        x, y = corners[0]
        drawn.putpixel((int(x), int(y)), 255)
    return np.array(drawn)


Box = tuple[float, float, float, float]  # left, top, right, bottom in px


def moving_box(
    start: Box, end: Box, size: tuple[int, int], num_frames: int, color: tuple[int, int, int] = (0, 0, 0)
) -> np.ndarray:
    """A layout clip: the outline of a box that moves from one place towards another, on white; (T, H, W, 3) uint8.

    size: (width, height). It does not reach the end: in the last frame one step is left, as published."""
    import cv2

    def corner_and_size(box: Box) -> np.ndarray:
        return np.array([box[0], box[1], box[2] - box[0], box[3] - box[1]], np.float32)

    first, step = corner_and_size(start), (corner_and_size(end) - corner_and_size(start)) / num_frames
    frames = np.full((num_frames, size[1], size[0], 3), 255, np.uint8)
    for number in range(num_frames):
        left, top, wide, high = (first + step * number).astype(int).tolist()
        cv2.rectangle(frames[number], (left, top), (left + wide, top + high), color, 2)
    return frames


def outlines(masks: np.ndarray, color: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """A layout clip: the outlines of masks (T, H, W) uint8 on white; (T, H, W, 3) uint8."""
    import cv2

    frames = np.full((*masks.shape, 3), 255, np.uint8)
    for number, mask in enumerate(masks):
        contours, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(frames[number], contours, -1, color, thickness=3)
    return frames


def read_label_colors(text: str) -> dict[str, tuple[int, int, int]]:
    """Label -> colour from the published list: lines of number#;#label#;#(r, g, b). Raises ConfigError."""
    colors: dict[str, tuple[int, int, int]] = {}
    for line in text.splitlines():
        parts = line.strip().split("#;#")
        values = parts[2].strip("()[] ").split(",") if len(parts) == 3 else []
        if len(values) != 3 or not all(value.strip().isdigit() and int(value) < 256 for value in values):
            raise ConfigError("a list of label colours has lines of number#;#label#;#(r, g, b): this is none")
        red, green, blue = (int(value) for value in values)
        colors[parts[1]] = (red, green, blue)
    return colors


def parse_box(text: str) -> Box:
    """ "left,top,right,bottom" in px. Raises ConfigError."""
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"a box is left,top,right,bottom in px, got {text!r}") from None
    if not (left < right and top < bottom and math.isfinite(left + top + right + bottom)):
        raise ConfigError(f"the box {text} is empty: give left,top,right,bottom with left < right and top < bottom")
    return left, top, right, bottom


def box_mask(box: Box, size: tuple[int, int]) -> np.ndarray:
    """A box as a mask (H, W) uint8, cut at the frame. Raises MaskError if it lies outside."""
    width, height = size
    left, top = int(max(0, box[0])), int(max(0, box[1]))
    right, bottom = int(min(width, box[2])), int(min(height, box[3]))
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    if not mask.any():
        raise MaskError(f"the box selects nothing of frames of {width}x{height} px: check its numbers")
    return mask
