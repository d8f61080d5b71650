"""Adapters on the command line and in recipes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from ace.cli import app
from ace.conversation import recipe as recipes
from ace.errors import ConfigError, InputError
from ace.weights.adapters import AdapterChoice, describe, match_adapters
from tests.random_models import PUBLISHED_LIKE, random_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    random_pipeline(PUBLISHED_LIKE, num_inference_steps=2).save_pretrained(folder)
    return folder


def write_adapter(path: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    width = PUBLISHED_LIKE.hidden_size
    state = {}
    for layer in ("blocks.0.self_attn.to_v", "blocks.1.cross_attn.to_v"):
        state[f"{layer}.lora_A.weight"] = torch.randn(2, width, generator=generator)
        state[f"{layer}.lora_B.weight"] = torch.randn(width, 2, generator=generator)
    save_file(state, path)
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_pictures_with_adapters_differ_and_are_made_again(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path / "cache"))
    one, two = (write_adapter(tmp_path / f"{name}.safetensors", n) for n, name in enumerate(("style", "face")))
    common = ("a red apple", "--model", model, "--seed", 1, "--device", "cpu")
    made = {}
    for name, adapters in {"plain": (), "none": (f"{one}:0",), "both": (one, f"{two}:0.5")}.items():
        lora = [part for adapter in adapters for part in ("--lora", adapter)]
        run("generate", *common, *lora, "--out", tmp_path / f"{name}.png")
        made[name] = np.asarray(Image.open(tmp_path / f"{name}.png"))
    assert np.array_equal(made["plain"], made["none"])  # weight 0 adds nothing
    assert not np.array_equal(made["plain"], made["both"])

    recorded = json.loads(str(recipes.read(tmp_path / "both.png").settings["adapters"]))
    assert [(entry["name"], entry["weight"]) for entry in recorded] == [
        ("style.safetensors", 1),
        ("face.safetensors", 0.5),
    ]
    moved = one.rename(tmp_path / "renamed.safetensors")
    again = ("replay", tmp_path / "both.png", "--model", model, "--device", "cpu")
    assert "the same to the byte" in run(*again, "--lora", two, "--lora", moved)
    missing = CliRunner().invoke(app, [str(argument) for argument in (*again, "--lora", two)])
    assert missing.exit_code == 2
    assert "the picture was made with style.safetensors" in missing.output


def test_choices_are_paths_with_or_without_a_weight(tmp_path):
    path = write_adapter(tmp_path / "style.safetensors", 0)
    assert AdapterChoice.parse(str(path)) == AdapterChoice(path, 1.0)
    assert AdapterChoice.parse(f"{path}:-0.5") == AdapterChoice(path, -0.5)
    odd = write_adapter(tmp_path / "a:b.safetensors", 0)
    assert AdapterChoice.parse(str(odd)) == AdapterChoice(odd, 1.0)
    with pytest.raises(ConfigError, match="no adapter at nothing"):
        AdapterChoice.parse(str(tmp_path / "nothing:0.5"))
    with pytest.raises(ConfigError, match="weight 1000 of style"):
        AdapterChoice.parse(f"{path}:1000")
    assert match_adapters(describe([AdapterChoice(path, 0.25)]), [odd, path])[0].weight == 0.25
    with pytest.raises(InputError, match="cannot be read"):
        match_adapters("{", [])
