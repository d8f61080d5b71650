"""The command line from end to end, on a model of the real classes with random weights."""

import dataclasses
import json
import os
import re
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from typer.main import get_command
from typer.testing import CliRunner

from ace.cli import app
from ace.conversation import recipe as recipes
from ace.conversation.session import Session
from tests.random_models import TINY_LIKE, random_pipeline

SIDE = 32  # of the model's pictures, px


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    random_pipeline(TINY_LIKE, num_inference_steps=2).save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, model_folder) -> Path:
    """An empty current folder with a photo in it; the model is the random one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACE_MODEL", str(model_folder))
    monkeypatch.setenv("ACE_CACHE", str(tmp_path / "no-cache"))
    photo().save("photo.png")
    return tmp_path


def photo(size=(SIDE, SIDE), seed=0, mode="RGB") -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, len(mode)), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def half_mask(size=(SIDE, SIDE)) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def ace(*arguments, code=0):
    """Run the command line; returns its standard output."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="ace")
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result.stdout if code == 0 else result.stderr


def ace_json(*arguments, code=0) -> dict:
    result = CliRunner().invoke(app, [*(str(argument) for argument in arguments), "--json"], prog_name="ace")
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return json.loads(result.stdout)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


# Bad input


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be this large and holds almost nothing."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0")),
        (b"IEND", b""),
    )
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def put_bad_files_into(folder: Path) -> None:
    whole = (folder / "photo.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "note.png").write_text("not a picture")
    (folder / "huge.png").write_bytes(png_header(60_000, 60_000))
    (folder / "folder.png").mkdir()
    (folder / "other-model").mkdir()
    (folder / "other-model" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    half_mask((20, 10)).save(folder / "small-mask.png")
    recipes.embed(photo(), folder / "made.png", LOST)
    for name, value in (("black", 0), ("white", 255)):
        Image.new("L", (SIDE, SIDE), value).save(folder / f"{name}.png")


LOST = recipes.Recipe(
    model="lost",
    model_sha256="0" * 64,
    instruction="a cat",
    seed=1,
    num_inference_steps=2,
    guidance_scale=1.0,
    guidance_rescale=0.0,
    size_px=(SIDE, SIDE),
    environment=recipes.Environment.here(),
)
BAD_INPUT = {
    "missing file": (["edit", "nope.png", "make it blue", "-o", "out.png"], "nope.png: no such file"),
    "truncated file": (["edit", "cut.png", "make it blue", "-o", "out.png"], "cut.png is damaged or cut off"),
    "not an image": (["edit", "note.png", "make it blue", "-o", "out.png"], "note.png is not a picture"),
    "60,000 x 60,000 px": (["edit", "huge.png", "make it blue", "-o", "out.png"], "huge.png is .*too large"),
    "a folder as picture": (["edit", "folder.png", "make it blue", "-o", "out.png"], "folder.png is a folder"),
    "mask of another size": (
        ["edit", "photo.png", "make it blue", "--mask", "small-mask.png", "-o", "out.png"],
        "small-mask.png is 20x10 px, its image 32x32 px",
    ),
    "mask all black": (
        ["edit", "photo.png", "make it blue", "--mask", "black.png", "-o", "out.png"],
        "black.png selects nothing",
    ),
    "mask all white": (
        ["edit", "photo.png", "make it blue", "--mask", "white.png", "-o", "out.png"],
        "white.png selects the whole picture",
    ),
    "10 images": (
        ["edit", "photo.png", "mix them", *["--image", "photo.png"] * 9, "-o", "out.png"],
        "10 images given, at most 9",
    ),
    "{image3} with one image": (
        ["edit", "photo.png", "put the hat of {image3} on {image}", "-o", "out.png"],
        r"names \{image3\}, but there is only 1 image",
    ),
    "empty instruction": (["edit", "photo.png", " ", "-o", "out.png"], "the instruction is empty"),
    "empty instruction to create": (["generate", "", "-o", "out.png"], "the instruction is empty"),
    "no instruction": (["edit", "photo.png", "-o", "out.png"], "the instruction is missing"),
    "no picture": (["edit", "make it blue", "-o", "out.png"], "there is no image to edit"),
    "unknown model": (
        ["edit", "photo.png", "make it blue", "-m", "ace-huge", "-o", "out.png"],
        "unknown model 'ace-huge'",
    ),
    "another kind of model": (
        ["edit", "photo.png", "make it blue", "-m", "other-model", "-o", "out.png"],
        "a StableDiffusionPipeline takes no image",
    ),
    "model that is not here": (
        ["edit", "photo.png", "make it blue", "-m", "ace-0.6b-512", "-o", "out.png"],
        "ace-0.6b-512 is not on this machine: run `ace convert ace-0.6b-512`",
    ),
    "output in a missing folder": (
        ["edit", "photo.png", "make it blue", "-o", "nowhere/out.png"],
        "the folder of out.png does not exist",
    ),
    "output in a file": (["edit", "photo.png", "make it blue", "-o", "note.png/out.png"], "out.png"),
    "output is a folder": (
        ["edit", "photo.png", "make it blue", "-o", "folder.png"],
        "folder.png is not a file that can be replaced",
    ),
    "output without a known format": (["edit", "photo.png", "make it blue", "-o", "out.xyz"], "use .png"),
    "output is the input": (["edit", "photo.png", "make it blue", "-o", "photo.png"], "photo.png is one of the inputs"),
    "several pictures, one output": (["edit", "photo.png", "black.png", "make it blue", "-o", "out.png"], "--out-dir"),
    "two results of one name": (
        ["edit", "photo.png", "./photo.png", "make it blue", "--out-dir", "out"],
        "two results would be called photo.png",
    ),
    "size between cells": (["edit", "photo.png", "make it blue", "--size", "30x32", "-o", "out.png"], "use 32x32"),
    "size in words": (["generate", "a cat", "--size", "large", "-o", "out.png"], "write width x height"),
    "0 pictures": (["edit", "photo.png", "blue", "--count", "0", "--out-dir", "out"], "0 images: use 1 to 10000"),
    "data that is not there": (["data", "show", "nosuch"], "there is no nosuch"),
    "0 steps": (["generate", "a cat", "--steps", "0", "-o", "out.png"], "0 steps: use 1 to 1000"),
    "negative seed": (["generate", "a cat", "--seed", "-2", "-o", "out.png"], "seed -2"),
    "node without session": (["edit", "make it blue", "--from", "0001", "-o", "out.png"], "needs a session"),
    "session that is something else": (["edit", "photo.png", "x", "--session", "other-model"], "holds other files"),
    "node of no session": (
        ["edit", "make it blue", "--session", "new", "--from", "0001"],
        "there is no session new yet",
    ),
    "replay of a picture without recipe": (["replay", "photo.png"], "photo.png carries no recipe"),
    "replay by a model that is not here": (
        ["replay", "made.png"],
        "the image was made by .lost.*--model",
    ),
    "unknown task": (["data", "show", "--task", "cooking"], "unknown task cooking"),
    "recipe that is missing": (["train", "nope.toml", "--output", "run"], "nope.toml cannot be read"),
    "demo where nothing can be": (["demo", "-o", "note.png/demo.png"], "note.png"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_with_one_line_and_code_2_and_nothing_written(here, case):
    put_bad_files_into(here)
    arguments, message = BAD_INPUT[case]
    before = names(here)
    said = ace(*arguments, code=2)
    assert re.search(message, said), said
    assert said.startswith("ace: ") and said.count("\n") == 1, said
    assert str(here) not in said
    assert names(here) == before


def test_bad_input_is_found_before_torch_is_imported(here):
    put_bad_files_into(here)
    heavy = ("train", "data")  # their rooms import torch; they check their own arguments first where they can
    cases = [arguments for arguments, _ in BAD_INPUT.values() if arguments[0] not in heavy]
    code = (
        "import sys, typer.testing; from ace.cli import app\n"
        f"for arguments in {cases!r}:\n"
        "    code = typer.testing.CliRunner().invoke(app, arguments).exit_code\n"
        "    loaded = [name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules]\n"
        "    assert code == 2 and not loaded, (arguments, code, loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Stopping


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_ctrl_c_while_reading_exits_130_and_writes_nothing(here):
    os.mkfifo("slow.png")
    before = names(here)
    command = [sys.executable, "-m", "ace", "edit", "slow.png", "make it blue", "-o", "out.png"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with process, open("slow.png", "wb"):  # opens when the program is reading
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert names(here) == before


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal")
def test_ctrl_c_while_denoising_exits_130_and_writes_nothing(here):
    import pty

    before = names(here)
    ours, theirs = pty.openpty()  # progress is shown on terminals only
    command = [sys.executable, "-m", "ace", "edit", "photo.png", "make it blue", "--steps", "1000", "--session", "talk"]
    with subprocess.Popen([*command, "-o", "out.png"], stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"denoising" not in shown:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                if not os.read(ours, 4096):
                    break
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 130
    assert names(here) == before


# Edits


def test_an_edit_is_written_with_its_recipe_and_its_drift(here):
    said = ace("edit", "photo.png", "make it blue", "-o", "out.png", "--seed", 7)
    assert "out.png  32x32 px, seed 7, 2 steps, small" in said
    assert "drift" not in said  # everything was to change
    half_mask((SIDE, SIDE)).save("mask.png")
    masked = ace("edit", "photo.png", "make it blue", "--mask", "mask.png", "-o", "masked.png")
    assert "drift outside the mask: none, every pixel is the same" in masked
    written = recipes.read("out.png")
    assert (written.model, written.seed, written.instruction) == ("small", 7, "make it blue")
    assert written.images == (recipes.FileRef.of("photo.png"),)


def test_without_a_seed_a_new_one_is_drawn_and_recorded(here):
    first, second = (ace_json("generate", "a cat", "-o", name)["pictures"][0]["seed"] for name in ("a.png", "b.png"))
    assert first != second
    assert recipes.read("a.png").seed == first
    ace("generate", "a cat", "-o", "again.png", "--seed", first)
    assert (pixels("again.png") == pixels("a.png")).all()
    assert not (pixels("b.png") == pixels("a.png")).all()


@pytest.mark.parametrize(("name", "kind"), [("out.png", "PNG"), ("out.jpg", "JPEG"), ("out.webp", "WEBP")])
def test_the_extension_says_the_format(here, name, kind):
    ace("generate", "a cat", "-o", name, "--quiet")
    with Image.open(name) as image:
        assert image.format == kind
    assert recipes.read(name).instruction == "a cat"


def test_without_metadata_the_file_holds_the_picture_only(here):
    ace("generate", "a cat", "-o", "out.png", "--no-metadata")
    assert "carries no recipe" in ace("replay", "out.png", code=2)


def test_without_a_name_an_unused_one_is_taken(here):
    for _ in range(2):
        ace("edit", "photo.png", "make it blue")
    assert {"photo-edited.png", "photo-edited-2.png"} <= names(here)


def test_outside_the_mask_nothing_changes_at_the_inputs_own_size(here):
    size = (150, 90)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo(size, mode="RGBA").save("large.png", icc_profile=profile)
    half_mask(size).save("mask.png")
    result = ace_json("edit", "large.png", "make it blue", "--mask", "mask.png", "-o", "out.png")["pictures"][0]
    before, after = pixels("large.png"), pixels("out.png")
    assert after.shape == before.shape
    assert (after[:, 75:] == before[:, 75:]).all()
    assert (after[..., 3] == before[..., 3]).all()
    assert not (after[:, :75, :3] == before[:, :75, :3]).all()
    assert result["drift"]["max_difference"] == 0 and result["drift"]["masked"]
    with Image.open("out.png") as image:
        assert image.info["icc_profile"] == profile


def test_an_edit_keeps_the_aspect_and_a_size_can_be_chosen(here):
    photo((150, 90)).save("wide.png")
    ace("edit", "wide.png", "make it blue", "-o", "out.png")
    height, width, _ = pixels("out.png").shape
    assert width / height == pytest.approx(150 / 90, rel=0.05)
    ace("edit", "wide.png", "make it blue", "-o", "chosen.png", "--size", "40x24")
    assert pixels("chosen.png").shape == (24, 40, 3)


def test_sixteen_bit_input_is_converted_once_and_the_report_says_so(here):
    Image.fromarray(np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)).save("deep.png")
    said = ace("edit", "deep.png", "make it blue", "-o", "out.png", "--detail", "model")
    assert said.count("deep.png") == 1 and "16" in said.split("deep.png")[1]


def test_several_inputs_go_to_a_folder_and_one_failure_does_not_stop_the_rest(here):
    put_bad_files_into(here)
    photo(seed=1).save("b.jpg")
    result = CliRunner().invoke(
        app, ["edit", "photo.png", "note.png", "b.jpg", "make it blue", "--out-dir", "blue", "--seed", "3", "--json"]
    )
    assert result.exit_code == 1
    assert "note.png is not a picture" in result.stderr
    assert "2 of 3 images made, 1 failed" in result.stderr
    told = json.loads(result.stdout)
    assert [one["input"] for one in told["pictures"]] == ["photo.png", "b.jpg"]
    assert [one["input"] for one in told["failures"]] == ["note.png"]
    assert names(here / "blue") == {"photo.png", "b.jpg"}
    ace("edit", "photo.png", "make it blue", "-o", "alone.png", "--seed", 3)
    assert np.abs(pixels("blue/photo.png") - pixels("alone.png")).max() <= 1


def test_several_pictures_can_be_created_with_consecutive_seeds(here):
    ace("generate", "a cat", "--count", 3, "--out-dir", "cats", "--seed", 10)
    assert [recipes.read(f"cats/00{n}.png").seed for n in (1, 2, 3)] == [10, 11, 12]


def test_quiet_says_nothing(here):
    assert ace("edit", "photo.png", "make it blue", "-o", "out.png", "--quiet") == ""


# Sessions


def test_a_session_continues_branches_and_remembers(here):
    ace("edit", "photo.png", "make it blue", "--session", "talk", "--seed", 1)
    ace("edit", "now add a hat", "--session", "talk", "--seed", 2)
    half_mask(Session.open("talk").answer("0001").size).save("mask.png")
    told = ace_json("edit", "no, a scarf", "--session", "talk", "--from", "0001", "--mask", "mask.png", "-o", "out.png")
    assert told["pictures"][0]["node"] == "0003"
    nodes = Session.open("talk").nodes()
    assert [node.parents for node in nodes] == [(), ("0001",), ("0001",)]
    assert [round.instruction for round in nodes[1].recipe.history] == ["make it blue"]
    assert [turn.unit.instruction for turn in Session.open("talk").history("0003")] == ["make it blue", "no, a scarf"]
    assert (pixels("out.png") == pixels(nodes[2].answer_path)).all()
    first, second = pixels(nodes[0].answer_path), pixels("out.png")
    assert (first[:, SIDE // 2 :] == second[:, SIDE // 2 :]).all()
    tree = ace("session", "talk").splitlines()
    assert [line.split("  (")[0] for line in tree] == [
        "0001  make it blue",
        "   0002  now add a hat",
        "   0003  no, a scarf",
    ]


def test_a_session_travels_as_one_file_and_goes_on_elsewhere(here):
    ace("edit", "photo.png", "make it blue", "--session", "talk", "--steps", 1)
    ace("edit", "add a hat", "--session", "talk", "--steps", 1)
    assert ace_json("session", "export", "talk", "talk.zip")["nodes"] == 2
    assert "0001 to 0002" in ace("session", "import", "talk.zip", "copy")
    assert ace("session", "copy") == ace("session", "talk") == ace("session", "show", "talk")
    assert ace_json("session", "import", "talk.zip", "copy")["nodes"] == {"0001": "0003", "0002": "0004"}
    ace("edit", "bigger", "--session", "copy", "--from", "0004", "--steps", 1)
    assert [node.parents for node in Session.open("copy").nodes()] == [(), ("0001",), (), ("0003",), ("0004",)]
    os.rename("talk", "before")
    assert ace_json("session", "import", "talk.zip")["session"] == "talk"
    assert ace("session", "talk") == ace("session", "before")


@pytest.mark.parametrize("member", ["../evil.png", "/tmp/evil.png", "nodes/0001/run.sh"])
def test_a_hostile_session_file_is_refused_and_leaves_nothing(here, member):
    ace("edit", "photo.png", "make it blue", "--session", "talk", "--steps", 1)
    ace("session", "export", "talk", "talk.zip")
    with zipfile.ZipFile("talk.zip", "a") as archive:
        archive.writestr(member, b"evil")
    before = sorted(here.rglob("*"))
    for target in ("talk", "new"):
        assert member in ace("session", "import", "talk.zip", target, code=2)
    assert sorted(here.rglob("*")) == before
    assert "not a ZIP file" in ace("session", "import", "photo.png", "new", code=2)
    assert "cannot be read" in ace("session", "import", "nothing.zip", code=2)
    assert "cannot be written" in ace("session", "export", "talk", "nowhere/talk.zip", code=2)


def test_rounds_that_no_longer_fit_are_left_out_and_the_result_says_so(here):
    ace("edit", "photo.png", "edit 0", "--session", "talk", "--steps", 1)
    for number in range(1, 6):
        said = ace("edit", f"edit {number}", "--session", "talk", "--steps", 1)
        assert "left out" not in said
    told = ace_json("edit", "edit 6", "--session", "talk", "--steps", 1)["pictures"][0]
    assert told["num_dropped_rounds"] == 1
    assert "2 earlier rounds were left out" in ace("edit", "edit 7", "--session", "talk", "--steps", 1)


# Replay


def test_replay_finds_renamed_inputs_and_makes_the_same_bytes(here):
    half_mask().save("mask.png")
    photo(seed=2).save("ref.png")
    ace("edit", "photo.png", "blue like {image1}", "--image", "ref.png", "--mask", "mask.png", "-o", "out.png")
    (here / "elsewhere").mkdir()
    for number, name in enumerate(("photo.png", "mask.png", "ref.png")):
        os.rename(name, f"elsewhere/{number}.png")
    assert "photo.png, ref.png, mask.png" in ace("replay", "out.png", code=2)
    told = ace_json("replay", "out.png", "--image", "elsewhere", "-o", "again.png")
    assert told["same_bytes"] and told["differences"] == []
    assert (pixels("again.png") == pixels("out.png")).all()


def test_replay_of_a_conversation_makes_the_same_bytes(here):
    ace("generate", "a cat", "--session", "talk")
    ace("edit", "now add a hat", "--session", "talk")
    ace("edit", "make {image} red like {image1}", "--image", "photo.png", "--session", "talk", "-o", "out.png")
    assert "the same to the byte" in ace("replay", "out.png", "--image", "talk")
    assert "3 of 3 edits made again" in ace("replay", "talk")
    said = ace("replay", "out.png", "--image", "talk/nodes/0001", "--image", "talk/nodes/0002", "-i", ".", code=2)
    assert "latents that its session keeps" in said


def test_a_session_goes_on_from_kept_latents_and_not_from_the_picture(here):
    for folder in ("one", "two"):
        ace("generate", "a cat", "--session", folder, "--seed", 1)
        ace("edit", "now add a hat", "--session", folder, "--seed", 2)
    first, second = (Path(folder) / "nodes/0002/image.png" for folder in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert recipes.read(first).history[0].latents is not None
    (Path("two") / "nodes/0001/latents.safetensors").write_bytes(b"damaged")
    assert "0001 is damaged" in ace("edit", "now add a hat", "--session", "two", "--from", "0001", code=2)


def test_replay_says_what_differs(here, tmp_path_factory):
    ace("generate", "a cat", "-o", "out.png", "--seed", 1)
    other = tmp_path_factory.mktemp("models") / "small"
    random_pipeline(dataclasses.replace(TINY_LIKE, depth=1), num_inference_steps=2).save_pretrained(other)
    result = CliRunner().invoke(app, ["replay", "out.png", "--model", str(other)])
    assert result.exit_code == 1
    assert "model small: " in result.stdout


def test_replay_of_another_machines_picture_names_what_differs_and_tolerates_rounding(here):
    ace("generate", "a cat", "-o", "out.png", "--seed", "3")
    recipe, values = recipes.read(Path("out.png")), pixels("out.png")
    values[0, 0, 0] += 1 if values[0, 0, 0] < 255 else -1
    other = {"num_threads": recipe.environment.num_threads + 1, "arch": "x86_64 AVX512 genuineintel amx_tile"}
    recipe = recipe.model_copy(update={"environment": recipe.environment.model_copy(update=other)})
    recipes.embed(Image.fromarray(values.astype(np.uint8)), Path("out.png"), recipe)
    result = CliRunner().invoke(app, ["replay", "out.png"], prog_name="ace")
    assert result.exit_code == 1
    for said in (
        *("pixels differ by up to 1 of 255 levels", "processor: x86_64 AVX512 genuineintel amx_tile then"),
        *("threads: ", "--tolerance 1 accepts it"),
    ):
        assert said in result.output
    told = ace_json("replay", "out.png", "--tolerance", "1")
    assert told["accepted"] and not told["same_pixels"] and told["largest_difference"] == 1
    assert len(told["differences"]) == 2


def test_replay_of_a_picture_that_was_changed_since_says_so(here):
    ace("generate", "a cat", "-o", "out.png", "--seed", 1)
    with Image.open("out.png") as image:
        changed, written = image.convert("RGB"), recipes.read("out.png")
    changed.putpixel((0, 0), (1, 2, 3))
    recipes.embed(changed, "out.png", written)
    told = ace_json("replay", "out.png", code=1)
    assert not told["same_bytes"] and told["largest_difference"] > 0 and told["differences"] == []


# The rest


def verbs(command, path=()):
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from verbs(child, (*path, name))


VERBS = {" ".join(path): command for path, command in verbs(get_command(app)) if not hasattr(command, "commands")}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example_of_itself(verb):
    said = ace(*verb.split(), "--help")
    assert f"ace {verb}" in said.split("Arguments")[0].split("Options")[0].split("Usage:")[1].split("\n", 1)[1]


def test_ace_alone_shows_its_verbs():
    said = ace()
    for verb in ("edit", "generate", "demo", "models", "doctor", "replay"):
        assert verb in said


def test_doctor_names_what_is_here_and_how_to_get_the_rest(here):
    facts = ace_json("doctor")
    assert facts["device"] and facts["threads"] >= 1 and facts["packages"]["torch"]
    assert all(":" in line for line in facts["missing"])
    assert any("ace data assets" in line for line in facts["missing"])


def test_models_says_which_are_here(here):
    told = ace_json("models")
    assert {model["name"]: model["here"] for model in told["models"]}.keys() == {
        "ace-tiny",
        "ace-0.6b-512",
        "ace-0.6b-1024",
    }
    assert not any(model["here"] for model in told["models"] if model["name"] != "ace-tiny")
    assert "ace convert ace-0.6b-512" in ace("models")


def test_a_missing_extra_is_one_line_that_names_it(tmp_path):
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError('none', name='pyarrow')\n")
    command = [sys.executable, "-m", "ace", "data", "synthesize", str(tmp_path), "-o", "report"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(r"ace: pyarrow is missing: (python -m )?pip install -e '\.\[data\]' \(in the folder .*\)", last)
    assert not (tmp_path / "report").exists()
