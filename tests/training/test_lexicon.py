"""What a model with a memory starts from, its lessons, and a run that ends in a pipeline and goes on after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ace.data.world.sprites import SpriteLibrary
from ace.diffusion import seeded_generator
from ace.errors import ConfigError
from ace.model.lexicon import CELLS
from ace.training.config import ModelRecipe, TrainingStage
from ace.training.lexicon import coded, components, drawing_cells, letter_cells, start_lexicon
from ace.training.model import train_model
from ace.training.places import teach_places
from ace.weights.sources import SHIPPED_MODEL, find_model, load_pipeline

STAGE = TrainingStage("only", samples=12, lr=1e-3, batch_size=4, level="edits")


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(SHIPPED_MODEL / part, folder, dirs_exist_ok=True)
    return folder


def recipe(folder: Path, **settings: object) -> ModelRecipe:
    given: dict = {
        "preset": "tiny-pixels",
        "size_px": 128,
        "autoencoder": "pixels",
        "text_encoder": str(folder),
        "text_lr_scale": 1.0,
        "max_text_tokens": 400,
        "spell_quoted": False,
        "prediction_type": "sample",
        "noise_share": 0.5,
        "kept_tokens": 32,
        "mixed_precision": "no",
        "place_lessons": 64,
        "num_workers": 0,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "tracker": "none",
        "stages": (STAGE,),
    }
    return ModelRecipe(**{**given, **settings})


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_components_of_rows_tell_the_rows_apart_as_the_rows_do():
    torch.manual_seed(0)
    rows = torch.randn(200, 6) @ torch.randn(6, 40)
    made = components(rows, 16)
    assert made.shape == (200, 16)
    assert not made[:, 6:].any()  # the rows have six
    back = torch.linalg.lstsq(torch.nn.functional.pad(made[:, :6], (0, 1), value=1.0), rows).solution
    assert torch.allclose(torch.nn.functional.pad(made[:, :6], (0, 1), value=1.0) @ back, rows, atol=1e-3)


def test_tables_start_as_what_the_drawings_cells_look_like(encoder_folder):
    torch.manual_seed(0)
    tokenizer, encoder, _ = start_lexicon(encoder_folder, 48, 4, True)
    library = SpriteLibrary()
    slug_of = {c.name: c.slug for c in library.concepts}
    slugs, styles = [slug_of[n] for n in tokenizer.lexicon.names], list(tokenizer.lexicon.styles)
    cells = drawing_cells(library, slugs, styles)
    assert len(cells) == encoder.table.num_embeddings == len(slugs) * len(styles) * CELLS
    sample = torch.randperm(len(cells), generator=torch.Generator().manual_seed(1))[:300]
    near = torch.cdist(encoder.table.weight[sample], encoder.table.weight[sample]).flatten()
    alike = torch.cdist(cells[sample], cells[sample]).flatten()
    assert torch.corrcoef(torch.stack([near, alike]).detach())[0, 1] > 0.7


def test_lessons_teach_an_encoder_where_things_are_wanted(encoder_folder):
    torch.manual_seed(0)
    tokenizer, encoder, decoder = start_lexicon(encoder_folder, 48, 4, False)
    assert decoder is None
    before = encoder.table.weight.clone()
    taught = teach_places(tokenizer, encoder, "one", 1600, 4e-3)
    assert taught > 3 / 64  # three times chance, in seconds
    assert torch.equal(encoder.table.weight, before)


def test_a_run_of_a_pixel_model_ends_in_a_pipeline_and_goes_on_after_a_kill(encoder_folder, tmp_path):
    made = train_model(recipe(encoder_folder, save_steps=1), tmp_path / "whole", quiet=True)
    answer = made("add a cat on the left", generator=seeded_generator(1)).images[0]
    assert answer.size == (128, 128)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for late in sorted((tmp_path / "killed" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(late)
    train_model(recipe(encoder_folder, save_steps=1), tmp_path / "killed", quiet=True)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_lessons_are_for_a_new_encoder_only():
    with pytest.raises(ConfigError, match="place_lessons"):
        ModelRecipe(stages=(STAGE,), init="ace-tiny", place_lessons=10)


def test_codes_of_drawings_and_letters_are_decoded_to_what_they_show():
    library = SpriteLibrary()
    cells = drawing_cells(library, [c.slug for c in library.concepts if c.core][:40], ["fluent-3d"])
    letters = letter_cells(library)
    codes, of_letters, decoder = coded(cells, letters, 256)
    for shown, code in ((cells, codes), (letters, of_letters)):
        lost = (code @ decoder.T - shown).square().sum() / shown.square().sum()
        assert lost < 0.01
    assert torch.cat([codes, of_letters]).square().mean() == pytest.approx(1, abs=1e-3)
    assert (codes[cells.abs().amax(1) == 0] == 0).all()  # where nothing is drawn there is no code


def test_what_training_goes_on_from_draws_a_thing_where_it_is_wanted():
    folder = Path(__file__).parents[2] / "recipes" / "tiny-pixels-edits"
    pipeline = load_pipeline(find_model(str(folder)), device="cpu", dtype="float32")
    pipeline.set_progress_bar_config(disable=True)
    white = Image.new("RGB", (128, 128), "white")
    drawn = pipeline("add a cat on the left", white, generator=seeded_generator(1), preserve=False).images[0]
    away = 255 - np.asarray(drawn.convert("L"), np.float32)
    assert away[32:96, :64].mean() > 3 * away[32:96, 64:].mean()
