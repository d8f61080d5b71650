"""NAME → FILES → PIPELINE. Imports: conditions, model, inference, plus, files, errors.

In: a model's name, folder or hub id, adapters, a memory mode. Out: its files and hash, and the pipeline loaded from
them. Conversion and quantisation of published weights are here too. The doors load on first use, so that a name can be
checked before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_DOORS = {
    "AdapterChoice": "ace.weights.adapters",
    "convert_folder": "ace.weights.convert",
    "fetch_files": "ace.weights.hub",
    "find_model": "ace.weights.sources",
    "known_models": "ace.weights.sources",
    "load_pipeline": "ace.weights.sources",
    "plan_memory": "ace.weights.memory",
    "quantize_folder": "ace.weights.quantize",
}
__all__ = [
    "AdapterChoice",
    "convert_folder",
    "fetch_files",
    "find_model",
    "known_models",
    "load_pipeline",
    "plan_memory",
    "quantize_folder",
]

if TYPE_CHECKING:
    from ace.weights.adapters import AdapterChoice
    from ace.weights.convert import convert_folder
    from ace.weights.hub import fetch_files
    from ace.weights.memory import plan_memory
    from ace.weights.quantize import quantize_folder
    from ace.weights.sources import find_model, known_models, load_pipeline


def __getattr__(name: str):
    if name not in _DOORS:
        raise AttributeError(f"module 'ace.weights' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
