"""Profiles are honoured both ways, 16 bits survive where nothing changes, files are what their content says."""

import io
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from ace.conditions import sixteen
from ace.conditions.colour import from_srgb, in_profile_of, to_srgb
from ace.conditions.images import normalise_image, open_image
from ace.conversation.recipe import encode
from ace.errors import MissingDependencyError
from ace.extras import install_command
from ace.inference.preserve import paste_back
from tests.input_cases import BLUE, FILES, SIZE, plain_mask, scene, write_mpo

P3 = open_image(FILES / "p3.png").icc_profile
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def values(image):
    return np.asarray(image).astype(int)


def test_a_picture_in_display_p3_is_seen_in_srgb():
    opened = open_image(FILES / "p3.png")
    assert opened.icc_profile == P3
    assert opened.stored.getpixel((10, 10)) == (106, 157, 214)
    assert np.abs(np.subtract(opened.image.getpixel((10, 10)), (90, 160, 220))).max() <= 1


def test_an_answer_shows_the_colour_that_was_asked_for():
    opened = open_image(FILES / "p3.png")
    mask = Image.new("L", opened.size, 0)
    mask.paste(255, (100, 80, 200, 160))
    after = paste_back(opened, Image.new("RGB", opened.size, BLUE), mask, match_colour=False)
    assert after.info["icc_profile"] == P3
    kept = values(mask) == 0
    np.testing.assert_array_equal(values(after)[kept], values(opened.stored)[kept])
    again = open_image(io.BytesIO(encode(after, "PNG")))
    assert np.abs(np.subtract(again.image.getpixel((150, 120)), BLUE)).max() <= 1
    whole = in_profile_of(Image.new("RGB", (4, 4), BLUE), P3)
    assert np.abs(np.subtract(normalise_image(whole).image.getpixel((1, 1)), BLUE)).max() <= 1


def test_srgb_and_damaged_profiles_change_nothing():
    image = scene()
    assert to_srgb(image, SRGB) is image
    assert from_srgb(image, SRGB) is image
    assert to_srgb(image, None) is image
    damaged = b"\0" * 16 + b"RGB " + b"\xff" * 200
    image.info["icc_profile"] = damaged
    opened = normalise_image(image)
    assert opened.image is image
    assert "profile is damaged" in opened.converted


def test_alpha_passes_through_a_profile():
    image = scene().convert("RGBA")
    image.putalpha(plain_mask())
    converted = from_srgb(image, P3)
    np.testing.assert_array_equal(converted.getchannel("A"), plain_mask())
    assert converted.convert("RGB").getpixel((5, 5)) != image.convert("RGB").getpixel((5, 5))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_survive_outside_the_mask(suffix, channels, tmp_path):
    levels = np.random.default_rng(0).integers(0, 65536, (SIZE[1], SIZE[0], channels), dtype=np.uint16)
    if channels == 4:
        levels[..., 3] = 65535 - (levels[..., 3] % 1000)
    order = [2, 1, 0, 3][:channels]
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), levels[..., order])
    opened = open_image(tmp_path / f"deep{suffix}")
    np.testing.assert_array_equal(opened.deep, levels)
    after = paste_back(opened, Image.new("RGB", SIZE, BLUE), plain_mask(), match_colour=False)
    data = encode(after, "PNG")
    written = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., order]
    outside = values(plain_mask()) == 0
    np.testing.assert_array_equal(written[outside], levels[outside])
    assert np.abs(written[60, 70, :3] / 257 - BLUE).max() <= 2
    Image.open(io.BytesIO(data)).verify()


def test_sixteen_bits_of_a_turned_picture_are_turned_with_it(tmp_path):
    levels = np.random.default_rng(1).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        carrier = io.BytesIO()
        Image.new("RGB", (1, 1)).save(carrier, "PNG", exif=exif)
        opened = open_image(io.BytesIO(sixteen.encode_png(levels, carrier.getvalue())))
        difference = np.abs((opened.deep // 256).astype(int) - values(opened.stored))
        assert difference.max() <= 1


def test_without_opencv_the_loss_is_said(tmp_path, monkeypatch):
    levels = np.full((8, 8, 3), 12345, np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), levels)
    monkeypatch.setattr(sixteen, "can_keep", lambda: False)
    monkeypatch.setattr("ace.conditions.images.can_keep", lambda: False)
    opened = open_image(tmp_path / "deep.png")
    assert opened.deep is None
    assert opened.converted.startswith(f"16-bit to 8-bit ({install_command('deep')}")


def test_the_first_picture_of_a_phones_file_counts(tmp_path):
    opened = open_image(write_mpo(tmp_path / "phone.jpg"))
    assert np.abs(values(opened.image) - values(scene())).mean() < 3


def test_heic_is_read_with_its_extra_and_named_without(monkeypatch):
    pytest.importorskip("pi_heif")
    assert open_image(FILES / "iphone.heic").size == (320, 240)
    monkeypatch.setitem(__import__("sys").modules, "pi_heif", None)
    with pytest.raises(MissingDependencyError, match=r"iphone\.heic is HEIC.*\[heic\]"):
        open_image(FILES / "iphone.heic")


def test_the_content_says_what_a_file_is(tmp_path):
    for name in ("a.avif", "p3.png"):
        for suffix in (".jpg", ".heic", ".bin", ""):
            copy = tmp_path / f"copy{suffix}"
            shutil.copy(FILES / name, copy)
            np.testing.assert_array_equal(open_image(copy).stored, open_image(FILES / name).stored)
