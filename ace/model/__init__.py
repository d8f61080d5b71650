"""TOKENS → PREDICTION. Imports: conditions, files, adapter_files.

In: latents of a batch of requests, their texts and timesteps. Out: one prediction per request, in its own shape.
"""

from ace.model.config import PRESETS, ACEConfig
from ace.model.tokens import Layout, RequestFrames, make_layout
from ace.model.transformer import ACETransformer

__all__ = ["PRESETS", "ACEConfig", "ACETransformer", "Layout", "RequestFrames", "make_layout"]
