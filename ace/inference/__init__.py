"""LATENTS → IMAGE. Imports: conditions, model, diffusion, extract, files, errors.

In: long-context condition units and a model folder. Out: pictures, their drift reports and recipes.
The doors load on first use, so that files can be checked before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_DOORS = {"ACEPipeline": "ace.inference.pipeline", "Request": "ace.inference.pipeline"}
__all__ = ["ACEPipeline", "Request"]

if TYPE_CHECKING:
    from ace.inference.pipeline import ACEPipeline, Request


def __getattr__(name: str):
    if name not in _DOORS:
        raise AttributeError(f"module 'ace.inference' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
