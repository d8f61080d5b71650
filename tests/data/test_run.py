"""A build ends the same however often it is killed; what is bad in a collection is named and left out."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from ace.data.engine import Where
from ace.data.recipe import Collection, DataRecipe, Filtering, Synthesis, read_recipe
from ace.data.run import build
from ace.data.shards import read_manifest, read_shards
from ace.data.tasks import Tools, check
from ace.errors import ConfigError, DataError, OutputError
from tests.data.pictures import collection, draw

CHEAP = ("low_level_analysis/gray", "low_level_analysis/mosaic", "repainting/inpainting")


def recipe(folder, tasks=CHEAP, per_task=0, **others):
    return DataRecipe(Collection(str(folder)), synthesize=Synthesis(tasks, per_task, slice=2), **others)


def rejected(folder):
    shards = read_shards(folder / "rejected")
    return {(row["stage"], row["what"].split("#")[0]): row["reason"] for row in shards.rows()}


def test_a_folder_becomes_a_data_set_that_passes_its_own_checks(tmp_path):
    pictures = collection(tmp_path / "pictures", 5)
    told = []
    built = build(recipe(pictures), tmp_path / "set", on_progress=lambda *what: told.append(what))
    samples = read_shards(tmp_path / "set", verify=True)
    assert built.manifest.tasks == dict.fromkeys(sorted(CHEAP), 5)
    assert len(samples) == 15
    assert all(check(sample, Tools()) is None for sample in samples)
    assert {sample.provenance["source"] for sample in samples[:1]} <= {s["id"] for s in facts_of(tmp_path / "set")}
    assert told[-1] == ("shards", 1, 1)
    page = (tmp_path / "set" / "report.html").read_text()
    assert "synthesize" in page and "15 of 15" in page
    assert (tmp_path / "set" / "browse.html").read_text().count("<figure>") == 15
    with Image.open(tmp_path / "set" / "funnel.png") as funnel:
        assert funnel.width > 400


def facts_of(folder):
    from ace.data.engine import Part

    for file in sorted((folder / "work" / "read").glob("*.parquet")):
        yield from (record.facts for record in Part(file).records() if not record.reason)


def test_a_quota_stops_each_task_and_a_build_says_so_again(tmp_path):
    pictures = collection(tmp_path / "pictures", 12)
    first = build(recipe(pictures, per_task=3), tmp_path / "set")
    assert first.manifest.tasks == dict.fromkeys(sorted(CHEAP), 3)
    again = build(recipe(pictures, per_task=3), tmp_path / "set")
    assert again.manifest == first.manifest
    assert [stage.kept for stage in again.stages] == [stage.kept for stage in first.stages]


def test_every_task_draws_from_the_whole_collection_and_every_picture_serves(tmp_path):
    kinds = ("gray", "mosaic", "edge", "degradation")
    tasks = tuple(f"{family}/{kind}" for family in ("low_level_analysis", "controllable_generation") for kind in kinds)
    tasks += ("repainting/inpainting", "repainting/outpainting")
    built = build(recipe(collection(tmp_path / "pictures", 100), tasks, per_task=10), tmp_path / "set")
    assert built.manifest.tasks == dict.fromkeys(sorted(tasks), 10)
    samples = read_shards(tmp_path / "set")
    behind = {task: set() for task in tasks}
    for row in samples.rows():
        behind[row["task"]].add(json.loads(row["provenance"])["source"])
    assert min(map(len, behind.values())) == 10
    assert len(set().union(*behind.values())) == 100
    assert "different pictures" in (tmp_path / "set" / "report.html").read_text()


def test_what_was_left_out_can_be_read_and_looked_at(tmp_path):
    pictures = collection(tmp_path / "pictures", 2)
    (pictures / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (96, 80), "gray").save(pictures / "empty.png")
    build(recipe(pictures, ("low_level_analysis/gray", "low_level_analysis/edge")), tmp_path / "set")
    left_out = read_shards(tmp_path / "set" / "rejected")
    found = list(left_out.rejects())
    assert len(found) == len(left_out)
    without = [reject for reject in found if reject.sample is None]
    assert any("broken.png" in reject.what and reject.stage == "read" for reject in without)
    assert all(reject.sample.task == reject.task for reject in found if reject.sample is not None)
    with pytest.raises(DataError, match="made no sample"):
        list(left_out)
    page = (tmp_path / "set" / "browse.html").read_text()
    assert all(reject.reason in page for reject in found) and "broken.png" in page
    with pytest.raises(DataError, match="were kept"):
        next(read_shards(tmp_path / "set").rejects())


def test_what_is_bad_is_rejected_with_its_reason_and_the_run_goes_on(tmp_path):
    pictures = collection(tmp_path / "pictures", 2)
    good = draw(50)
    whole = (pictures / "000.png").read_bytes()
    (pictures / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "corrupt.png").write_bytes(whole[:60] + bytes(200) + whole[260:])
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "words.png").write_text("no picture at all")
    (pictures / "double.png").write_bytes(whole)
    Image.new("RGB", (1, 1)).save(pictures / "one.png")
    Image.new("RGB", (70, 70)).convert("CMYK").save(pictures / "cmyk.jpg")
    Image.new("RGB", (4000, 3000)).save(pictures / "huge.png")
    good.save(pictures / "named.jpg", format="PNG")
    good.save(pictures / "moving.gif", save_all=True, append_images=[draw(51)])
    (pictures / "a folder.png").mkdir()
    source = Collection(str(pictures), max_pixels=5_000_000, require_caption=True)
    good.save(pictures / "silent.png")
    built = build(DataRecipe(source, synthesize=Synthesis(CHEAP)), tmp_path / "set")
    reasons = {what: reason for (_, what), reason in rejected(tmp_path / "set").items()}
    assert reasons == {
        "truncated.png": "broken picture",
        "corrupt.png": "broken picture",
        "empty.jpg": "not a picture",
        "words.png": "not a picture",
        "one.png": "too small",
        "cmyk.jpg": "colours that are not RGB",
        "huge.png": "too large",
        "named.jpg": "no caption",
        "moving.gif": "no caption",
        "silent.png": "no caption",
        "double.png": "no caption",
    }
    assert built.manifest.count == 6


def test_the_same_pixels_twice_are_one_source(tmp_path):
    pictures = collection(tmp_path / "pictures", 2)
    Image.open(pictures / "000.png").save(pictures / "again.bmp")
    built = build(recipe(pictures, CHEAP[:1]), tmp_path / "set")
    assert built.manifest.count == 2
    assert ("unique", "again.bmp") in rejected(tmp_path / "set")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = 1", "recipe.toml: source is missing"),
        ("[source]\npath = 'pictures'\nsize = 3", "unknown key 'source.size'"),
        ("[source]\npath = 'pictures'\nmin_side_px = 'small'", "source.min_side_px is 'small': use a whole number"),
        ("[source]\npath = 'pictures'\n[synthesize]\ntasks = ['cooking']", "synthesize: unknown task 'cooking'"),
        ("[source]\npath = 'pictures'\nkind = 'floppy'", "source.kind is 'floppy'"),
        ("[source]\npath = 'pictures'\n[label]\nby = 'endpoint'", "label: needs endpoint"),
        ("[source", "is not valid TOML"),
    ],
)
def test_a_wrong_recipe_stops_before_work_starts(tmp_path, text, said):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_recipe(tmp_path / "recipe.toml")


def test_a_recipe_finds_its_pictures_beside_itself(tmp_path):
    (tmp_path / "recipe.toml").write_text("[source]\npath = 'pictures'\n[filter]\nwords = ['blood']")
    read = read_recipe(tmp_path / "recipe.toml")
    assert read.source.path == str(tmp_path / "pictures")
    assert read.filter.words == ("blood",)
    with pytest.raises(DataError, match="does not exist"):
        build(read, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_another_recipe_does_not_go_on_in_the_same_folder(tmp_path):
    pictures = collection(tmp_path / "pictures", 1)
    build(recipe(pictures, CHEAP[:1]), tmp_path / "set")
    with pytest.raises(ConfigError, match="another recipe"):
        build(recipe(pictures, CHEAP[:2]), tmp_path / "set")


def test_benchmarks_held_out_pictures_and_unwanted_words_are_kept_out(tmp_path):
    pictures = collection(tmp_path / "pictures", 12)
    secret = tmp_path / "benchmark"
    secret.mkdir()
    draw(3).resize((192, 160)).save(secret / "enlarged.png")
    rules = Filtering(benchmarks=(str(secret),), held_out=0.4, words=("mosaic",))
    built = build(recipe(pictures, CHEAP, filter=rules), tmp_path / "set")
    reasons = read_shards(tmp_path / "set" / "rejected").column("reason")
    assert reasons.count("shows a benchmark's picture") == 3
    assert "a word that is not wanted" in reasons
    train, held_out = read_shards(tmp_path / "set"), read_shards(tmp_path / "set" / "held_out")
    assert len(train) and len(held_out)
    sources = [{json.loads(text)["source"] for text in side.column("provenance")} for side in (train, held_out)]
    assert not sources[0] & sources[1]
    assert built.manifest.count + len(held_out) + len(reasons) == 36
    dropped = read_shards(tmp_path / "set" / "rejected")
    assert dropped[0].task in CHEAP  # a rejected sample is kept whole


def command(pictures, out, per_task=4, workers=1):
    code = f"""
