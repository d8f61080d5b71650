"""Every code block of the README and the docs runs as written: Python from nothing, commands by verbs and options that
exist. What needs a network or large weights is compiled, and named here with its reason."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# first words of blocks that are not run here
ELSEWHERE = {
    'find_family("hf://': "weights from the hub",
    "load_plus(files)": "weights of FLUX.1-Fill",
    'OpenAI(base_url="http://127.0.0.1:8000': "a server that runs; tests/server does this",
}
SLOW = ("evaluate_world(", "compile_blocks(")


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and line, text) of every block."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"```{language}\n(.*?)```", text, re.DOTALL):
            found.append((f"{page.name}:{text[: match.start()].count(chr(10)) + 2}", match[1]))
    return found


def marked(place: str, code: str):
    return pytest.param(code, id=place, marks=pytest.mark.slow if any(word in code for word in SLOW) else ())


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A folder with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").resize((128, 96)).convert("RGB").save("photo.png")
    return tmp_path


def write_adapters(folder: Path) -> None:
    from ace import load_tiny
    from ace.training.adapters import add_lora, save_lora
    from ace.training.config import Lora

    transformer = load_tiny().transformer
    add_lora(transformer, Lora(rank=2))
    save_lora(transformer, Lora(rank=2), folder / "faces")
    for name in ("drawing", "other"):
        (folder / f"{name}.safetensors").write_bytes((folder / "faces" / "adapter_model.safetensors").read_bytes())


@pytest.mark.parametrize("code", [marked(*block) for block in blocks("python")])
def test_a_python_block_runs_as_written(code, prepared):
    compiled = compile(code, "block.py", "exec")
    if any(word in code for word in ELSEWHERE):
        return
    if "attach_adapters" in code:
        write_adapters(prepared)
    exec(compiled, {"__name__": "__main__"})


def commands() -> list[tuple[str, str]]:
    lines = [(place, line.strip()) for place, text in blocks("sh") for line in text.splitlines()]
    return [(place, line) for place, line in lines if line.startswith(("ace ", "make "))]


def test_every_command_is_a_verb_with_options_that_exist():
    from typer.main import get_command

    from ace.cli import app

    assert len(commands()) > 50
    for place, line in commands():
        if line.startswith("make"):
            continue
        words = shlex.split(line, comments=True)[1:]
        verb = get_command(app)
        while hasattr(verb, "commands") and words and words[0] in verb.commands:
            verb = verb.commands[words.pop(0)]
        known = {option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)}
        known |= {"--help", "-h"}
        given = {word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
        assert given <= known, f"{place}: {line}"


def test_every_make_word_is_a_target():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for place, line in commands():
        if line.startswith("make "):
            assert line.split()[1] in targets, place


def test_nothing_is_installed_from_an_index_that_has_no_ace():
    for page in PAGES:
        assert "install ace-allround" not in page.read_text(encoding="utf-8"), page.name
        assert "install 'ace-allround" not in page.read_text(encoding="utf-8"), page.name
