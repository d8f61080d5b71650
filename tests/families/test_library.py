"""What is particular to diffusers' pipelines: their threads, their calls, and where their files come from."""

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ace.cli import app
from ace.conditions.images import normalise_image
from ace.conversation import Loading, Message, Picture, Settings, make, open_message
from ace.conversation.recipe import Environment, Recipe
from ace.errors import CheckpointError, ConfigError, ModelNotFoundError
from ace.families import family_of_recipe, find_family
from ace.families.library_call import arguments
from ace.families.signature import read_signature
from ace.families.stepwise import Stepwise
from tests.random_library import save_klein, save_kontext

QUICK = Settings(seed=1, num_inference_steps=2, size=(64, 64))
HUB = str(Path(__file__).parents[1] / "stand_in_hub.py")


def photo(seed=0, size=(64, 64)):
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Picture.of_image(normalise_image(Image.fromarray(values), name="photo"), "photo")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {"klein": save_klein(root / "klein"), "kontext": save_kontext(root / "kontext")}


@pytest.fixture(scope="module")
def klein(folders):
    family = find_family(str(folders["klein"]))
    family.load(Loading(device="cpu"))
    return family


@pytest.fixture(scope="module")
def kontext(folders):
    family = find_family(str(folders["kontext"]))
    family.load(Loading(device="cpu"))
    return family


# Stepping a loop that belongs to somebody else


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "ace-stepwise"]


def ended():
    for thread in threads():
        thread.join(10)
    return not threads()


def counting(seen):
    def call(on_step):
        try:
            for number in range(3):
                seen.append(number)
                on_step(number)
            return "the end"
        finally:
            seen.append("left")

    return call


def test_a_loop_runs_between_two_steps_only():
    seen: list[object] = []
    call = Stepwise(counting(seen))
    assert (seen, call.num_steps, threads()) == ([], 0, [])
    call.step()
    assert (seen, call.num_steps, call.made) == ([0], 1, 0)
    call.step()
    call.step()
    assert (call.num_steps, call.ended) == (3, False)
    assert call.result() == "the end"
    assert (seen, call.ended) == ([0, 1, 2, "left"], True)
    assert ended()


@pytest.mark.parametrize("how", ["closed", "forgotten"])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_loop_that_nobody_waits_for_is_left(how, steps):
    seen: list[object] = []
    call = Stepwise(counting(seen))
    for _ in range(steps):
        call.step()
    if how == "closed":
        call.close()
    del call
    gc.collect()
    assert ended()
    assert seen == [0, "left"][: 2 * steps]


def test_an_error_in_a_loop_reaches_whoever_steps_it_and_ends_the_thread():
    def call(on_step):
        on_step(1)
        raise ZeroDivisionError("in the library")

    stepped = Stepwise(call)
    stepped.step()
    with pytest.raises(ZeroDivisionError, match="in the library"):
        stepped.step()
    assert ended()


# The call


def test_several_images_go_to_a_model_that_takes_them_and_words_count_them_from_one(klein):
    job = open_message(klein, Message("put {image1} into {image}", QUICK, photo(), (photo(1),)))
    asked = arguments(klein.signature, job, (64, 64), 256**2, "guidance_scale")
    assert asked["prompt"] == "put image 2 into image 1"
    assert [image.size for image in asked["image"]] == [(64, 64), (64, 64)]
    (both,) = make(klein, [job])
    (one,) = make(klein, [open_message(klein, Message("put it into {image}", QUICK, photo()))])
    assert both.image.tobytes() != one.image.tobytes()
    (words,) = make(klein, [open_message(klein, Message("a red apple", QUICK))])
    assert words.image.size == (64, 64)
    assert words.recipe.images == ()


def test_a_negative_instruction_changes_the_image_of_a_model_that_takes_one(kontext):
    plain = Message("make it red", QUICK, photo())
    negative = replace(plain, settings=replace(QUICK, negative_instruction="blurred"))
    without, with_it = (make(kontext, [open_message(kontext, message)])[0] for message in (plain, negative))
    assert without.image.tobytes() != with_it.image.tobytes()
    assert with_it.recipe.guidance_scale == without.recipe.guidance_scale == 3.5


