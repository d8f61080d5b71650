"""The same bytes in any company with every way to hold the weights and every addition that the promise covers.

Four requests are made in one list by a model that was just loaded and has nothing in its caches; each again alone, by
the same model with all of it in its caches; and alone by another one with empty caches. ACE++: `test_cli_plus.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ace.cli import app
from ace.conversation import open_message
from ace.conversation.recipe import encode
from ace.conversation.run import conclude
from ace.families.ace import AceFamily
from ace.inference.refine import Refiner
from ace.weights.memory import plan_memory
from ace.weights.sources import find_model, load_pipeline
from tests.inference.test_refine import SETTINGS, flux
from tests.random_models import PUBLISHED_LIKE, TINY_LIKE, random_pipeline
from tests.test_same_bytes import draw_message


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    random_pipeline(TINY_LIKE, num_inference_steps=2).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> Callable[[str], None]:
    """A function that says which folder of caches is used from now on."""

    def use(name: str) -> None:
        monkeypatch.setenv("ACE_CACHE", str(tmp_path / name))

    use("first")
    return use


def files(family: AceFamily, together: bool) -> list[bytes]:
    """The PNG files of four requests, in one list or each by itself."""
    jobs = [open_message(family, *draw_message(number, (), family.model.side_px)) for number in range(4)]
    made = []
    for some in [jobs] if together else [[job] for job in jobs]:
        states = family.prepare(some)
        while running := [state for state in states if not state.done]:
            family.step(running)
        made += [conclude(family, *pair) for pair in zip(some, family.finish(states), strict=True)]
    return [encode(one.image, "PNG", one.recipe) for one in made]


def check(load: Callable[[], AceFamily], caches: Callable[[str], None]) -> None:
    family = load()
    in_a_list, warm = files(family, together=True), files(family, together=False)
    caches("second")
    cold = files(load(), together=False)
    assert len(set(cold)) == 4
    assert in_a_list == cold
    assert warm == cold


@pytest.mark.parametrize("text", ["kept", "freed", "streamed", "8bit"])
def test_text_encoders_on_disk_and_in_8_bits_and_what_is_cached_of_them(text, folder, caches):
    if text == "8bit":
        pytest.importorskip("torchao")
    model = find_model(str(folder))
    plan = dataclasses.replace(plan_memory(folder, model.budget, "lean"), text=text)
    check(lambda: AceFamily(model, load_pipeline(model, device="cpu", memory=plan)), caches)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantised_transformers(kind, tmp_path, caches):
    pytest.importorskip("torchao")
    random_pipeline(PUBLISHED_LIKE, num_inference_steps=2).save_pretrained(tmp_path / "plain")
    command = ["quantize", str(tmp_path / "plain"), "--to", kind, "--output", str(tmp_path / "small")]
    written = CliRunner().invoke(app, command, prog_name="ace")
    assert written.exit_code == 0, written.output
    model = find_model(str(tmp_path / "small"))
    check(lambda: AceFamily(model, load_pipeline(model, device="cpu")), caches)


def test_refined_pictures(folder, caches):
    refiner = Refiner(flux(), "small", SETTINGS)

    def load() -> AceFamily:
        family = AceFamily(find_model(str(folder)), load_pipeline(find_model(str(folder)), device="cpu"))
        family._refiner = refiner  # what `Loading.refine` brings is for pictures of a thousand pixels a side
        return family

    check(load, caches)
