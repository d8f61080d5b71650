"""Real photographs in the public domain, as they ship in scikit-image, and the rule for weights that are not there."""

from functools import cache

import numpy as np
import pytest
from PIL import Image
from skimage import data

from ace.extract.weights import is_there


@cache
def photograph(name: str, longest_px: int = 384) -> np.ndarray:
    """`astronaut` (NASA), `coffee`, `chelsea` (a cat) or `rocket` (NASA), reduced; (H, W, 3) uint8."""
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    image.thumbnail((longest_px, longest_px))
    array = np.asarray(image)
    array.setflags(write=False)
    return array


def needs(*names: str):
    """Skip a test whose weights have not been fetched, saying how to."""
    missing = [name for name in names if not is_there(name)]
    return pytest.mark.skipif(bool(missing), reason=f"weights missing ({', '.join(missing)}): run `ace data setup`")


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((first & second).sum() / max((first | second).sum(), 1))