import sys
from ace.data.engine import Where
from ace.data.recipe import Collection, DataRecipe, Synthesis
from ace.data.run import build
recipe = DataRecipe(Collection({str(pictures)!r}), synthesize=Synthesis({CHEAP!r}, {per_task}, slice=2))
build(recipe, {str(out)!r}, Where({workers}))
"""
    return [sys.executable, "-c", code]


def kill_and_finish(tmp_path, kills):
    """Kill a build so often, each time after it has made some more progress; then let it finish."""
    pictures = collection(tmp_path / "pictures", 16 * kills)
    call = command(pictures, tmp_path / "set", per_task=0)
    work = tmp_path / "set" / "work"
    dice = random.Random(kills)
    for _ in range(kills):
        before = len(list(work.rglob("*.parquet")))
        process = subprocess.Popen(call, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len(list(work.rglob("*.parquet"))) <= before:
            time.sleep(0.002)
        time.sleep(dice.random() * 0.05)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "set" / "manifest.json").exists()
    subprocess.run(call, check=True)
    build(recipe(pictures), tmp_path / "undisturbed")
    for name in ("manifest.json", "rejected/manifest.json"):
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_killed_three_times_it_ends_with_the_same_manifest(tmp_path):
    kill_and_finish(tmp_path, 3)


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_manifest(tmp_path):
    kill_and_finish(tmp_path, 10)


@pytest.mark.slow
def test_several_workers_make_the_same_manifest(tmp_path):
    pictures = collection(tmp_path / "pictures", 12)
    one = build(recipe(pictures, per_task=4), tmp_path / "one")
    subprocess.run(command(pictures, tmp_path / "several", workers=3), check=True)
    assert read_manifest(tmp_path / "several") == one.manifest


@pytest.mark.slow
def test_a_ray_cluster_of_two_makes_the_same_manifest(tmp_path):
    """Two nodes of one CPU each, and the command line as their client."""
    pytest.importorskip("ray", reason="pip install ray")
    pictures = collection(tmp_path / "pictures", 12)
    build(recipe(pictures, per_task=4), tmp_path / "alone")
    tasks = json.dumps(CHEAP)
    (tmp_path / "recipe.toml").write_text(
        f"[source]\npath = 'pictures'\n[synthesize]\ntasks = {tasks}\nsamples_per_task = 4\nslice = 2\n"
    )
    code = """
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
try:
    cluster.add_node(num_cpus=1)
    build = "from ace.cli import main; main()", "data", "build", "recipe.toml", "-o", "cluster", "--workers", "2"
    sys.exit(subprocess.run([sys.executable, "-c", *build, "--ray", cluster.address]).returncode)
finally:
    cluster.shutdown()
"""
    quick = os.environ | {"RAY_worker_niceness": "0"}  # else its workers wait behind everything else on the machine
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=quick)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("manifest.json", "rejected/manifest.json"):
        assert (tmp_path / "cluster" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_cluster_that_does_not_answer_is_named(tmp_path):
    pytest.importorskip("ray", reason="pip install ray")
    pictures = collection(tmp_path / "pictures", 1)
    with pytest.raises(ConfigError, match="no Ray cluster answers"):
        build(recipe(pictures), tmp_path / "set", Where(ray="127.0.0.1:1"))


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(tmp_path):
    pictures = collection(tmp_path / "pictures", 4)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
    code = command(pictures, tmp_path / "set")
    code[2] = limited + code[2]
    done = subprocess.run(code, capture_output=True, text=True)
    assert OutputError.__name__ in done.stderr and "free space and run" in done.stderr
    assert not (tmp_path / "set" / "manifest.json").exists()
    subprocess.run(command(pictures, tmp_path / "set"), check=True)
    assert len(read_shards(tmp_path / "set", verify=True)) == 12
