"""Names and folders of models: what is found, what is refused, what loads."""

import json
import shutil

import pytest
import torch

from ace.errors import CheckpointError, ConfigError, ModelNotFoundError
from ace.weights.sources import SHIPPED_MODEL, find_model, known_models, load_pipeline
from tests.random_models import TINY_LIKE, random_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    pipeline = random_pipeline(TINY_LIKE, num_inference_steps=3)
    pipeline.save_pretrained(folder)
    return folder, pipeline


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "copy")


def test_settings_are_read_without_loading_the_model(saved):
    folder, pipeline = saved
    model = find_model(str(folder))
    assert model.name == "small"
    assert (model.budget, model.cell_px) == (pipeline.geometry.budget, pipeline.geometry.cell_px)
    assert (model.num_inference_steps, model.guidance_scale) == (3, pipeline.config.guidance_scale)


def test_a_loaded_model_has_the_saved_weights(saved):
    folder, pipeline = saved
    loaded = load_pipeline(find_model(str(folder)), device="cpu")
    expected = pipeline.transformer.state_dict()
    assert loaded.transformer.dtype == torch.float32
    assert all(torch.equal(value, expected[name]) for name, value in loaded.transformer.state_dict().items())


def test_the_environment_names_the_default(saved, monkeypatch):
    monkeypatch.setenv("ACE_MODEL", str(saved[0]))
    assert find_model().folder == saved[0]


def test_converted_models_are_found_by_name_in_the_cache_folder(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match=r"run `ace convert ace-0\.6b-512` once"):
        find_model("ace-0.6b-512")
    shutil.copytree(saved[0], tmp_path / "models" / "ace-0.6b-512")
    assert find_model("ace-0.6b-512").name == "ace-0.6b-512"


def test_names_here_are_the_names_that_can_be_converted():
    from ace.weights.convert import PUBLISHED

    assert [model.name for model in known_models()] == ["ace-tiny", *PUBLISHED]


def test_the_model_in_the_package_is_the_default(monkeypatch):
    monkeypatch.delenv("ACE_MODEL", raising=False)
    assert known_models()[0].folder == SHIPPED_MODEL
    if known_models()[0].is_present:
        assert find_model().folder == SHIPPED_MODEL


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "unknown model"),
        (lambda folder: (folder / "model_index.json").unlink(), "is no model folder"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json of the model copy is damaged"),
        (
            lambda folder: (folder / "model_index.json").write_text("[]"),
            "model_index.json of the model copy is damaged",
        ),
        (lambda folder: shutil.rmtree(folder / "vae"), "the model copy lacks vae"),
        (lambda folder: (folder / "transformer" / "config.json").write_text("{}"), "settings of the model copy"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(copied, damage, message):
    damage(copied)
    with pytest.raises(ModelNotFoundError, match=message):
        find_model(str(copied))


def test_another_pipelines_folder_is_refused(copied):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(ModelNotFoundError, match="copy holds a FluxPipeline"):
        find_model(str(copied))


def test_cut_weights_are_refused_in_one_line(copied):
    weights = next((copied / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged or cut off: copy the model again") as caught:
        load_pipeline(find_model(str(copied)), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_is_refused(saved):
    model = find_model(str(saved[0]))
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(ConfigError, match=f"no {absent} device"):
        load_pipeline(model, device=absent)
    with pytest.raises(ConfigError, match="device 'tpu'"):
        load_pipeline(model, device="tpu")


def test_sizes_must_fit_the_models_cells(saved):
    model = find_model(str(saved[0]))
    model.check_size((model.cell_px * 3, model.cell_px * 2))
    with pytest.raises(ConfigError, match=f"use {model.cell_px * 3}x{model.cell_px * 2}"):
        model.check_size((model.cell_px * 3 + 1, model.cell_px * 2))
    with pytest.raises(ConfigError, match="far beyond"):
        model.check_size((model.cell_px * 1000, model.cell_px * 1000))
