"""Clips of the world with exact masks, depth, flow and tracks: sprites move, turn and cross while the camera pans.

Each clip is decided by its seed. A sprite is drawn once and turned about its middle; where a pixel of it is in the next
frame is therefore known exactly, and so is the background's movement, which is the camera's. Numbers stand in arrays
beside the frames: `masks` (objects, frames, H, W), `depth` and `flow` per frame, `tracks` of each object's middle.

Not here: training (`ace/training/video.py`), instructions beyond one sentence.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from ace.data.world.backgrounds import COLORS, LANDSCAPES, TIMES, Background, paint
from ace.data.world.chance import with_article
from ace.data.world.sprites import SpriteLibrary
from ace.errors import ConfigError, OutputError
from ace.files import write_atomically
from ace.video.clips import write_clip

FPS = Fraction(16)


@dataclass(frozen=True)
class MovingSprite:
    """A sprite's way. slug, style: of the library; start, end: of its middle in the first and last frame, in shares of
    the side, before the camera pans; size: of its square; turn: degrees in all; near: depth, 0 far to 1 near."""

    slug: str
    style: str
    start: tuple[float, float]
    end: tuple[float, float]
    size: float
    turn: float
    near: float


@dataclass(frozen=True)
class WorldClip:
    """frames: (T, S, S, 3) uint8; masks: (N, T, S, S) bool, the visible part of each object; depth: (T, S, S) float32,
    0 far to 1 near; flow: (T - 1, S, S, 2) float32 px, where each pixel goes in the next frame; tracks: (N, T, 2)
    float32, (x, y) of each object's middle in px; names: of the objects; instruction: what it shows."""

    frames: np.ndarray
    masks: np.ndarray
    depth: np.ndarray
    flow: np.ndarray
    tracks: np.ndarray
    names: tuple[str, ...]
    instruction: str


def world_clip(seed: int, size_px: int = 128, num_frames: int = 9, library: SpriteLibrary | None = None) -> WorldClip:
    """The clip of a seed. Raises ConfigError for a size below 32 px or fewer than 2 frames."""
    if size_px < 32 or num_frames < 2:
        raise ConfigError(f"a clip of {num_frames} frames of {size_px} px: use at least 2 frames of 32 px")
    library = library or SpriteLibrary()
    rng = random.Random(f"clip:{seed}")
    objects = _objects(rng, library)
    pan = (rng.uniform(-0.12, 0.12), rng.uniform(-0.04, 0.04))
    ground = _background(rng, size_px)
    names = tuple(next(c.name for c in library.concepts if c.slug == one.slug) for one in objects)
    words = " and ".join(with_article(name) for name in names)
    drawn = [_draw(number / (num_frames - 1), objects, pan, ground, library, size_px) for number in range(num_frames)]
    frames, masks, depth, owners, places = (list(part) for part in zip(*drawn, strict=True))
    flow = [
        _flow(owners[number], places[number], places[number + 1], objects, num_frames, size_px)
        for number in range(num_frames - 1)
    ]
    tracks = np.array([[place[k] for place in places] for k in range(len(objects))], np.float32)
    return WorldClip(
        np.stack(frames),
        np.stack(masks, axis=1),
        np.stack(depth),
        np.stack(flow),
        tracks,
        names,
        f"{words} move{'s' if len(objects) == 1 else ''} across the picture",
    )


def _objects(rng: random.Random, library: SpriteLibrary) -> tuple[MovingSprite, ...]:
    """One to three sprites; of several, two cross."""
    core = sorted(concept.slug for concept in library.concepts if concept.core)
    count = rng.choice((1, 2, 2, 3))
    made = []
    for number in range(count):
        slug = rng.choice(core)
        style = rng.choice([name for name in library.styles_of(slug) if "mono" not in name])
        y = rng.uniform(0.35, 0.7)
        left, right = rng.uniform(0.2, 0.35), rng.uniform(0.6, 0.78)
        ends = ((left, y), (right, y + rng.uniform(-0.1, 0.1)))
        start, end = ends if number % 2 == 0 else ends[::-1]
        size = rng.uniform(0.26, 0.42)
        made.append(MovingSprite(slug, style, start, end, size, rng.uniform(-35, 35), 0.5 + 0.15 * number))
    return tuple(made)


