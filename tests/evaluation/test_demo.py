"""The demo shows what the model did, all of it, on held-out inputs."""

import numpy as np
import pytest
from PIL import Image

from ace.conditions.units import LongContextConditionUnit, Turn
from ace.diffusion import seeded_generator
from ace.evaluation.demo import DEMO_TASKS, draw_demo, draw_samples, error_left, make_demo, plan_demo
from ace.evaluation.panels import Panel, draw_grid, wrap
from ace.inference.pipeline import Request
from tests.random_models import TINY_LIKE, random_pipeline


@pytest.fixture(scope="module")
def demo():
    """(pipeline, plan, what came out), at 32 px."""
    pipeline = random_pipeline(TINY_LIKE, budget=16, num_inference_steps=1, max_text_tokens=120)
    plan = plan_demo(5, 32)
    return pipeline, plan, make_demo(pipeline, plan, 5)


def test_a_seed_decides_the_inputs_and_another_seed_gives_others():
    first, again, other = (plan_demo(seed, 32) for seed in (1, 1, 2))
    pictures = [
        [frame.image.tobytes() for s in plan.samples for frame in s.request.frames()] for plan in (first, again, other)
    ]
    assert pictures[0] == pictures[1] != pictures[2]


def test_at_least_twelve_tasks_and_three_turns_all_held_out(demo):
    _, plan, made = demo
    assert [sample.task for sample in plan.samples] == list(DEMO_TASKS)
    assert len(set(DEMO_TASKS)) >= 12
    assert all(sample.provenance["split"] == "held_out" for sample in (*plan.samples, plan.conversation))
    assert len(made.turns) == 3
    assert {panel.instruction for panel in made.panels} == {s.request.current.instruction for s in plan.samples}


def test_answers_stand_beside_the_true_ones_and_the_nearest_come_first(demo):
    _, plan, made = demo
    by_truth = {id(sample.target): sample for sample in plan.samples}
    left = [error_left(by_truth[id(panel.truth)], panel.result) for panel in made.panels]
    assert len(left) == len(plan.samples) and left == sorted(left)
    sample = plan.samples[1]
    assert error_left(sample, sample.target) == 0
    assert error_left(sample, sample.request.frames()[0].image) == pytest.approx(1)


def test_every_turn_goes_on_from_the_models_own_answers(demo):
    pipeline, plan, made = demo
    units = [*(turn.unit for turn in plan.conversation.request.history), plan.conversation.request.current]
    answers = [answer for _, answer in made.turns]
    second = units[1] if not units[1].images else None
    if second is None:
        pytest.fail("choose a seed whose second turn has no picture of its own")
    unit = LongContextConditionUnit(second, (Turn(units[0], answers[0]),))
    expected = pipeline(requests=[Request(unit, generator=seeded_generator(5))]).images[0]
    assert np.abs(np.asarray(expected).astype(int) - np.asarray(answers[1])).max() <= 1


def test_the_page_shows_every_panel(demo):
    *_, made = demo
    page = draw_demo(made, "ace-tiny")
    assert page.mode == "RGB" and page.width > 1000
    shown = np.asarray(page)
    for panel in made.panels[:3]:
        enlarged = np.asarray(panel.result.resize((192, 192), Image.Resampling.LANCZOS))
        rows, columns = np.nonzero((shown[:-191, :-191] == enlarged[0, 0]).all(axis=2))
        assert any((shown[y : y + 192, x : x + 192] == enlarged).all() for y, x in zip(rows, columns, strict=True))


def test_long_and_foreign_instructions_fit_their_card():
    picture = Image.new("RGB", (8, 8), "red")
    long = Panel("t", " ".join(["extraordinarily", "long"] * 30), (picture,), (None,), picture)
    foreign = Panel("t", "写 你好 " + "x" * 300, (picture,) * 4, (None,) * 4, picture)
    grid = draw_grid([long, foreign], 2)
    assert grid.width < grid.height * 4
    assert (np.asarray(grid)[:, -1] == np.asarray(grid)[0, -1]).any()


def test_words_are_set_in_a_font_that_has_them_and_end_in_dots_where_they_are_cut():
    (line,) = wrap('write "北京" here', 400, 13)
    assert [word for word, _ in line] == ["write", '"北京"', "here"]
    assert len({font.path for _, font in line}) == 2
    cut = wrap("one two three four five six seven eight nine ten", 90, 13, max_lines=2)
    assert len(cut) == 2 and cut[-1][-1][0] == "..."
    assert sum(font.getlength(word) for word, font in cut[-1]) <= 90


def test_samples_of_the_world_are_drawn_a_row_per_task():
    tasks = ["element_editing/object_add", "low_level_analysis/edge"]
    one, two = (draw_samples(tasks[:n], 2, 0, 32, "train") for n in (1, 2))
    assert two.width == one.width
    assert two.height > one.height + 192
