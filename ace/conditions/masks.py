"""One reading of every mask file: which part changes is decided from the file alone, the same at every entrance.

The rule. Without alpha, or with one alpha everywhere, white changes. Where alpha varies, the opaque part counts: of one
brightness, it is either strokes of a brush on a transparent ground (the strokes change) or a ground with a transparent
hole (the hole changes, OpenAI's convention). The ground is what lies along the border and covers more; where border
and coverage disagree, the file is ambiguous and refused, until `mask_means` says which it is. The photograph itself
with a hole in it means the hole. Anything else painted on a transparent ground changes where it is bright.

Soft greys are weights: the model changes what is above 128, a blend uses all of them, "outside" is weight 0.

Not here: masks at a model's size (`images.prepare_mask`), pasting (`ace/inference/preserve.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ace.conditions.images import MASK_THRESHOLD, OpenedImage, normalise_image, open_bytes, open_image
from ace.conditions.rules import ImageRules, MaskMeans
from ace.errors import MaskError

_ONE_LEVEL = 16  # levels of 255 within which brightness or alpha counts as one value
_CLEAR_SHARE = 2 / 3  # of the picture that a ground covers where both sides touch the border
_SNAP = 8  # levels at both ends that lossy files blur: none and all
_SAME_PICTURE = 12.0  # levels between a photograph and a copy of it, on average over what is opaque


@dataclass(frozen=True)
class ReadMask:
    """A mask as it was read. image: "L" of the photograph's size, the weights: 0 = keep exactly, 255 = change.

    share: of the picture that the model changes (weights above 128), 0 to 1. how: the reading taken, in words. note: a
    line for people."""

    image: Image.Image
    share: float
    how: str
    note: str

    @property
    def weights(self) -> np.ndarray:
        """float32 (H, W), 0 = keep to 1 = change."""
        return np.asarray(self.image, dtype=np.float32) / 255


def read_mask(
    source: str | Path | BinaryIO | bytes | Image.Image | OpenedImage,
    photo: OpenedImage | tuple[int, int],
    rules: ImageRules | None = None,
    *,
    name: str | None = None,
    undecided: MaskMeans | None = None,
    whole: bool = False,
) -> ReadMask:
    """Read the mask of a photograph. photo: opened, or its upright size (width, height), which then cannot be compared.

    rules: `mask_means`, `mask_threshold` and `max_pixels` count. undecided: what an ambiguous file means; None = it is
    refused. whole: a mask may select nothing or everything. Raises MaskError for another size, an ambiguous file, a
    photograph, or if nothing or everything is selected; ImageError for a file that cannot be read."""
    rules = rules or ImageRules()
    opened = _open(source, rules, name)
    size = photo.size if isinstance(photo, OpenedImage) else photo
    _check_size(opened, size)
    weights, how = _weigh(opened, photo if isinstance(photo, OpenedImage) else None, rules.mask_means, undecided)
    if rules.mask_threshold is not None:
        weights = (weights > rules.mask_threshold).astype(np.uint8) * 255
        how += f", cut at {rules.mask_threshold}"
    if not whole:
        _check_selection(opened, weights)
    share = float((weights > MASK_THRESHOLD).mean())
    note = f"{opened.name} selects {100 * share:.1f} % of the picture: {how}"
    return ReadMask(Image.fromarray(weights), share, how, note)


def open_mask(
    source: str | Path | BinaryIO, photo: OpenedImage | tuple[int, int], *, name: str | None = None, rule: int = 2
) -> Image.Image:
    """The weights of a mask file, "L", by the default rules; otherwise as `read_mask`.

    rule: 1 reads it as before masks had weights, to make a picture of that time again."""
    if rule > 1:
        return read_mask(source, photo, name=name).image
    opened = open_image(source, name=name)
    _check_size(opened, photo.size if isinstance(photo, OpenedImage) else photo)
    weights = _first_rule(opened)
    _check_selection(opened, weights)
    return Image.fromarray(weights)


def _first_rule(opened: OpenedImage) -> np.ndarray:
    """0 and 255: strokes of one brightness on a transparent ground, else what is bright of the painted pixels."""
    luminance = np.asarray(opened.stored.convert("L"))
    painted = np.ones(luminance.shape, dtype=bool)
    if opened.alpha is not None:
        alpha = np.asarray(opened.alpha)
        painted = alpha.astype(np.uint16) * 2 > alpha.max()
    values = luminance[painted]
    strokes = not painted.all() and values.size > 0 and int(values.max()) - int(values.min()) <= _ONE_LEVEL
    change = painted if strokes else painted & (luminance > MASK_THRESHOLD)
    return change.astype(np.uint8) * 255


def normalise_mask(mask: Image.Image, photo: OpenedImage | tuple[int, int], *, name: str = "mask") -> Image.Image:
    """The weights of a mask in memory, "L", by the default rules; otherwise as `read_mask`. Weights stay as they are,
    so that passing twice changes nothing."""
    return read_mask(mask, photo, name=name).image


def check_mask_size(mask: Image.Image, size: tuple[int, int], name: str = "the mask") -> None:
    """Raise MaskError, naming both sizes, for a mask that is not of its image's upright size (width, height)."""
    if mask.size != tuple(size):
        raise MaskError(_of_another_size(name, mask.size, size))


