"""Each room's doors exist and are documented, and what should be light to import is."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ace

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.parent.name for path in (ROOT / "ace").glob("*/__init__.py"))
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "scipy", "fastapi")


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_doors_can_be_imported_and_say_what_they_are(room):
    module = importlib.import_module(f"ace.{room}")
    assert module.__doc__
    assert module.__all__, "a room lists its doors"
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        door = getattr(module, name)
        if inspect.isclass(door) or inspect.isroutine(door):
            assert inspect.getdoc(door), f"ace.{room}.{name} has no docstring"


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_page_names_every_door(room):
    page = (ROOT / "docs" / f"{room}.md").read_text(encoding="utf-8")
    missing = [name for name in importlib.import_module(f"ace.{room}").__all__ if f"`{name}" not in page]
    assert not missing, f"docs/{room}.md does not name {', '.join(missing)}"


def test_the_packages_own_names_are_there():
    for name in ace.__all__:
        assert getattr(ace, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ace.no_such_name


ROOMS_WITHOUT_TORCH = ("errors", "conditions", "conversation", "families", "plus", "weights", "cli")
LIGHT = ("ace", *(f"ace.{name}" for name in ROOMS_WITHOUT_TORCH))


def test_importing_what_is_light_loads_nothing_heavy():
    code = f"import importlib, sys\nfor name in {LIGHT!r}:\n    importlib.import_module(name)\n"
    code += f"    print(name, [heavy for heavy in {HEAVY!r} if heavy in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} []" for name in LIGHT]


def test_every_error_is_a_subclass_of_ace_error_and_documented():
    from ace import errors

    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert classes
    for error in classes:
        assert issubclass(error, errors.AceError)
        assert inspect.getdoc(error)


def test_no_two_classes_have_the_same_name():
    places: dict[str, list[str]] = {}
    for file in sorted((ROOT / "ace").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice, "give each of these a name of its own"
