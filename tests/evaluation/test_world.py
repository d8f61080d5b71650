"""The held-out report: exact scores, baselines, resumption, counts; on random weights and known answers."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ace.data.sample import FAMILIES, TASKS
from ace.data.world import SpriteLibrary, World
from ace.data.world.sprites import SHIPPED_PACK
from ace.errors import ConditionError, ConfigError, DataError, OutputError
from ace.evaluation import Contestant, evaluate_world, our_contestant
from ace.evaluation.benchmarks.world import (
    LIST_SIZES_PX,
    autoencoder_psnr,
    find_judges,
    frozen_hashes,
    make_chunks,
)
from ace.evaluation.cases import read_cases
from ace.evaluation.facts import task_scores
from ace.evaluation.folder import RunFolder
from ace.evaluation.metrics import Interval
from ace.evaluation.report import first_of_family
from ace.evaluation.run import answer_seed, run
from ace.evaluation.scores import EditAnswer, edited_input, sample_sha256
from ace.evaluation.summary import make_report
from ace.evaluation.turns import follow_things, repeat_edits
from tests.random_models import random_pipeline

ROOT = Path(__file__).parents[2]
FEW = (
    "text_guided_generation/text_to_image",
    "element_editing/object_add",
    "repainting/inpainting",
    "multi_turn/chain",
)
SETTINGS = {"limit": 2, "batch": 2, "quiet": True, "tasks": FEW, "num_pictures": 3, "num_talks": 1}
STEPS = 2
PIPELINE = {"budget": 4}  # 32 x 32 px pictures
NO_PSNR = Interval(0.0, 0.0, 0.0, 1)


@pytest.fixture(scope="module")
def world() -> World:
    return World(32, "held_out", SpriteLibrary(SHIPPED_PACK))


@pytest.fixture(scope="module")
def pipeline():
    return random_pipeline(**PIPELINE)


@pytest.fixture(scope="module")
def finished(pipeline, tmp_path_factory):
    """A finished run and its report, to be read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, evaluate_world(our_contestant(pipeline, STEPS), folder, **SETTINGS)


def scored(world: World, folder: Path, system, tasks=FEW, limit: int = 2):
    chunks = make_chunks(tasks, limit, 3)
    return run(chunks, lambda t, n: world.sample(n, t), system, RunFolder(folder, {}), 0, None, quiet=True).rows


def report_of(rows):
    return make_report(
        rows, model_name="", settings={}, absent_tasks=(), absent_metrics=("LPIPS",), autoencoder_psnr=NO_PSNR
    )


