"""What the README tells a stranger to type does what it says."""

import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def the_two_commands() -> list[str]:
    """The first shell block's commands, without their comments."""
    lines = [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()]
    return [line for line in lines if line]


def test_the_readme_begins_with_two_commands():
    assert the_two_commands() == ["make demo", "make test"]


@pytest.mark.parametrize("command", the_two_commands())
def test_the_makefile_knows_the_command_and_needs_nothing_else(command):
    told = subprocess.run(["make", "-n", "-C", str(ROOT), *command.split()[1:]], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    does = {"make demo": "/ace demo", "make test": "-m pytest"}[command]
    assert does in told.stdout


def test_continuous_integration_runs_the_same_commands():
    steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert set(the_two_commands()) <= set(steps)


def test_the_python_lines_edit_a_picture(tmp_path, monkeypatch):
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (128, 128), "green").save("photo.png")
    exec(compile(code, "README.md", "exec"), {})
    with Image.open("blue.png") as image:
        assert image.size == (128, 128)


def test_the_command_lines_in_the_readme_are_verbs_with_options_that_exist():
    from typer.main import get_command

    from ace.cli import app

    commands = get_command(app).commands
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("ace ")]
    assert len(lines) >= 5
    for line in lines:
        verb, *rest = line.split("#")[0].split()[1:]
        known = {option for parameter in commands[verb].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known, line


def test_the_picture_is_there_and_was_made_by_the_demo():
    (name,) = re.findall(r"!\[[^]]*\]\((docs/images/demo\.png)\)", README)
    with Image.open(ROOT / name) as image:
        assert image.width > 1000
