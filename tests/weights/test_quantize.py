"""8-bit weights: written, found by name like any model, read back the same; needs torchao (extra `quant`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ace.cli import app
from ace.conversation import recipe as recipes
from ace.errors import ConfigError, MissingDependencyError, OutputError
from ace.model import text_on_disk
from ace.model.transformer import ACETransformer
from ace.weights.sources import find_model, load_pipeline
from tests.random_models import PUBLISHED_LIKE, random_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    random_pipeline(PUBLISHED_LIKE, num_inference_steps=2).save_pretrained(folder)
    return find_model(str(folder))


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_weights_are_written_and_read_back_the_same(model, tmp_path, kind):
    from ace.weights.quantize import _config, _load, quantize_folder

    made = tmp_path / "made"
    report = quantize_folder(model, made, kind)
    assert report.bytes_after < 0.6 * report.bytes_before  # float32 before; first and last layers stay 16 bits
    assert 0 < report.relative_error < 0.2 and 0 < report.bfloat16_error < 0.02
    assert f"{kind}: " in str(report)
    assert json.loads((made / "quantization.json").read_text())["relative_error"] == report.relative_error
    fresh = _load(model.folder / "transformer", torch.bfloat16, _config(kind)).state_dict()
    read = ACETransformer.from_pretrained(made / "transformer", dtype=torch.bfloat16).state_dict()
    assert fresh.keys() == read.keys()
    assert type(read["blocks.0.mlp.up.weight"]).__name__ != "Tensor"
    assert read["patch_embed.weight"].dtype == torch.bfloat16
    for name, value in read.items():
        same = fresh[name].dequantize() if hasattr(value, "qdata") else fresh[name]
        assert torch.equal(value.dequantize() if hasattr(value, "qdata") else value, same), name
    pipeline = load_pipeline(find_model(str(made)), device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red apple", generator=torch.Generator().manual_seed(1)).images[0]
    assert np.asarray(picture).std() > 0
    with pytest.raises(ConfigError, match="computed in bfloat16"):
        load_pipeline(find_model(str(made)), device="cpu", dtype="float32")
    with pytest.raises(ConfigError, match="have 8 bits already"):
        quantize_folder(find_model(str(made)), tmp_path / "again", kind)


def test_the_text_encoder_in_8_bits_stays_close(model):
    cpu = torch.device("cpu")
    exact = text_on_disk.load_whole(model.folder / "text_encoder", cpu, torch.bfloat16)
    small = text_on_disk.load_8bit(model.folder / "text_encoder", cpu, torch.bfloat16)
    ids = torch.randint(3, 100, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = [encoder(input_ids=ids).last_hidden_state.float() for encoder in (exact, small)]
    difference = (states[0] - states[1]).square().mean().sqrt() / states[0].square().mean().sqrt()
    assert 0 < difference < 0.05
    assert type(small.encoder.block[0].layer[0].SelfAttention.q.weight).__name__ == "Int8Tensor"


def test_a_picture_made_with_8_bit_texts_says_so_and_is_made_again_with_them(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    name = str(model.folder)
    made = CliRunner().invoke(app, ["generate", "a cat", "--model", name, "--memory", "8bit", "--out", "out.png"])
    assert made.exit_code == 0, made.output
    assert recipes.read("out.png").settings["quantize_text"] == "int8"
    again = CliRunner().invoke(app, ["replay", "out.png", "--model", name])
    assert "the same to the byte" in again.stdout


def test_nothing_is_left_of_what_cannot_be_done(model, tmp_path, monkeypatch):
    from ace.weights import quantize

    with pytest.raises(ConfigError, match="weights 'int3': use int8 or fp8"):
        quantize.quantize_folder(model, tmp_path / "made", "int3")
    with pytest.raises(OutputError, match="exists already"):
        quantize.quantize_folder(model, tmp_path, "int8")
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(MissingDependencyError, match="quant"):
        quantize.quantize_folder(model, tmp_path / "made", "int8")
    assert contents(tmp_path) == []
