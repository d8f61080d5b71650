"""Adapters that come with a request: only that request is made with them, whatever ran before."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ace.conversation.family import Loading
from ace.conversation.job import Settings
from ace.conversation.message import Message, open_message
from ace.conversation.run import make
from ace.families import find_family
from ace.server.engine import Engine
from ace.training.adapters import add_lora, save_lora
from ace.training.config import Lora
from tests.random_models import TINY_LIKE, random_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("switch")
    pipeline = random_pipeline(TINY_LIKE, budget=16, num_inference_steps=2)
    pipeline.save_pretrained(made / "model")
    for number, name in enumerate(("old", "wet")):
        pipeline = random_pipeline(TINY_LIKE, budget=16, num_inference_steps=2)
        add_lora(pipeline.transformer, Lora(rank=4))
        torch.manual_seed(number)
        with torch.no_grad():
            for key, parameter in pipeline.transformer.named_parameters():
                if "lora_B" in key:
                    parameter.copy_(0.1 * torch.randn(parameter.shape))
        save_lora(pipeline.transformer, Lora(rank=4), made / name)
    return made


def loaded(folder, *adapters: str):
    family = find_family(str(folder / "model"), Loading(device="cpu", adapters=adapters))
    family.load(Loading(device="cpu", adapters=adapters))
    return family


def job(family, *adapters):
    return open_message(family, Message("a red apple", Settings(seed=1, adapters=adapters)))


def test_a_request_with_adapters_gets_them_and_the_next_without_is_untouched(folder):
    family = loaded(folder)
    old, wet = (folder / "old", 1.0), (folder / "wet", 0.5)

    def pixels(*adapters) -> bytes:
        (made,) = make(family, [job(family, *adapters)])
        recorded = json.loads(str(made.recipe.settings.get("adapters", "[]")))
        assert [(one["name"], one["weight"]) for one in recorded] == [(path.name, weight) for path, weight in adapters]
        return made.image.tobytes()

    plain = pixels()
    first = pixels(old)
    assert len({plain, first, pixels(wet), pixels(old, wet)}) == 4
    assert pixels() == plain and pixels(old) == first
    (named,) = make(loaded(folder, str(folder / "old")), [job(family)])
    assert named.image.tobytes() == first  # as when the model is loaded with it


def test_adapters_of_the_start_stay_and_others_come_on_top(folder):
    family = loaded(folder, str(folder / "old"))
    (both,) = make(family, [job(family, (folder / "wet", 1.0))])
    (alone,) = make(family, [job(family)])
    assert [one["name"] for one in json.loads(str(both.recipe.settings["adapters"]))] == ["old", "wet"]
    assert [one["name"] for one in family.describe()["adapters"]] == ["old"]
    assert [one["name"] for one in json.loads(str(alone.recipe.settings["adapters"]))] == ["old"]
    assert both.image.tobytes() != alone.image.tobytes()


def test_in_one_engine_requests_with_other_adapters_take_turns(folder):
    family = loaded(folder)
    jobs = [job(family), job(family, (folder / "old", 1.0)), job(family), job(family, (folder / "wet", 1.0))]
    alone = [make(family, [one])[0].image.tobytes() for one in jobs]
    engine = Engine(family)
    engine.start()
    try:
        requests = engine.submit([replace(one) for one in jobs], "somebody")
        together = [request.result.result(timeout=120).image.tobytes() for request in requests]
    finally:
        engine.stop()
    assert together == alone
    assert np.unique([hash(one) for one in together]).size == 3
