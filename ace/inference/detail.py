"""Full-size answers: a model's small picture of a whole edit, carried onto the photograph it was made from.

A model reads a photograph at its own size and answers at that size. `deliver` compares the answer with the model's own
round trip of the input (encoded and decoded, nothing edited), so that the autoencoder's softness is not taken for an
edit, and puts every place of the photograph into one of three classes:

- kept: nothing changed beyond noise; the photograph's own values, to the byte;
- recoloured: the change is one of colour and light; it is fitted at the model's size, first as one curve for the whole
  picture, then as local affine transforms (He et al. 2013, guided filter, drawn towards the identity), and applied to
  the photograph, whose detail so survives;
- redrawn: what is there is new; the model's pixels, enlarged.

Not here: masks (`preserve.py`), models. numpy and Pillow only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ace.conditions.colour import from_srgb
from ace.conditions.images import OpenedImage
from ace.conditions.sixteen import deepen
from ace.inference.preserve import enlarge, estimate_shift, lift_from_white

_NOISE = 6.0  # levels of 255 by which unedited places may differ from the round trip, at most
_LEAST_NOISE = (1.25, 3.0)  # where the whole picture was edited, and where a part of it was
_LEAK = (4, 0.06)  # an edit reaches through the autoencoder so many places far, with so much of its strength
_LOSSLESS = 0.25  # levels by which a round trip differs from the photograph where no autoencoder was in between
_CLEAR = 2.5  # times the noise: what differs as much is edited for sure
_SMALL = 8.0  # levels: differences below can be noise
_DRIFT = 4.0  # levels: a smaller change of the colours of the whole picture is the model's own doing
_RIDGE = 1e-4  # of the local fits, squared shares of the range: what varies less keeps its slope
_STRIP_ROWS = 256
_LEAST_SIDE = 32  # px of the model's picture: in a thinner one no shift is looked for
_SHIFTS = (0.2, 4.0)  # px of the model's picture: less is none, more is another picture
_POWERS = ((0,), (1,), (2,), (0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2), (0, 0, 0), (1, 1, 1), (2, 2, 2))


@dataclass(frozen=True)
class Delivered:
    """A full-size answer. image: RGB or RGBA of the photograph's size, in its profile; its 16 bits in
    `info["sixteen_bit"]` where the photograph has them.

    kept, recoloured, redrawn: shares of the pixels, 0 to 1, together 1. shift_px: (right, down) in the photograph's px
    by which the model's picture had moved, and which was undone; None if none was found. change_mask: "L", 0 = kept to
    the byte to 255 = changed. model_size: (width, height) that the model worked at."""

    image: Image.Image
    kept: float
    recoloured: float
    redrawn: float
    shift_px: tuple[float, float] | None
    change_mask: Image.Image
    model_size: tuple[int, int]

    def as_dict(self) -> dict[str, object]:
        """For JSON: the shares, the shift, and the size worked at."""
        return {
            "kept": round(self.kept, 5),
            "recoloured": round(self.recoloured, 5),
            "redrawn": round(self.redrawn, 5),
            "shift_px": None if self.shift_px is None else list(self.shift_px),
            "model_size": "{}x{}".format(*self.model_size),
        }

    def __str__(self) -> str:
        """One line."""
        moved = (
            ""
            if self.shift_px is None
            else "; moved back by {:+.1f} px right, {:+.1f} px down".format(*(-value for value in self.shift_px))
        )
        return (
            f"{100 * self.kept:.1f} % of the pixels kept, {100 * self.recoloured:.1f} % recoloured, "
            f"{100 * self.redrawn:.1f} % redrawn{moved}"
        )


@dataclass(frozen=True)
class _Edit:
    """What was done, at the model's size. curve: (12 + 1, 3) of the whole picture. slopes: float32 (h, w, 3, 3),
    offsets: (h, w, 3), of the local fits after the curve. changed, edge: (h, w), how much each place differs, in
    units of the noise, and how much its surroundings do. fits: (h, w), 0 = new structure to 1 = a change of colour."""

    curve: np.ndarray
    slopes: np.ndarray
    offsets: np.ndarray
    changed: np.ndarray
    edge: np.ndarray
    fits: np.ndarray


def deliver(photo: OpenedImage, answer: Image.Image, round_trip: Image.Image | None = None) -> Delivered:
    """The answer at the photograph's size.

    photo: as it was opened. answer: RGB (sRGB), the whole scene as the model made it, at any size. round_trip: what the
    model makes of the photograph when nothing is edited, of the answer's size; None = the photograph reduced."""
    size = answer.size
    seen = photo.image.resize(size, Image.Resampling.BICUBIC)
    before = _levels(seen if round_trip is None else round_trip.convert("RGB"))
    after, shift = _align(before, _levels(answer.convert("RGB")))
    lost = _lost_detail(photo.image, Image.fromarray(_bytes(before)))
    larger = min(photo.size[0] / size[0], photo.size[1] / size[1])
    leaks = round_trip is not None and float(np.abs(before - _levels(seen)).mean()) > _LOSSLESS
    edit = _fit(before, after, lost, larger, leaks)
    made, weights, fits = _apply(photo.image, edit, Image.fromarray(_bytes(after)))
    image = _put_back(photo, made, weights)
    changed = weights > 0
    kept, count = float((~changed).mean()), weights.size
    recoloured = float((changed & (fits >= 0.5)).sum() / count)
    scale = (photo.size[0] / size[0], photo.size[1] / size[1])
    return Delivered(
        image,
        kept,
        recoloured,
        max(0.0, 1 - kept - recoloured),
        None if shift is None else (round(shift[0] * scale[0], 2), round(shift[1] * scale[1], 2)),
        Image.fromarray(np.ceil(weights * 255).astype(np.uint8)),
        size,
    )


