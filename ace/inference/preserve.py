"""Exact preservation: what was not asked to change does not change, and every edit can say how far it drifted.

`paste_back` puts a generated picture into the original at the original's own resolution: outside the mask every value
is the input's, alpha, ICC profile and 16 bits included. Inside it nothing is left of the old picture: the seam is
matched from the model's side, whose colours are shifted by what the model did to the surroundings (a smooth membrane
through the differences outside the mask). Soft masks and a feather blend old and new, where they are asked for.
`drift_report` measures any edit, with or without a mask.

Not here: models, files. numpy and Pillow only.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageFilter

from ace.conditions.colour import from_srgb
from ace.conditions.images import OpenedImage, prepare_mask
from ace.conditions.masks import check_mask_size
from ace.conditions.rules import MAX_FEATHER_PX
from ace.conditions.sixteen import deepen
from ace.errors import MaskError

VISIBLE_LEVELS = 8  # a difference of more than this many of 255 levels in some channel counts as visible
_MEMBRANE_PX = 256  # the colour correction is smooth: computed on a grid of at most this many points a side
_HALO_PX = 2  # beside a mask's edge, where the photograph still shows the rim of what was there
_CONTEXT = 0.5  # around the mask, in shares of its box: how far the surroundings are compared
_LARGEST_CORRECTION = 24.0  # levels; beyond twice that a difference is content, not tint
_SHIFT_PX = 512  # shifts are estimated on a picture of at most this many pixels a side
_LEAST_MATCH = 0.5  # correlation of the aligned pictures below which a shift says nothing
_LEAST_STRUCTURE = 0.02  # squared grey levels per px
_STRIP_ROWS = 512


# Pasting back


def paste_back(
    original: OpenedImage,
    generated: Image.Image,
    mask: Image.Image,
    *,
    feather_px: int | None = None,
    match_colour: bool = True,
    rule: int = 2,
) -> Image.Image:
    """The original with the generated picture inside the mask.

    generated: RGB (sRGB), the whole scene at any size (resized to the original's); mask: "L" of the original's size,
    the weights: 0 = keep, 255 = only what was generated. feather_px: width of a blend inside the mask's edge, at most
    100; None or 0 = none. Thin parts of a mask get a narrower blend, so that their middle is always all new.
    match_colour: shift the generated colours to fit the surroundings. rule: 1 blends as older pictures were made, to
    make one of those again: over 1 % of the longer side by default, with surroundings as large as the picture.
    Returns RGB, or RGBA if the original has alpha, at the original's size and in its profile, which is in
    `info["icc_profile"]`; with an original of 16 bits the result's 16 bits are in `info["sixteen_bit"]` (uint16).
    Where the mask is 0 all channels equal the original's `stored` and `alpha` exactly; alpha is the original's
    everywhere.
    Raises MaskError for a mask of another size or one that selects nothing."""
    check_mask_size(mask, original.size)
    weights = np.asarray(mask.convert("L"))
    if not weights.any():
        raise MaskError("the mask selects nothing: paint what should change white")
    if feather_px is None and rule == 1 and max(original.size) > 128:
        feather_px = min(24, max(2, round(max(original.size) / 100)))
    feather_px = min(max(feather_px or 0, 0), MAX_FEATHER_PX)
    result = original.stored.copy()
    result.info = {}

    fitted = generated.convert("RGB")
    if fitted.size != original.size:
        fitted = fitted.resize(original.size, Image.Resampling.BICUBIC)
    box = _box_around(weights > 0, feather_px + 1, original.size)
    patch = fitted.crop(box)
    if match_colour:
        around = _surroundings(box, original.size) if rule > 1 else (0, 0, *original.size)
        scene = (picture.crop(around) for picture in (original.image, fitted, mask))
        correction = _colour_correction(
            *scene, grid_px=_MEMBRANE_PX if rule > 1 else 192, halo_px=_HALO_PX * (rule > 1)
        )
        if correction is not None:
            inner = (box[0] - around[0], box[1] - around[1], box[2] - around[0], box[3] - around[1])
            patch = _add_correction(patch, correction, inner, (around[2] - around[0], around[3] - around[1]))
    if original.alpha is not None:
        patch = lift_from_white(patch, original.alpha.crop(box))
    patch = from_srgb(patch, original.icc_profile)
    blend = weights[box[1] : box[3], box[0] : box[2]]
    if feather_px:
        feathered = _blend_weights(blend > 0, feather_px)
        blend = (blend.astype(np.uint16) * feathered // 255).astype(np.uint8)
    result.paste(patch, box[:2], Image.fromarray(blend))

    if original.alpha is not None:
        result.putalpha(original.alpha)
    if original.icc_profile is not None:
        result.info["icc_profile"] = original.icc_profile
    if original.deep is not None:
        result.info["sixteen_bit"] = deepen(original.deep, original.stored, result)
    return result


def _surroundings(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A mask's box with what lies around it, within the picture."""
    margin = round(_CONTEXT * max(box[2] - box[0], box[3] - box[1])) + 16
    return (
        max(0, box[0] - margin),
        max(0, box[1] - margin),
        min(size[0], box[2] + margin),
        min(size[1], box[3] + margin),
    )


def _box_around(change: np.ndarray, margin: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the changed area with a margin, within the picture."""
    columns, rows = np.flatnonzero(change.any(axis=0)), np.flatnonzero(change.any(axis=1))
    return (
        max(0, int(columns[0]) - margin),
        max(0, int(rows[0]) - margin),
        min(size[0], int(columns[-1]) + 1 + margin),
        min(size[1], int(rows[-1]) + 1 + margin),
    )


def _blend_weights(inside: np.ndarray, feather_px: int) -> np.ndarray:
    """uint8 (H, W): share of the generated picture, 0 outside, rising smoothly over `feather_px` to 255 inside."""
    if feather_px == 0:
        return inside.astype(np.uint8) * 255
    distance = distance_inside(inside, feather_px)
    # A bit over half the local thickness bounds the blend, so that a line of text is replaced and not merely tinted.
    width = np.clip(0.6 * _local_maximum(distance, feather_px), 1.0, float(feather_px))
    rise = np.clip(distance / (width + 1.0), 0.0, 1.0)
    weights = np.round(255 * rise * rise * (3 - 2 * rise)).astype(np.uint8)
    weights[~inside] = 0
    return weights


def distance_inside(inside: np.ndarray, limit_px: int) -> np.ndarray:
    """Euclidean distance (px) of each inside pixel to the nearest outside pixel, at most `limit_px` + 1; 0 outside.

    inside: bool (H, W), limit_px: at most 100. Returns float32 (H, W), exact up to the limit (columns first, then
    rows).
    Beyond the array counts as inside: the picture's border is no seam."""
    limit = min(limit_px, MAX_FEATHER_PX) + 1
    height, width = inside.shape
    along = np.where(inside, np.int16(limit), np.int16(0))  # distance within the column, cut at the limit
    for row in range(1, height):
        np.minimum(along[row], along[row - 1] + 1, out=along[row])
    for row in range(height - 2, -1, -1):
        np.minimum(along[row], along[row + 1] + 1, out=along[row])
    squared = along * along
    nearest = squared.copy()
    for step in range(1, min(limit, width)):
        square = np.int16(step * step)
        np.minimum(nearest[:, step:], squared[:, :-step] + square, out=nearest[:, step:])
        np.minimum(nearest[:, :-step], squared[:, step:] + square, out=nearest[:, :-step])
    return np.sqrt(np.minimum(nearest, np.int16(limit * limit)), dtype=np.float32)


def _local_maximum(values: np.ndarray, radius: int) -> np.ndarray:
    """About the largest value within `radius` to twice that around each pixel, without steps. float32 (H, W)."""
    height, width = values.shape
    blocks = np.maximum.reduceat(values, np.arange(0, height, radius), axis=0)
    blocks = np.maximum.reduceat(blocks, np.arange(0, width, radius), axis=1)
    padded = np.pad(blocks, 1, mode="edge")
    rows, columns = blocks.shape
    grown = np.max([padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)], axis=0)
    return np.asarray(Image.fromarray(grown).resize((width, height), Image.Resampling.BILINEAR))


def _colour_correction(
    original: Image.Image, generated: Image.Image, mask: Image.Image, *, grid_px: int, halo_px: int
) -> np.ndarray | None:
    """What to add to the generated picture so that it meets its surroundings: float32 (h, w, 3) levels on a small grid.

    The differences outside the mask are carried inwards as a smooth membrane. None if nothing outside can be
    compared."""
    scale = min(1.0, grid_px / max(original.size))
    size = (max(1, round(original.width * scale)), max(1, round(original.height * scale)))
    before = np.asarray(original.resize(size, Image.Resampling.BOX), dtype=np.float32)
    after = np.asarray(generated.resize(size, Image.Resampling.BOX), dtype=np.float32)
    difference = before - after
    size_of_difference = np.abs(difference).max(axis=2)
    outside = 1 - prepare_mask(_with_halo(mask, halo_px), size)[0]
    known = np.clip(2 - size_of_difference / _LARGEST_CORRECTION, 0.0, 1.0) * outside
    if known.max() < 0.01:
        return None
    return np.clip(_membrane(difference, known.astype(np.float32)), -_LARGEST_CORRECTION, _LARGEST_CORRECTION)


def _with_halo(mask: Image.Image, halo_px: int) -> Image.Image:
    """All that a mask touches, and the rim around it: 255, else 0."""
    touched = Image.fromarray((np.asarray(mask.convert("L")) > 0).astype(np.uint8) * 255)
    return touched.filter(ImageFilter.MaxFilter(2 * halo_px + 1))


def _membrane(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill the unknown parts of a field smoothly from the known ones (pull-push over a pyramid; Gortler et al. 1996).

    values: float32 (H, W, C); known: (H, W), 0 = unknown to 1 = known. Returns (H, W, C)."""
    height, width = known.shape
    if height == 1 and width == 1:
        return values
    padding = ((0, height % 2), (0, width % 2))
    weights = np.pad(known, padding)
    sums = np.pad(values * known[..., None], (*padding, (0, 0)))
    rows, columns = weights.shape[0] // 2, weights.shape[1] // 2
    pooled_weights = weights.reshape(rows, 2, columns, 2).sum(axis=(1, 3))
    pooled = sums.reshape(rows, 2, columns, 2, -1).sum(axis=(1, 3)) / np.maximum(pooled_weights, 1e-6)[..., None]
    coarse = _membrane(pooled, np.minimum(pooled_weights, 1.0))
    filled = enlarge(coarse, (width, height), (0, 0, width / 2, height / 2))
    return values * known[..., None] + filled * (1 - known[..., None])


def enlarge(field: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """A part (box: left, top, right, bottom in grid units) of a small field (h, w, C), bilinear, at `size` (width,
    height)."""
    channels = [Image.fromarray(np.ascontiguousarray(field[..., channel])) for channel in range(field.shape[2])]
    return np.stack([np.asarray(c.resize(size, Image.Resampling.BILINEAR, box=box)) for c in channels], axis=-1)


def _add_correction(
    generated: Image.Image, correction: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]
) -> Image.Image:
    """The cropped generated picture plus the correction of its place in the whole; in strips, to save memory."""
    left, top, right, bottom = box
    across, down = correction.shape[1] / size[0], correction.shape[0] / size[1]
    corrected = Image.new("RGB", generated.size)
    for start in range(top, bottom, _STRIP_ROWS):
        end = min(start + _STRIP_ROWS, bottom)
        place = (left * across, start * down, right * across, end * down)
        strip = np.asarray(generated.crop((0, start - top, right - left, end - top)), dtype=np.float32)
        strip = strip + enlarge(correction, (right - left, end - start), place)
        corrected.paste(Image.fromarray(np.clip(np.round(strip), 0, 255).astype(np.uint8)), (0, start - top))
    return corrected


def lift_from_white(seen: Image.Image, alpha: Image.Image) -> Image.Image:
    """Straight colours that look like `seen` when they lie over white with this alpha (as near as 0 to 255 allows)."""
    share = np.asarray(alpha, dtype=np.float32)[..., None] / 255
    over_white = np.asarray(seen, dtype=np.float32)
    straight = np.where(share > 0, (over_white - 255 * (1 - share)) / np.maximum(share, 1 / 255), over_white)
    return Image.fromarray(np.clip(np.round(straight), 0, 255).astype(np.uint8))


# Drift


@dataclass(frozen=True)
class DriftReport:
    """How far a picture moved away from another where it should not have (outside the mask, or everywhere without one).

    changed_share: share of pixels with any difference, 0 to 1; visible_share: with more than 8 of 255 levels in a
    channel.
    mean_difference, max_difference: of the RGB values, in levels of 255. shift_px: (right, down) by which the picture
    moved, in px, or None if that cannot be seen (no structure, or another picture). num_pixels: how many were compared.
    size_px: (width, height) compared at: the smaller of both pictures. masked: whether there was a mask."""

    changed_share: float
    visible_share: float
    mean_difference: float
    max_difference: int
    shift_px: tuple[float, float] | None
    num_pixels: int
    size_px: tuple[int, int]
    masked: bool

    @property
    def telling(self) -> bool:
        """Whether it says something to a person: with a mask, or where most of the picture was to stay and did.

        After "make it night" every pixel differs, as asked: then the numbers are for programs only."""
        return self.masked or self.visible_share < 0.5

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """One line."""
        where = "outside the mask" if self.masked else "over the whole picture"
        if self.num_pixels == 0:
            return f"drift {where}: nothing to compare"
        if self.max_difference == 0:
            return f"drift {where}: none, every pixel is the same"
        shift = "shift cannot be measured"
        if self.shift_px is not None:
            shift = f"shift {self.shift_px[0]:+.2f} px right, {self.shift_px[1]:+.2f} px down"
        return (
            f"drift {where}: {_percent(self.changed_share)} of pixels changed, {_percent(self.visible_share)} visibly; "
            f"difference {self.mean_difference:.2f} mean, {self.max_difference} largest of 255; {shift}"
        )


def drift_report(before: Image.Image, after: Image.Image, mask: Image.Image | None = None) -> DriftReport:
    """Compare two pictures outside a mask, or everywhere without one.

    before, after: RGB (alpha is not compared); if their sizes differ, the larger is reduced to the smaller. mask: "L"
    of the size of `before`, the weights: 0 = outside. Raises MaskError for a mask of another size."""
    if mask is not None:
        check_mask_size(mask, before.size)
        mask = mask.convert("L").point([0] + [255] * 255)
    size = min(before.size, after.size, key=lambda side: side[0] * side[1])
    outside = np.ones((size[1], size[0]), dtype=bool) if mask is None else prepare_mask(mask, size)[0] == 0
    first, second = (
        image.convert("RGB") if image.size == size else image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        for image in (before, after)
    )
    total = changed = visible = largest = 0
    for top in range(0, size[1], _STRIP_ROWS):
        strip = (0, top, size[0], min(top + _STRIP_ROWS, size[1]))
        pair = (np.asarray(image.crop(strip), dtype=np.int16) for image in (first, second))
        difference = np.abs(np.subtract(*pair))[outside[top : strip[3]]]  # (P, 3)
        worst = difference.max(axis=1, initial=0)
        total += int(difference.sum(dtype=np.int64))
        changed += int((worst > 0).sum())
        visible += int((worst > VISIBLE_LEVELS).sum())
        largest = max(largest, int(worst.max(initial=0)))
    count = int(outside.sum())
    shift = (0.0, 0.0) if largest == 0 else _reduced_shift(first, second, outside)
    return DriftReport(
        changed_share=changed / max(count, 1),
        visible_share=visible / max(count, 1),
        mean_difference=total / max(3 * count, 1),
        max_difference=largest,
        shift_px=shift,
        num_pixels=count,
        size_px=size,
        masked=mask is not None,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _reduced_shift(before: Image.Image, after: Image.Image, outside: np.ndarray) -> tuple[float, float] | None:
    scale = min(1.0, _SHIFT_PX / max(before.size))
    size = (max(1, round(before.width * scale)), max(1, round(before.height * scale)))
    first, second = (
        np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), dtype=np.float64) for image in (before, after)
    )
    changing = Image.fromarray((~outside).astype(np.uint8) * 255)
    shift = estimate_shift(first, second, prepare_mask(changing, size)[0] == 0)
    if shift is None:
        return None
    return round(shift[0] * before.width / size[0], 3), round(shift[1] * before.height / size[1], 3)


def estimate_shift(before: np.ndarray, after: np.ndarray, outside: np.ndarray) -> tuple[float, float] | None:
    """By how many px (right, down) `after` is `before` moved, to a fraction of a pixel.

    before, after: grey levels (H, W); outside: bool (H, W), what may be compared. Phase correlation finds the whole
    pixels, least squares on the gradients of the parts outside the mask the rest (Lucas and Kanade 1981).
    None if there is too little to see, or if the pictures do not match even when aligned."""
    height, width = before.shape
    if min(height, width) < 16:
        return None
    frequencies = _squared_frequencies(height, width)
    band = np.exp(-2 * (np.pi * 1.2) ** 2 * frequencies) - np.exp(-2 * (np.pi * 6.0) ** 2 * frequencies)
    first, second = (np.fft.irfft2(np.fft.rfft2(image) * band, s=image.shape) for image in (before, after))
    clear = _soft(outside, 3) > 254.5  # what changes inside the mask leaks a little beyond it through the filter
    best, best_match = None, _LEAST_MATCH
    for start in sorted({_phase_correlation(before, after, outside), (0, 0)}):
        shift, match = _refine_shift(first, second, clear, start)
        if match > best_match:
            best, best_match = shift, match
    return best


def _soft(outside: np.ndarray, radius_px: int) -> np.ndarray:
    """The compared area as float levels 0 to 255, blurred over a square of that radius."""
    blurred = Image.fromarray(outside.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(radius_px))
    return np.asarray(blurred, dtype=np.float32)


def _squared_frequencies(height: int, width: int) -> np.ndarray:
    return np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2


def _phase_correlation(before: np.ndarray, after: np.ndarray, outside: np.ndarray) -> tuple[int, int]:
    """Whole pixels (right, down); the mask and the borders are faded out."""
    height, width = before.shape
    fade = np.clip(_soft(outside, max(2, min(height, width) // 32)) / 127.5 - 1, 0, 1)
    window = np.hanning(height)[:, None] * np.hanning(width)[None] * fade
    total = max(float(window.sum()), 1e-9)
    first, second = (np.fft.rfft2((image - (image * window).sum() / total) * window) for image in (before, after))
    cross = second * np.conj(first)
    cross /= np.abs(cross) + 1e-3 * np.abs(cross).max() + 1e-12
    peak = np.fft.irfft2(cross * np.exp(-8 * _squared_frequencies(height, width)), s=before.shape)
    down, right = np.unravel_index(int(peak.argmax()), peak.shape)
    return int(right - width * (right > width // 2)), int(down - height * (down > height // 2))


def _refine_shift(
    before: np.ndarray, after: np.ndarray, outside: np.ndarray, start: tuple[int, int]
) -> tuple[tuple[float, float] | None, float]:
    """((right, down), correlation of what overlaps) from a start in whole px; (None, 0) without enough structure."""
    shift = np.array(start, dtype=np.float64)
    slope_down, slope_right = np.gradient(before)
    for _ in range(8):
        moved, valid = _moved_back(after, outside, shift)
        valid = valid & outside
        if valid.sum() < 64:
            return None, 0.0
        slopes = np.stack([slope_right[valid], slope_down[valid]])  # (2, P)
        rest = moved[valid] - before[valid]
        spread = 2 * float(np.median(np.abs(rest))) + 0.25
        weighted = slopes / (1 + (rest / spread) ** 2)  # what really changed has no say
        tensor = weighted @ slopes.T / valid.sum()
        if np.linalg.eigvalsh(tensor)[0] < _LEAST_STRUCTURE:  # flat, or stripes: a shift along them cannot be seen
            return None, 0.0
        step = -np.linalg.solve(tensor, weighted @ rest / valid.sum())
        shift = shift + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-4 or np.abs(shift - start).max() > 3:
            break
    moved, valid = _moved_back(after, outside, shift)
    valid = valid & outside
    if valid.sum() < 64:
        return None, 0.0
    first, second = before[valid] - before[valid].mean(), moved[valid] - moved[valid].mean()
    norm = math.sqrt(float((first * first).sum() * (second * second).sum()))
    return (float(shift[0]), float(shift[1])), float((first * second).sum()) / norm if norm > 0 else 0.0


def _moved_back(image: np.ndarray, outside: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the image moved by minus `shift`, bilinear; where it is defined and outside the mask)."""
    height, width = image.shape
    right, down = math.floor(shift[0]), math.floor(shift[1])
    part_right, part_down = shift[0] - right, shift[1] - down
    rows, columns = np.arange(height)[:, None] + down, np.arange(width)[None] + right
    margin = 4  # the filter wraps around at the borders
    valid = (rows >= margin) & (rows < height - margin - 1) & (columns >= margin) & (columns < width - margin - 1)
    rows, columns = np.clip(rows, 0, height - 2), np.clip(columns, 0, width - 2)
    top = image[rows, columns] * (1 - part_right) + image[rows, columns + 1] * part_right
    bottom = image[rows + 1, columns] * (1 - part_right) + image[rows + 1, columns + 1] * part_right
    return top * (1 - part_down) + bottom * part_down, valid & outside[rows, columns] & outside[rows + 1, columns + 1]
