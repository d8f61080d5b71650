"""WEIGHTS IN THE PACKAGE → PIPELINE. Imports: inference, weights.

In: nothing, the small model ships in `checkpoint/`. Out: an `ACEPipeline` that is ready to use. `world/` holds the
sprite pack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ace.weights.sources import DEFAULT_MODEL, find_model
from ace.weights.sources import load_pipeline as _load_pipeline

if TYPE_CHECKING:
    from ace.inference.pipeline import ACEPipeline

__all__ = ["load_tiny"]


def load_tiny(device: str = "auto") -> ACEPipeline:
    """The small model, in float32. device: "auto", "cpu", "cuda" or "mps".

    Raises ModelNotFoundError if the package is incomplete, ConfigError for a device that is not there."""
    return _load_pipeline(find_model(DEFAULT_MODEL), device=device, dtype="float32")
