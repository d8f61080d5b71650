"""A model that has learned at one size goes on at a larger one with larger patches, and has not forgotten."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ace.data.world import World
from ace.errors import ConfigError
from ace.training.config import ModelRecipe, TrainingStage
from ace.training.model import train_model
from ace.training.repatch import repatched
from ace.training.start import start_pipeline
from ace.weights.sources import SHIPPED_MODEL, find_model, load_pipeline


def loss_of(recipe: ModelRecipe, folder: Path) -> float:
    """Mean over all steps, at a learning rate that changes nothing."""
    train_model(recipe, folder, quiet=True)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return sum(line["loss"] for line in lines) / len(lines)


def test_larger_patches_keep_most_of_what_was_learned(tmp_path: Path):
    own = load_pipeline(find_model("ace-tiny"), device="cpu").transformer.sizes
    patch_size = 2 * own.patch_size
    side = 128 if own.patch_size == 1 else 256
    recipe = ModelRecipe(
        (TrainingStage("only", lr=1e-9, steps=2, batch_size=8),),
        init="ace-tiny",
        size_px=side,
        num_workers=0,
        mixed_precision="no",
        tracker="none",
    )
    fitted = dataclasses.replace(recipe, patch_size=patch_size)
    pipeline, _ = start_pipeline(fitted)
    assert pipeline.transformer.sizes == dataclasses.replace(own, patch_size=patch_size)
    pictures = [World(side).picture(seed) for seed in range(64)]
    with pytest.raises(ConfigError, match="must be a multiple"):
        repatched(pipeline.transformer, pipeline.vae, pictures, patch_size + 1)
    pipeline.save_pretrained(tmp_path / "fitted")
    pipeline.transformer.patch_embed.reset_parameters()
    pipeline.transformer.final.linear.reset_parameters()
    pipeline.save_pretrained(tmp_path / "forgotten")
    written = "".join(file.read_text() for file in (tmp_path / "fitted").rglob("config.json"))
    assert str(SHIPPED_MODEL) not in written
    losses = {
        name: loss_of(dataclasses.replace(recipe, init=str(tmp_path / name)), tmp_path / f"run-{name}")
        for name in ("fitted", "forgotten")
    }
    assert losses["fitted"] < 0.6 * losses["forgotten"], losses