def _background(rng: random.Random, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """(colours (2 S, 2 S, 3) uint8, depth (2 S, 2 S) float32) of a ground twice as wide as what is seen."""
    side = 2 * size_px
    if rng.random() < 0.5:
        painted = paint(Background(rng.choice(sorted(LANDSCAPES)), (), rng.choice(TIMES)), side, (0.0, 0.0, 1.0))
        return painted.image.copy(), painted.depth.copy()
    first, second = rng.sample(sorted(COLORS), 2)
    noise = np.random.default_rng(rng.getrandbits(32)).uniform(0, 1, (24, 24)).astype(np.float32)
    share = np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    colors = np.array(COLORS[first], np.float32), np.array(COLORS[second], np.float32)
    image = (colors[0] * (1 - share) + colors[1] * share).round().astype(np.uint8)
    return image, np.linspace(0.1, 0.4, side, dtype=np.float32)[:, None].repeat(side, axis=1)


def _draw(
    share: float,
    objects: Sequence[MovingSprite],
    pan: tuple[float, float],
    ground: tuple[np.ndarray, np.ndarray],
    library: SpriteLibrary,
    size_px: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[tuple[float, float]]]:
    """(frame, masks (N, S, S), depth, owner of each pixel (-1 = ground), middles, the ground's last) at a share."""
    shift = (round(pan[0] * share * size_px), round(pan[1] * share * size_px))
    top, left = size_px // 2 + shift[1], size_px // 2 + shift[0]
    window = (slice(top, top + size_px), slice(left, left + size_px))
    frame, depth = ground[0][window].astype(np.float32), ground[1][window].copy()
    owner = np.full((size_px, size_px), -1, np.int16)
    middles: list[tuple[float, float]] = []
    for number, one in enumerate(objects):
        x = (one.start[0] + (one.end[0] - one.start[0]) * share) * size_px - shift[0]
        y = (one.start[1] + (one.end[1] - one.start[1]) * share) * size_px - shift[1]
        x, y = float(round(x)), float(round(y))
        rgba, corner = _turned(library, one, size_px, one.turn * share)
        inside, part = _overlap(size_px, rgba.shape[0], int(y) - corner, int(x) - corner)
        alpha = rgba[part][..., 3:].astype(np.float32) / 255
        frame[inside] = frame[inside] * (1 - alpha) + rgba[part][..., :3] * alpha
        solid = alpha[..., 0] > 0.5
        owner[inside][solid] = number
        depth[inside][solid] = one.near
        middles.append((x, y))
    masks = np.stack([owner == number for number in range(len(objects))])
    return frame.round().astype(np.uint8), masks, depth, owner, [*middles, (-shift[0], -shift[1])]


def _turned(library: SpriteLibrary, one: MovingSprite, size_px: int, degrees: float) -> tuple[np.ndarray, int]:
    """(RGBA (n, n, 4) uint8, px from its corner to its middle) of a sprite turned counter-clockwise."""
    side = max(8, round(one.size * size_px))
    sprite = Image.fromarray(library.sprite(one.slug, one.style, side))
    room = math.ceil(side * 1.5 / 2) * 2
    canvas = Image.new("RGBA", (room, room))
    canvas.paste(sprite, ((room - side) // 2, (room - side) // 2))
    return np.asarray(canvas.rotate(degrees, Image.Resampling.BICUBIC)), room // 2


def _overlap(side: int, patch: int, top: int, left: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    t0, l0 = max(0, top), max(0, left)
    t1, l1 = max(t0, min(side, top + patch)), max(l0, min(side, left + patch))
    return (slice(t0, t1), slice(l0, l1)), (slice(t0 - top, t1 - top), slice(l0 - left, l1 - left))


def _flow(
    owner: np.ndarray,
    places: Sequence[tuple[float, float]],
    after: Sequence[tuple[float, float]],
    objects: Sequence[MovingSprite],
    num_frames: int,
    size_px: int,
) -> np.ndarray:
    """Where each pixel goes: with the ground, or with the object that is seen there."""
    rows, columns = np.meshgrid(np.arange(size_px), np.arange(size_px), indexing="ij")
    flow = np.empty((size_px, size_px, 2), np.float32)
    flow[:] = np.subtract(after[-1], places[-1])
    for number, one in enumerate(objects):
        angle = -math.radians(one.turn / (num_frames - 1))  # image rows go down
        x, y = columns - places[number][0] + 0.5, rows - places[number][1] + 0.5
        moved = np.stack(
            [
                math.cos(angle) * x - math.sin(angle) * y - x + after[number][0] - places[number][0],
                math.sin(angle) * x + math.cos(angle) * y - y + after[number][1] - places[number][1],
            ],
            axis=-1,
        )
        flow[owner == number] = moved[owner == number]
    return flow


# On disk

LIST = "clips.jsonl"


def write_clips(folder: Path, count: int, size_px: int, num_frames: int, seed: int = 0) -> Iterator[int]:
    """Write so many clips and their truths, and the list of them; yields how many are there. What is there already is
    kept. Raises OutputError or ConfigError.

    Each has NNNNN.mkv (frames), NNNNN-mask.mkv (of its first object), NNNNN.npz (masks, depth, flow, tracks) and a line
    of `clips.jsonl`: video, mask, truth, instruction, names."""
    library = SpriteLibrary()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder.name} cannot be made ({error.strerror}): choose another") from None
    lines = []
    for number in range(count):
        name = f"{number:05d}"
        clip = world_clip(seed + number, size_px, num_frames, library)
        truth = folder / f"{name}.npz"
        if not truth.is_file():
            write_clip(folder / f"{name}.mkv", clip.frames, FPS)
            shown = (mask[..., None].repeat(3, axis=2).astype(np.uint8) * 255 for mask in clip.masks[0])
            write_clip(folder / f"{name}-mask.mkv", shown, FPS)
            with open(folder / f".{name}.part", "wb") as stream:
                np.savez_compressed(stream, masks=clip.masks, depth=clip.depth, flow=clip.flow, tracks=clip.tracks)
            (folder / f".{name}.part").rename(truth)
        line = {"video": f"{name}.mkv", "mask": f"{name}-mask.mkv", "truth": truth.name}
        lines.append(json.dumps({**line, "instruction": clip.instruction, "names": clip.names, "seed": seed + number}))
        yield number + 1
    write_atomically(folder / LIST, ("\n".join(lines) + "\n").encode())