def _open(source: object, rules: ImageRules, name: str | None) -> OpenedImage:
    if isinstance(source, OpenedImage):
        return source
    if isinstance(source, Image.Image):
        return normalise_image(source, max_pixels=rules.max_pixels, name=name or "mask")
    if isinstance(source, bytes):
        return open_bytes(source, max_pixels=rules.max_pixels, name=name or "mask")
    return open_image(source, max_pixels=rules.max_pixels, name=name)  # type: ignore[arg-type]


def _check_size(opened: OpenedImage, size: tuple[int, int]) -> None:
    if opened.size != tuple(size):
        raise MaskError(_of_another_size(opened.name, opened.size, size))


def _of_another_size(name: str, given: tuple[int, int], wanted: tuple[int, int]) -> str:
    turned = " (it lies on its side: turn it as well)" if given == (wanted[1], wanted[0]) else ""
    return (
        f"{name} is {given[0]}x{given[1]} px, its image {wanted[0]}x{wanted[1]} px upright: "
        f"make the mask the size of the image{turned}"
    )


def _weigh(
    opened: OpenedImage, photo: OpenedImage | None, means: MaskMeans, undecided: MaskMeans | None
) -> tuple[np.ndarray, str]:
    """(uint8 weights (H, W), the reading in words)."""
    luminance = np.asarray(opened.stored.convert("L"))
    alpha = None if opened.alpha is None else np.asarray(opened.alpha)
    if alpha is not None and np.ptp(alpha) <= _ONE_LEVEL:
        alpha = None
    if means != "auto":
        return _weigh_as(opened, luminance, alpha, means)
    if alpha is None:
        if _is_photograph(opened.stored, luminance):
            raise MaskError(
                f"{opened.name} is a colour picture: a mask is white where something should change, else black"
            )
        return _by_brightness(luminance), "white changes"
    opaque = alpha.astype(np.uint16) * 2 > alpha.max()
    values = luminance[opaque]
    if int(values.max()) - int(values.min()) <= _ONE_LEVEL:
        means = _brush_or_hole(opaque) or undecided or "auto"
        if means == "auto":
            raise MaskError(
                f"{opened.name} can be read two ways, as strokes or as a hole ({100 * opaque.mean():.0f} % is opaque): "
                "say with --mask-means opaque or transparent which part should change (also white, black)"
            )
        return _weigh_as(opened, luminance, alpha, means)
    if photo is not None and _shows(opened, photo, opaque):
        return _spread(255 - alpha), "the hole in the photograph changes"
    if undecided is not None:
        return _weigh_as(opened, luminance, alpha, undecided)
    if opaque.mean() > 0.5 and _is_photograph(opened.stored, luminance):
        raise MaskError(
            f"{opened.name} is a colour picture with a transparent part: say with --mask-means transparent that the "
            "hole should change, or paint a mask white on black"
        )
    return np.where(opaque, _by_brightness(luminance), 0).astype(np.uint8), "the bright painted part changes"


