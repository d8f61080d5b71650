"""Before and after: pairs of pictures that teach one edit, and whether they can teach anything.

What is looked at needs no model: pairs of different shapes, pairs in which nothing changes, the same picture with
different answers, and colour edits that go different ways. Not here: the training itself (`teach.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ace.conditions.images import SUFFIXES, open_image
from ace.errors import ConfigError, DataError

FEWEST, FEW = 3, 6  # pairs: fewer than the first are refused, than the second taken with a warning
SAME = 0.015  # root mean square difference, of the range of values, below which two pictures are the same
THUMB_PX = 32


@dataclass(frozen=True)
class Pair:
    """A picture and what the edit makes of it, RGB, the same size. name: for messages."""

    name: str
    before: Image.Image
    after: Image.Image


def read_pair(name: str, before: Path, after: Path, side_px: int = 0) -> Pair:
    """Open a pair of files. side_px: larger pictures are made smaller, to this longer side; 0 = none.

    Raises ImageError for a file that is no picture, DataError if one is not of the other's shape."""
    first, second = open_image(before).image, open_image(after).image
    (width, height), (other_width, other_height) = first.size, second.size
    if abs(width * other_height - height * other_width) > 0.02 * width * other_height:
        raise DataError(
            f"{name}: {width}x{height} px before and {other_width}x{other_height} px after: "
            "an edit keeps the shape of its picture, so crop one of them"
        )
    if side_px and max(first.size) > side_px:
        scale = side_px / max(first.size)
        first = first.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    if second.size != first.size:
        second = second.resize(first.size, Image.Resampling.LANCZOS)
    return Pair(name, first, second)


def read_pairs(before: Path, after: Path, side_px: int = 0) -> list[Pair]:
    """The pictures of two folders with the same names, whatever their formats, in order of name.

    Raises ConfigError if a folder is not there or a picture has no partner, otherwise as `read_pair`."""
    sides = [_by_name(before), _by_name(after)]
    alone = sorted(sides[0].keys() ^ sides[1].keys())
    if alone:
        more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
        raise ConfigError(
            f"{', '.join(alone[:3])}{more}: in one folder only; give a picture and its answer the same name in "
            f"{before.name} and {after.name}"
        )
    return [read_pair(name, path, sides[1][name], side_px) for name, path in sides[0].items()]


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder.name}: name the one with the pictures")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise ConfigError(f"{folder.name} holds {found[path.stem].name} and {path.name}: keep one of them")
        found[path.stem] = path
    return found


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Raise DataError, in one plain line, for pairs that are too few, change nothing or contradict each other."""
    if len(pairs) < FEWEST:
        given = "1 pair is" if len(pairs) == 1 else f"{len(pairs)} pairs are"
        raise DataError(f"{given} too few to teach an edit: {FEWEST} at least, about ten are good")
    before = np.stack([_thumb(pair.before) for pair in pairs])
    after = np.stack([_thumb(pair.after) for pair in pairs])
    change = _distance(before, after)
    still = [pair.name for pair, size in zip(pairs, change, strict=True) if size < SAME]
    if len(still) == len(pairs):
        raise DataError("the pictures before and after are the same: there is no edit to learn")
    if 3 * len(still) > len(pairs):  # a few may be what the edit leaves as it is
        raise DataError(f"nothing changes in {_few(still)}: name what the edit makes of these, or leave them out")
    _check_repeated(pairs, before, after)
    moved = np.flatnonzero(change >= SAME)
    if odd := _odd_colours(before[moved], after[moved], change[moved]):
        names = _few([pairs[moved[number]].name for number in odd])
        verb = "goes" if len(odd) == 1 else "go"
        raise DataError(
            f"the pairs contradict each other: {names} {verb} another way than the rest; "
            "teach one edit at a time, and check which picture is before and which after"
        )


def _check_repeated(pairs: Sequence[Pair], before: np.ndarray, after: np.ndarray) -> None:
    for first in range(len(pairs)):
        for second in range(first + 1, len(pairs)):
            if _distance(before[first], before[second]) < SAME and _distance(after[first], after[second]) > 2 * SAME:
                names = f"{pairs[first].name} and {pairs[second].name}"
                raise DataError(f"{names} contradict each other: the same picture before, another after; keep one")


def _odd_colours(before: np.ndarray, after: np.ndarray, change: np.ndarray) -> list[int]:
    """Numbers of the pairs whose edit is a change of colours, but not the one that all others agree on.

    Every pair is explained by an affine map of its own colours; where that explains most of the pairs well, each is
    also explained by the map that fits the others best."""
    own = np.array([_unexplained(before[n : n + 1], after[n : n + 1], before[n], after[n]) for n in range(len(before))])
    if np.median(own / change) > 0.35 or len(before) < 3:
        return []  # more than colours change: nothing can be said
    others = np.array([_unexplained(*_agreeing(before, after, n), before[n], after[n]) for n in range(len(before))])
    return [int(n) for n in np.flatnonzero(others / change > np.maximum(0.6, 2 * own / change + 0.2))]


def _agreeing(before: np.ndarray, after: np.ndarray, but: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs but one, without the third that one map of colours explains worst."""
    rest = np.delete(np.arange(len(before)), but)
    left = [_unexplained(before[rest], after[rest], before[n], after[n]) for n in rest]
    best = rest[np.argsort(left)[: max(2, 2 * len(rest) // 3)]]
    return before[best], after[best]


def _unexplained(before: np.ndarray, after: np.ndarray, picture: np.ndarray, answer: np.ndarray) -> float:
    """How far the best affine colour map of some pairs leaves another pair's answer, root mean square."""
    fitted = np.linalg.lstsq(_with_one(before), after.reshape(-1, 3), rcond=None)[0]
    return float(np.sqrt(np.mean((np.clip(_with_one(picture) @ fitted, 0, 1) - answer.reshape(-1, 3)) ** 2)))


def _with_one(pictures: np.ndarray) -> np.ndarray:
    """All pixels, (N, 4): a constant and the colours."""
    colours = pictures.reshape(-1, 3)
    return np.concatenate([np.ones((len(colours), 1)), colours], axis=1)


def _thumb(picture: Image.Image) -> np.ndarray:
    small = picture.convert("RGB").resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX)
    return np.asarray(small, np.float64) / 255


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Root mean square difference of pictures (…, H, W, 3)."""
    return np.sqrt(np.mean((one - other) ** 2, axis=(-3, -2, -1)))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