def rows_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def files_in(folder: Path) -> dict[str, bytes]:
    """Everything that must be repeatable."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "timings.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Scores


def test_the_true_answer_scores_zero_and_beats_copying_in_every_family(world, tmp_path):
    rows = scored(world, tmp_path, lambda asked: [EditAnswer(one.sample.target) for one in asked], world.tasks, limit=1)
    assert all(row.model.l1 == 0 for row in rows)
    report = report_of(rows)
    assert {group.name for group in report.families} == set(FAMILIES)
    assert all(group.beats_copying for group in report.families)


def test_copying_scores_what_the_copy_baseline_scores_and_does_not_beat_it(world, tmp_path):
    rows = scored(world, tmp_path, lambda asked: [EditAnswer(edited_input(one.sample)[0]) for one in asked])
    assert all(row.model == row.copy for row in rows)
    assert {group.verdict for group in report_of(rows).families} == {"no, within chance"}


def test_the_mean_colour_scores_what_the_baseline_scores(world, tmp_path):
    def mean_of(picture):
        colour = np.asarray(picture, dtype=np.float64).mean(axis=(0, 1))
        return Image.new("RGB", picture.size, tuple(round(channel) for channel in colour))

    def constant(asked):
        return [EditAnswer(mean_of(one.sample.target)) for one in asked]

    assert all(row.model == row.mean_colour for row in scored(world, tmp_path, constant))


def test_scores_agree_with_a_computation_in_float64(finished):
    folder, report = finished
    world = World(report.settings["size_px"], "held_out", SpriteLibrary(SHIPPED_PACK))
    for row in rows_in(folder):
        sample = world.sample(row["number"], row["task"])
        frames = sample.request.frames()
        source = frames[-1] if row["task"] == "multi_turn/chain" else frames[0] if frames else None
        target = np.asarray(sample.target, dtype=np.float64) / 255
        given = np.full(target.shape, 128 / 255) if source is None else np.asarray(source.image, dtype=np.float64) / 255
        answer = np.asarray(Image.open(folder / "answers" / row["task"] / f"{row['number']:05d}.png")) / 255.0
        change = (np.abs(target - given) * 255).round().max(axis=2) > 8
        for name, picture in (("model", answer), ("copy", given)):
            error = np.abs(picture - target)
            assert row[name]["l1"] == pytest.approx(error.mean(), abs=1e-6)
            assert row[name]["l1_changed"] == pytest.approx(error[change].mean(), abs=1e-6)
            still = None if change.all() else pytest.approx(error[~change].mean(), abs=1e-6)
            assert row[name]["l1_unchanged"] == still
        assert row["changed_share"] == pytest.approx(change.mean(), abs=1e-6)


def test_a_masked_answer_is_the_input_outside_the_mask_and_the_models_own_drift_is_told(finished):
    folder, report = finished
    masked = [row for row in rows_in(folder) if row["drift"]]
    assert {"repainting/inpainting"} <= {row["task"] for row in masked}
    assert all(row["drift"] == {"mean_levels": 0.0, "max_levels": 0, "changed_share": 0.0} for row in masked)
    assert all(row["unpreserved_drift"]["mean_levels"] > 1 for row in masked)  # random weights keep nothing
    assert (report.drift.count, report.drift.violations) == (len(masked), 0)
    assert report.drift.unpreserved_levels.mean > 1


def test_a_change_outside_the_mask_is_counted(world, tmp_path):
    def invert(asked):
        return [EditAnswer(Image.eval(edited_input(one.sample)[0], lambda v: 255 - v)) for one in asked]

    rows = scored(world, tmp_path, invert, ("repainting/inpainting",))
    assert report_of(rows).drift.violations == 2


def test_answers_of_another_size_are_scored_at_the_targets_size_and_counted(world, tmp_path):
    rows = scored(world, tmp_path, lambda asked: [EditAnswer(Image.new("RGB", (64, 64))) for _ in asked])
    black = [float(np.asarray(world.sample(row.number, row.task).target).mean() / 255) for row in rows]
    assert [row.model.l1 for row in rows] == pytest.approx(black, abs=1e-6)
    assert report_of(rows).num_resized == len(rows)


def test_the_autoencoders_psnr_is_that_of_its_pictures(pipeline, world):
    few, more = (autoencoder_psnr(pipeline.vae, 32, count, world.library) for count in (2, 4))
    assert few.count == 2 and more.count == 4
    assert 0 < few.mean < 25  # random weights reconstruct nothing


# The list


def test_the_list_does_not_depend_on_the_machines_packs_or_on_order(world):
    again = World(32, "held_out", SpriteLibrary(SHIPPED_PACK))
    for task in FEW:
        backwards = [sample_sha256(again.sample(number, task)) for number in (2, 1, 0)]
        assert backwards[::-1] == [sample_sha256(world.sample(number, task)) for number in (0, 1, 2)]


def test_chunks_hold_every_entry_once_and_a_larger_limit_only_adds_chunks():
    small, large = make_chunks(TASKS, 2, 16), make_chunks(TASKS, 5, 16)
    assert large[: len(small)] == small
    assert sorted(entry for chunk in large for entry in chunk) == sorted((t, n) for t in TASKS for n in range(5))
    assert all(0 < len(chunk) <= 16 for chunk in large)


def test_every_answer_has_its_own_seed():
    seeds = {answer_seed(seed, task, number) for seed in range(2) for task in TASKS for number in range(10)}
    assert len(seeds) == 2 * len(TASKS) * 10


# The folder


def test_the_report_counts_every_sample_once(finished):
    folder, report = finished
    rows = rows_in(folder)
    assert [(row["task"], row["number"]) for row in rows] == [(task, n) for task in FEW for n in range(2)]
    written = json.loads((folder / "report.json").read_text())
    assert written["count"] == report.count == sum(group.count for group in report.families) == len(rows)
    assert {group["name"]: group["count"] for group in written["tasks"]} == dict.fromkeys(FEW, 2)
    assert written["list_sha256"] == report.list_sha256


def test_the_pages_name_every_family_and_point_nowhere_else(finished):
    folder, report = finished
    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    for group in report.families:
        assert group.name.replace("_", " ") in markdown and group.name.replace("_", " ") in page
    assert {link[:5] for link in re.findall("(?:src|href)=[\"']([^\"'#]+)", page)} == {"data:"}
    assert "<script" not in page
    assert str(folder) not in markdown + page


def test_the_grid_shows_the_first_samples_unselected(finished):
    folder, _ = finished
    shown = first_of_family(finished_rows(folder), "element_editing", 2)
    assert [row.key for row in shown] == [("element_editing/object_add", 0), ("element_editing/object_add", 1)]
    with Image.open(folder / "grid.png") as grid:
        assert grid.width > 800 and grid.height > 200


def finished_rows(folder: Path):
    settings = json.loads((folder / "run.json").read_text())
    settings.pop("format_version")
    return list(RunFolder(folder, settings).rows.values())


def test_running_again_makes_nothing_and_changes_nothing(pipeline, finished):
    folder, report = finished
    before, calls = files_in(folder), []
    hook = pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        again = evaluate_world(our_contestant(pipeline, STEPS), folder, **SETTINGS)
    finally:
        hook.remove()
    assert calls == [] and again == report and files_in(folder) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from ace.evaluation import evaluate_world, our_contestant
from tests.evaluation.test_world import PIPELINE, SETTINGS, STEPS
from tests.random_models import random_pipeline

pipeline = random_pipeline(**PIPELINE)
left = [9]  # network evaluations until the end: in the third of four chunks of two samples, two steps each

def die(*_):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

pipeline.transformer.register_forward_hook(die)
evaluate_world(our_contestant(pipeline, STEPS), Path(sys.argv[1]), **SETTINGS)
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(pipeline, finished, tmp_path):
    folder = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(rows_in(folder)) == 4 and not (folder / "report.json").exists()
    calls = []
    hook = pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        evaluate_world(our_contestant(pipeline, STEPS), folder, **SETTINGS)
    finally:
        hook.remove()
    assert len(calls) == 8 + 10  # two steps for each of the four samples that were missing, and for five turns
    assert files_in(folder) == files_in(finished[0])


def test_a_damaged_answer_is_made_again(world, tmp_path):
    asked = []

    def system(requests):
        asked.extend(one.sample.task for one in requests)
        return [EditAnswer(one.sample.target) for one in requests]

    before = scored(world, tmp_path, system, FEW[:2], 1)
    asked.clear()
    path = tmp_path / "answers" / FEW[1] / "00000.png"
    path.write_bytes(path.read_bytes()[:40])
    assert scored(world, tmp_path, system, FEW[:2], 1) == before
    assert FEW[1] in asked


def test_a_folder_never_mixes_two_runs(pipeline, finished):
    folder, _ = finished
    before = files_in(folder)
    with pytest.raises(ConfigError, match="another seed"):
        evaluate_world(our_contestant(pipeline, STEPS), folder, **{**SETTINGS, "seed": 1})
    with pytest.raises(ConfigError, match="another weights_sha256"):
        evaluate_world(our_contestant(random_pipeline(**PIPELINE, spell_quoted=True), STEPS), folder, **SETTINGS)
    assert files_in(folder) == before


def test_wrong_requests_are_refused_before_anything_is_made(pipeline, tmp_path):
    for wrong in ({"limit": 0}, {"batch": 0}, {"tasks": ()}, {"tasks": ("painting/oil",)}):
        with pytest.raises(ConfigError):
            evaluate_world(our_contestant(pipeline, STEPS), tmp_path / "run", **{**SETTINGS, **wrong})
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("taken")
    with pytest.raises(OutputError, match="choose another folder"):
        evaluate_world(our_contestant(pipeline, STEPS), tmp_path / "file", **SETTINGS)


def test_broken_rows_are_told_and_not_overwritten(pipeline, finished, tmp_path):
    settings = json.loads((finished[0] / "run.json").read_text())
    settings.pop("format_version")
    RunFolder(tmp_path, settings).write("rows.jsonl", b'{"task": 1}\n')
    with pytest.raises(OutputError, match=r"rows\.jsonl cannot be read"):
        evaluate_world(our_contestant(pipeline, STEPS), tmp_path, **SETTINGS)
    assert (tmp_path / "rows.jsonl").read_bytes() == b'{"task": 1}\n'


@pytest.mark.parametrize("size_px", LIST_SIZES_PX)
def test_this_machine_draws_the_frozen_list(size_px: int):
    frozen = frozen_hashes(size_px)
    assert len(frozen) >= 2000
    world = World(size_px, "held_out", SpriteLibrary(SHIPPED_PACK))
    for task in TASKS[::3]:
        assert sample_sha256(world.sample(5, task)).startswith(frozen[task, 5])


def test_the_same_edit_again_and_again_is_measured_turn_by_turn():
    world = World(64, "held_out", SpriteLibrary(SHIPPED_PACK))
    found = repeat_edits(our_contestant(random_pipeline(), 2).edit, world, seed=0, count=2, turns=3)
    assert len(found.target) == len(found.unchanged) == 3 and found.count == 2
    assert found.unchanged[2] > 0  # random weights keep nothing
    assert found == repeat_edits(our_contestant(random_pipeline(), 2).edit, world, seed=0, count=2, turns=3)


def test_a_thing_that_is_kept_is_known_again_and_one_that_is_lost_is_not():
    world = World(64, "held_out", SpriteLibrary(SHIPPED_PACK))

    def keeps(units, seeds):
        return [unit.history[-1].answer if unit.history else unit.current.images[0] for unit in units]

    def wipes(units, seeds):
        return [Image.new("RGB", (64, 64), "gray") for _ in units]

    kept, lost = (follow_things(edit, world, seed=0, count=6, turns=3) for edit in (keeps, wipes))
    assert kept.known == (1, 1, 1) and kept.from_first == (0, 0, 0)
    assert max(kept.error) < 0.05 < min(lost.error)  # its soft edge shows a little of the old background
    assert sum(lost.known) < 1.5
    forgetful = follow_things(lambda u, s: [x.current.images[0] for x in u], world, 0, 2, 2, with_history=False)
    assert forgetful.known == (1, 1) and not forgetful.with_history


def test_the_conversation_is_given_with_the_systems_own_answers():
    world, asked = World(64, "held_out", SpriteLibrary(SHIPPED_PACK)), []

    def edit(units, seeds):
        asked.extend(units)
        return [Image.new("RGB", (64, 64), (10 * len(unit.history), 0, 0)) for unit in units]

    follow_things(edit, world, seed=0, count=1, turns=3)
    assert [len(unit.history) for unit in asked] == [0, 1, 2]
    assert [turn.answer.getpixel((0, 0))[0] for turn in asked[-1].history] == [0, 10]
    assert len(asked[0].current.images) == 1 and not asked[2].current.images


# Any system


def test_finished_pictures_are_scored_and_what_is_missing_is_told(world, tmp_path):
    results, output = tmp_path / "finished", tmp_path / "run"
    task = FEW[1]
    (results / task).mkdir(parents=True)
    world.sample(0, task).target.save(results / task / "00000.png")
    (results / task / "00001.png").write_bytes(b"no picture")
    mine = Contestant("mine", None, {})
    given = {"results": results, "size_px": 32, "tasks": (task,), "quiet": True}
    report = evaluate_world(mine, output, 3, **given)
    assert (report.count, report.overall.l1.model.mean) == (1, 0) and len(report.missing) == 2
    page = (output / "report.md").read_text()
    assert "PARTIAL: 1 of 3 samples" in page and f"{task}/2" in page
    assert "FEW SAMPLES: 1 of a task" in page
    assert report.autoencoder_psnr is None and report.repeated is None
    Image.new("RGB", (20, 20)).save(results / task / "00002.jpg")  # of a wrong size
    Image.new("RGB", (32, 32)).save(results / task / "00000.png")  # and another picture than before
    report = evaluate_world(mine, output, 3, **given)
    assert (report.count, report.num_resized) == (2, 1) and report.overall.l1.model.mean > 0
    (results / task / "00000.png").unlink()
    assert evaluate_world(mine, output, 3, **given).count == 1
    world.sample(0, task).target.save(results / task / "00002.png")
    with pytest.raises(DataError, match=f"1 samples have two pictures, such as {task}/00002;"):
        evaluate_world(mine, output, 3, **given)


def test_without_any_answer_the_inputs_are_there_to_be_answered(tmp_path):
    (tmp_path / "empty").mkdir()
    given = {"results": tmp_path / "empty", "size_px": 32, "tasks": FEW[2:3], "quiet": True}
    with pytest.raises(DataError, match=r"first would be repainting/inpainting/00000\.png in empty"):
        evaluate_world(Contestant("mine", None, {}), tmp_path / "run", 2, **given)
    (case, _) = read_cases(tmp_path / "run")
    assert case.item == "repainting/inpainting/0" and case.answer is None and case.mask is not None
    assert all(path.is_file() for path in (*case.inputs, case.mask))


def test_an_editor_that_takes_no_history_leaves_conversations_out(tmp_path):
    def edit(units, seeds):
        if any(unit.history for unit in units):
            raise ConditionError("no history")
        return [unit.current.images[0] if unit.current.images else Image.new("RGB", (32, 32)) for unit in units]

    tasks = ("element_editing/object_add", "multi_turn/chain")
    report = evaluate_world(
        Contestant("copier", edit, {}), tmp_path, 2, size_px=64, tasks=tasks, quiet=True, num_talks=3
    )
    assert report.count == 2 and report.missing == ("multi_turn/chain/0", "multi_turn/chain/1")
    assert report.identity.with_history is False and report.identity.known[0] == 1


# Styles


def test_the_style_that_was_asked_for_is_recognised_in_true_answers():
    world, judges = World(64, "held_out", SpriteLibrary(SHIPPED_PACK)), find_judges()
    found = []
    for number in range(24):
        sample = world.sample(number, "semantic_editing/style")
        given = edited_input(sample)[0]
        for answer in (sample.target, given):
            facts = task_scores(sample, given, answer, np.ones((64, 64), bool), judges)
            found.append((facts["style_right"], facts["style_right_true"]))
    right, wrong = found[::2], found[1::2]
    assert all(own == true for own, true in right) and np.mean(right) > 0.75
    assert np.mean([own for own, _ in wrong]) < 0.3  # the input is in another style


def test_what_is_measured_beside_the_list_grows_with_the_limit(pipeline, tmp_path):
    counts = []
    hook = pipeline.transformer.register_forward_hook(lambda *_: counts.append(1))
    given = {"batch": 2, "quiet": True, "tasks": ("semantic_editing/background", "multi_turn/chain")}
    try:
        report = evaluate_world(our_contestant(pipeline, 1), tmp_path, 1, **given)
    finally:
        hook.remove()
    assert len(counts) == 2 + 10 + 5  # two samples, ten turns of one chain, five turns of one conversation
    assert report.repeated.count == report.identity.count == 1 and report.autoencoder_psnr.count == 8
    assert not (tmp_path / "requests.json").exists() and (tmp_path / "gates.md").is_file()
