"""CANVAS → IMAGE. Imports: conditions, model, diffusion, extract, inference, files, errors.

ACE++ on FLUX.1-Fill: images and masks are arranged on one canvas, which the model repaints. In: pictures, masks, an
instruction and weight files. Out: the picture cut out of the canvas. The doors load on first use, so that a request can
be checked before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_DOORS = {
    "ACEPlusPipeline": "ace.plus.pipeline",
    "PLUS_MODELS": "ace.plus.models",
    "PlusRequest": "ace.plus.pipeline",
    "Reference": "ace.plus.canvas",
    "arrange": "ace.plus.canvas",
    "find_plus": "ace.plus.sources",
    "load_plus": "ace.plus.load",
}
__all__ = ["PLUS_MODELS", "ACEPlusPipeline", "PlusRequest", "Reference", "arrange", "find_plus", "load_plus"]

if TYPE_CHECKING:
    from ace.plus.canvas import Reference, arrange
    from ace.plus.load import load_plus
    from ace.plus.models import PLUS_MODELS
    from ace.plus.pipeline import ACEPlusPipeline, PlusRequest
    from ace.plus.sources import find_plus


def __getattr__(name: str):
    if name not in _DOORS:
        raise AttributeError(f"module 'ace.plus' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
