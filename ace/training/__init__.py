"""SHARDS → CHECKPOINT. Imports: data, inference (previews), plus, weights, lesson, pages, settings and theirs.

In: `EditSample`s, from the procedural world, from shards or other layouts, and a recipe. Out: a run folder with
checkpoints, and at its end a model folder that the pipeline loads, or an adapter. The doors load on first use, so that
a recipe can be checked before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_DOORS = {
    **dict.fromkeys(
        ("AutoencoderRecipe", "ModelRecipe", "PlusRecipe", "TrainingStage", "read_recipe"), "ace.training.config"
    ),
    **dict.fromkeys(("Task", "train"), "ace.training.loop"),
}
__all__ = ["AutoencoderRecipe", "ModelRecipe", "PlusRecipe", "Task", "TrainingStage", "read_recipe", "train"]

if TYPE_CHECKING:
    from ace.training.config import AutoencoderRecipe, ModelRecipe, PlusRecipe, TrainingStage, read_recipe
    from ace.training.loop import Task, train


def __getattr__(name: str):
    if name not in _DOORS:
        raise AttributeError(f"module 'ace.training' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
