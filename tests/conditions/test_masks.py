"""One reading of every mask: the same part changes whatever program wrote the file; what cannot be told is refused."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ace.conditions.images import normalise_image, open_image, prepare_mask
from ace.conditions.masks import open_mask, read_mask
from ace.conditions.rules import ImageRules
from ace.errors import MaskError
from ace.inference.preserve import drift_report, paste_back
from tests.input_cases import BOX, SELECTED, SIZE, masks, plain_mask, scene, soft_mask, write_turned

PHOTO = normalise_image(scene())


@pytest.mark.parametrize("kind", masks())
def test_every_way_of_writing_a_mask_selects_the_same(kind):
    read = read_mask(masks()[kind], PHOTO)
    np.testing.assert_array_equal(read.image, plain_mask())
    assert read.share == pytest.approx(SELECTED)
    assert f"selects {100 * SELECTED:.1f} %" in read.note


@pytest.mark.parametrize("kind", masks())
def test_a_mask_file_and_its_bytes_are_read_alike(kind, tmp_path):
    path = tmp_path / "mask.png"
    masks()[kind].save(path)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes()), open_image(path)):
        np.testing.assert_array_equal(read_mask(source, PHOTO).image, plain_mask())


def test_a_jpeg_mask_keeps_its_black_black(tmp_path):
    plain_mask().save(tmp_path / "mask.jpg", quality=80)
    weights = np.asarray(read_mask(tmp_path / "mask.jpg", PHOTO).image)
    far = np.ones((SIZE[1], SIZE[0]), dtype=bool)
    far[BOX[1] - 8 : BOX[3] + 9, BOX[0] - 8 : BOX[2] + 9] = False
    assert (weights[far] == 0).all()


def frame(colour):
    """A thin opaque frame around a transparent middle: the border says one thing, the coverage another."""
    image = Image.new("RGBA", SIZE, (*colour, 255))
    image.paste((0, 0, 0, 0), (8, 8, SIZE[0] - 8, SIZE[1] - 8))
    return image


def halves(colour):
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    image.paste((*colour, 255), (0, 0, SIZE[0], SIZE[1] * 45 // 100))
    return image


@pytest.mark.parametrize("ambiguous", [frame((0, 0, 0)), frame((255, 255, 255)), halves((0, 0, 0))])
def test_what_can_be_read_two_ways_is_refused_until_it_is_said(ambiguous):
    with pytest.raises(MaskError, match="--mask-means opaque or transparent"):
        read_mask(ambiguous, PHOTO)
    opaque = np.asarray(ambiguous.getchannel("A")) > 0
    for means, expected in (("opaque", opaque), ("transparent", ~opaque)):
        read = read_mask(ambiguous, PHOTO, ImageRules(mask_means=means))
        np.testing.assert_array_equal(np.asarray(read.image) > 0, expected)
    np.testing.assert_array_equal(np.asarray(read_mask(ambiguous, PHOTO, undecided="transparent").image) > 0, ~opaque)


def test_a_stroke_that_leaves_the_picture_is_a_stroke_and_a_hole_at_the_edge_a_hole():
    alpha = Image.new("L", SIZE, 0)
    ImageDraw.Draw(alpha).rectangle((0, 30, 60, 60), fill=255)
    for colour in ((0, 0, 0), (255, 255, 255)):
        stroke = Image.new("RGBA", SIZE, (*colour, 255))
        stroke.putalpha(alpha)
        np.testing.assert_array_equal(read_mask(stroke, PHOTO).image, alpha)
        hole = Image.new("RGBA", SIZE, (*colour, 255))
        hole.putalpha(alpha.point(lambda level: 255 - level))
        np.testing.assert_array_equal(read_mask(hole, PHOTO).image, alpha)


def test_white_and_black_can_be_asked_for():
    inverted = plain_mask().point(lambda level: 255 - level)
    np.testing.assert_array_equal(read_mask(inverted, PHOTO, ImageRules(mask_means="black")).image, plain_mask())
    np.testing.assert_array_equal(read_mask(plain_mask(), PHOTO, ImageRules(mask_means="white")).image, plain_mask())
    with pytest.raises(MaskError, match="has no transparent part"):
        read_mask(plain_mask(), PHOTO, ImageRules(mask_means="opaque"))


def test_another_photograph_with_a_hole_is_refused():
    other = Image.fromarray(np.random.default_rng(0).integers(60, 190, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
    other.putalpha(plain_mask().point(lambda level: 255 - level))
    with pytest.raises(MaskError, match="--mask-means transparent"):
        read_mask(other, PHOTO)


def test_soft_greys_are_weights_and_the_model_sees_what_is_above_the_middle():
    soft = soft_mask()
    read = read_mask(soft, PHOTO)
    weights, levels = np.asarray(read.image).astype(int), np.asarray(soft).astype(int)
    assert np.abs(weights - levels).max() <= 8
    assert len(np.unique(weights)) > 50
    np.testing.assert_array_equal(prepare_mask(read.image, SIZE)[0] > 0, levels > 128)
    cut = np.asarray(read_mask(soft, PHOTO, ImageRules(mask_threshold=200)).image)
    np.testing.assert_array_equal(cut, (weights > 200) * 255)


def test_a_soft_mask_blends_and_keeps_what_has_no_weight():
    mask = read_mask(soft_mask(), PHOTO).image
    after = paste_back(PHOTO, Image.new("RGB", SIZE, (255, 255, 255)), mask, match_colour=False)
    weights = np.asarray(mask, dtype=float)[..., None] / 255
    expected = np.asarray(scene()) * (1 - weights) + 255 * weights
    assert np.abs(np.asarray(after) - expected).max() <= 1
    report = drift_report(scene(), after, mask)
    assert report.max_difference == 0
    assert report.num_pixels == (np.asarray(mask) == 0).sum()


def test_a_mask_drawn_on_what_the_file_stores_is_refused_and_says_why(tmp_path):
    photo, upright, stored = write_turned(tmp_path)
    opened = open_image(photo)
    assert opened.size == (SIZE[1], SIZE[0])
    assert read_mask(upright, opened).share == pytest.approx(SELECTED)
    with pytest.raises(MaskError, match=r"stored\.png is 160x120 px, its image 120x160 px upright.*on its side"):
        read_mask(stored, opened)


def test_uniform_masks_are_refused_but_for_data_sets():
    for level in (0, 255):
        uniform = Image.new("L", SIZE, level)
        with pytest.raises(MaskError, match="selects"):
            read_mask(uniform, PHOTO)
        np.testing.assert_array_equal(read_mask(uniform, PHOTO, whole=True).image, uniform)


def test_reading_twice_changes_nothing():
    once = read_mask(soft_mask(), PHOTO).image
    np.testing.assert_array_equal(read_mask(once, PHOTO).image, once)


def test_an_older_picture_is_made_again_with_the_mask_as_it_was_read_then(tmp_path):
    masks()["a black ground with a hole, as OpenAI has it"].save(tmp_path / "m.png")
    np.testing.assert_array_equal(open_mask(tmp_path / "m.png", PHOTO), plain_mask())
    before = np.asarray(open_mask(tmp_path / "m.png", PHOTO, rule=1))
    np.testing.assert_array_equal(before, 255 - np.asarray(plain_mask()))
