"""Recipes survive every format, files are whole or absent, hostile metadata is one clear error."""

import json
import os
import platform
import stat
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from ace.conversation.recipe import (
    Environment,
    FileRef,
    Recipe,
    Round,
    check_output,
    compare,
    embed,
    encode,
    match_files,
    read,
)
from ace.errors import InputError, OutputError
from ace.files import hash_file, hash_model, write_atomically

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FORMATS = ["png", "jpg", "jpeg", "webp", "PNG"]


def picture(mode="RGB", size=(33, 21)):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    return Image.fromarray(values, mode=None)


def ref(name="photo.png", digit="a"):
    return FileRef(name=name, sha256=digit * 64)


def recipe(**changes):
    fields = {
        "model": "ace-tiny",
        "model_sha256": "0" * 64,
        "instruction": 'make {image} <b>"warm"</b> & 暖かい 🎈 ]]> \x01\ufffe',
        "negative_instruction": "blurry",
        "seed": 2**64 - 1,
        "num_inference_steps": 10,
        "guidance_scale": 4.5,
        "guidance_rescale": 0,
        "size_px": (64, 48),
        "images": (ref(), ref("b.jpg", "b")),
        "masks": (ref("m.png", "c"), None),
        "history": (
            Round(instruction="first", images=(ref("old.png", "d"),), masks=(None,), answer=ref("x.png", "e")),
        ),
        "settings": {"scheduler": "ddim", "paste_back": True, "feather_px": 5, "strength": 0.5},
        "environment": Environment.here(),
    }
    return Recipe(**{**fields, **changes})


def with_packet(path, packet):
    chunks = PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", packet)
    Image.new("RGB", (4, 4)).save(path, pnginfo=chunks)


def with_recipe_text(path, text):
    with_packet(path, f'<a xmlns:ace="urn:ace-allround:recipe"><ace:recipe>{escape(text)}</ace:recipe></a>')


# Round trips


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_recipe_comes_back_equal_from_every_format(tmp_path, suffix):
    embed(picture(), tmp_path / f"out.{suffix}", recipe())
    assert read(tmp_path / f"out.{suffix}") == recipe()


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_lossless_formats_keep_every_byte_even_under_full_transparency(tmp_path, suffix, mode):
    image = picture(mode)
    if mode == "RGBA":
        image.putalpha(Image.new("L", image.size, 0))
    image.info["icc_profile"] = SRGB
    embed(image, tmp_path / f"out.{suffix}", recipe())
    with Image.open(tmp_path / f"out.{suffix}") as written:
        assert written.info["icc_profile"] == SRGB
        np.testing.assert_array_equal(np.asarray(written.convert(mode)), np.asarray(image))


def test_jpeg_keeps_the_profile_and_puts_alpha_over_white(tmp_path):
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.info["icc_profile"] = SRGB
    embed(image, tmp_path / "out.jpg", recipe())
    with Image.open(tmp_path / "out.jpg") as written:
        assert written.info["icc_profile"] == SRGB
        assert written.getpixel((8, 8)) == (255, 255, 255)


def test_the_same_edit_gives_the_same_bytes():
    for file_format in ("PNG", "JPEG", "WEBP"):
        assert encode(picture(), file_format, recipe()) == encode(picture(), file_format, recipe())


