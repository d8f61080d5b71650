"""Pasting back is exact outside the mask and seamless inside; drift is measured truly."""

import json

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageEnhance

from ace.conditions.images import normalise_image, open_image
from ace.errors import MaskError
from ace.inference.preserve import distance_inside, drift_report, paste_back

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def scene(width=200, height=150, seed=0):
    """A textured picture without symmetry, like a photo of grass and clouds."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0)
    for cell, strength in ((1, 4), (3, 10), (12, 20), (60, 40)):
        coarse = rng.normal(0, strength, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        channels = [Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        total += np.stack([np.asarray(channel) for channel in channels], axis=-1)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def ellipse(size=(200, 150), box=(60, 40, 140, 110)):
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask


def values(image):
    return np.asarray(image).astype(int)


def tinted(image, shift):
    return Image.fromarray(np.clip(values(image) + shift, 0, 255).astype(np.uint8))


# Pasting back


@pytest.mark.parametrize("generated_size", [(200, 150), (64, 48), (50, 70), (400, 300)])
@pytest.mark.parametrize("feather_px", [None, 0, 3, 500])
def test_outside_the_mask_every_byte_is_the_inputs(generated_size, feather_px):
    before, mask = scene(), ellipse()
    generated = scene(*generated_size, seed=9)
    after = paste_back(normalise_image(before), generated, mask, feather_px=feather_px)
    outside = values(mask) == 0
    assert after.mode == "RGB"
    assert after.size == before.size
    np.testing.assert_array_equal(values(after)[outside], values(before)[outside])
    assert np.abs(values(after) - values(before))[~outside].mean() > 10


def test_one_pixel_masks_and_masks_at_the_border_are_exact_too():
    before = scene(31, 17)
    for box in ((0, 0, 0, 0), (30, 16, 30, 16), (0, 5, 30, 5), (0, 0, 30, 15)):
        mask = Image.new("L", before.size, 0)
        ImageDraw.Draw(mask).rectangle(box, fill=255)
        after = paste_back(normalise_image(before), Image.new("RGB", (8, 8), (255, 0, 255)), mask, match_colour=False)
        outside = values(mask) == 0
        np.testing.assert_array_equal(values(after)[outside], values(before)[outside])
        assert (values(after)[~outside] != values(before)[~outside]).any()


def test_a_rotated_photo_with_alpha_and_profile_comes_back_upright_with_both(tmp_path):
    photo = scene().convert("RGBA")
    alpha = Image.linear_gradient("L").resize(photo.size)
    photo.putalpha(alpha)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif, icc_profile=SRGB)
    opened = open_image(tmp_path / "a.png")
    after = paste_back(opened, Image.new("RGB", (64, 48), (250, 20, 20)), ellipse())
    assert after.mode == "RGBA"
    assert after.info == {"icc_profile": SRGB}
    np.testing.assert_array_equal(after.getchannel("A"), alpha)
    outside = values(ellipse()) == 0
    np.testing.assert_array_equal(values(after)[outside], values(photo)[outside])


def test_a_new_colour_looks_right_over_white_where_the_picture_is_half_transparent():
    photo = Image.new("RGBA", (40, 40), (0, 0, 200, 128))
    mask = ellipse((40, 40), (5, 5, 35, 35))
    new = Image.new("RGB", (40, 40), (200, 150, 150))
    after = paste_back(normalise_image(photo), new, mask, feather_px=0, match_colour=False)
    seen = Image.alpha_composite(Image.new("RGBA", after.size, (255, 255, 255, 255)), after)
    assert np.abs(values(seen)[20, 20, :3] - (200, 150, 150)).max() <= 2


def test_the_blend_lies_inside_and_the_middle_is_all_new():
    before, mask = Image.new("RGB", (200, 150), (0, 0, 0)), ellipse()
    after = paste_back(
        normalise_image(before), Image.new("RGB", (200, 150), (255,) * 3), mask, feather_px=10, match_colour=False
    )
    row = values(after)[75, :, 0]
    assert (row[:60] == 0).all()
    assert (row[72:128] == 255).all()
    rise = row[60:73]
    assert (np.diff(rise) >= 0).all()
    assert 0 < rise[0] < 30  # no hard step at the edge


def test_a_thin_line_is_replaced_and_not_merely_tinted():
    before, mask = Image.new("RGB", (200, 150), (0, 0, 0)), Image.new("L", (200, 150), 0)
    ImageDraw.Draw(mask).rectangle((20, 70, 180, 74), fill=255)
    ImageDraw.Draw(mask).ellipse((60, 80, 140, 148), fill=255)
    white = Image.new("RGB", (200, 150), (255, 255, 255))
    after = paste_back(normalise_image(before), white, mask, feather_px=12, match_colour=False)
    assert values(after)[72, 25, 0] > 200


def test_colour_matching_removes_a_tint_of_the_whole_generated_picture():
    before, mask = scene(), ellipse()
    generated = tinted(before, (12, -9, 15))
    plain = paste_back(normalise_image(before), generated, mask, match_colour=False)
    matched = paste_back(normalise_image(before), generated, mask)
    inside = values(mask) > 0
    assert np.abs(values(plain) - values(before))[inside].mean() > 8
    assert np.abs(values(matched) - values(before))[inside].mean() < 1.5


def test_colour_matching_follows_a_tint_that_varies_over_the_picture():
    before, mask = scene(), ellipse()
    slope = np.linspace(-20, 20, 200)[None, :, None]
    generated = tinted(before, slope.round().astype(int))
    matched = paste_back(normalise_image(before), generated, mask)
    assert np.abs(values(matched) - values(before))[values(mask) > 0].mean() < 3


def test_colour_matching_leaves_a_new_object_its_colour():
    before, mask = scene(), ellipse()
    generated = before.copy()
    ImageDraw.Draw(generated).ellipse((75, 55, 125, 95), fill=(250, 10, 10))
    matched = paste_back(normalise_image(before), generated, mask)
    assert np.abs(values(matched)[75, 100] - (250, 10, 10)).max() <= 3


def test_colour_matching_ignores_surroundings_that_are_another_picture():
    before, mask = Image.new("RGB", (200, 150), (250, 250, 250)), ellipse()
    generated = Image.new("RGB", (64, 48), (20, 30, 90))
    matched = paste_back(normalise_image(before), generated, mask)
    assert tuple(values(matched)[75, 100]) == (20, 30, 90)


def test_masks_that_do_not_fit_are_refused():
    original = normalise_image(scene())
    with pytest.raises(MaskError, match="200x150"):
        paste_back(original, scene(), ellipse((100, 100)))
    with pytest.raises(MaskError, match="selects nothing"):
        paste_back(original, scene(), Image.new("L", (200, 150), 0))


def test_the_inputs_are_left_alone():
    before, generated, mask = scene(), scene(seed=2), ellipse()
    copies = [image.tobytes() for image in (before, generated, mask)]
    paste_back(normalise_image(before), generated, mask)
    assert [image.tobytes() for image in (before, generated, mask)] == copies


def test_distances_are_euclidean_up_to_the_limit():
    rng = np.random.default_rng(3)
    inside = rng.random((40, 50)) > 0.02
    rows, columns = np.nonzero(~inside)
    y, x = np.mgrid[0:40, 0:50]
    expected = np.sqrt(((y[..., None] - rows) ** 2 + (x[..., None] - columns) ** 2).min(axis=-1))
    np.testing.assert_allclose(distance_inside(inside, 6), np.minimum(expected, 7), atol=1e-5)
    assert (distance_inside(np.ones((5, 5), dtype=bool), 3) == 4).all()  # the picture's border is no edge


# Drift


def test_equal_pictures_do_not_drift():
    report = drift_report(scene(), scene())
    assert report.changed_share == report.mean_difference == report.max_difference == 0
    assert report.shift_px == (0.0, 0.0)
    assert "every pixel is the same" in str(report)


def test_changes_inside_the_mask_do_not_count_and_outside_they_do():
    before, mask = scene(), ellipse()
    after = before.copy()
    ImageDraw.Draw(after).ellipse((65, 45, 135, 105), fill=(255, 0, 0))
    assert drift_report(before, after, mask).max_difference == 0
    assert drift_report(before, after).max_difference > 100
    after.putpixel((3, 4), tuple(np.clip(values(before)[4, 3] - 20, 0, 255)))
    report = drift_report(before, after, mask)
    assert report.max_difference == 20
    assert report.changed_share == report.visible_share == 1 / (values(mask) == 0).sum()


def test_paste_back_has_no_drift_outside_its_mask():
    before, mask = scene(), ellipse()
    after = paste_back(normalise_image(before), scene(seed=5), mask)
    assert drift_report(before, after, mask).max_difference == 0


def test_shares_and_means_are_those_of_the_pixels():
    before, after = Image.new("RGB", (10, 10), (100, 100, 100)), Image.new("RGB", (10, 10), (100, 100, 100))
    after.paste((103, 100, 100), (0, 0, 10, 5))
    after.paste((100, 100, 160), (0, 0, 10, 1))
    report = drift_report(before, after)
    assert report.changed_share == 0.5
    assert report.visible_share == 0.1
    assert report.mean_difference == pytest.approx((40 * 3 + 10 * 60) / 300)
    assert report.max_difference == 60


@pytest.mark.parametrize("shift", [(1, 0), (0, -2), (5, 3), (-14, 9), (0.5, 0.25), (-1.5, 2.25)])
@pytest.mark.parametrize("with_mask", [False, True])
def test_a_known_shift_is_found_to_a_tenth_of_a_pixel(shift, with_mask):
    big = scene(800, 600, seed=4)
    move = (1, 0, -4 * shift[0], 0, 1, -4 * shift[1])
    moved = big.transform(big.size, Image.Transform.AFFINE, move, Image.Resampling.BICUBIC)
    before, after = (image.resize((200, 150), Image.Resampling.BOX) for image in (big, moved))
    mask = None
    if with_mask:
        mask = ellipse()
        ImageDraw.Draw(after).rectangle((70, 50, 130, 100), fill=(240, 30, 30))
        after = ImageEnhance.Brightness(after).enhance(0.85)
    report = drift_report(before, after, mask)
    assert report.shift_px == pytest.approx(shift, abs=0.1)


def test_shifts_of_large_pictures_are_in_their_own_pixels():
    before = scene(1600, 1200, seed=6)
    after = before.transform(before.size, Image.Transform.AFFINE, (1, 0, -12, 0, 1, 6))
    assert drift_report(before, after).shift_px == pytest.approx((12, -6), abs=0.4)


def test_a_shift_that_cannot_be_seen_is_not_invented():
    flat = Image.new("RGB", (64, 64), (10, 10, 10))
    assert drift_report(flat, Image.new("RGB", (64, 64), (12, 10, 10))).shift_px is None
    assert drift_report(scene(seed=1), scene(seed=2)).shift_px is None
    assert "cannot be measured" in str(drift_report(scene(seed=1), scene(seed=2)))
    assert drift_report(scene(8, 8), scene(8, 8, seed=1)).shift_px is None
    stripes = Image.fromarray(np.tile((np.arange(64) % 8 * 30).astype(np.uint8), (64, 1))).convert("RGB")
    assert drift_report(stripes, tinted(stripes, 5)).shift_px is None


def test_another_size_is_compared_at_the_smaller_one():
    before = scene(400, 300)
    after = before.resize((100, 75), Image.Resampling.BICUBIC)
    report = drift_report(before, after)
    assert report.size_px == (100, 75)
    assert report.max_difference == 0
    mask = ellipse((400, 300), (100, 100, 200, 200))
    assert drift_report(before, after, mask).num_pixels < 7500
    with pytest.raises(MaskError, match="100x100"):
        drift_report(before, after, ellipse((100, 100)))


def test_a_report_is_one_line_and_json():
    report = drift_report(scene(), tinted(scene(), (3, 0, 0)), ellipse())
    assert "\n" not in str(report)
    assert "outside the mask" in str(report)
    assert json.loads(json.dumps(report.as_dict()))["masked"] is True