def size_note(made: tuple[int, int], photo: tuple[int, int]) -> str:
    """What is said of a model's picture that is given out at its own size."""
    return f"made at {made[0]}x{made[1]}; your picture is {photo[0]}x{photo[1]}"


# What was done


def _fit(before: np.ndarray, after: np.ndarray, detail: np.ndarray, larger: float, leaks: bool) -> _Edit:
    """before, after: float32 (h, w, 3) levels, detail: (h, w) levels of the photograph that `before` lacks. larger: how
    many times the photograph's sides are the model's. leaks: whether an edit reaches beyond itself, through an
    autoencoder."""
    height, width, _ = before.shape
    difference = np.abs(after - before).max(axis=2)
    curve = _fit_curve(before, after)
    curved = _apply_curve(before, curve)
    radius = max(2, round(max(height, width) / 48))
    slopes, offsets = _fit_locally(curved, after, radius)
    fitted = np.einsum("hwij,hwj->hwi", slopes, curved) + offsets
    error = _box(np.abs(after - fitted).max(axis=2), 1)
    fits = 1 / (1 + (error / (0.05 + detail)) ** 4)
    recoloured = np.percentile(np.abs(curved - before).max(axis=2), 90)
    everywhere = recoloured > _DRIFT or np.median(difference) > _SMALL
    noise = _noise_of(difference, error, bool(everywhere), 0.2 + float(detail.mean()))
    leaked = 0 if everywhere or not leaks else np.maximum(_LEAK[1] * _maximum(difference, _LEAK[0]) - noise, 0)
    changed = (difference - leaked) / noise
    inside = _minimum((changed > 1).astype(np.float32), 1)  # its neighbours are edited too
    edge = changed if everywhere or larger < 1.5 else np.where(inside > 0, changed, _maximum(changed, 1))
    return _Edit(curve, slopes, offsets, changed, edge, fits.astype(np.float32))


def _noise_of(difference: np.ndarray, error: np.ndarray, everywhere: bool, least: float) -> float:
    """How far places differ that nobody edited, in levels: four times the median of the small differences; where the
    whole picture was edited, four times what the change of colours does not explain. least: of an answer that is as
    sharp as the photograph."""
    most = max(least, min(_NOISE, 20 * (least - 0.2)))
    if everywhere:
        return float(np.clip(4 * np.median(error), min(least, _LEAST_NOISE[0]), most))
    small = difference[difference < _SMALL]
    return float(np.clip(4 * np.median(small), min(least, _LEAST_NOISE[1]), most))