@pytest.mark.parametrize("suffix", FORMATS)
def test_without_a_recipe_the_file_carries_no_metadata(tmp_path, suffix):
    image = picture()
    image.info.update({"comment": "secret", "Title": "secret", "xmp": b"secret", "exif": b"secret"})
    embed(image, tmp_path / f"out.{suffix}")
    assert b"secret" not in (tmp_path / f"out.{suffix}").read_bytes()
    with pytest.raises(InputError, match="carries no recipe"):
        read(tmp_path / f"out.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_digital_source_type_tells_an_edit_from_a_new_picture(tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    embed(picture(), path, recipe())
    assert b"digitalsourcetype/compositeWithTrainedAlgorithmicMedia<" in path.read_bytes()
    embed(picture(), path, recipe(images=(), masks=(), history=()))
    assert b"digitalsourcetype/trainedAlgorithmicMedia<" in path.read_bytes()


def test_files_are_recorded_by_name_and_never_by_folder(tmp_path):
    (tmp_path / "in.png").write_bytes(b"abc")
    assert FileRef.of(tmp_path / "in.png").name == "in.png"
    embed(picture(), tmp_path / "out.png", recipe(images=(FileRef.of(tmp_path / "in.png"),), masks=()))
    assert str(tmp_path).encode() not in (tmp_path / "out.png").read_bytes()
    for name in ("a/b.png", "..\\b.png", "", "x" * 300):
        with pytest.raises(ValueError, match="name"):
            FileRef(name=name, sha256="a" * 64)


def test_a_long_conversation_fits_a_png_and_is_refused_for_a_jpeg(tmp_path):
    long = recipe(history=tuple(Round(instruction="x" * 9000, answer=ref(digit="f")) for _ in range(9)))
    embed(picture(), tmp_path / "out.png", long)
    assert read(tmp_path / "out.png") == long
    with pytest.raises(OutputError, match=r"does not fit into a JPEG: write \.png"):
        embed(picture(), tmp_path / "out.jpg", long)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


# Files whole or absent


def test_unwritable_outputs_are_refused_before_anything_is_made(tmp_path):
    (tmp_path / "taken.png").mkdir()
    cases = {
        "out.gif": "extension",
        "out": "extension",
        "no/such/out.png": "folder of out.png does not exist",
        "taken.png": "choose another name",
        "x" * 300 + ".png": "name",
    }
    for name, message in cases.items():
        with pytest.raises(OutputError, match=message):
            check_output(tmp_path / name)
        with pytest.raises(OutputError, match=message):
            embed(picture(), tmp_path / name, recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


def test_checking_an_output_neither_creates_nor_touches_it(tmp_path):
    assert check_output(tmp_path / "new.JPG") == "JPEG"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.webp").write_bytes(b"old")
    assert check_output(tmp_path / "old.webp") == "WEBP"
    assert (tmp_path / "old.webp").read_bytes() == b"old"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "out.webp").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"write \.png"):
        embed(Image.new("RGB", (17000, 2)), tmp_path / "out.webp")  # WebP ends at 16383 px
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.webp", b"old")]


def test_a_rename_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "a.png" / "full").touch()
    with pytest.raises(OutputError, match=r"a\.png cannot be written"):
        write_atomically(tmp_path / "a.png", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.skipif(os.name != "posix", reason="file modes of POSIX")
def test_a_new_file_has_ordinary_rights_and_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "real" / "out.png")
    old = os.umask(0o022)
    try:
        embed(picture(), tmp_path / "link.png", recipe())
    finally:
        os.umask(old)
    assert (tmp_path / "link.png").is_symlink()
    assert stat.S_IMODE((tmp_path / "real" / "out.png").stat().st_mode) == 0o644
    assert read(tmp_path / "link.png") == recipe()


# Reading what others wrote


def test_damaged_recipes_are_one_clear_line(tmp_path):
    good = json.loads(recipe().to_json())
    hostile = [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "[" * 200_000,
        '{"format_version":' * 5000,
        json.dumps({**good, "seed": "7"}),
        json.dumps({**good, "seed": -1}),
        json.dumps({**good, "num_inference_steps": 1e400}),
        json.dumps({**good, "guidance_scale": float("nan")}),
        json.dumps({**good, "size_px": [64]}),
        json.dumps({**good, "images": [{"name": "../../etc/passwd", "sha256": "a" * 64}]}),
        json.dumps({**good, "images": [{"name": "a.png", "sha256": "zz"}]}),
        json.dumps({**good, "masks": [None]}),
        json.dumps({**good, "extra": 1}),
        json.dumps({key: value for key, value in good.items() if key != "environment"}),
        json.dumps({**good, "settings": {"a": {"nested": 1}}}),
        json.dumps({**good, "instruction": "\ud800"}),
        json.dumps({**good, "format_version": True}),
    ]
    for text in hostile:
        with_recipe_text(tmp_path / "a.png", text)
        with pytest.raises(InputError, match=r"a\.png") as caught:
            read(tmp_path / "a.png")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_newer_format_asks_for_an_update(tmp_path):
    with_recipe_text(tmp_path / "a.png", json.dumps({"format_version": 3, "anything": 1}))
    with pytest.raises(InputError, match="format 3, this version reads 1 to 2: update"):
        read(tmp_path / "a.png")


