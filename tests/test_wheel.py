"""What `pip install` brings: the wheel holds all code and everything the small model needs, and nothing else."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "ace" / "tiny"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        yield archive


def tracked(folder: Path) -> set[str]:
    """The files of a folder that git tracks, relative to the checkout."""
    listed = subprocess.run(["git", "ls-files", str(folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def test_the_wheel_holds_every_file_of_the_package(wheel):
    expected = tracked(ROOT / "ace")
    assert expected
    assert expected <= set(wheel.namelist())


def test_the_wheel_holds_the_small_model_and_its_sprites(wheel):
    names = set(wheel.namelist())
    assert any(name.startswith("ace/tiny/checkpoint/") and name.endswith("model_index.json") for name in names)
    assert any(name.startswith("ace/tiny/checkpoint/transformer/") and name.endswith(".safetensors") for name in names)
    assert any(name.startswith("ace/tiny/checkpoint/vae/") and name.endswith(".safetensors") for name in names)
    assert any(name.startswith("ace/tiny/world/") for name in names)


def test_the_wheel_holds_nothing_but_the_package_and_its_licences(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ace"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name]
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_the_shipped_weights_stay_small():
    weights = [ROOT / name for name in tracked(SHIPPED) if name.endswith(".safetensors")]
    assert sum(file.stat().st_size for file in weights) <= 60_000_000


def test_the_metadata_names_the_command_and_every_extra(wheel):
    info = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(info).decode())
    assert metadata["Name"] == "ace-allround"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    extras = set(metadata.get_all("Provides-Extra"))
    assert {"train", "data", "eval", "server", "web", "quant"} <= extras
    entry_points = wheel.read(info.replace("METADATA", "entry_points.txt")).decode()
    assert "ace = ace.cli:main" in entry_points
