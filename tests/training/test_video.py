"""A LoRA of a small VACE model learns from clips of the world, and a killed run ends with the same weights."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ace.cli import app
from ace.data.world.clips import write_clips
from ace.errors import ConfigError, DataError
from ace.training import video
from ace.training.config import VideoRecipe, read_recipe
from ace.training.video import WEIGHTS, read_list, train_video
from tests.random_video import save_vace


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vace")
    save_vace(folder / "model")
    list(write_clips(folder / "set", 1, 32, 5))
    text = f'kind = "vace"\ninit = "{folder / "model"}"\nclips = "{folder / "set"}"\n'
    (folder / "r.toml").write_text(
        text + "steps = 24\nlr = 0.02\nrank = 4\nframes = 5\narea_px = 1024\nsave_steps = 3\n"
    )
    return folder / "r.toml"


def test_the_loss_falls_and_a_killed_run_ends_with_the_same_weights(recipe, tmp_path, monkeypatch):
    wanted = read_recipe(recipe)
    assert isinstance(wanted, VideoRecipe)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    result = CliRunner().invoke(app, ["train", str(recipe), "-o", str(whole), "--quiet"])
    assert result.exit_code == 0, result.output
    losses = [json.loads(line)["loss"] for line in (whole / "losses.jsonl").read_text().splitlines()]
    assert np.mean(losses[-8:]) < np.mean(losses[:8])

    real, calls = video._loss, iter(range(100))

    def until_killed(*arguments):
        if next(calls) == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(video, "_loss", until_killed)
    with pytest.raises(KeyboardInterrupt):
        train_video(wanted, killed, quiet=True)
    monkeypatch.setattr(video, "_loss", real)
    again = train_video(wanted, killed, quiet=True)
    assert again == losses[6:]  # from the checkpoint of step 6
    one, other = load_file(whole / WEIGHTS), load_file(killed / WEIGHTS)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_list_names_files_beside_it_only(tmp_path):
    path = tmp_path / "clips.jsonl"
    for line in ('{"video": "a.mkv"}', '{"video": "../a.mkv", "mask": "m.mkv", "instruction": "x"}', "no json"):
        path.write_text(line)
        with pytest.raises(DataError, match=r"line 1 of clips\.jsonl"):
            read_list(path)
    path.write_text(json.dumps({"video": "a.mkv", "mask": "m.mkv", "instruction": "a cat"}))
    assert read_list(tmp_path)[0].video == tmp_path / "a.mkv"


def test_a_recipe_of_clips_has_no_stages_and_4n_plus_1_frames(recipe, tmp_path):
    for line, words in (("frames = 12", "4n"), ("[[stage]]\nname = 'x'", "stage")):
        (tmp_path / "r.toml").write_text('kind = "vace"\ninit = "a"\nclips = "b"\n' + line)
        with pytest.raises(ConfigError, match=words):
            read_recipe(tmp_path / "r.toml")
