"""TOKENS → PREDICTION. Imports: conditions, files, adapter_files.

In: latents of a batch of requests, their texts and timesteps. Out: one prediction per request, in its own shape.
The doors load on first use, so that sizes and devices can be asked for before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_DOORS = {
    "PRESETS": "ace.model.config",
    "ACEConfig": "ace.model.config",
    "ACETransformer": "ace.model.transformer",
    "Layout": "ace.model.tokens",
    "RequestFrames": "ace.model.tokens",
    "make_layout": "ace.model.tokens",
}
__all__ = ["PRESETS", "ACEConfig", "ACETransformer", "Layout", "RequestFrames", "make_layout"]

if TYPE_CHECKING:
    from ace.model.config import PRESETS, ACEConfig
    from ace.model.tokens import Layout, RequestFrames, make_layout
    from ace.model.transformer import ACETransformer


def __getattr__(name: str):
    if name not in _DOORS:
        raise AttributeError(f"module 'ace.model' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
