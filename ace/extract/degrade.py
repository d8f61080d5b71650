"""Worse pictures: mosaic, grey, blur, noise, JPEG artefacts, low resolution. All (H, W, 3) uint8 in and out."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

_LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601


def mosaic(image: np.ndarray, block_px: int) -> np.ndarray:
    """Square blocks of their mean colour; blocks at the right and lower edge may be cut."""
    height, width = image.shape[:2]
    rows, columns = np.arange(0, height, block_px), np.arange(0, width, block_px)
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.float32), rows, 0), columns, 1)
    counts = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    means = (sums / counts[..., None]).round().astype(np.uint8)
    return np.repeat(np.repeat(means, block_px, 0), block_px, 1)[:height, :width]


def gray(image: np.ndarray) -> np.ndarray:
    """Luma in all three channels."""
    return np.repeat((image @ _LUMA).round().astype(np.uint8)[..., None], 3, 2)


def blur(image: np.ndarray, radius_px: float) -> np.ndarray:
    """Gaussian blur; radius_px: standard deviation."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius_px)))


def noise(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Gaussian noise of standard deviation sigma (0 … 255), decided by its seed."""
    drawn = np.random.default_rng(seed).standard_normal(image.shape, np.float32) * sigma
    return (image + drawn).round().clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Stored as JPEG (4:2:0) and read back."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=2)
    return np.array(Image.open(buffer).convert("RGB"))


def low_resolution(image: np.ndarray, factor: int) -> np.ndarray:
    """Reduced by a factor and enlarged again, smoothly."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((max(1, width // factor), max(1, height // factor)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
