"""The examples of docs/plus-examples.md are commands that run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from ace.cli import app
from tests.plus.test_sources import adapter_file
from tests.random_flux import SMALL_FFT, published_state, random_plus

PAGE = Path(__file__).parents[1] / "docs" / "plus-examples.md"
COMMANDS = re.findall(r"\| `(ace edit .*?)` \|", PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("plus")
    random_plus().save_pretrained(root / "fill")
    save_file(published_state(random_plus(SMALL_FFT, seed=4).transformer), root / "fft.safetensors")
    adapter_file(root / "lora.safetensors")
    return root


def test_every_row_of_the_published_tables_is_there():
    text = PAGE.read_text(encoding="utf-8")
    fully_tuned, rest = text.split("## LoRA models")
    assert len(re.findall(r"ace-plus-fft", fully_tuned)) >= 12
    assert {f"ace-plus-{name}" for name in ("portrait", "subject", "local")} <= set(re.findall(r"ace-plus-\w+", rest))
    assert len(COMMANDS) == text.count("`ace edit ")


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_an_example_runs_and_gives_a_picture_of_the_right_size(command, models, tmp_path, monkeypatch):
    from ace.extract import exact

    monkeypatch.setattr("ace.extract.draw_signal", lambda name, image: exact.canny(image))  # weights are not here
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUX_FILL_PATH", str(models / "fill"))
    monkeypatch.setenv("ACE_PLUS_FFT_MODEL", str(models / "fft.safetensors"))
    for name in ("PORTRAIT", "SUBJECT", "LOCAL"):
        monkeypatch.setenv(f"{name}_MODEL_PATH", str(models / "lora.safetensors"))
    arguments = shlex.split(command)[1:]
    for number, name in enumerate(sorted(set(re.findall(r"[\w-]+\.png", command)))):
        noise = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        drawn = Image.fromarray(noise)
        if name.endswith("-mask.png"):
            drawn = Image.new("L", (64, 48), 0)
            drawn.paste(255, (10, 10, 40, 30))
        drawn.save(name)
    edits = arguments[1].endswith(".png")
    several = "--out-dir" in arguments
    small = ["--steps", "1", *([] if several else ["-o", "out.png"]), *([] if edits else ["--size", "48x48"])]
    result = CliRunner().invoke(app, [*arguments, *small], prog_name="ace")
    assert result.exit_code == 0, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    made = sorted(Path(arguments[arguments.index("--out-dir") + 1]).iterdir()) if several else [Path("out.png")]
    assert len(made) == (8 if several else 1)
    for path in made:
        with Image.open(path) as picture:
            assert picture.size == ((64, 48) if edits else (48, 48))
