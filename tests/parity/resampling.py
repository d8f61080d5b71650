"""Pictures resized by Pillow, compared with recorded ones whatever the version of Pillow.

Pillow resizes one axis after the other and rounds to 8 bits in between. Up to 12 the width came first, 13 takes the
height first where that is cheaper; at hard edges the two orders differ by up to 30 levels of 255, on smooth pictures by
1 to 3. The cases were recorded with 13. So a recording may be that of either order, and is met by one of them to one
level.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import numpy as np
from PIL import Image

_resize = Image.Image.resize


def _in_order(width_first: bool) -> Callable[..., Image.Image]:
    def resize(image: Image.Image, size: tuple[int, int], resample: int | None = None) -> Image.Image:
        half_way = (size[0], image.height) if width_first else (image.width, size[1])
        return _resize(_resize(image, half_way, resample), size, resample)

    return resize


def off_by_levels(make: Callable[[], np.ndarray], recorded: np.ndarray, level: float = 1.0) -> float:
    """The largest difference of a picture from the recorded one, in levels, in the better of the two orders.

    make: resizes by Pillow and returns the picture; level: what a grey level is there."""
    differences = []
    for width_first in (True, False):
        with mock.patch.object(Image.Image, "resize", _in_order(width_first)):
            differences.append(np.abs(make().astype(np.float64) - recorded).max() / level)
    return round(min(differences), 3)
