"""PIPELINE → SCORES. Imports: inference, data.

In: a pipeline, and held-out records with their true answers. Out: a folder with answers, rows, tables and pictures.
"""

from ace.evaluation.benchmarks.world import autoencoder_psnr, evaluate_world
from ace.evaluation.report import WorldReport

__all__ = ["WorldReport", "autoencoder_psnr", "evaluate_world"]
