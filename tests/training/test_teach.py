"""Ten pairs teach the model that ships an edit it does not know; a lesson that is stopped keeps what it learnt."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from ace.cli import app
from ace.data.world import World
from ace.lesson import read_lesson
from ace.training.pairs import Pair
from ace.training.teach import error_to, teach

STEPS = 30


def sepia(picture: Image.Image) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(picture), (40, 20, 8), (255, 236, 196))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    world = World(128, "held_out")
    return [world.picture(100 + seed) for seed in range(11)]


def test_ten_pairs_teach_an_edit_by_command_and_the_printed_command_uses_it(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for side in ("before", "after"):
        (tmp_path / side).mkdir()
    for number, picture in enumerate(pictures[:10]):
        picture.save(tmp_path / "before" / f"{number}.png")
        sepia(picture).save(tmp_path / "after" / f"{number}.png")
    runner = CliRunner()
    said = runner.invoke(app, ["teach", "before", "after", "--name", "sepia", "--steps", str(STEPS)])
    assert said.exit_code == 0, said.output
    assert "the error to your answer fell by" in said.output
    lesson = read_lesson(tmp_path / "adapters" / "sepia")
    assert lesson is not None and lesson.status == "done" and lesson.pairs == 9
    assert lesson.error_before is not None and lesson.error_after is not None
    assert lesson.error_after < lesson.error_before / 2
    for name in ("adapter_model.safetensors", "comfyui.safetensors", "preview.png", "lesson.png"):
        assert (tmp_path / "adapters" / "sepia" / name).is_file(), name

    pictures[10].save(tmp_path / "photo.png")
    (line,) = [line for line in said.output.splitlines() if line.startswith("use it: ace edit photo.png ")]
    assert line.endswith('"sepia" --lora adapters/sepia')
    edited = runner.invoke(app, ["edit", "photo.png", "sepia", "--lora", "adapters/sepia", "-o", "out.png", "-s", "1"])
    assert edited.exit_code == 0, edited.output
    truth = sepia(pictures[10])
    assert error_to(Image.open(tmp_path / "out.png"), truth) < error_to(pictures[10], truth) / 2


def test_a_lesson_that_is_stopped_keeps_its_adapter_and_says_so(pictures, tmp_path):
    pairs = [Pair(str(number), picture, sepia(picture)) for number, picture in enumerate(pictures[:4])]
    asked: list[int] = []
    warned: list[str] = []

    def stopped() -> bool:
        asked.append(len(asked))
        held = json.loads((tmp_path / "lesson.json").read_text())
        assert held["status"] == "running" and held["step"] == len(asked) and held["steps"] == STEPS
        return len(asked) == 3

    lesson = teach(
        pairs, "old", "make it old", tmp_path, steps=STEPS, quiet=True, stopped=stopped, on_warning=warned.append
    )
    assert (lesson.status, lesson.step) == ("stopped", 3)
    assert lesson.error_after is None  # four pairs are too few to keep one apart
    assert any("4 pairs are few" in line for line in warned)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert np.asarray(Image.open(tmp_path / "preview.png")).std() > 0
