"""The gates: the truth passes every one, the input left alone passes none, another thing is found out."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ace.data.sample import TASKS
from ace.data.world import SpriteLibrary, World
from ace.data.world.scene import draw
from ace.data.world.sprites import SHIPPED_PACK
from ace.evaluation import Contestant, evaluate_world
from ace.evaluation.benchmarks.world import find_judges
from ace.evaluation.facts import Judges, task_scores
from ace.evaluation.gates import Gate, gates, growth, markdown
from ace.evaluation.metrics import Interval, changed_pixels, levels
from ace.evaluation.scores import edited_input
from ace.evaluation.systems import our_contestant
from ace.evaluation.things import EDIT_TASKS, STYLE_TASK, WORDS_TASK, ThingJudge
from ace.evaluation.timing import summary, time_requests
from ace.evaluation.turns import RepeatedEdit
from tests.random_models import random_pipeline


@pytest.fixture(scope="module")
def world():
    return World(128, "held_out", SpriteLibrary(SHIPPED_PACK))


@pytest.fixture(scope="module")
def judge(world):
    return ThingJudge(world.library)


def scores(judges, sample, answer):
    given, mask = edited_input(sample)
    return task_scores(sample, given, answer, changed_pixels(levels(given), levels(sample.target), mask), judges)


def with_another_thing(world, drawn, slug):
    """The true answer, but for one thing in the place of another."""
    item = replace(drawn.scene.objects[drawn.index], slug=slug)
    objects = (*drawn.scene.objects[: drawn.index], item, *drawn.scene.objects[drawn.index + 1 :])
    return Image.fromarray(draw(replace(drawn.scene, objects=objects), world.library, world.size_px))


@pytest.mark.parametrize("task", EDIT_TASKS)
def test_the_right_thing_scores_one_the_input_and_every_other_thing_score_nothing(world, judge, task):
    judges = Judges(things=judge)
    core = [concept.slug for concept in world.library.concepts if concept.core]
    for number in range(12):
        sample = world.sample(number, task)
        (drawn,) = world.drawn(number, task)
        assert scores(judges, sample, sample.target)["thing_right"] == 1
        assert scores(judges, sample, edited_input(sample)[0])["thing_right"] == 0
        assert scores(judges, sample, Image.new("RGB", sample.target.size, "gray"))["thing_right"] == 0
        item = drawn.scene.objects[drawn.index]
        for slug in core[number::20]:
            if slug not in {o.slug for o in drawn.scene.objects}:
                shown = with_another_thing(world, drawn, slug)
                assert scores(judges, sample, shown)["thing_right"] == 0, (item.slug, slug)


@pytest.mark.parametrize("task", EDIT_TASKS)
def test_a_blurred_thing_is_still_known_and_a_faint_one_is_not(world, judge, task):
    judges, known, faint = Judges(things=judge), [], []
    for number in range(12):
        sample = world.sample(number, task)
        small = sample.target.resize((42, 42), Image.Resampling.BOX).resize((128, 128), Image.Resampling.BICUBIC)
        known.append(scores(judges, sample, small)["thing_right"])
        ghost = Image.blend(edited_input(sample)[0], sample.target, 0.3)
        faint.append(scores(judges, sample, ghost)["thing_right"])
    assert np.mean(known) > 0.9 and np.mean(faint) < 0.1


def test_each_thing_of_a_new_picture_has_to_be_the_right_one(world, judge):
    judges, several = Judges(things=judge), 0
    core = [concept.slug for concept in world.library.concepts if concept.core]
    for number in range(40):
        sample, drawn = world.sample(number, WORDS_TASK), world.drawn(number, WORDS_TASK)
        found = scores(judges, sample, sample.target)
        if not drawn:
            assert "things_known" not in found
            continue
        assert found["things_known"] == found["all_known"] == 1
        shown = {o.slug for one in drawn for o in one.scene.objects}
        others = judge._some_others(drawn[0], sample)
        assert len(others) == len(set(others)) == 15 and not shown & set(others) and set(others) <= set(core)
        found = scores(judges, sample, with_another_thing(world, drawn[0], others[0]))
        assert found["all_known"] == 0 and found["things_known"] == pytest.approx(1 - 1 / len(drawn))
        several += len(drawn) > 1
    assert several > 5


def test_a_style_is_the_right_one_or_another_one(world, judge):
    judges = Judges(things=judge)
    for number in range(16):
        sample, scene = world.sample(number, STYLE_TASK), world.restyled(number)
        given = edited_input(sample)[0]
        assert np.array_equal(draw(scene, world.library, 128), np.asarray(sample.target))
        assert scores(judges, sample, sample.target)["style_known"] == 1
        assert scores(judges, sample, given)["style_known"] == 0
        other = replace(scene, look="sepia" if scene.look != "sepia" else "negative")
        assert scores(judges, sample, Image.fromarray(draw(other, world.library, 128)))["style_known"] == 0
        soft = sample.target.resize((64, 64), Image.Resampling.BOX).resize((128, 128), Image.Resampling.BICUBIC)
        assert scores(judges, sample, soft)["style_known"] == 1


def test_things_are_only_looked_for_in_samples_of_the_same_world(world, judge):
    sample = world.sample(0, EDIT_TASKS[0])
    foreign = replace(sample, provenance={**sample.provenance, "num_concepts": 3})
    assert judge.scores(foreign, levels(sample.target), levels(sample.target)) == {}
    assert judge.scores(replace(sample, provenance={}), levels(sample.target), levels(sample.target)) == {}


def test_removing_is_judged_by_what_is_gone(world):
    for number in range(12):
        sample = world.sample(number, "element_editing/object_remove")
        assert scores(Judges(), sample, sample.target)["object_success"] == 1
        assert scores(Judges(), sample, edited_input(sample)[0])["object_success"] == 0


def test_words_are_read_and_other_words_are_not_taken_for_them(world):
    judges, read, wrong, empty = find_judges(), [], [], []
    if judges.reader is None:
        pytest.skip("rapidocr is not installed")
    samples = [world.sample(number, "element_editing/text_add") for number in range(16)]
    for sample, other in zip(samples, samples[1:] + samples[:1], strict=True):
        word, another = (re.search('"(.*)"', s.request.current.instruction)[1] for s in (sample, other))
        read.append(scores(judges, sample, sample.target)["text_read"])
        empty.append(scores(judges, sample, edited_input(sample)[0])["text_read"])
        if word != another:
            wrong.append(scores(judges, sample, other.target)["text_read"])
    assert np.mean(read) > 0.85 and sum(empty) == 0 and np.mean(wrong) < 0.1


# The table


def perfect(tmp_path, world, limit, system=lambda sample: sample.target, tasks=TASKS):
    """A run with finished pictures."""
    for task in tasks:
        (tmp_path / "finished" / task).mkdir(parents=True)
        for number in range(limit):
            path = tmp_path / "finished" / task / f"{number:05d}.png"
            system(world.sample(number, task)).save(path, compress_level=1)
    given = {"results": tmp_path / "finished", "size_px": world.size_px, "tasks": tasks, "quiet": True}
    report = evaluate_world(Contestant("mine", None, {}), tmp_path / "run", limit, **given)
    return report, json.loads((tmp_path / "run" / "gates.json").read_text()), tmp_path / "run"


def test_true_answers_meet_every_gate_that_pictures_can_meet(world, tmp_path):
    report, found, folder = perfect(tmp_path, world, 2)
    by_name = {gate["name"].split(":")[0]: gate for gate in found}
    unmeasured = {name for name, gate in by_name.items() if gate["is_met"] is None}
    assert unmeasured == {
        "the thing kept over five turns",
        "ten equal edits",
        "an edit, seconds beyond loading",
        "turn ten over text to image, time",
    }
    assert by_name["tasks better than copying"]["value"]["mean"] == 42
    assert all(gate["is_met"] for name, gate in by_name.items() if name not in unmeasured)
    page = (folder / "gates.md").read_text()
    assert page.count("| yes |") == 7 and page.count("| not measured |") == 4
    assert "## Seen and unseen" in (folder / "report.md").read_text()
    assert report.by_seen and all(group.unseen is not None for group in report.by_seen)


def test_the_input_left_alone_meets_none(world, tmp_path):
    tasks = (*EDIT_TASKS, "element_editing/object_remove", "element_editing/text_add", "semantic_editing/style")
    _, found, _ = perfect(tmp_path, world, 4, lambda sample: edited_input(sample)[0], tasks)
    measured = [gate for gate in found if gate["value"] is not None]
    assert len(measured) == 5 and not any(gate["is_met"] for gate in measured)
    assert max(gate["value"]["mean"] for gate in measured) < 0.5


def test_unseen_things_do_not_count_where_they_have_to_be_drawn(world, tmp_path):
    """A system that draws nothing that training never drew still meets the gate."""

    def learnt(sample):
        return edited_input(sample)[0] if sample.provenance["unseen"] else sample.target

    report, found, _ = perfect(tmp_path, world, 10, learnt, EDIT_TASKS[:1])
    assert found[0]["value"]["mean"] == 1 and 0 < found[0]["value"]["count"] < 10
    fact = next(fact for fact in report.facts if fact.name == "thing_right")
    assert fact.seen.mean == 1 and fact.unseen.mean == 0 and fact.model.count == 10


def test_growth_over_turns_is_the_ratio_of_the_means():
    steady = RepeatedEdit((0.0,) * 2, (0.1, 0.1), 0.3, 3, (0.05, 0.1, 0.15), (0.05, 0.1, 0.15))
    assert growth(steady).mean == growth(steady).low == growth(steady).high == 1
    worse = replace(steady, last=(0.1, 0.2, 0.3))
    assert growth(worse).mean == pytest.approx(2)


def test_a_gate_is_met_from_its_own_side():
    value = Interval(0.8, 0.7, 0.9, 10)
    assert Gate("a", value, 0.8).is_met and not Gate("a", value, 0.81).is_met
    assert Gate("a", value, 0.8, larger=False).is_met and not Gate("a", value, 0.79, larger=False).is_met
    assert Gate("a", None, 0.8).is_met is None


def test_the_tenth_turn_is_asked_with_the_conversation_before_it():
    world, asked = World(64, "held_out", SpriteLibrary(SHIPPED_PACK)), []
    own = our_contestant(random_pipeline(), 2).edit

    def edit(units, seeds):
        asked.extend(units)
        return own(units, seeds)

    times = summary(time_requests(edit, world, 0, count=1))
    assert times.edit.mean > 0 and times.turn_ten.mean > 0 and times.edit.count == 1
    assert [len(unit.history) for unit in asked] == [0, 0, 0, *range(10)]
    assert not asked[2].frames() and asked[-1].history[-1].answer is not None


def test_gates_without_a_measure_are_told(world, tmp_path):
    report, _, _ = perfect(tmp_path, world, 1, tasks=("element_editing/object_remove",))
    found = gates(report, [], None)
    assert all(gate.is_met is None for gate in found) and "0 of 11 met, 11 not measured" in markdown(found, report)
