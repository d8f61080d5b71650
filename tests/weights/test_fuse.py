"""Fused weights give what the model gives with its adapters beside it."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ace.cli import app
from ace.training.adapters import add_lora, save_lora
from ace.training.config import Lora
from ace.weights.adapters import AdapterChoice
from ace.weights.sources import find_model, load_pipeline
from tests.random_models import TINY_LIKE, random_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder `model` and an adapter `old` beside it."""
    made = tmp_path_factory.mktemp("fuse")
    pipeline = random_pipeline(TINY_LIKE, budget=16, num_inference_steps=2)
    pipeline.save_pretrained(made / "model")
    add_lora(pipeline.transformer, Lora(rank=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in pipeline.transformer.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape))
    save_lora(pipeline.transformer, Lora(rank=4), made / "old")
    return made


def answer(pipeline) -> np.ndarray:
    photo = Image.radial_gradient("L").resize((32, 32)).convert("RGB")
    made = pipeline("make it old", photo, generator=torch.Generator().manual_seed(1)).images[0]
    return np.asarray(made).astype(int)


def test_a_fused_model_answers_as_with_its_adapter(folder):
    said = CliRunner().invoke(
        app, ["fuse", str(folder / "model"), "--lora", f"{folder / 'old'}:0.7", "-o", str(folder / "fused")]
    )
    assert said.exit_code == 0, said.output
    assert "--model" in said.output
    base = find_model(str(folder / "model"))
    plain = answer(load_pipeline(base))
    beside = answer(load_pipeline(base, adapters=[AdapterChoice(folder / "old", 0.7)]))
    fused = answer(load_pipeline(find_model(str(folder / "fused"))))
    assert np.abs(beside - plain).max() > 3
    assert np.abs(fused - beside).max() <= 1


def test_what_cannot_be_fused_is_said(folder):
    runner = CliRunner()
    none = runner.invoke(app, ["fuse", str(folder / "model"), "-o", str(folder / "none")])
    assert none.exit_code == 2 and "nothing to fuse" in none.output
    there = runner.invoke(
        app, ["fuse", str(folder / "model"), "--lora", str(folder / "old"), "-o", str(folder / "old")]
    )
    assert there.exit_code == 2 and "old is there already" in there.output
    assert not (folder / "none").exists()