def test_an_image_is_worked_on_in_its_own_aspect_within_the_models_area(kontext):
    settings = Settings(seed=1, num_inference_steps=1)
    job = open_message(kontext, Message("make it red", settings, photo(size=(90, 40))))
    (made,) = make(kontext, [job])
    width, height = made.recipe.size_px
    assert made.image.size == (90, 40)  # at the input's size, worked on at the model's
    assert width % 4 == height % 4 == 0
    assert 0.9 * 256**2 < width * height <= 256**2
    assert width / height == pytest.approx(90 / 40, rel=0.03)


def test_what_a_model_was_not_made_for_is_refused_in_one_line(kontext, klein):
    for size, words in (((66, 64), "steps of 4 px, use 64x64"), ((4096, 4096), "far beyond")):
        with pytest.raises(ConfigError, match=words):
            open_message(kontext, Message("x", replace(QUICK, size=size), photo()))
    small = open_message(klein, Message("x", replace(QUICK, size=(32, 32)), photo()))
    with pytest.raises(ConfigError, match=r"klein cannot make this \(Image too small") as refused:
        make(klein, [small])  # the library's own limit
    assert "\n" not in str(refused.value)
    assert ended()


def test_a_distilled_model_takes_no_guidance(folders, tmp_path):
    index = json.loads((folders["klein"] / "model_index.json").read_text())
    for file in folders["klein"].iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "is_distilled": True}))
    family = find_family(str(tmp_path))
    with pytest.raises(ConfigError, match="takes no guidance scale"):
        open_message(family, Message("x", replace(QUICK, guidance_scale=4.0), photo()))
    assert open_message(family, Message("x", QUICK, photo())).settings.guidance_scale is None


# Which pipelines, and from where


@pytest.mark.parametrize(
    ("class_name", "words"),
    [
        ("StableDiffusionPipeline", "takes no image"),
        ("WanImageToVideoPipeline", "makes videos"),
        ("StableDiffusionControlNetPipeline", "needs a control image"),
        ("NoSuchPipeline", "has no pipeline 'NoSuchPipeline'"),
        ("os.system", "has no pipeline"),
    ],
)
def test_a_pipeline_that_edits_no_images_is_refused_from_its_name(tmp_path, class_name, words):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    with pytest.raises(ModelNotFoundError, match=words):
        find_family(str(tmp_path))


@pytest.mark.parametrize(
    "index", ["[]", "{", '{"_class_name": ["x", "Y"]}', '{"_class_name": "FluxKontextPipeline", "../vae": []}']
)
def test_a_hostile_index_is_refused(tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ModelNotFoundError, match=r"model_index\.json of .* is missing or damaged"):
        find_family(str(tmp_path))


