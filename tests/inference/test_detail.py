"""Full-size answers keep what nobody changed to the byte, and carry changes of colour and light at full detail."""

import numpy as np
import pytest
import skimage.data
from PIL import Image

from ace.conditions.images import normalise_image, open_image
from ace.inference.detail import deliver, size_note
from tests.input_cases import FILES


def photograph():
    return Image.fromarray(skimage.data.coffee())  # 600x400


def shares(image):
    return np.asarray(image, dtype=np.float64) / 255


def to_image(values):
    return Image.fromarray(np.round(np.clip(values, 0, 1) * 255).astype(np.uint8))


def psnr(first, second):
    return 10 * np.log10(1 / np.mean((shares(first) - shares(second)) ** 2))


def ellipse(soft):
    y, x = np.mgrid[0:400, 0:600]
    distance = np.hypot((y - 190) / 90, (x - 260) / 140)
    return np.clip((1 - distance) / soft + 0.5, 0, 1)[..., None]


def small(image, size=(128, 80)):
    return image.resize(size, Image.Resampling.BICUBIC)


EDITS = {
    "night": lambda v: (0.6 * v + 0.4 * v.mean(axis=2, keepdims=True)) ** 1.4 * np.array([0.35, 0.42, 0.65]),
    "tone curve": lambda v: 0.5 + 0.5 * np.tanh(2.2 * (v - 0.5)) / np.tanh(1.1),
    "a lamp": lambda v: v * (1 + ellipse(0.9) * np.array([0.7, 0.5, 0.2])),
    "one part in another colour": lambda v: v * (1 - ellipse(0.05)) + ellipse(0.05) * (v[..., [1, 2, 0]] * 0.8 + 0.1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_changes_of_colour_and_light_come_at_full_detail(edit):
    photo = photograph()
    truth = to_image(EDITS[edit](shares(photo)))
    made = deliver(normalise_image(photo), small(truth))
    enlarged = small(truth).resize(photo.size, Image.Resampling.BICUBIC)
    assert made.image.size == photo.size
    assert psnr(made.image, truth) > psnr(enlarged, truth) + 6
    assert made.redrawn < 0.15


def test_what_nobody_changed_is_the_input_to_the_byte():
    photo = photograph()
    part = ellipse(0.01)
    other = Image.fromarray(skimage.data.astronaut()).resize(photo.size)
    truth = to_image(shares(photo) * (1 - part) + shares(other) * part)
    made = deliver(normalise_image(photo), small(truth))
    untouched = (np.asarray(truth) == np.asarray(photo)).all(axis=2)
    kept = (np.asarray(made.image) == np.asarray(photo)).all(axis=2)
    assert kept[untouched].mean() > 0.99
    assert made.kept == pytest.approx(kept.mean(), abs=0.01)
    np.testing.assert_array_equal(np.asarray(made.change_mask) == 0, kept)
    assert psnr(made.image, truth) > psnr(small(truth).resize(photo.size, Image.Resampling.BICUBIC), truth)
    assert made.kept + made.recoloured + made.redrawn == pytest.approx(1)
    assert made.redrawn > 0.05


def test_an_autoencoders_softness_is_no_edit():
    photo = photograph()
    trip = small(photo).resize((64, 40)).resize((128, 80), Image.Resampling.BICUBIC)
    made = deliver(normalise_image(photo), trip, round_trip=trip)
    np.testing.assert_array_equal(made.image, photo)
    assert made.kept == 1
    assert str(made).startswith("100.0 % of the pixels kept")
    without = deliver(normalise_image(photo), trip)
    assert without.kept < 0.9  # taken for an edit, if the round trip is not known


def test_a_moved_answer_is_moved_back():
    photo = photograph()
    moved = photo.transform(photo.size, Image.Transform.AFFINE, (1, 0, -8, 0, 1, 0), Image.Resampling.BICUBIC)
    made = deliver(normalise_image(photo), small(moved))
    assert made.shift_px == pytest.approx((8, 0), abs=1.5)
    assert made.kept > 0.8
    assert "moved back" in str(made)


def test_profile_alpha_and_size_are_the_photographs(tmp_path):
    opened = open_image(FILES / "p3.png")
    made = deliver(opened, opened.image.resize((128, 96)).point(lambda level: level // 2))
    assert made.image.info["icc_profile"] == opened.icc_profile
    seen = normalise_image(made.image).image
    assert np.abs(np.asarray(seen).astype(int) - np.asarray(opened.image) / 2).mean() < 3
    transparent = photograph().convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    opened = normalise_image(transparent)
    made = deliver(opened, small(opened.image))
    assert made.image.mode == "RGBA"
    np.testing.assert_array_equal(made.image, transparent)


def test_sixteen_bits_stay_where_nothing_changed(tmp_path):
    cv2 = pytest.importorskip("cv2")
    deep = skimage.data.coffee().astype(np.uint16) * 257 + 100
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    opened = open_image(tmp_path / "deep.png")
    answer = small(opened.image)
    answer.paste((250, 0, 250), (40, 30, 60, 50))
    made = deliver(opened, answer)
    kept = np.asarray(made.change_mask) == 0
    np.testing.assert_array_equal(made.image.info["sixteen_bit"][kept], opened.deep[kept])


@pytest.mark.parametrize("size", [(1, 1), (17, 300), (640, 40)])
def test_every_size_of_photograph_is_answered(size):
    photo = photograph().resize(size)
    made = deliver(normalise_image(photo), photo.resize((64, 48)))
    assert made.image.size == size


def test_a_picture_at_the_models_size_says_so():
    assert size_note((144, 96), (451, 300)) == "made at 144x96; your picture is 451x300"


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (1600, 100), (33, 500)])
@pytest.mark.parametrize("model", [(16, 16), (128, 16), (48, 160)])
def test_pictures_of_any_shape_keep_their_size(size, model):
    photo = Image.radial_gradient("L").convert("RGB").resize(size)
    answer = photo.resize(model).point(lambda level: level // 2)
    made = deliver(normalise_image(photo), answer, photo.resize(model))
    assert made.image.size == size
    assert made.shift_px is None
