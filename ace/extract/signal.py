"""Any of the ten low-level signals of a photograph (B.2), by name: the pre-processors of ACE++ and of the command line.

Each model is loaded when a signal first needs it and kept for the process. `ace.data.tasks` makes training pairs of the
same signals, with chance in their settings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from ace.errors import ConfigError, ImageError

MOSAIC_BLOCKS = 24  # along the shorter side


def draw_signal(name: str, image: np.ndarray) -> np.ndarray:
    """The signal of image (H, W, 3) uint8, RGB, as (H, W, 3) uint8.

    name: one of `SIGNALS`. Raises ConfigError for another one, MissingDependencyError if its weights have not been
    fetched (`ace data setup`), ImageError if there is nothing to draw, such as a pose without a person."""
    if name not in _DRAW:
        raise ConfigError(f"no signal is called {name!r}: use one of {', '.join(SIGNALS)}")
    return _DRAW[name](image)


def _edge(image: np.ndarray) -> np.ndarray:
    from ace.extract.exact import canny

    return canny(image)


def _gray(image: np.ndarray) -> np.ndarray:
    from ace.extract.exact import gray

    return gray(image)


def _mosaic(image: np.ndarray) -> np.ndarray:
    from ace.extract.exact import mosaic

    return mosaic(image, max(2, min(image.shape[:2]) // MOSAIC_BLOCKS))


def _degradation(image: np.ndarray) -> np.ndarray:
    from ace.extract.degrade import blur, jpeg, noise

    return jpeg(noise(blur(image, 1.5), 25, seed=0), 15)


def _contour(image: np.ndarray) -> np.ndarray:
    from ace.extract.sketch import draw_contour

    return draw_contour(_soft_edges()(image))


def _doodle(image: np.ndarray) -> np.ndarray:
    from ace.extract.sketch import draw_doodle

    return draw_doodle(_soft_edges()(image))


def _scribble(image: np.ndarray) -> np.ndarray:
    from ace.extract.sketch import draw_scribble

    return draw_scribble(_soft_edges()(image))


def _depth(image: np.ndarray) -> np.ndarray:
    from ace.extract.depth import draw_depth

    return draw_depth(_depth_net()(image))


def _pose(image: np.ndarray) -> np.ndarray:
    from ace.extract.people import draw_person

    person = _pose_finder().find(image)
    if person is None:
        raise ImageError("no person was found in the picture: a pose needs one")
    return draw_person(person, *image.shape[:2])


def _segmentation(image: np.ndarray) -> np.ndarray:
    from ace.extract.segments import draw_objects

    return draw_objects([o.mask for o in _segmenter().find_objects(image)], *image.shape[:2])


@cache
def _soft_edges():
    from ace.extract.hed import SoftEdges

    return SoftEdges()


@cache
def _depth_net():
    from ace.extract.distance import FastDepth

    return FastDepth()


@cache
def _pose_finder():
    from ace.extract.people import PoseFinder

    return PoseFinder()


@cache
def _segmenter():
    from ace.extract.objects import Segmenter

    return Segmenter()


_DRAW: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "segmentation": _segmentation,
    "depth": _depth,
    "pose": _pose,
    "mosaic": _mosaic,
    "degradation": _degradation,
    "gray": _gray,
    "edge": _edge,
    "doodle": _doodle,
    "contour": _contour,
    "scribble": _scribble,
}
SIGNALS = tuple(_DRAW)
