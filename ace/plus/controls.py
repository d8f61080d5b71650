"""Control signals of the edited image, as ACE++ was trained on: edges, depth, pose, … drawn inside the mask."""

from __future__ import annotations

import numpy as np
from PIL import Image

CONTROLS = ("canny", "mosaic", "gray", "contour", "depth", "doodle", "scribble", "pose", "segmentation")


def draw_control(name: str, source: Image.Image, mask: Image.Image | None) -> Image.Image:
    """The edited picture with its control signal inside the mask (everywhere without one); RGB.

    Raises ConfigError for an unknown name, MissingDependencyError where a model's weights are missing."""
    from ace.extract import draw_signal, exact

    array = np.asarray(source)
    exact_ones = {"canny": exact.canny, "mosaic": exact.mosaic, "gray": exact.gray}
    drawn = exact_ones[name](array) if name in exact_ones else draw_signal(name, array)
    signal = Image.fromarray(drawn)
    if signal.size != source.size:
        signal = signal.resize(source.size, Image.Resampling.BICUBIC)
    return signal if mask is None else Image.composite(signal, source, mask)
