"""Every verb of `ace data` on small photographs, through the command line, as docs/data.md tells it."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import skimage.data
from PIL import Image
from typer.testing import CliRunner

from ace.cli import app
from ace.data.shards import read_shards
from tests.data.endpoint import chat_server
from tests.extract.photographs import needs

TASKS = ("low_level_analysis/gray", "repainting/inpainting")
VERBS = ("build", "synthesize", "mine", "label", "filter", "review", "caption", "report", "show", "setup", "assets")


def ace(*arguments, code=0):
    """Run the command line; returns what it said."""
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], prog_name="ace")
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three photographs, each also a little nearer, and a file that is none."""
    folder = tmp_path_factory.mktemp("cli") / "photos"
    folder.mkdir()
    for name in ("astronaut", "coffee", "chelsea"):
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        image.thumbnail((160, 160))
        image.save(folder / f"{name}.png")
        image.crop((image.width // 8, image.height // 6, image.width, image.height)).save(folder / f"{name}-near.png")
        (folder / f"{name}.txt").write_text(f"a photograph of {name}")
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="module")
def data_set(photographs):
    """What `synthesize` made of them."""
    out = photographs.parent / "set"
    told = ace(
        *("synthesize", photographs, "-o", out, "--per-task", 4, "--workers", 1),
        *(part for task in TASKS for part in ("--task", task)),
    )
    assert "8 samples of 2 tasks" in told and "not a picture 1" in told
    return out


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_how_it_is_called(verb):
    assert re.search(rf"ace data {verb}\b", ace(verb, "--help"))


def test_a_recipe_is_built_and_built_again_changes_nothing(photographs, tmp_path):
    (tmp_path / "recipe.toml").write_text(
        f"[source]\npath = {json.dumps(str(photographs))}\n[synthesize]\ntasks = {json.dumps(TASKS)}\n"
        "[label]\nby = 'grammar'\nrewrites = 2\n[filter]\nheld_out = 0.3\n"
    )
    call = ("build", tmp_path / "recipe.toml", "-o", tmp_path / "set", "--workers", 1, "--json")
    first = json.loads(ace(*call, "--quiet").strip())
    manifest = (tmp_path / "set" / "manifest.json").read_bytes()
    assert first["count"] + len(read_shards(tmp_path / "set" / "held_out")) >= 30
    assert json.loads(ace(*call, "--quiet").strip()) == first
    assert (tmp_path / "set" / "manifest.json").read_bytes() == manifest


@needs("hed", "efficientnet-lite2", "nsfwjs-model", "nsfwjs-weights")
def test_related_photographs_are_mined(photographs, tmp_path):
    told = ace("mine", photographs, "-o", tmp_path / "mined", "--low", 0.7, "--workers", 1)
    assert re.search(r"[1-9]\d* pairs", told)
    lines = [json.loads(line) for line in (tmp_path / "mined" / "metadata.jsonl").read_text().splitlines()]
    sets = {line["file_name"]: line.get("set") for line in lines}
    assert sets["coffee.png"] and sets["coffee.png"] == sets["coffee-near.png"]
    assert "mine" in (tmp_path / "mined" / "report.html").read_text()


def test_wordings_come_from_a_server(data_set, tmp_path):
    answers = ("Take every colour out of {image}", "Fill the hole in {image} with what belongs there")
    with chat_server(lambda body, number: (200, f"{answers[number % 2]}, version {number}")) as server:
        told = ace(
            *("label", data_set, "-o", tmp_path / "worded", "--endpoint", server.url, "--model", "any"),
            *("--max-alike", 1, "--min-alike", -1),
        )
    assert "label" in told and server.bodies
    words = read_shards(tmp_path / "worded").column("instruction")
    assert sum("version" in text for text in words) == 8


def test_duplicates_and_benchmarks_are_filtered_out(data_set, photographs, tmp_path):
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "secret.png").write_bytes((photographs / "coffee.png").read_bytes())
    told = ace("filter", data_set, "-o", tmp_path / "clean", "--benchmark", tmp_path / "benchmark")
    assert "shows a benchmark's picture" in told
    kept, dropped = read_shards(tmp_path / "clean"), read_shards(tmp_path / "clean" / "rejected")
    assert len(kept) + len(dropped) == 8 and len(dropped) >= 1


