"""Recipes: what is refused, and what a stage does with its learning rate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from typer.testing import CliRunner

from ace.cli import app
from ace.data.world.levels import LEVELS
from ace.errors import ConfigError
from ace.training.config import AutoencoderRecipe, ModelRecipe, TrainingStage, WorldLevel, read_recipe, write_recipe
from ace.training.plan import Device, plan
from ace.training.speed import this_device
from ace.weights.sources import SHIPPED_MODEL
from tests.random_models import TINY_LIKE, random_pipeline

RECIPES = Path(__file__).parents[2] / "recipes"
A800 = Device("an A800", 125.0)


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
        ('kind = "model"\nlearning_rate = 1', "unknown key 'learning_rate'"),
        ('kind = "gan"', "kind is 'gan'"),
        ('kind = "model"', "no [[stage]]"),
        ("kind = ", "not valid TOML"),
        ('kind = "model"\n[[stage]]\nname = "a"\nsamples = 64\nlr = 1e-3\nepochs = 3', "unknown key 'stage.1.epochs'"),
        (
            'kind = "model"\n[[stage]]\nname = "a"\nsamples = 64\nlr = 1e-3\nschedule = "step"',
            "stage.1.schedule is 'step': use 'constant', 'linear' or 'cosine'",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tmp_path: Path, text: str, says: str):
    if "[[stage]]" not in text and "no [[stage]]" not in says:
        text += '\n[[stage]]\nname = "a"\nsamples = 64\nlr = 1e-3'
    with pytest.raises(ConfigError) as caught:
        read_recipe(write(tmp_path, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value).split("TOML:")[0]


def test_a_stage_knows_the_levels_of_the_world():
    assert set(get_args(WorldLevel)) == set(LEVELS)
    with pytest.raises(ConfigError, match="level is 'three': use 'one', 'two'"):
        TrainingStage("a", lr=1.0, steps=1, level="three")


def test_a_missing_recipe_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        read_recipe(tmp_path / "nowhere.toml")


def test_a_stage_warms_up_and_comes_down():
    stage = TrainingStage("a", samples=3200, lr=1.0, batch_size=32, schedule="linear", warmup_steps=10)
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
    made = plan(recipe, A800)
    assert made.weight_bytes > 0 and made.activation_bytes > 0
    assert [stage.name for stage in made.stages] == [stage.name for stage in recipe.stages]


def test_the_papers_four_stages_are_one_recipe():
    recipe = read_recipe(RECIPES / "ace-0.6b.toml")
    table = [(s.sequence_length, s.max_images, s.steps, s.batch_size) for s in recipe.stages]
    assert table == [(1024, 1, 900_000, 800), (1024, 9, 100_000, 400), (1024, 9, 500_000, 400), (4096, 9, 100_000, 960)]
    assert 600e6 < plan(recipe, A800).parameters < 620e6


def test_a_plan_is_for_a_device_and_says_whether_its_memory_is_enough():
    recipe = read_recipe(RECIPES / "ace-0.6b.toml")
    slow, fast = (plan(recipe, Device("a card", tflops, 8 * 2**30), devices=8) for tflops in (50.0, 100.0))
    assert slow.hours == pytest.approx(2 * fast.hours)
    assert plan(recipe, Device("a card", 100.0), devices=16).hours == pytest.approx(fast.hours / 2)
    words = "\n".join(fast.lines())
    assert "8 x a card, 100.0 Tflop/s" in words and "there are 8.0 GiB, too little" in words
    assert "there are" not in "\n".join(plan(recipe, A800).lines()), (
        "the memory of a card that is not here is not known"
    )
    for tflops in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="more than 0"):
            Device("nothing", tflops)


def test_a_dry_run_needs_nothing_that_the_recipe_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    recipe = str(RECIPES / "ace-0.6b.toml")
    said = CliRunner().invoke(
        app, ["train", recipe, "--dry-run", "--devices", "64", "--device-tflops", "125", "--json"]
    )
    assert said.exit_code == 0, said.output
    made = json.loads(said.stdout)
    assert made["device"]["tflops"] == 125 and made["devices"] == 64
    assert [stage["steps"] for stage in made["stages"]] == [900_000, 100_000, 500_000, 100_000]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_times_the_recipes_own_steps_and_a_runs_end_says_how_to_use_it(tmp_path: Path):
    random_pipeline(TINY_LIKE, budget=16).save_pretrained(tmp_path / "model")
    (tmp_path / "pairs").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "pairs" / "a.png")
    row = {"instruction": "make it red", "images": ["a.png"], "target": "a.png"}
    (tmp_path / "pairs" / "list.jsonl").write_text(json.dumps(row) + "\n")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'kind = "model"\ninit = "{tmp_path / "model"}"\nmixed_precision = "no"\nnum_workers = 0\n[lora]\nrank = 2\n'
        f'[[data]]\nname = "mine"\nkind = "jsonl"\npath = "{tmp_path / "pairs"}"\n'
        '[[stage]]\nname = "adapt"\nsteps = 3\nbatch_size = 2\nlr = 1e-3\n'
    )
    planned = CliRunner().invoke(app, ["train", str(recipe), "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    (stage,) = json.loads(planned.stdout)["stages"]
    assert stage["step_s"] > 0 and stage["hours"] == pytest.approx(3 * stage["step_s"] / 3600)
    trained = CliRunner().invoke(app, ["train", str(recipe), "--output", str(tmp_path / "run"), "--quiet"])
    assert trained.exit_code == 0, trained.output
    trained = CliRunner().invoke(app, ["train", str(recipe), "--output", str(tmp_path / "run")])  # done already
    assert f'use it: ace edit photo.png "…" --lora {tmp_path / "run" / "adapter"} --model' in trained.output
    for name in ("list.jsonl", "a.png"):
        (tmp_path / "pairs" / name).unlink()
    (tmp_path / "pairs").rmdir()
    without = CliRunner().invoke(app, ["train", str(recipe), "--dry-run"])
    assert "no step could be run (data 'mine': there is no" in without.output and "in all" in without.output


def test_a_plan_to_go_on_from_a_published_model_needs_no_weights_of_it():
    recipe = dataclasses.replace(read_recipe(RECIPES / "lora.toml"), init="ace-0.6b-512")
    assert 600e6 < plan(recipe, A800).parameters < 620e6
    named, folder = (dataclasses.replace(recipe, init=init) for init in ("ace-tiny", str(SHIPPED_MODEL)))
    assert plan(named, A800) == plan(folder, A800)
    larger = dataclasses.replace(folder, patch_size=4)
    tokens = [[stage.tokens for stage in plan(one, A800).stages] for one in (folder, larger)]
    assert tokens[0] == tokens[1], "larger patches on larger pictures"
    assert plan(recipe, A800).stages[0].tokens == 8 * 2 * 1024


def test_this_machine_is_measured():
    device = this_device("no")
    assert 0.001 < device.tflops < 10_000 and device.memory_bytes > 2**30
    made = plan(read_recipe(RECIPES / "tiny.toml"), device)
    assert device.name in "\n".join(made.lines())


def test_overrides_take_the_place_of_what_the_recipe_says(tmp_path: Path):
    path = RECIPES / "tiny.toml"
    plain = read_recipe(path)
    changed = read_recipe(path, ["seed=3", "stage.lr=5e-5", "stage.2.steps=7", "tracker=none", "stage.1.batch_size=16"])
    assert (changed.seed, changed.tracker) == (3, "none")
    assert [stage.lr for stage in changed.stages] == [5e-5, 5e-5]
    assert [stage.steps for stage in changed.stages] == [plain.stages[0].samples // 16, 7]
    assert read_recipe(RECIPES / "lora.toml", ["lora.rank=2", "data.1.path=elsewhere"]).lora.rank == 2
    write_recipe(changed, tmp_path / "recipe.toml")
    assert read_recipe(tmp_path / "recipe.toml") == changed


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("seed=nan", "seed is nan: use a whole number"),
        ("stage.lr=-1", "stage.1.lr is -1: use a number above 0"),
        ("stage.3.lr=1", "tiny.toml has no 'stage.3' to set 'lr' in"),
        ("stage.0.lr=1", "has no 'stage.0'"),
        ("lora.rank=3", "has no 'lora'"),
        ("learning_rate=3", "unknown key 'learning_rate'"),
        ("kind=gan", "kind is 'gan'"),
        ("stage=3", "stage is 3: use a list"),
        ("a.b.c=3", "has no 'a.b'"),
        ("size_px.x=3", "has no 'size_px'"),
    ],
)
def test_an_override_of_nothing_or_by_nonsense_is_refused(override: str, says: str):
    with pytest.raises(ConfigError) as caught:
        read_recipe(RECIPES / "tiny.toml", [override])
    assert says in str(caught.value)


def test_a_wrong_option_of_ace_train_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    recipe = str(RECIPES / "tiny.toml")
    for options, says in (
        (["--lr", "nan"], "stage.1.lr is nan: use a finite number"),
        (["--steps", "0"], "stage.1"),
        (["--seed", "-1"], "seed is -1: use 0 or more"),
        (["--set", "betas=['x', 'y']"], "betas.1 is 'x': use a number"),
        (["--device-tflops", "3"], "--device-tflops describes an estimate: add --dry-run"),
    ):
        said = CliRunner().invoke(app, ["train", recipe, *options])
        assert said.exit_code == 2 and says in said.stderr, said.output
        assert said.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_of_ace_train_override_the_recipe_in_its_estimate(tmp_path: Path):
    recipe = str(RECIPES / "lora.toml")
    said = CliRunner().invoke(
        app, ["train", recipe, "--dry-run", "--device-tflops", "1", "--steps", "12", "--set", "lora.rank=1", "--json"]
    )
    made = json.loads(said.stdout)
    assert made["stages"][0]["steps"] == 12
    assert made["trained"] * 16 == plan(read_recipe(RECIPES / "lora.toml"), A800).trained
