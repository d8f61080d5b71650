"""Colour profiles: what a model reads is sRGB, what goes back into a picture is in that picture's own profile.

Relative colorimetric, by Pillow's LittleCMS. A profile that is sRGB (to within one level), or that cannot be read,
changes nothing.

Not here: CMYK and LAB, which have no way back (`images.py`).
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, cast

import numpy as np
from PIL import Image, ImageCms

from ace.errors import ImageError


def to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """An RGB or "L" picture of a profile in sRGB (RGB); the very same object where there is nothing to convert."""
    return _convert(image, icc_profile, True)


def from_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """An sRGB picture (RGB, or RGBA with alpha kept) in a picture's profile. The profile is not attached to it."""
    if image.mode == "RGBA":
        converted = _convert(image.convert("RGB"), icc_profile, False)
        converted = converted.copy()
        converted.putalpha(image.getchannel("A"))
        return converted
    return _convert(image, icc_profile, False)


def in_profile_of(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """An sRGB picture in a profile, with the profile in `info["icc_profile"]`; without a profile the picture itself."""
    if icc_profile is None:
        return image
    converted = from_srgb(image, icc_profile)
    converted = converted.copy() if converted is image else converted
    converted.info["icc_profile"] = icc_profile
    return converted


def is_readable(icc_profile: bytes) -> bool:
    """Whether the colour management can use a profile."""
    return _transform(icc_profile, _mode_of(icc_profile), True) is not None


def _convert(image: Image.Image, icc_profile: bytes | None, inwards: bool) -> Image.Image:
    mode = _mode_of(icc_profile)
    if icc_profile is None or mode is None or (inwards and image.mode != mode):
        return image
    if not inwards and mode != "RGB":
        return image
    transform = _transform(icc_profile, mode, inwards)
    if transform is None or _is_srgb(icc_profile, mode):
        return image
    try:
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, ValueError):
        raise ImageError("the colours cannot be converted by the picture's profile: save it in sRGB") from None
    assert converted is not None  # None is for work in place only
    converted.info = {}
    return converted


def _mode_of(icc_profile: bytes | None) -> str | None:
    """Pillow's mode for what a profile describes: RGB, "L" for grey, None for anything else."""
    return {b"RGB ": "RGB", b"GRAY": "L"}.get((icc_profile or b"")[16:20])


@lru_cache(maxsize=32)
def _transform(icc_profile: bytes, mode: str | None, inwards: bool) -> Any:
    """LittleCMS's transform between a profile and sRGB; None if the profile is damaged or has no such direction."""
    if mode is None:
        return None
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        srgb = cast("Any", ImageCms.createProfile("sRGB"))  # pyright: ignore[reportUnknownMemberType]
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        if inwards:
            return ImageCms.buildTransform(own, srgb, mode, "RGB", renderingIntent=intent)
        return ImageCms.buildTransform(srgb, own, "RGB", mode, renderingIntent=intent)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@lru_cache(maxsize=32)
def _is_srgb(icc_profile: bytes, mode: str) -> bool:
    """Whether a profile leaves every colour of a grid where it is, to within one level."""
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    if mode == "L":
        grid = levels[None]
        same = np.repeat(grid[..., None], 3, axis=-1)
    else:
        same = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(18, -1, 3)
        grid = same
    converted = ImageCms.applyTransform(Image.fromarray(grid), _transform(icc_profile, mode, True))
    return int(np.abs(np.asarray(converted, dtype=int) - same).max()) <= 1
