"""What a message about a missing part tells people to type works where it is printed."""

import json
import sys
from pathlib import Path

import pytest

from ace import extras

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def afresh():
    extras.install_command.cache_clear()
    yield
    extras.install_command.cache_clear()


def test_in_a_checkout_it_names_the_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert extras.install_command("data").endswith("pip install -e '.[data]'")
    extras.install_command.cache_clear()
    monkeypatch.chdir(tmp_path)
    assert extras.install_command("data").endswith("-e '.[data]' (in the folder that ace was installed from)")


def test_an_installed_package_names_where_it_came_from(monkeypatch, tmp_path):
    origins: list[str | None] = [None]

    class Installed:
        def read_text(self, name: str) -> str | None:
            return origins[0]

    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "ace" / "extras.py"))
    monkeypatch.setattr(extras, "distribution", lambda name: Installed())
    monkeypatch.chdir(tmp_path)
    for origin, end in (
        (json.dumps({"url": tmp_path.as_uri(), "dir_info": {}}), "pip install '.[web,train]'"),
        (json.dumps({"url": "https://example.org/ace.whl"}), "pip install 'ace-allround[web,train]'"),
        (None, "pip install 'ace-allround[web,train]'"),
    ):
        origins[0] = origin
        extras.install_command.cache_clear()
        assert extras.install_command("web", "train").endswith(end)


def test_the_pip_is_that_of_this_python(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "pip").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setenv("PATH", "")
    assert extras.install_command("web").startswith(str(Path(".venv", "bin", "pip")))
