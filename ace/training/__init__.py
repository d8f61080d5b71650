"""SHARDS → CHECKPOINT. Imports: data, inference (previews) and theirs.

In: `EditSample`s, from the procedural world or from shards, and a recipe. Out: a run folder with checkpoints, and at
its end a model folder that the pipeline loads.
"""

from ace.training.config import AutoencoderRecipe, ModelRecipe, Stage, read_recipe
from ace.training.loop import train

__all__ = ["AutoencoderRecipe", "ModelRecipe", "Stage", "read_recipe", "train"]
