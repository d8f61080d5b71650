"""Recipes from strangers: whatever one holds, reading it ends in a recipe or in one line that says what is wrong."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ace.data import recipe as data_recipe
from ace.errors import AceError, ConfigError
from ace.settings import build
from ace.training.config import AutoencoderRecipe, ModelRecipe, PlusRecipe, TrainingStage, read_recipe, resolved
from ace.training.plan import Device, plan

RECIPES = Path(__file__).parents[1] / "recipes"
A800 = Device("an A800", 125.0)
EXAMPLES = int(os.environ.get("ACE_EXAMPLES", "60"))  # per schema; raise it for a long hunt

DATA = {
    "seed": 5,
    "source": {"path": "pictures", "kind": "folder", "relation": "series", "limit": 4},
    "mine": {"relation": "series", "feature_low": 0.5, "score_high": 1.0, "encoder": "vgg"},
    "synthesize": {"tasks": ["repainting"], "samples_per_task": 3},
    "models": {"face": "arcface.onnx", "steps": 20},
    "label": {"by": "endpoint", "endpoint": "http://127.0.0.1/v1", "model": "m", "pairs": True},
    "filter": {"benchmarks": ["bench"], "words": ["blood"], "held_out": 0.1},
    "output": {"quality": 80},
}
STAGE = {"name": "only", "samples": 64, "lr": 1e-3, "tasks": {"repainting": 1.0}}
WHOLE: dict[str, dict[str, Any]] = {
    "autoencoder": {"kind": "autoencoder", "stage": [{k: v for k, v in STAGE.items() if k != "tasks"}]},
    "model": {
        "kind": "model",
        "init": "ace-tiny",
        "stage": [STAGE],
        "lora": {"rank": 4, "targets": ["to_q"]},
        "data": [{"name": "world", "kind": "world"}],
    },
    "plus": {
        "kind": "plus",
        "init": "flux",
        "stage": [{"name": "only", "steps": 3, "lr": 1e-3}],
        "data": [{"name": "pairs", "kind": "csv", "path": "pairs.csv"}],
    },
    "data": DATA,
}

# what a hostile or hurried author may write where a value belongs
WRONG = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.sampled_from([0, -1, 1, 2**31, 2**63, 10**6, 10**9]),
        st.floats(allow_nan=True, allow_infinity=True),
        st.text(max_size=20),
        st.sampled_from(["", "\x1b[31m", "a\x00b", "~nobody-at-all/x", "/", "../" * 40, "x" * 5000, "ace-0.6b-512"]),
        st.dates(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def read(kind: str, path: Path) -> object:
    """A recipe as its door reads it; one for training is planned too, as `ace train --dry-run` does."""
    if kind == "data":
        return data_recipe.read_recipe(path)
    recipe = read_recipe(path)
    plan(recipe, A800)
    return recipe


def places(table: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where a table can be disturbed: every value in it, and a new key beside it."""
    members = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    found = [place for key, value in members for place in (*places(value, (*path, key)), (*path, key))]
    return [*found, (*path, "surprise")] if isinstance(table, dict) else found


def every_key(kind: str) -> dict[str, Any]:
    """A whole recipe with every setting written out, defaults included, so that each of them is disturbed too."""
    if kind == "data":
        recipe = build(data_recipe.DataRecipe, WHOLE[kind], kind)
        return json.loads(
            json.dumps(dataclasses.asdict(recipe)), object_hook=lambda t: {k: t[k] for k in t if t[k] is not None}
        )
    table = dict(WHOLE[kind])
    cls = {"autoencoder": AutoencoderRecipe, "model": ModelRecipe, "plus": PlusRecipe}[table.pop("kind")]
    return json.loads(json.dumps(resolved(build(cls, table, kind, {"stages": "stage"}))))


EVERY_KEY = {kind: every_key(kind) for kind in WHOLE}


