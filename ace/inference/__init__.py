"""LATENTS → IMAGE. Imports: conditions, model, diffusion, extract, errors.

In: long-context condition units and a model folder. Out: pictures, their drift reports and recipes.
"""

from ace.inference.pipeline import ACEPipeline, Request

__all__ = ["ACEPipeline", "Request"]
