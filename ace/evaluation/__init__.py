"""PIPELINE → SCORES. Imports: inference, video, data, weights, conversation, families, files, pages.

In: a pipeline, and held-out records with their true answers. Out: a folder with answers, rows, tables and pictures.
The doors load on first use, so that arguments can be checked before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_DOORS = {
    "Contestant": "ace.evaluation.systems",
    "WorldReport": "ace.evaluation.summary",
    "autoencoder_psnr": "ace.evaluation.benchmarks.world",
    "contestant_of": "ace.evaluation.systems",
    "evaluate_world": "ace.evaluation.benchmarks.world",
    "our_contestant": "ace.evaluation.systems",
}
__all__ = ["Contestant", "WorldReport", "autoencoder_psnr", "contestant_of", "evaluate_world", "our_contestant"]

if TYPE_CHECKING:
    from ace.evaluation.benchmarks.world import autoencoder_psnr, evaluate_world
    from ace.evaluation.summary import WorldReport
    from ace.evaluation.systems import Contestant, contestant_of, our_contestant


def __getattr__(name: str):
    if name not in _DOORS:
        raise AttributeError(f"module 'ace.evaluation' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