@pytest.mark.parametrize("kind", list(WHOLE))
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_wrong_value_anywhere_in_a_recipe_is_one_line_of_ours(kind: str, tmp_path: Path, data: st.DataObject):
    table = copy.deepcopy(EVERY_KEY[kind])
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(places(table)))
        inner: Any = table
        for part in place[:-1]:
            inner = inner[part]
        inner[place[-1]] = data.draw(WRONG)
    file = tmp_path / "recipe.toml"
    try:
        file.write_text(tomli_w.dumps(table), encoding="utf-8")
    except (ValueError, TypeError, UnicodeError):
        return  # nothing that TOML can say
    said = ""
    try:
        read(kind, file)
    except AceError as error:
        said = str(error)
    assert said.isprintable() and len(said) < 1500


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('betas = ["x", "y"]', "betas.1 is 'x': use a number (and 1 more)"),
        ("betas = [0.9]", "betas has too few values"),
        ("clip_norm = nan", "clip_norm is nan: use a finite number"),
        ("ema_decay = 9.99", "ema_decay is 9.99: use a number below 1"),
        ("text_dropout = 10", "text_dropout is 10: use 1 or less"),
        ("size_px = 1_000_000", "size_px is 1000000: use 8192 or less"),
        ("seed = 1.5", "seed is 1.5: use a whole number"),
        ("spell_quoted = 1", "spell_quoted is 1: use true or false"),
        ("preset = 3", 'preset is 3: use text in "quotes"'),
        ("optimizer = 'sgd'", "optimizer is 'sgd': use 'adamw', 'adamw_8bit', 'adafactor' or 'muon'"),
        ("learning_rate = 1", "unknown key 'learning_rate': use stage, size_px, seed"),
        ("cache = 1979-05-27", "1979-05-27 is a date or time"),
        ("lora = 3", "lora is 3: use a table"),
        ("a = " + "[" * 100_000, "is nested too deeply"),
        ("a = 0x" + "f" * 10_000, "a table or number in it is too large"),
        ("a = '" + "x" * 2**20 + "'", "that is no recipe"),
        ("init = '\x1b[31m'", "is not valid TOML"),
        ('init = "\\u001b[31m"', r"init is '\x1b[31m': control characters"),
    ],
)
def test_a_wrong_setting_of_a_training_recipe_is_named_with_what_is_allowed(tmp_path: Path, line: str, says: str):
    file = tmp_path / "mine.toml"
    file.write_text(f'kind = "model"\n{line}\n[[stage]]\nname = "a"\nsamples = 64\nlr = 1e-3\n')
    with pytest.raises(ConfigError) as caught:
        read_recipe(file)
    assert says in str(caught.value) and str(caught.value).startswith("mine.toml")


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"lr": float("nan")}, "stage.2.lr is nan: use a finite number"),
        ({"lr": -1e-3}, "stage.2.lr is -0.001: use a number above 0"),
        ({"epochs": 3}, "unknown key 'stage.2.epochs': use name, samples, lr"),
        ({"tasks": {"cooking": 1.0}}, "stage.2: unknown task 'cooking'"),
        ({"tasks": {"repainting": 0.0}}, "stage.2: all weights of tasks are 0"),
        ({"samples": 3}, "stage.2: its length is 3 samples: use at least batch_size, 32"),
        ({"batch_tokens": 100}, "stage.2: give its length in steps"),
    ],
)
def test_a_wrong_setting_of_a_stage_says_which_stage(tmp_path: Path, stage: dict[str, Any], says: str):
    first = {"name": "a", "samples": 64, "lr": 1e-3}
    (tmp_path / "r.toml").write_text(tomli_w.dumps({"kind": "model", "stage": [first, {**first, **stage}]}))
    with pytest.raises(ConfigError) as caught:
        read_recipe(tmp_path / "r.toml")
    assert str(caught.value).startswith(f"r.toml: {says}")


def test_settings_made_in_python_are_checked_as_those_of_a_file():
    with pytest.raises(ConfigError, match=r"TrainingStage: lr is nan: use a finite number"):
        TrainingStage("a", samples=64, lr=float("nan"))
    with pytest.raises(ConfigError, match=r"Mining: feature_low is -3: use -1 or more"):
        data_recipe.Mining(feature_low=-3)
    stage = TrainingStage("a", samples=64, lr=1e-3)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        dataclasses.replace(stage, batch_size=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage.lr = 1.0  # type: ignore[misc]


# What version 0.1 wrote beside its runs, for each kind of recipe.
OF_VERSION_0_1 = Path(__file__).parent / "training" / "recipes-0.1"


@pytest.mark.parametrize("path", sorted(OF_VERSION_0_1.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipe_of_an_old_run_folder_means_what_it_meant(path: Path):
    assert read_recipe(path) == read_recipe(RECIPES / path.name)
