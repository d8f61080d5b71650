"""SHARDS → CHECKPOINT. Imports: data, inference (previews) and theirs.

In: `EditSample`s, from the procedural world, from shards or other layouts, and a recipe. Out: a run folder with
checkpoints, and at its end a model folder that the pipeline loads, or an adapter.
"""

from ace.training.config import AutoencoderRecipe, ModelRecipe, PlusRecipe, Stage, read_recipe
from ace.training.loop import Task, train

__all__ = ["AutoencoderRecipe", "ModelRecipe", "PlusRecipe", "Stage", "Task", "read_recipe", "train"]
