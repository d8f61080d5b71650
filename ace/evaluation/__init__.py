"""PIPELINE → SCORES. Imports: inference, data.

In: a pipeline, and held-out records with their true answers. Out: a folder with answers, rows, tables and pictures.
The doors load on first use, so that arguments can be checked before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_DOORS = {
    "WorldReport": "ace.evaluation.report",
    "autoencoder_psnr": "ace.evaluation.benchmarks.world",
    "evaluate_world": "ace.evaluation.benchmarks.world",
}
__all__ = ["WorldReport", "autoencoder_psnr", "evaluate_world"]

if TYPE_CHECKING:
    from ace.evaluation.benchmarks.world import autoencoder_psnr, evaluate_world
    from ace.evaluation.report import WorldReport


def __getattr__(name: str):
    if name not in _DOORS:
        raise AttributeError(f"module 'ace.evaluation' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