def test_hostile_metadata_is_refused_without_expanding_it(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb">]><a xmlns:ace="urn:ace-allround:recipe"><ace:recipe>&b;</ace:recipe></a>'
    for packet in (bomb, "<a>", "\0\0\0", "<a>" * 100_000, "<a/>", "x" * 3_000_000):
        with_packet(tmp_path / "a.png", packet)
        with pytest.raises(InputError, match=r"a\.png"):
            read(tmp_path / "a.png")


def test_pictures_without_recipes_and_no_pictures_are_told_apart(tmp_path):
    picture().save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_bytes(b"hello")
    for name, message in {"plain.png": "no recipe", "text.png": "not a picture", "gone.png": "no such file"}.items():
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)


def test_a_recipe_turned_into_an_attribute_by_another_tool_is_found(tmp_path):
    value = quoteattr(recipe().to_json())
    with_packet(tmp_path / "a.png", f'<a xmlns:ace="urn:ace-allround:recipe" ace:recipe={value}/>')
    assert read(tmp_path / "a.png") == recipe()


# Making it again


def test_inputs_are_found_by_content_whatever_they_are_called(tmp_path):
    paths = [tmp_path / name for name in ("one.png", "two.png", "three.png")]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    made = recipe(images=(FileRef.of(paths[0]), FileRef.of(paths[1])), masks=(), history=())
    renamed = paths[0].rename(tmp_path / "renamed.png")
    found = match_files(made, [paths[2], paths[1], renamed])
    assert [found[file.sha256] for file in made.images] == [renamed, paths[1]]
    with pytest.raises(InputError, match=r"not among the given files: one\.png: give each with --image"):
        match_files(made, [paths[1]])
    with pytest.raises(InputError, match=r"gone\.png cannot be read"):
        match_files(made, [tmp_path / "gone.png"])


def test_files_lists_history_first_and_every_content_once():
    again = recipe(images=(ref(), ref("copy.png")), masks=(None, ref("m.png", "c")))
    assert [file.name for file in again.files()] == ["old.png", "x.png", "photo.png", "m.png"]


def test_compare_names_what_may_change_the_picture():
    made = recipe()
    now = made.environment
    assert compare(made, now, model_sha256="0" * 64) == ()
    other = now.model_copy(
        update={"num_threads": now.num_threads + 1, "packages": {**now.packages, "numpy": "0.1", "torch": "0.2"}}
    )
    lines = compare(made, other, model_sha256="1" * 64)
    assert len(lines) == 4
    assert lines[0] == "model ace-tiny: 000000000000 then, 111111111111 now"
    assert f"threads: {now.num_threads} then, {now.num_threads + 1} now" in lines
    assert any(line.startswith("torch: ") and line.endswith("0.2 now") for line in lines)


def test_the_environment_knows_its_packages_and_what_chooses_its_kernels(monkeypatch):
    for name in ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    here = Environment.here(device="cpu", dtype="bfloat16")
    assert here.packages["numpy"] == np.__version__
    capability = torch.backends.cpu.get_cpu_capability()
    assert here.arch.startswith(f"{platform.machine()} {capability}") and "=" not in here.arch
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE\n<")
    assert Environment.here().arch == f"{here.arch} MKL_CBWR=COMPATIBLE??"
    before = recipe(environment=here.model_copy(update={"arch": f"{platform.machine()} {capability}"}))
    assert compare(before, here) == (), "recipes of before say less of the processor"
    assert here.dtype == "bfloat16"


