"""A small mask in a large photograph is worked at the model's full size, and comes back sharp where it was."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ace.conditions.images import normalise_image
from ace.errors import ShapeError
from ace.inference.focus import Box, crop_mask, crop_opened, focus_box, uncrop
from ace.inference.preserve import paste_back

WORKING = 512 * 512  # px


def mask_at(size, box):
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask


def box_of(mask, below=0.25, margin=0.5):
    return focus_box(mask, below=below, margin=margin, working_px=WORKING)


@pytest.mark.parametrize("size", [(6000, 4000), (4000, 6000), (9000, 600), (700, 8000)])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (0.9, 0.1)])
@pytest.mark.parametrize("side", [3, 120, 590])
def test_the_box_holds_the_mask_lies_inside_and_is_never_enlarged(size, place, side):
    left, top = (round((length - side) * share) for length, share in zip(size, place, strict=True))
    mask = mask_at(size, (left, top, left + side - 1, top + side - 1))
    box = box_of(mask)
    width, height = box.size
    assert 0 <= box.left <= left
    assert 0 <= box.top <= top
    assert left + side <= box.right <= size[0]
    assert top + side <= box.bottom <= size[1]
    assert width * height >= 0.99 * min(WORKING, size[0] * size[1])
    assert max(width, height) <= 2.01 * min(width, height) or min(width, height) == min(size)
    np.testing.assert_array_equal(np.asarray(crop_mask(mask, box)).sum(), np.asarray(mask).sum())


def test_context_is_added_on_each_side_where_there_is_room():
    mask = mask_at((6000, 4000), (2000, 1500, 2999, 2499))
    for margin in (0.0, 0.5, 1.0):
        assert box_of(mask, margin=margin).size[0] == pytest.approx(1000 * (1 + 2 * margin), abs=2)


def test_large_masks_small_pictures_and_scattered_masks_are_worked_whole():
    assert box_of(mask_at((2000, 2000), (100, 100, 1500, 1500))) is None
    assert box_of(mask_at((2000, 2000), (100, 100, 1500, 1500)), below=0.9) is None  # little would be gained
    assert box_of(mask_at((500, 500), (10, 10, 40, 40))) is None
    scattered = mask_at((2000, 2000), (0, 0, 30, 30))
    ImageDraw.Draw(scattered).ellipse((1960, 1960, 1999, 1999), fill=255)
    assert box_of(scattered) is None
    assert box_of(mask_at((2000, 2000), (100, 100, 200, 200)), below=0.0) is None


def test_a_crop_goes_back_where_it_was_with_everything_that_belongs_to_it():
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (300, 400, 4), dtype=np.uint8))
    opened, box = normalise_image(photo), Box(40, 30, 240, 180)
    part = crop_opened(opened, box)
    assert part.size == box.size == part.alpha.size
    np.testing.assert_array_equal(part.stored, opened.stored.crop(box.corners))
    np.testing.assert_array_equal(uncrop(opened, part.image, box), opened.image)
    assert str(box) == "40,30,240,180"
    with pytest.raises(ShapeError, match="outside a picture"):
        uncrop(opened, part.image, Box(300, 200, 500, 290))


def sharpness(image, mask):
    """Mean difference of neighbours inside the mask, in levels."""
    grey = np.asarray(image.convert("L")).astype(float)
    inside = (np.asarray(mask) > 0)[:, 1:]
    return np.abs(np.diff(grey, axis=1))[inside].mean()


def test_a_300_px_mask_in_24_megapixels_is_sharp():
    size = (6000, 4000)
    photo = normalise_image(Image.new("RGB", size, (120, 140, 160)))
    mask = mask_at(size, (3000, 2000, 3299, 2299))
    truth = photo.image.copy()  # what a perfect model would make: fine stripes inside the mask
    stripes = Image.fromarray(np.tile(np.where(np.arange(6000) // 3 % 2, 60, 200).astype(np.uint8), (4000, 1)))
    truth.paste(stripes.convert("RGB"), (0, 0), mask)

    def model(picture):
        """The best that can be made at the working size."""
        scale = min(1.0, (WORKING / (picture.width * picture.height)) ** 0.5)
        return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)

    whole = paste_back(photo, model(truth), mask)
    box = box_of(mask)
    focused = paste_back(photo, uncrop(photo, model(truth.crop(box.corners)), box), mask)
    for after in (whole, focused):
        outside = np.asarray(mask) == 0
        np.testing.assert_array_equal(np.asarray(after)[outside], np.asarray(photo.image)[outside])
    assert sharpness(focused, mask) > 0.8 * sharpness(truth, mask)
    assert sharpness(whole, mask) < 0.1 * sharpness(truth, mask)
