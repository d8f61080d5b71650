"""The second stage: what it keeps, what it adds, what it refuses; with a small FLUX of the real classes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxTransformer2DModel
from PIL import Image
from typer.testing import CliRunner

from ace.cli import app
from ace.conversation import recipe as recipes
from ace.diffusion import refiner_sigmas
from ace.errors import CheckpointError, ConfigError, ModelNotFoundError
from ace.inference.refine import PROMPT, Refiner, RefineSettings, enlarge, load_refiner
from tests.random_flux import SMALL, random_plus
from tests.random_models import PUBLISHED_LIKE, random_pipeline, randomise

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
SETTINGS = RefineSettings(budget=24, max_text_tokens=16)


def flux() -> FluxImg2ImgPipeline:
    parts = random_plus().components
    torch.manual_seed(3)
    transformer = FluxTransformer2DModel(**replace(SMALL, in_channels=64).config()).eval()
    randomise(transformer, 4, 0.05)
    names = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return FluxImg2ImgPipeline(**{name: parts[name] for name in names}, transformer=transformer)


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return Refiner(flux(), "small", SETTINGS)


@pytest.fixture(scope="module")
def saved(refiner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux") / "small"
    refiner.pipeline.save_pretrained(folder)
    return folder


def test_levels_are_the_published_ones_by_default():
    sigmas = refiner_sigmas(30, 0.2)
    assert len(sigmas) == 7  # six updates
    assert sigmas[0] == pytest.approx(0.4301, abs=1e-4)
    assert sigmas[-1] == pytest.approx(0.002994, abs=1e-6)


def test_pictures_are_enlarged_to_the_budget_and_never_shrunk(refiner):
    assert enlarge(torch.zeros(1, 3, 48, 64), 24).shape[-2:] == (64, 80)  # 4.24 x 5.66 cells
    assert enlarge(torch.zeros(1, 3, 96, 96), 24).shape[-2:] == (96, 96)
    assert enlarge(torch.zeros(1, 3, 100, 90), 24).shape[-2:] == (96, 80)
    assert refiner.refine(PHOTO, "a house", 1).size == (80, 64)


def test_the_same_seed_gives_the_same_picture_and_another_one_another(refiner):
    made = [np.asarray(refiner.refine(PHOTO, "a house", seed)) for seed in (1, 1, 2)]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_less_strength_changes_less(refiner):
    """Against a picture that went through the autoencoder only: the smallest strength that leaves a step."""
    pipeline = refiner.pipeline
    made = {
        strength: np.asarray(
            Refiner(pipeline, settings=replace(SETTINGS, strength=strength)).refine(PHOTO, "a house", 1), dtype=float
        )
        for strength in (0.05, 0.2, 0.8)
    }
    assert np.abs(made[0.2] - made[0.05]).mean() < np.abs(made[0.8] - made[0.05]).mean()


def test_an_edit_brings_the_refiners_own_prompt_and_a_creation_does_not(refiner):
    assert refiner._prompt("make {image} like {image1}", True) == f"make like {PROMPT}"
    assert refiner._prompt("a red apple", False) == "a red apple"
    edited, created = (refiner.refine(PHOTO, "a house", 1, edited=edited) for edited in (True, False))
    assert not np.array_equal(np.asarray(edited), np.asarray(created))


def test_a_command_line_edit_is_refined_inside_its_mask_only(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path / "cache"))
    model, photo, mask = tmp_path / "model", tmp_path / "photo.png", tmp_path / "mask.png"
    random_pipeline(PUBLISHED_LIKE, num_inference_steps=1).save_pretrained(model)
    PHOTO.save(photo)
    painted = np.zeros((48, 64), np.uint8)
    painted[16:32, 16:48] = 255
    Image.fromarray(painted).save(mask)
    common = ["edit", photo, "make it blue", "--mask", mask, "--model", model, "--seed", 1, "--device", "cpu"]
    made = {}
    for name, more in {"plain": [], "refined": ["--refine", saved, "--refine-strength", "0.5"]}.items():
        result = CliRunner().invoke(app, [str(part) for part in (*common, *more, "--out", tmp_path / f"{name}.png")])
        assert result.exit_code == 0, result.output
        made[name] = np.asarray(Image.open(tmp_path / f"{name}.png"))
    outside = painted == 0
    assert np.array_equal(made["refined"][outside], np.asarray(PHOTO)[outside])
    assert not np.array_equal(made["refined"], made["plain"])
    recorded = json.loads(str(recipes.read(tmp_path / "refined.png").settings["refine"]))
    assert (recorded["model"], recorded["strength"], recorded["num_steps"]) == ("small", 0.5, 30)
    again = CliRunner().invoke(
        app, [str(part) for part in ("replay", tmp_path / "refined.png", "--model", model, "--device", "cpu")]
    )
    assert again.exit_code == 1
    assert "refined then (small), not now" in again.output


def test_impossible_refiners_are_refused(saved, tmp_path):
    with pytest.raises(ConfigError, match=r"strength 1\.5"):
        refiner_sigmas(30, 1.5)
    with pytest.raises(ConfigError, match="leaves none of 4 steps"):
        refiner_sigmas(4, 0.01)
    with pytest.raises(ModelNotFoundError, match="no refiner 'someone/flux' here"):
        load_refiner("someone/flux")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_refiner(str(tmp_path / "empty"))
