"""Recipes: what is refused, and what a stage does with its learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from ace.errors import ConfigError
from ace.training.config import AutoencoderRecipe, ModelRecipe, Stage, read_recipe, write_recipe
from ace.training.plan import plan

RECIPES = Path(__file__).parents[2] / "recipes"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_the_shipped_recipes_are_valid():
    assert isinstance(read_recipe(RECIPES / "tiny-autoencoder.toml"), AutoencoderRecipe)
    assert isinstance(read_recipe(RECIPES / "tiny.toml"), ModelRecipe)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('kind = "model"\nlearning_rate = 1', "unknown key learning_rate"),
        ('kind = "gan"', "kind is 'gan'"),
        ('kind = "model"', "no [[stage]]"),
        ("kind = ", "not valid TOML"),
        ('kind = "model"\n[[stage]]\nname = "a"\nsamples = 64\nlr = 1e-3\nepochs = 3', "unknown key epochs"),
        ('kind = "model"\n[[stage]]\nname = "a"\nsamples = 64\nlr = 1e-3\nschedule = "step"', "schedule 'step'"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tmp_path: Path, text: str, says: str):
    if "[[stage]]" not in text and "no [[stage]]" not in says:
        text += '\n[[stage]]\nname = "a"\nsamples = 64\nlr = 1e-3'
    with pytest.raises(ConfigError) as caught:
        read_recipe(write(tmp_path, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value).split("TOML:")[0]


def test_a_missing_recipe_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        read_recipe(tmp_path / "nowhere.toml")


def test_a_stage_warms_up_and_comes_down():
    stage = Stage("a", samples=3200, lr=1.0, batch_size=32, schedule="linear", warmup_steps=10)
    rates = [stage.lr_at(step) for step in range(stage.steps)]
    assert stage.steps == 100
    assert rates[0] < rates[5] < rates[10]
    assert max(rates) <= 1.0
    assert rates[20] > rates[60] > rates[99] > 0
    assert rates[99] == pytest.approx(0.01)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_says_what_it_costs_and_is_the_same_when_written_out(tmp_path: Path, path: Path):
    recipe = read_recipe(path)
    write_recipe(recipe, tmp_path / "resolved.toml")
    assert read_recipe(tmp_path / "resolved.toml") == recipe
    made = plan(recipe)
    assert made.weight_bytes > 0 and made.activation_bytes > 0
    assert [stage.name for stage in made.stages] == [stage.name for stage in recipe.stages]


def test_the_papers_four_stages_are_one_recipe():
    recipe = read_recipe(RECIPES / "ace-0.6b.toml")
    table = [(s.sequence_length, s.max_images, s.steps, s.batch_size) for s in recipe.stages]
    assert table == [(1024, 1, 900_000, 800), (1024, 9, 100_000, 400), (1024, 9, 500_000, 400), (4096, 9, 100_000, 960)]
    assert 600e6 < plan(recipe).parameters < 620e6