def test_hashes_are_of_bytes_and_model_hashes_of_what_matters(tmp_path):
    (tmp_path / "model" / "vae").mkdir(parents=True)
    (tmp_path / "model" / "vae" / "w.safetensors").write_bytes(b"weights")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert hash_file(tmp_path / "model" / "config.json") == (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )
    first = hash_model(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("notes")
    (tmp_path / "model" / ".cache.json").write_text("cache")
    assert hash_model(tmp_path / "model") == first
    (tmp_path / "model" / "config.json").write_text("{ }")
    assert hash_model(tmp_path / "model") != first
    with pytest.raises(InputError, match="no model files"):
        hash_model(tmp_path / "model" / "gone")


# Format 1, as version 0.1 wrote it

FORMAT_1 = (
    '{"format_version":1,"model":"ace-tiny","model_sha256":"' + "0" * 64 + '",'
    '"instruction":"make {image} \\u00fcber red","negative_instruction":"","seed":9223372036854775808,'
    '"num_inference_steps":2,"guidance_scale":4.5,"guidance_rescale":0.0,"size_px":[128,128],'
    '"images":[{"name":"photo.png","sha256":"' + "a" * 64 + '"}],"masks":[null],'
    '"history":[{"instruction":"first","images":[],"masks":[],'
    '"answer":{"name":"image.png","sha256":"' + "b" * 64 + '"}}],'
    '"settings":{"latents":"kept","batch_size":2,"feather_px":3},'
    '"environment":{"system":"Linux","arch":"x86_64 AVX2","device":"cpu","dtype":"float32","num_threads":2,'
    '"python":"3.11.7","packages":{"ace-allround":"0.1.0","torch":"2.13.0"}}}'
)
PLUS_FORMAT_1 = (
    '{"format_version":1,"model":"ace-plus-fft","model_sha256":"' + "0" * 64 + '","instruction":"x",'
    '"negative_instruction":"","seed":1,"num_inference_steps":2,"guidance_scale":50.0,"guidance_rescale":0.0,'
    '"size_px":[128,128],"images":[],"masks":[],"history":[],"settings":{"family":"ace-plus","edits":false},'
    '"environment":{"system":"Linux","arch":"x86_64 AVX2","device":"cpu","dtype":"float32","num_threads":2,'
    '"python":"3.11.7","packages":{"ace-allround":"0.1.0","torch":"2.13.0"}}}'
)


@pytest.mark.parametrize(("text", "family"), [(FORMAT_1, "ace"), (PLUS_FORMAT_1, "ace-plus")])
def test_a_recipe_of_format_1_is_read_and_written_again_as_it_was(text, family, tmp_path):
    old = Recipe.from_json(text)
    assert (old.format_version, old.family) == (1, family)
    assert set(old.rules.values()) == {1}
    assert old.to_json() == text
    for name in ("a.png", "b.jpg", "c.webp"):
        embed(picture(), tmp_path / name, old)
        first = (tmp_path / name).read_bytes()
        embed(picture(), tmp_path / name, read(tmp_path / name))
        assert (tmp_path / name).read_bytes() == first


def test_a_recipe_of_format_1_says_what_it_went_on_from():
    old = Recipe.from_json(FORMAT_1)
    assert old.needs_latents
    assert old.history[0].latents is None
    assert not Recipe.from_json(PLUS_FORMAT_1).needs_latents


def test_a_recipe_names_the_noise_schedule_in_force():
    from ace.conversation.recipe import CURRENT_RULES
    from ace.diffusion import SCHEDULE_RULES

    assert CURRENT_RULES["noise_schedule"] == SCHEDULE_RULES
