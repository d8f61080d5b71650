"""Approximate sampling: less work, a measured error, and still every request as if alone."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from ace.cli.options import FAST_NAMES
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.diffusion import seeded_generator
from ace.errors import ConfigError
from ace.inference.accelerate import FAST, WARM_UP, Fast, compile_blocks, fast_again, fast_by_name
from ace.inference.fast_error import known_error, measure_error
from ace.inference.pipeline import ACEPipeline, Request
from tests.inference.test_pipeline import furthest, mixture, picture
from tests.random_models import PUBLISHED_LIKE, random_pipeline


@pytest.fixture
def pipeline() -> ACEPipeline:
    return random_pipeline(PUBLISHED_LIKE)


def edit(seed: int = 5, **settings: object) -> Request:
    unit = LongContextConditionUnit(ConditionUnit("a dog", (picture(32, 32, 7),)))
    settings = {"num_inference_steps": 10, **settings}
    return Request(unit, generator=seeded_generator(seed), **settings)


@pytest.mark.parametrize("name", FAST)
def test_every_acceleration_saves_network_runs_and_its_error_is_measured(pipeline, name):
    pipeline.fast = fast_by_name(name)
    error = measure_error(pipeline, [edit(), edit(6)])
    assert pipeline.fast is FAST[name]
    assert error.runs[0] == 2 * 2 * 10
    assert error.runs[1] < error.runs[0]
    assert 0 < error.latents < 1
    assert error.levels >= 0
    assert str(error.runs[1]) in error.line()
    assert "levels" in error.line()


def test_an_acceleration_that_does_nothing_has_no_error(pipeline):
    error = measure_error(pipeline, [edit()], Fast())
    assert error.latents == 0
    assert error.levels == 0
    assert error.runs[0] == error.runs[1] == 20
    assert pipeline.fast is None


@pytest.mark.parametrize("name", FAST)
def test_a_request_is_accelerated_as_if_alone(pipeline, name):
    pipeline.fast = dataclasses.replace(fast_by_name(name), step_share=1.0)

    def longer() -> list[Request]:
        return [dataclasses.replace(r, num_inference_steps=2 * r.num_inference_steps) for r in mixture()[2:]]

    together = pipeline(requests=longer()).latents
    for number, packed in enumerate(together):
        (alone,) = pipeline(requests=longer()[number : number + 1]).latents
        assert furthest(packed, alone) <= 1e-5


def test_guidance_is_left_out_outside_its_interval(pipeline):
    pipeline.fast = Fast(guided=(0.25, 0.75))
    (state,) = pipeline.prepare([edit()])
    branches = []
    while not state.done:
        branches.append(len(state.active_branches))
        pipeline.step([state])
    assert branches == [1] * 3 + [2] * 5 + [1] * 2
    assert state.num_runs == sum(branches)


def test_more_steps_continued_is_less_work_and_more_error(pipeline):
    runs, errors = [], []
    for interval in (2, 4, 8):
        error = measure_error(pipeline, [edit(num_inference_steps=20)], Fast(cache_interval=interval))
        runs.append(error.runs[1])
        errors.append(error.latents)
    assert runs[0] > runs[1] > runs[2] >= 2 * (WARM_UP + 1)  # the first steps and the last are always computed
    assert 0 < errors[0] < errors[1] < errors[2]


def test_a_step_cache_forgets_finished_requests_and_is_gone_without(pipeline):
    pipeline.fast = FAST["cache"]
    first, second = pipeline.prepare([edit(), edit(6, num_inference_steps=6)])
    while not second.done:
        pipeline.step([first, second])
    hook = pipeline.transformer._diffusers_hook.get_hook("taylorseer_cache")
    assert list(hook.state_manager._state_cache) == [first.series]
    pipeline.fast = None
    with pytest.raises(ConfigError, match="as it was prepared"):
        pipeline.step([first])
    assert not pipeline.transformer.is_cache_enabled
    assert measure_error(pipeline, [edit()], Fast()).latents == 0


def test_an_error_is_measured_once_per_model_and_acceleration(pipeline, tmp_path):
    pipeline.fast = Fast(step_share=0.2, guided=(0.0, 0.5))
    first = known_error(pipeline, "model", tmp_path)
    assert first.num_requests == 2
    assert first.runs[1] < first.runs[0]
    assert len(list(tmp_path.iterdir())) == 1
    pipeline.transformer = None  # so that it cannot be measured again
    assert known_error(pipeline, "model", tmp_path) == first


def test_a_recipe_names_an_acceleration_and_keeps_its_steps():
    assert {name: fast.name for name, fast in FAST.items()} == {name: name for name in FAST}
    again = fast_again("solver")
    assert again is not None
    assert again.solver == FAST["solver"].solver
    assert again.num_steps(7) == 7
    assert again.name == "solver"
    assert fast_again("") is None
    assert set(FAST_NAMES) == set(FAST)


def test_impossible_accelerations_are_refused(pipeline):
    with pytest.raises(ConfigError, match="solver"):
        Fast(solver="euler")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="between"):
        Fast(guided=(0.5, 0.5))
    with pytest.raises(ConfigError, match="use 1"):
        Fast(cache_interval=0)
    with pytest.raises(ConfigError, match="one of"):
        fast_by_name("warp")
    with pytest.raises(ConfigError, match="nothing to measure"):
        measure_error(pipeline, [edit()])


def test_compiled_blocks_make_the_same_pictures(pipeline):
    expected = pipeline(requests=[edit(num_inference_steps=2)]).latents[0]
    torch._dynamo.utils.counters.clear()
    compile_blocks(pipeline.transformer, backend="eager")  # traced as for the real one, but run as it is
    assert furthest(pipeline(requests=[edit(num_inference_steps=2)]).latents[0], expected) <= 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(sys.platform == "win32", reason="needs a C++ compiler")
def test_blocks_compiled_to_machine_code_make_the_same_pictures(pipeline):
    expected = [pipeline(requests=[one]).latents[0] for one in (edit(), edit(6))]
    compile_blocks(pipeline.transformer)
    for one, own in zip((edit(), edit(6)), expected, strict=True):
        assert furthest(pipeline(requests=[one]).latents[0], own) <= 1e-4