def test_signatures_are_read_without_importing_the_library(folders):
    code = (
        "import sys; from ace.families import find_family; traits = find_family(sys.argv[1]).traits;"
        "print(traits.max_images, [name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folders["klein"])], capture_output=True, text=True)
    assert done.stdout.strip() == "9 []", done.stderr
    inpainting = read_signature("FluxKontextInpaintPipeline")
    assert "mask_image" in inpainting
    assert not inpainting.without_image
    assert not read_signature("QwenImageEditPipeline").several_images
    assert read_signature("QwenImageEditPlusPipeline").several_images


def test_a_folder_that_lacks_a_part_is_refused(folders, tmp_path):
    for file in folders["kontext"].iterdir():
        if file.name != "vae":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ModelNotFoundError, match="lacks vae"):
        find_family(str(tmp_path)).load(Loading(device="cpu"))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text((folders["kontext"] / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        find_family(str(tmp_path)).load(Loading(device="cpu"))


def test_memory_that_the_model_does_not_know_is_refused(folders):
    with pytest.raises(ConfigError, match="klein takes auto, full, offload, lean"):
        find_family(str(folders["klein"])).load(Loading(memory="8bit"))
    with pytest.raises(ConfigError, match="there is none: use full"):
        find_family(str(folders["klein"])).load(Loading(device="cpu", memory="lean"))


ONLINE = """
import os, sys
from pathlib import Path
from ace.conversation import Loading
from ace.families import find_family

def weights():
    return len([path for path in Path(os.environ["HF_HOME"]).rglob("*.safetensors") if path.exists()])

family = find_family(sys.argv[1])
print("found", family.kind, family.traits.max_images, weights())
family.load(Loading(device="cpu"), lambda line: print("note", line, weights()))
print("loaded", family.sha256, weights() > 2)
"""
OFFLINE = """
import sys
from ace.conversation.recipe import Recipe
from ace.families import family_of_recipe
family, loading = family_of_recipe(Recipe.from_json(sys.argv[1]))
family.files.fetch(print)
print("found", family.name, family.sha256, "torch" in sys.modules)
"""


def recipe_of(model: str) -> Recipe:
    return Recipe(
        family="diffusers",
        model=model,
        model_sha256="0" * 64,
        instruction="x",
        seed=1,
        num_inference_steps=2,
        guidance_scale=1.0,
        guidance_rescale=0.0,
        size_px=(64, 64),
        environment=Environment.here(),
    )


def test_a_hub_pipeline_tells_its_licence_before_its_weights_come_and_is_found_again_offline(folders, tmp_path):
    served = tmp_path / "served"
    shutil.copytree(folders["klein"], served)
    (served / "README.md").write_text(
        "---\nlicense: other\nlicense_name: some-\x1blicence\nlicense_link: L\n---\nCard\n"
    )
    (served / "pickled.bin").write_bytes(b"never asked for")
    server = subprocess.Popen([sys.executable, HUB, str(served), "some/klein"], stdout=subprocess.PIPE, text=True)
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"HF_HOME": str(tmp_path / "hf")}
    try:
        environment["HF_ENDPOINT"] = f"http://127.0.0.1:{server.stdout.readline().strip()}"

        def program(text, *given, **more):
            command = [sys.executable, "-W", "ignore", "-c", text, *given]
            return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)

        unknown = program(OFFLINE, recipe_of("hf://some/klein").to_json())
        online = program(ONLINE, "hf://some/klein")
        assert online.returncode == 0, online.stderr
        absent = program(ONLINE, "hf://some/other")
    finally:
        server.kill()
        asked = server.communicate()[0]
    found, note, loaded = online.stdout.strip().splitlines()
    assert found == "found diffusers 9 0"
    assert note == "note hf://some/klein: licence some- licence, L 0"
    assert loaded.endswith("True")
    assert "pickled.bin" not in asked
    assert "has no some/other" in absent.stderr.splitlines()[-1]
    assert "not in the hub's cache and it is not fetched here" in unknown.stderr.splitlines()[-1]
    again = program(OFFLINE, recipe_of("hf://some/klein").to_json(), HF_HUB_OFFLINE="1")
    assert again.stdout.strip() == f"found hf://some/klein {loaded.split()[1]} False", again.stderr
    local = find_family(str(folders["klein"]))
    assert local.sha256 == loaded.split()[1], "the same files are the same model, wherever they came from"


def test_a_name_in_a_recipe_never_leads_to_a_folder(folders, monkeypatch):
    with pytest.raises(ModelNotFoundError, match="no known model: name it with --model"):
        family_of_recipe(recipe_of(str(folders["klein"])))
    family, _ = family_of_recipe(recipe_of("klein"), str(folders["klein"]))
    assert family.name == "klein"
    monkeypatch.setenv("ACE_MODEL", str(folders["klein"]))
    family, _ = family_of_recipe(recipe_of("klein"))
    assert family.kind == "diffusers"


def test_the_command_line_edits_keeps_and_replays_with_such_a_model(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = photo(size=(40, 30)).opened.image
    given.save("photo.png")
    mask = Image.new("L", (40, 30), 0)
    mask.paste(255, (0, 0, 20, 30))
    mask.save("mask.png")
    quick = ["--steps", "2", "--size", "64x64", "--model", str(folders["kontext"]), "--seed", "18446744073709551615"]

    def ace(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    done = ace("edit", "photo.png", "make it red", "--mask", "mask.png", "--session", "talk", "-o", "out.png", *quick)
    assert done.exit_code == 0, done.output
    assert "does not see masks" in done.output
    kept = np.asarray(Image.open("out.png"))[:, 20:]
    np.testing.assert_array_equal(kept, np.asarray(given)[:, 20:])
    done = ace("edit", "add a hat", "--session", "talk", *quick)
    assert done.exit_code == 0, done.output
    for made in ("out.png", "talk"):
        again = ace("replay", made, "--model", folders["kontext"])
        assert again.exit_code == 0, again.output
    refused = ace("edit", "photo.png", "x", "--lora", "style.safetensors", *quick)
    assert refused.exit_code == 2
    assert "does not take adapters (LoRA)" in refused.output