def test_the_funnel_is_told_and_drawn_again(data_set):
    (data_set / "funnel.png").unlink()
    told = ace("report", data_set)
    assert re.search(r"read +6 of 7 +not a picture 1", told) and "synthesize" in told
    with Image.open(data_set / "funnel.png") as funnel:
        assert funnel.width > 400
    stages = json.loads(ace("report", data_set, "--json", "--quiet"))["stages"]
    assert [stage["stage"] for stage in stages] == ["read", "unique", "synthesize", "filter"]


@pytest.mark.parametrize("part", ["", "shard-00000.parquet", "rejected"])
def test_a_data_set_a_shard_and_what_was_rejected_are_shown(data_set, tmp_path, part):
    told = ace("show", data_set / part if part else data_set, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "samples" in told and page.count("<figure") == len(read_shards(data_set / part if part else data_set))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_samples_are_reviewed_on_a_page_and_exported(data_set, tmp_path):
    """The command really serves; a decision is sent as the page sends it."""
    port, kept = free_port(), tmp_path / "corrections.jsonl"
    call = ["review", str(data_set), "--corrections", str(kept)]
    process = subprocess.Popen(
        [sys.executable, "-m", "ace", "data", *call, "--port", str(port)], stdout=subprocess.PIPE, text=True
    )
    killer = threading.Timer(120, process.kill)  # a server that never answers ends as a failed test
    killer.start()
    try:
        assert process.stdout and str(port) in process.stdout.readline()
        page = wait_for(f"http://127.0.0.1:{port}/", process)
        assert "Sample 1 of 8" in page
        body = json.dumps({"index": 0, "decision": "accept"}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/decide", body, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            assert json.loads(reply.read())["next"] == 1
    finally:
        killer.cancel()
        process.terminate()
        process.communicate()
    assert "1 samples accepted" in ace(*call, "--export", tmp_path / "curated")
    assert len(read_shards(tmp_path / "curated", verify=True)) == 1


def wait_for(address, process):
    """The page at an address, as soon as somebody serves it."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(address) as reply:
                return reply.read().decode()
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server ended")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("[source]\npath = 'nowhere'", "does not exist"),
        ("seed = -1\n[source]\npath = '.'", "seed is -1"),
        ("[source]\npath = '.'\n[filter]\nbenchmarks = ['nowhere']", "does not exist"),
        ("[source]\npath = '.'\n[filter]\nwords = ['']", "empty word"),
        ("[source]\npath = '.'\n[filter]\nmin_sharpness = nan", "finite"),
        ("[source]\npath = '.'\n[filter]\nmax_unsafe = 0.0", "max_unsafe"),
        ("[source]\npath = '.'\n[mine]\nrelation = 'face'\nface_model = 'nowhere.onnx'", "nowhere.onnx"),
        ("[source]\npath = '.'\n[mine]\nrelation = 'style'\nscore_low = 2.0", "score_low"),
        ("[source]\npath = '.'\n[label]\nby = 'local'\nmodel = 'x'\npairs = true", "add [mine]"),
        ("[source]\npath = '.'\n[label]\nmin_alike = 0.97", "must be below max_alike"),
        ("[source]\npath = '.'\n[label]\ntemperature = -1", "temperature"),
    ],
    ids=lambda text: text.split("\n")[-1].strip("[]") if "=" in text else "",
)
@needs("hed")
def test_a_wrong_recipe_stops_in_one_line_before_anything_is_written(tmp_path, recipe, said):
    (tmp_path / "recipe.toml").write_text(recipe)
    Image.new("RGB", (80, 80), "teal").save(tmp_path / "teal.png")
    told = ace("build", tmp_path / "recipe.toml", "-o", tmp_path / "set", code=1 if "onnx" in said else 2)
    assert said in " ".join(told.split())
    assert not (tmp_path / "set").exists()