def _weigh_as(
    opened: OpenedImage, luminance: np.ndarray, alpha: np.ndarray | None, means: MaskMeans
) -> tuple[np.ndarray, str]:
    """The reading that was asked for, or decided on."""
    if means in ("white", "black"):
        weights = _by_brightness(luminance if means == "white" else 255 - luminance)
        if alpha is not None:  # what is not painted says nothing
            weights = np.where(alpha.astype(np.uint16) * 2 > alpha.max(), weights, 0).astype(np.uint8)
        return weights, f"{means} changes"
    if alpha is None:
        raise MaskError(f"{opened.name} has no transparent part: leave --mask-means out, or use white or black")
    if means == "opaque":
        return _spread(alpha), "painted on a transparent ground: the opaque part changes"
    return _spread(255 - alpha), "a transparent hole: the hole changes"


def _brush_or_hole(opaque: np.ndarray) -> MaskMeans | None:
    """ "opaque" for strokes on a transparent ground, "transparent" for a hole in an opaque one, None if border and
    coverage disagree."""
    border = np.concatenate([opaque[0], opaque[-1], opaque[1:-1, 0], opaque[1:-1, -1]])
    along, covered = float(border.mean()), float(opaque.mean())
    if (along > 0.5) != (covered > 0.5) or along == 0.5 or covered == 0.5:
        return None
    ground_is_opaque = covered > 0.5
    touches = 1 - along if ground_is_opaque else along  # how much of the border the other side has
    if touches > 0.1 and max(covered, 1 - covered) < _CLEAR_SHARE:
        return None
    return "transparent" if ground_is_opaque else "opaque"


def _by_brightness(luminance: np.ndarray) -> np.ndarray:
    """Weights of a grey mask: from its darkest common level to its brightest, so that grey-and-white counts as two
    levels; what lossy files blur around them counts as none and all."""
    counts = np.bincount(luminance.reshape(-1), minlength=256)
    dark, bright = counts[: MASK_THRESHOLD + 1], counts[MASK_THRESHOLD + 1 :]
    low, high = int(dark.argmax()), int(bright.argmax()) + MASK_THRESHOLD + 1
    two = bool(dark.sum() and bright.sum())
    low = low if two and dark[low] * 2 > dark.sum() else 0
    high = high if two and bright[high - MASK_THRESHOLD - 1] * 2 > bright.sum() else 255
    levels = np.arange(256, dtype=np.float32)
    # the middle stays where it is: what the model changes is what is above 128, whatever the ends are
    below = (levels - low) / max(MASK_THRESHOLD - low, 1) * MASK_THRESHOLD
    above = 255 - (high - levels) / max(high - MASK_THRESHOLD - 1, 1) * (254 - MASK_THRESHOLD)
    scaled = np.where(levels > MASK_THRESHOLD, above, below)
    scaled = np.where(scaled <= _SNAP, 0, np.where(scaled >= 255 - _SNAP, 255, scaled))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)[luminance]


def _spread(values: np.ndarray) -> np.ndarray:
    """Transparency as weights over the whole range, whatever the opacity of the brush."""
    low, high = int(values.min()), int(values.max())
    scaled = (values.astype(np.float32) - low) * (255 / max(high - low, 1))
    scaled = np.where(scaled <= _SNAP, 0, np.where(scaled >= 255 - _SNAP, 255, scaled))
    return np.round(scaled).astype(np.uint8)


def _shows(opened: OpenedImage, photo: OpenedImage, opaque: np.ndarray) -> bool:
    """Whether what is opaque is the photograph itself."""
    own = np.asarray(opened.stored, dtype=np.int16)[opaque]
    return any(
        float(np.abs(own - np.asarray(picture, dtype=np.int16)[opaque]).mean()) <= _SAME_PICTURE
        for picture in (photo.stored, photo.image)
    )


def _is_photograph(picture: Image.Image, luminance: np.ndarray) -> bool:
    """Whether most of it is neither dark nor bright, and some of it is coloured."""
    spread = np.ptp(np.asarray(picture.convert("RGB")), axis=2)
    return bool(((luminance > 40) & (luminance < 215)).mean() > 0.5 and (spread > 48).mean() > 0.05)


def _check_selection(opened: OpenedImage, weights: np.ndarray) -> None:
    change = weights > MASK_THRESHOLD
    if not change.any():
        brightest = int(np.asarray(opened.stored.convert("L")).max())
        hint = f" (its brightest value is {brightest}, white is 255)" if brightest > 0 else ""
        raise MaskError(f"{opened.name} selects nothing{hint}: paint what should change white, the rest black")
    if change.all():
        raise MaskError(f"{opened.name} selects the whole picture: leave the mask out, or paint what should stay black")
