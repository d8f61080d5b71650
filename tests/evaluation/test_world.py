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
from ace.errors import ConfigError, OutputError
from ace.evaluation import evaluate_world
from ace.evaluation.benchmarks.world import autoencoder_psnr, frozen_hashes, make_chunks, repeat_edits
from ace.evaluation.metrics import Interval
from ace.evaluation.report import first_of_family, make_report
from ace.evaluation.run import Answer, RunFolder, answer_seed, edited_input, run, sample_sha256
from tests.random_models import random_pipeline

ROOT = Path(__file__).parents[2]
FEW = (
    "text_guided_generation/text_to_image",
    "element_editing/object_add",
    "repainting/inpainting",
    "multi_turn/chain",
)
SETTINGS = {"limit": 2, "batch": 2, "quiet": True, "num_inference_steps": 2, "tasks": FEW, "num_pictures": 3}
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
    return folder, evaluate_world(pipeline, folder, **SETTINGS)


def scored(world: World, folder: Path, system, tasks=FEW, limit: int = 2):
    chunks = make_chunks(tasks, limit, 3)
    return run(chunks, lambda t, n: world.sample(n, t), system, RunFolder(folder, {}), 0, None, quiet=True)


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
    rows = scored(world, tmp_path, lambda samples, seeds: [Answer(s.target) for s in samples], world.tasks, limit=1)
    assert all(row.model.l1 == 0 for row in rows)
    report = report_of(rows)
    assert {group.name for group in report.families} == set(FAMILIES)
    assert all(group.beats_copying for group in report.families)


def test_copying_scores_what_the_copy_baseline_scores_and_does_not_beat_it(world, tmp_path):
    rows = scored(world, tmp_path, lambda samples, seeds: [Answer(edited_input(s)[0]) for s in samples])
    assert all(row.model == row.copy for row in rows)
    assert {group.verdict for group in report_of(rows).families} == {"no, within chance"}


def test_the_mean_colour_scores_what_the_baseline_scores(world, tmp_path):
    def mean_of(picture):
        colour = np.asarray(picture, dtype=np.float64).mean(axis=(0, 1))
        return Image.new("RGB", picture.size, tuple(round(channel) for channel in colour))

    def constant(samples, seeds):
        return [Answer(mean_of(sample.target)) for sample in samples]

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
    def invert(samples, seeds):
        return [Answer(Image.eval(edited_input(s)[0], lambda v: 255 - v)) for s in samples]

    rows = scored(world, tmp_path, invert, ("repainting/inpainting",))
    assert report_of(rows).drift.violations == 2


def test_answers_of_another_size_are_scored_at_the_targets_size_and_counted(world, tmp_path):
    rows = scored(world, tmp_path, lambda samples, seeds: [Answer(Image.new("RGB", (64, 64))) for _ in samples])
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
    assert {link[:5] for link in re.findall("(?:src|href)='([^'#]+)", page)} == {"data:"} and "<script" not in page
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
        again = evaluate_world(pipeline, folder, **SETTINGS)
    finally:
        hook.remove()
    assert calls == [] and again == report and files_in(folder) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from ace.evaluation import evaluate_world
from tests.evaluation.test_world import PIPELINE, SETTINGS
from tests.random_models import random_pipeline

pipeline = random_pipeline(**PIPELINE)
left = [5]  # network evaluations until the end: in the third of four chunks

def die(*_):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

pipeline.transformer.register_forward_hook(die)
evaluate_world(pipeline, Path(sys.argv[1]), **SETTINGS)
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
        evaluate_world(pipeline, folder, **SETTINGS)
    finally:
        hook.remove()
    assert len(calls) == 4  # two steps for each of the two chunks that were missing
    assert files_in(folder) == files_in(finished[0])


def test_a_damaged_answer_is_made_again(world, tmp_path):
    asked = []

    def system(samples, seeds):
        asked.extend(sample.task for sample in samples)
        return [Answer(sample.target) for sample in samples]

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
        evaluate_world(pipeline, folder, **{**SETTINGS, "seed": 1})
    with pytest.raises(ConfigError, match="another model_sha256"):
        evaluate_world(random_pipeline(**PIPELINE, spell_quoted=True), folder, **SETTINGS)
    assert files_in(folder) == before


def test_wrong_requests_are_refused_before_anything_is_made(pipeline, tmp_path):
    for wrong in ({"limit": 0}, {"batch": 0}, {"tasks": ()}, {"tasks": ("painting/oil",)}):
        with pytest.raises(ConfigError):
            evaluate_world(pipeline, tmp_path / "run", **{**SETTINGS, **wrong})
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("taken")
    with pytest.raises(OutputError, match="choose another folder"):
        evaluate_world(pipeline, tmp_path / "file", **SETTINGS)


def test_broken_rows_are_told_and_not_overwritten(pipeline, finished, tmp_path):
    settings = json.loads((finished[0] / "run.json").read_text())
    settings.pop("format_version")
    RunFolder(tmp_path, settings).write("rows.jsonl", b'{"task": 1}\n')
    with pytest.raises(OutputError, match=r"rows\.jsonl cannot be read"):
        evaluate_world(pipeline, tmp_path, **SETTINGS)
    assert (tmp_path / "rows.jsonl").read_bytes() == b'{"task": 1}\n'


def test_this_machine_draws_the_frozen_list():
    frozen = frozen_hashes()
    assert len(frozen) >= 2000
    world = World(64, "held_out", SpriteLibrary(SHIPPED_PACK))
    for task in TASKS[::3]:
        assert sample_sha256(world.sample(5, task)).startswith(frozen[task, 5])


def test_the_same_edit_again_and_again_is_measured_turn_by_turn():
    world = World(64, "held_out", SpriteLibrary(SHIPPED_PACK))
    found = repeat_edits(random_pipeline(), world, seed=0, count=2, turns=3)
    assert len(found.target) == len(found.unchanged) == 3 and found.count == 2
    assert found.unchanged[2] > 0  # random weights keep nothing
    assert found == repeat_edits(random_pipeline(), world, seed=0, count=2, turns=3)
