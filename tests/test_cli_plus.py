"""The command line with ACE++ models, on a small random FLUX that lies on disk as the published one does."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from ace.cli import app
from ace.cli.edit import _read_reference
from ace.conversation import recipe as recipes
from ace.conversation.session import Session
from ace.families.plus import read_placement
from ace.plus.controls import CONTROLS, draw_control
from tests.plus.test_sources import adapter_file
from tests.random_flux import SMALL_FFT, published_state, random_plus


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("plus")
    random_plus().save_pretrained(root / "fill")
    save_file(published_state(random_plus(SMALL_FFT, seed=4).transformer), root / "fft.safetensors")
    adapter_file(root / "subject.safetensors")
    adapter_file(root / "portrait.safetensors", 1)
    return root


@pytest.fixture
def here(tmp_path, monkeypatch, models):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUX_FILL_PATH", str(models / "fill"))
    monkeypatch.setenv("SUBJECT_MODEL_PATH", str(models / "subject.safetensors"))
    monkeypatch.setenv("PORTRAIT_MODEL_PATH", str(models / "portrait.safetensors"))
    monkeypatch.setenv("ACE_PLUS_FFT_MODEL", str(models / "fft.safetensors"))
    monkeypatch.setenv("ACE_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(("photo", "logo", "vase")):
        noise = np.random.default_rng(number).integers(0, 255, (45, 61, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"{name}.png")
    mask = Image.new("L", (61, 45), 0)
    mask.paste(255, (10, 10, 40, 30))
    mask.save("mask.png")
    Image.new("L", (16, 16), 255).save("small-mask.png")
    Image.new("RGB", (20000, 40)).save("wide.png")
    return tmp_path


def ace(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="ace")
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result.stdout if code == 0 else result.stderr


def test_a_new_picture_after_a_reference(here):
    said = ace("edit", "the logo on a mug", "--model", "ace-plus-subject", "--reference", "logo.png", "--size", "64x48")
    assert "generated.png  64x48 px" in said and "ace-plus-subject" in said
    with Image.open("generated.png") as picture:
        assert picture.size == (64, 48)


def test_an_edit_with_two_references_keeps_everything_outside_the_mask_and_can_be_made_again(here):
    ace(
        "edit", "photo.png", "put {image1} beside {image2}", "--mask", "mask.png", "--model", "ace-plus-fft",
        "--reference", "logo.png", "--reference", "vase.png@right,keep=0.5", "--max-seq-length", 1024,
        "--seed", 3, "-o", "out.png",
    )  # fmt: skip
    before, after = np.asarray(Image.open("photo.png")), np.asarray(Image.open("out.png"))
    outside = np.asarray(Image.open("mask.png")) == 0
    assert after.shape == before.shape
    np.testing.assert_array_equal(before[outside], after[outside])
    assert (before[~outside] != after[~outside]).any()
    written = recipes.read("out.png")
    assert [file.name for file in written.images] == ["photo.png", "logo.png", "vase.png"]
    assert written.settings["places"] == "left,right" and written.settings["fits"] == "align,keep=0.5"
    assert "the same to the byte" in ace("replay", "out.png")


def test_adapters_repainting_controls_and_bits_are_options(here):
    base = ["edit", "photo.png", "a hat", "--seed", 1, "--model", "ace-plus-subject", "--mask", "mask.png"]
    pictures = {}
    for name, extra in {
        "plain": [],
        "twice": ["--lora", "ace-plus-subject:1"],
        "shown": ["--repaint", 0],
        "edges": ["--control", "canny"],
        "fp8": ["--quantize", "fp8"],
        "disk": ["--memory", "lean", "--quantize", "fp8", "--repaint", 0],
    }.items():
        ace(*base, *extra, "-o", f"{name}.png")
        pictures[name] = np.asarray(Image.open(f"{name}.png")).tobytes()
    assert len(set(pictures.values())) == len(pictures)
    assert recipes.read("edges.png").settings["control"] == "canny"
    assert recipes.read("edges.png").settings["repainting_scale"] == 0.5


@pytest.mark.parametrize(
    ("model", "options", "again"),
    [
        ("ace-plus-fft", ["--quantize", "fp8"], []),
        ("ace-plus-fft", ["--memory", "lean"], []),
        ("ace-plus-fft", ["--dtype", "bfloat16", "--memory", "full"], []),
        ("ace-plus-fft", ["--transformer", "mine.safetensors"], ["--transformer", "mine.safetensors"]),
        (
            "ace-plus-subject",
            ["--lora", "style.safetensors:0.5", "--lora", "ace-plus-portrait:0.7"],
            ["--lora", "style.safetensors"],
        ),
    ],
)
def test_a_picture_is_made_again_from_the_weights_in_the_bits_that_made_it(model, options, again, here, models):
    (here / "mine.safetensors").symlink_to(models / "fft.safetensors")
    adapter_file(here / "style.safetensors", 5)
    ace("edit", "photo.png", "a hat", "--model", model, "--reference", "logo.png@below", *options, "-o", "a.png")
    if again:
        missing = ace("replay", "a.png", code=2)
        assert again[1] in missing and again[0] in missing and len(missing.strip().splitlines()) == 1
    said = ace("replay", "a.png", *again)
    assert "the same to the byte" in said


def test_a_replay_says_when_the_weights_are_held_otherwise(here):
    ace("edit", "photo.png", "a hat", "--model", "ace-plus-fft", "--quantize", "fp8", "-o", "a.png", "--seed", 1)
    ace("edit", "photo.png", "a hat", "--model", "ace-plus-fft", "-o", "b.png", "--seed", 1)
    lines = recipes.changed_settings(recipes.read("a.png"), recipes.read("b.png"))
    assert lines == ("quantize: fp8 then, none now", "quantize text: fp8 then, none now")


def test_a_session_is_a_tree_of_edits_whichever_model_makes_them(here):
    on = ["--model", "ace-plus-fft", "--session", "talk"]
    ace("edit", "photo.png", "a hat on {image}", *on, "--mask", "mask.png", "--reference", "logo.png", "--seed", 1)
    said = ace("edit", "make it red", *on, "--seed", 2)
    assert "node 0002" in said
    ace("edit", "make it green", *on, "--from", "0001", "--mask", "mask.png", "--seed", 3)
    ace("edit", "now a drawing", "--session", "talk", "--seed", 4)  # an ACE model goes on from it
    ace("edit", "a frame around it", *on, "--seed", 5)
    session = Session.open("talk")
    assert [node.parents for node in session.nodes()] == [(), ("0001",), ("0001",), ("0003",), ("0004",)]
    first = session.node("0001")
    assert [entry.node for entry in first.inputs] == [None, None] and first.inputs[0].mask_path is not None
    assert session.node("0003").inputs[0].node == "0001"
    before, after = (np.asarray(session.answer(node).image) for node in ("0001", "0003"))
    outside = np.asarray(Image.open("mask.png")) == 0
    np.testing.assert_array_equal(before[outside], after[outside])
    assert "a frame around it" in ace("session", "talk")
    assert "the same to the byte" in ace("replay", "talk/nodes/0003/image.png")
    said = ace("replay", "talk")
    assert "5 of 5 edits made again" in said and said.count("the same to the byte") == 5
    ace("session", "export", "talk", "talk.zip")
    assert "5 of 5 edits made again" in ace("replay", "talk.zip")


@pytest.mark.parametrize("held", [(), ("--quantize", "fp8"), ("--quantize", "int8"), ("--memory", "lean")])
def test_variants_of_a_request_are_made_together_and_each_is_as_if_alone(held, here):
    if "int8" in held:
        pytest.importorskip("torchao")
    on = ["--model", "ace-plus-subject", "--mask", "mask.png", "--max-seq-length", 1024, *held]
    ace("edit", "photo.png", "vase.png", "a hat", *on, "--count", 2, "--seed", 7, "--out-dir", "o")
    names = ["photo-001.png", "photo-002.png", "vase-001.png", "vase-002.png"]
    assert sorted(path.name for path in (here / "o").iterdir()) == names
    made = [recipes.read(f"o/{name}") for name in names]
    assert [recipe.seed for recipe in made] == [7, 8, 7, 8]
    assert not any("batch_size" in recipe.settings for recipe in made)
    ace("edit", "photo.png", "a hat", *on, "--seed", 8, "-o", "alone.png")
    assert np.array_equal(np.asarray(Image.open("o/photo-002.png")), np.asarray(Image.open("alone.png")))


def test_a_picture_that_cannot_be_used_costs_itself_alone(here):
    (here / "broken.png").write_bytes(b"no picture")
    on = ["--model", "ace-plus-fft", "--out-dir", "o", "--json"]
    result = CliRunner().invoke(app, ["edit", "photo.png", "broken.png", "vase.png", "a hat", *on], prog_name="ace")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [picture["input"] for picture in report["pictures"]] == ["photo.png", "vase.png"]
    assert [failure["input"] for failure in report["failures"]] == ["broken.png"]


def test_several_photos_go_to_a_folder_with_one_model_load(here):
    report = json.loads(
        ace("edit", "photo.png", "vase.png", "a hat", "--model", "ace-plus-fft", "--out-dir", "o", "--json")
    )
    assert [picture["size_px"] for picture in report["pictures"]] == [[61, 45], [61, 45]]
    assert {path.name for path in (here / "o").iterdir()} == {"photo.png", "vase.png"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photo.png", "x", "--model", "ace-plus-subject", "--reference", "no.png"], "no.png"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--reference", "logo.png@under"], "left, right, above"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--max-seq-length", "100"], "use 1024"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--mask", "small-mask.png"], "16x16"),
        (
            ["photo.png", "x", "--model", "ace-plus-fft", "--reference", "wide.png", "--max-seq-length", "1024"],
            "20000x40",
        ),
        (["photo.png", "x", "--model", "ace-plus-subject", "--memory", "balanced"], "8bit (fewer bits) or lean (disk)"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--control", "magic"], "use canny"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--quantize", "2bit"], "use fp8, int8, 4bit"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--repaint", "2"], "repainting_scale 2"),
        (["photo.png", "{image2}", "--model", "ace-plus-subject"], "{image2}"),
        (["x", "--model", "ace-plus-subject", "--session", "talk"], "makes nothing from words alone"),
        (["x", "--model", "ace-plus-subject", "--from", "0001"], "needs a session"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--count", "2"], "use --out-dir"),
        (
            ["photo.png", "x", "--model", "ace-plus-subject", "--session", "s", *["--reference", "logo.png"] * 9],
            "10 images given, at most 9",
        ),
        (["photo.png", "x", "--model", "ace-plus-subject", "--lora", "photo.png"], "photo.png is no safetensors"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--lora", "sdxl.safetensors"], "made for an SD or SDXL"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--transformer", "fft.safetensors"], "give FLUX.1-Fill-dev"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--transformer", "gone.gguf"], "gone.gguf"),
        (["x", "--model", "ace-plus-subject"], "makes nothing from words alone"),
        (["photo.png", "x", "--model", "ace-plus-local"], "hub"),
        (["photo.png", "x", "--reference", "logo.png@right"], "ace-tiny does not take places of references"),
        (["photo.png", "x", "--quantize", "fp8"], "ace-tiny does not take quantised weights"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--avoid", "hands"], "does not take a negative instruction"),
        (["photo.png", "x", "--model", "ace-plus-subject", "--refine", "no/such"], "does not take a refiner"),
        (["photo.png", "x", "--model", "ace-plus-subject", "-o", "photo.png"], "one of the inputs"),
    ],
)
def test_a_wrong_request_ends_with_one_line_and_code_2_before_anything_is_loaded(
    here, arguments, words, monkeypatch, models
):
    def load_plus(*arguments, **settings):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("ace.plus.load.load_plus", load_plus)
    monkeypatch.delenv("LOCAL_MODEL_PATH", raising=False)
    (here / "fft.safetensors").symlink_to(models / "fft.safetensors")
    save_file({"lora_unet_down_blocks_0_attn.lora_down.weight": torch.zeros(2, 4)}, here / "sdxl.safetensors")
    files = {path.name for path in here.iterdir()}
    said = ace("edit", *arguments, code=2)
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert {path.name for path in here.iterdir()} == files


def test_a_control_without_its_weights_says_so_before_anything_is_loaded(here, monkeypatch):
    monkeypatch.setattr("ace.plus.load.load_plus", lambda *arguments, **settings: pytest.fail("loaded"))
    for name in ("depth", "contour"):
        said = ace("edit", "photo.png", "x", "--model", "ace-plus-fft", "--control", name, "-o", "a.png", code=1)
        assert "ace data setup" in said and len(said.strip().splitlines()) == 1


def test_an_eight_bit_checkpoint_comes_with_its_error_per_layer_and_on_a_picture(here, models, monkeypatch):
    monkeypatch.setattr("ace.cli.convert_fp8.PICTURE_PX", 64)
    said = ace("convert", models / "fft.safetensors", "--fp8", "-o", "small.safetensors", "--picture", "ace-plus-fft")
    assert "error of the weights" in said and "the published cast" in said and "error of a picture" in said
    report = json.loads((here / "small.report.json").read_text())
    assert 0 < report["mean_relative_error"] < 0.05
    assert 0 < report["picture"]["max_difference"] < 100
    assert report["layers"][0]["layer"].startswith(("double_blocks", "single_blocks"))
    ace("edit", "photo.png", "x", "--model", "ace-plus-fft", "--transformer", "small.safetensors", "-o", "a.png")
    assert "8-bit weights already" in ace("convert", "small.safetensors", "--fp8", "-o", "b.safetensors", code=1)


def test_other_verbs_say_where_these_models_work(here):
    said = ace("generate", "a cat", "--model", "ace-plus-subject", code=2)
    assert "ace-plus-subject makes nothing from words alone" in said


def test_models_lists_them():
    listed = ace("models")
    assert "ace-plus-portrait" in listed and "FLUX_FILL_PATH" in listed


def test_references_are_read_as_they_are_written():
    path, place = _read_reference("a@b/c.png@above,keep=0.3")
    assert str(path) == "a@b/c.png" and read_placement(place) == ("above", "keep=0.3")
    path, place = _read_reference("me@home/c.png")
    assert str(path) == "me@home/c.png" and read_placement(place) == ("left", "align")


@pytest.mark.parametrize("name", ["canny", "mosaic", "gray"])
def test_a_control_is_drawn_inside_the_mask_only(here, name):
    photo, mask = Image.open("photo.png"), Image.open("mask.png")
    drawn = np.asarray(draw_control(name, photo, mask))
    inside = np.asarray(mask) > 0
    np.testing.assert_array_equal(drawn[~inside], np.asarray(photo)[~inside])
    assert (drawn[inside] != np.asarray(photo)[inside]).any()
    assert name in CONTROLS
