"""The canvas of ACE++: where pictures stand, what the model may see, what comes out."""

import numpy as np
import pytest
from PIL import Image

from ace.errors import ConditionError, ConfigError, ImageError, MaskError
from ace.plus.canvas import MARGIN_CELLS, Reference, arrange, check_seq_length, name_places, prepare_published

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(width, height, colour=RED):
    return Image.new("RGB", (width, height), colour)


def box_mask(width, height, box):
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, box)
    return mask


def as_picture(canvas):
    return Image.fromarray(np.round((canvas.content.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8))


def test_a_picture_of_whole_cells_within_the_budget_stays_as_it_is_beside_its_reference():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    mask = box_mask(96, 64, (16, 16, 48, 48))
    canvas = arrange(photo, mask, [Reference(plain(32, 64))], repainting_scale=0.0)
    assert canvas.size == (128, 64)
    assert canvas.target == (32, 0, 128, 64)
    np.testing.assert_array_equal(np.asarray(canvas.cut(as_picture(canvas))), np.asarray(photo))
    assert canvas.mask[:, :, :32].max() == 0
    np.testing.assert_array_equal(canvas.mask[0, :, 32:], np.asarray(mask) / 255)


def test_an_edited_picture_comes_back_in_its_own_size_and_place_whatever_it_is():
    yy, xx = np.mgrid[:301, :467]
    photo = Image.fromarray(np.stack([xx * 255 // 467, yy * 255 // 301, xx * 0], -1).astype(np.uint8))
    mask = box_mask(467, 301, (100, 100, 200, 200))
    for references in ([], [Reference(plain(50, 80))], [Reference(plain(50, 80), "right", "keep", 0.5)]):
        canvas = arrange(photo, mask, references, repainting_scale=0.0, max_seq_length=300)
        assert canvas.num_cells <= 300
        assert canvas.size[0] % 16 == canvas.size[1] % 16 == 0
        answer = canvas.cut(as_picture(canvas))
        assert answer.size == photo.size
        difference = np.abs(np.asarray(answer).astype(int) - np.asarray(photo).astype(int))
        assert difference.max() <= 4  # a gradient survives two resizes; a shift by one px alone would cost 1 level


def test_five_references_stand_where_they_were_put_and_none_covers_another():
    colours = [RED, GREEN, BLUE, (255, 255, 0), (0, 255, 255)]
    places = ["left", "left", "right", "above", "below"]
    references = [Reference(plain(40, 40, c), p) for c, p in zip(colours, places, strict=True)]
    canvas = arrange(plain(80, 80, (255, 255, 255)), None, references, repainting_scale=0.0)
    drawn = as_picture(canvas)
    for colour, box in zip(colours, canvas.references, strict=True):
        assert drawn.crop(box).getcolors() == [((box[2] - box[0]) * (box[3] - box[1]), colour)]
    assert drawn.crop(canvas.target).getcolors() == [(80 * 80, (255, 255, 255))]
    left, second, right, above, below = canvas.references
    assert left[2] == second[0] and second[2] == canvas.target[0] and canvas.target[2] == right[0]
    assert above[3] == canvas.target[1] and canvas.target[3] == below[1]
    assert canvas.mask.sum() == 80 * 80


def test_a_kept_reference_is_never_enlarged_and_an_aligned_one_takes_the_full_height():
    small = plain(20, 24)
    kept = arrange(plain(64, 64, BLUE), None, [Reference(small, fit="keep")], repainting_scale=0.0)
    aligned = arrange(plain(64, 64, BLUE), None, [Reference(small)], repainting_scale=0.0)
    red = (kept.content[0] == 1) & (kept.content[1] == -1)
    assert red.sum() == 20 * 24
    assert kept.references[0] == (0, 0, 32, 64)
    red = (aligned.content[0] == 1) & (aligned.content[1] == -1)
    assert red.sum() == 64 * (aligned.references[0][2] - aligned.references[0][0]) and red[0].any() and red[-1].any()


def test_a_new_picture_has_the_size_asked_for_and_a_margin_beside_the_seam_that_is_cut_off():
    canvas = arrange(None, None, [Reference(plain(64, 64))], size=(96, 64))
    assert canvas.target == (64 + MARGIN_CELLS * 16, 0, canvas.size[0], 64)
    assert canvas.target[2] - canvas.target[0] == 96
    assert canvas.mask[0, :, 64:].min() == 1  # the margin is made anew as well
    assert canvas.cut(Image.new("RGB", canvas.size)).size == (96, 64)


def test_repainting_hides_as_much_of_the_old_picture_as_asked_and_change_channels_take_the_rest():
    photo, mask = plain(32, 32), box_mask(32, 32, (0, 0, 16, 32))
    half = arrange(photo, mask, repainting_scale=0.5)
    assert half.content[0, 0, 0] == 0.5 and half.content[0, 0, 31] == 1
    split = arrange(photo, mask, repainting_scale=0.0, use_change=True)
    assert split.change is not None
    np.testing.assert_array_equal(split.content[:, :, :16], 0)
    np.testing.assert_array_equal(split.change[:, :, 16:], 0)
    np.testing.assert_array_equal(split.change + split.content, arrange(photo, mask, repainting_scale=0.0).content)


def test_ours_and_the_published_canvas_agree_where_no_side_needs_rounding():
    photo, mask, reference = plain(96, 64, GREEN), box_mask(96, 64, (0, 0, 40, 40)), plain(64, 128, BLUE)
    for scale, change in ((1.0, False), (0.5, False), (0.0, True)):
        ours = arrange(photo, mask, [Reference(reference)], repainting_scale=scale, use_change=change)
        published = prepare_published(reference, photo, mask, repainting_scale=scale, use_change=change)
        np.testing.assert_array_equal(ours.mask, published.mask)
        np.testing.assert_allclose(ours.content, published.content, atol=1e-6)


def test_a_thin_mask_survives_a_small_budget():
    mask = box_mask(640, 640, (300, 0, 301, 640))
    canvas = arrange(plain(640, 640), mask, max_seq_length=16)
    assert canvas.mask.any(axis=1).any()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((plain(32, 32), box_mask(16, 16, (0, 0, 8, 8)), ()), MaskError, "16x16 px, the picture 32x32"),
        ((None, box_mask(16, 16, (0, 0, 8, 8)), ()), MaskError, "needs the picture"),
        ((plain(512, 512), None, [Reference(plain(2000, 60))]), ImageError, r"reference 1 \(2000x60 px\)"),
        ((plain(512, 512), None, [Reference(plain(9, 9))] * 10), ConditionError, "at most 9"),
    ],
)
def test_what_cannot_be_laid_out_is_refused_in_one_line(arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        arrange(*arguments, max_seq_length=1024)
    assert "\n" not in str(caught.value)


def test_budgets_and_rules_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="1024"):
        check_seq_length(512)
    with pytest.raises(ConfigError, match="place 'under'"):
        Reference(plain(9, 9), "under")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="repainting_scale 2"):
        arrange(plain(32, 32), None, repainting_scale=2.0)


def test_several_named_pictures_are_told_apart_by_their_place_and_a_bare_name_stays():
    references = [Reference(plain(9, 9)), Reference(plain(9, 9)), Reference(plain(9, 9), "above")]
    assert name_places("{image}, the man smiles", references[:1], True) == "{image}, the man smiles"
    text = name_places("put {image1} and {image3} into {image}", references, True)
    assert text == "put the first picture on the left and the picture at the top into the picture to edit"
    assert name_places("{image} holds {image1}", references[:2], False) == (
        "the first picture on the left holds the second picture on the left"
    )
    with pytest.raises(ConditionError, match=r"\{image3\}"):
        name_places("{image3}", references[:2], True)