def _fit_curve(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """One polynomial of the colours for the whole picture, in shares of the range: (13, 3), what to add. Robust: places
    that another change explains have little say; drawn towards no change."""
    step = max(1, math.isqrt(before.shape[0] * before.shape[1] // 40_000))
    source = before[::step, ::step].reshape(-1, 3) / 255
    target = after[::step, ::step].reshape(-1, 3) / 255 - source
    terms = _terms(source)
    weights = np.ones(len(source), dtype=np.float64)
    curve = np.zeros((terms.shape[1], 3))
    for _ in range(6):
        weighted = terms * weights[:, None]
        normal = weighted.T @ terms + 1e-3 * len(source) / 1000 * np.eye(terms.shape[1])
        curve = np.linalg.solve(normal, weighted.T @ target)
        error = np.abs(target - terms @ curve).max(axis=1)
        spread = max(float(np.median(error)), 1 / 255)
        weights = 1 / (1 + (error / (2 * spread)) ** 2)
    return curve


def _terms(shares: np.ndarray) -> np.ndarray:
    """(N, 13) products of colours (N, 3) up to the third power."""
    ones = np.ones((len(shares), 1), dtype=shares.dtype)
    return np.concatenate([ones, *(shares[:, list(p)].prod(axis=1, keepdims=True) for p in _POWERS)], axis=1)


def _apply_curve(levels: np.ndarray, curve: np.ndarray) -> np.ndarray:
    shares = levels.reshape(-1, 3) / np.float32(255)
    moved = shares + _terms(shares) @ curve.astype(np.float32)
    return (np.clip(moved, 0, 1) * np.float32(255)).reshape(levels.shape).astype(np.float32)


def _fit_locally(source: np.ndarray, target: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Around every place the affine transform of colours from source to target: slopes (h, w, 3, 3), offsets (h, w, 3).

    Least squares over a square, with a ridge that draws the slopes to the identity; then the mean of all squares that
    hold the place, those that fit well first."""
    source, target = source / 255, target / 255
    change = target - source
    mean, mean_change = _box(source, radius), _box(change, radius)
    products = np.einsum("hwi,hwj->hwij", source, source)
    covariance = _box(products.reshape(*products.shape[:2], 9), radius).reshape(products.shape)
    covariance -= np.einsum("hwi,hwj->hwij", mean, mean)
    cross = np.einsum("hwi,hwj->hwij", change, source)
    cross = _box(cross.reshape(*cross.shape[:2], 9), radius).reshape(cross.shape)
    cross -= np.einsum("hwi,hwj->hwij", mean_change, mean)  # (h, w, of the change, of the source)
    inverse = np.linalg.inv(covariance + _RIDGE * np.eye(3, dtype=np.float32))
    slopes = np.einsum("hwij,hwjk->hwik", cross, inverse)
    offsets = mean_change - np.einsum("hwij,hwj->hwi", slopes, mean)
    variance = _box((change**2).sum(axis=2), radius) - (mean_change**2).sum(axis=2)
    left = np.maximum(variance - np.einsum("hwij,hwij->hw", slopes, cross), 0)
    trust = 1 / (left + (1 / 255) ** 2)
    total = _box(trust, radius)
    slopes = _box((slopes * trust[..., None, None]).reshape(*trust.shape, 9), radius) / total[..., None]
    offsets = _box(offsets * trust[..., None], radius) / total[..., None]
    return slopes.reshape(*trust.shape, 3, 3) + np.eye(3, dtype=np.float32), offsets * 255


def _lost_detail(photo: Image.Image, seen: Image.Image) -> np.ndarray:
    """How much of the photograph its small picture lost, around each of the small one's places: (h, w) levels."""
    width, height = photo.size
    total = np.zeros((seen.height, seen.width), dtype=np.float32)
    for top in range(0, height, _STRIP_ROWS):
        bottom = min(height, top + _STRIP_ROWS)
        part = _levels(photo.crop((0, top, width, bottom)))
        lost = np.abs(part - _levels(_part_of(seen, (width, bottom - top), top / height, bottom / height))).mean(axis=2)
        rows = Image.fromarray(lost).resize((seen.width, bottom - top), Image.Resampling.BOX)
        where = np.arange(top, bottom) * seen.height // height
        np.add.at(total, where, np.asarray(rows))
    counts = np.bincount(np.arange(height) * seen.height // height, minlength=seen.height)
    return _box(total / np.maximum(counts, 1)[:, None], 1)


def _align(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, tuple[float, float] | None]:
    """The answer, moved back by what the model moved the scene if that helps; and (right, down) in its px."""
    if min(before.shape[:2]) < _LEAST_SIDE:
        return after, None
    grey = [levels.mean(axis=2).astype(np.float64) for levels in (before, after)]
    shift = estimate_shift(*grey, np.ones(grey[0].shape, dtype=bool))
    if shift is None or not _SHIFTS[0] <= max(map(abs, shift)) <= _SHIFTS[1]:
        return after, None
    picture = Image.fromarray(_bytes(after))
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, (1, 0, shift[0], 0, 1, shift[1]), Image.Resampling.BICUBIC
    )
    inner = (slice(8, -8), slice(8, -8))
    back = _levels(moved)
    if np.abs(back - before)[inner].mean() >= 0.8 * np.abs(after - before)[inner].mean():
        return after, None
    gone = np.ones(before.shape[:2], dtype=bool)
    rim = math.ceil(max(map(abs, shift))) + 1
    gone[rim:-rim, rim:-rim] = False
    back[gone] = before[gone]  # what the model moved out of sight stays as it was
    return back, shift


# At the photograph's size


def _apply(photo: Image.Image, edit: _Edit, answer: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(uint8 (H, W, 3) as if all were changed, float32 (H, W) how much each pixel is, 0 = kept, (H, W) how well the
    change of colour fits there)."""
    width, height = photo.size
    made = np.empty((height, width, 3), dtype=np.uint8)
    weights = np.empty((height, width), dtype=np.float32)
    fits = np.empty((height, width), dtype=np.float32)
    rows = edit.changed.shape[0]
    fields = np.concatenate(
        [
            edit.slopes.reshape(*edit.changed.shape, 9),
            edit.offsets,
            *(field[..., None] for field in (edit.changed, edit.edge, edit.fits)),
        ],
        axis=2,
    ).astype(np.float32)
    for top in range(0, height, _STRIP_ROWS):
        bottom = min(height, top + _STRIP_ROWS)
        box = (0.0, top * rows / height, float(fields.shape[1]), bottom * rows / height)
        local = enlarge(fields, (width, bottom - top), box)
        own = _levels(photo.crop((0, top, width, bottom)))
        curved = _apply_curve(own, edit.curve)
        recoloured = np.einsum("hwij,hwj->hwi", local[..., :9].reshape(*own.shape[:2], 3, 3), curved)
        recoloured += local[..., 9:12]
        redrawn = _levels(_part_of(answer, (width, bottom - top), top / height, bottom / height))
        fit = local[..., 14]
        mixed = redrawn + (recoloured - redrawn) * fit[..., None]
        weight = _rise(local[..., 12], 1, _CLEAR) * _rise(local[..., 12] / np.maximum(local[..., 13], 1), 0.25, 0.5)
        mixed = own + (mixed - own) * weight[..., None]
        result = _bytes(mixed)
        weights[top:bottom] = np.where((result == own.astype(np.uint8)).all(axis=2), 0, weight)
        made[top:bottom], fits[top:bottom] = result, fit
    return made, weights, fits


def _put_back(photo: OpenedImage, made: np.ndarray, weights: np.ndarray) -> Image.Image:
    """The photograph's own values where nothing changed, else what was made, in its profile and under its alpha."""
    patch = Image.fromarray(made)
    if photo.alpha is not None:
        patch = lift_from_white(patch, photo.alpha)
    patch = from_srgb(patch, photo.icc_profile)
    result = photo.stored.copy()
    result.info = {}
    result.paste(patch, (0, 0), Image.fromarray((weights > 0).astype(np.uint8) * 255))
    if photo.alpha is not None:
        result.putalpha(photo.alpha)
    if photo.icc_profile is not None:
        result.info["icc_profile"] = photo.icc_profile
    if photo.deep is not None:
        result.info["sixteen_bit"] = deepen(photo.deep, photo.stored, result)
    return result


def _part_of(picture: Image.Image, size: tuple[int, int], top: float, bottom: float) -> Image.Image:
    """Rows of a small picture (top and bottom in shares of its height) at a large picture's size, bicubic."""
    box = (0.0, top * picture.height, float(picture.width), bottom * picture.height)
    return picture.resize(size, Image.Resampling.BICUBIC, box=box)


def _levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32)


def _bytes(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


def _rise(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 up to `low`, 1 from `high` on, smooth between."""
    share = np.clip((values - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


def _box(values: np.ndarray, radius: int) -> np.ndarray:
    """The mean over a square of 2 `radius` + 1 places a side, cut at the borders. values: (h, w) or (h, w, C)."""
    for axis in (0, 1):
        length = values.shape[axis]
        low = np.clip(np.arange(length) - radius, 0, length)
        high = np.clip(np.arange(length) + radius + 1, 0, length)
        sums = np.cumsum(values, axis=axis, dtype=np.float64)
        sums = np.concatenate([np.zeros_like(np.take(sums, [0], axis=axis)), sums], axis=axis)
        shape = [1] * values.ndim
        shape[axis] = length
        counts = (high - low).reshape(shape)
        values = ((np.take(sums, high, axis=axis) - np.take(sums, low, axis=axis)) / counts).astype(np.float32)
    return values


def _maximum(values: np.ndarray, radius: int) -> np.ndarray:
    padded = np.pad(values, radius, mode="edge")
    height, width = values.shape
    steps = range(2 * radius + 1)
    return np.max([padded[y : y + height, x : x + width] for y in steps for x in steps], axis=0)


def _minimum(values: np.ndarray, radius: int) -> np.ndarray:
    return -_maximum(-values, radius)
