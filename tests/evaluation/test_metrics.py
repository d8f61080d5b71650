"""Scores against independent computations in float64."""

import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ace.errors import ShapeError
from ace.evaluation.metrics import bootstrap, changed_pixels, l1_error, l1_error_where, levels, psnr


def noise(seed: int, size: tuple[int, int] = (11, 7)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_l1_is_the_exact_mean_of_absolute_differences():
    first, second = noise(0), noise(1)
    total = sum(
        abs(a - b) for p, q in zip(pixels(first), pixels(second), strict=True) for a, b in zip(p, q, strict=True)
    )
    assert l1_error(levels(first), levels(second)) == pytest.approx(float(Fraction(total, 77 * 3 * 255)), abs=1e-12)


def test_l1_counts_only_the_pixels_asked_for():
    first, second = noise(2), noise(3)
    where = np.random.default_rng(4).random((7, 11)) < 0.3
    inside = [
        abs(a - b)
        for p, q, use in zip(pixels(first), pixels(second), where.ravel(), strict=True)
        if use
        for a, b in zip(p, q, strict=True)
    ]
    assert l1_error_where(levels(first), levels(second), where) == pytest.approx(
        sum(inside) / len(inside) / 255, abs=1e-12
    )


def test_l1_over_no_pixel_is_absent_and_not_zero():
    picture = levels(noise(0))
    assert l1_error_where(picture, picture, np.zeros((7, 11), dtype=bool)) is None


def test_psnr_is_the_textbook_formula_and_bounded_for_equal_pictures():
    first, second = noise(5), noise(6)
    squared = [
        (a - b) ** 2 for p, q in zip(pixels(first), pixels(second), strict=True) for a, b in zip(p, q, strict=True)
    ]
    assert psnr(levels(first), levels(second)) == pytest.approx(
        10 * math.log10(255**2 * len(squared) / sum(squared)), abs=1e-9
    )
    assert psnr(levels(first), levels(first)) == 100


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(ShapeError, match="resize"):
        l1_error(levels(noise(0)), levels(noise(0, (7, 11))))


def test_a_pixel_should_change_if_one_channel_differs_by_more_than_eight_levels():
    before = np.zeros((1, 4, 3), dtype=np.int16)
    target = before.copy()
    target[0, 1, 2], target[0, 2, 0], target[0, 3, 1] = 8, 9, 255
    assert changed_pixels(before, target).tolist() == [[False, False, True, True]]


def test_a_mask_limits_the_pixels_that_should_change():
    before, target = np.zeros((1, 3, 3), dtype=np.int16), np.full((1, 3, 3), 200, dtype=np.int16)
    mask = Image.fromarray(np.array([[0, 255, 255]], dtype=np.uint8))
    assert changed_pixels(before, target, mask).tolist() == [[False, True, True]]


def test_an_interval_holds_the_mean_and_narrows_with_more_samples():
    dice = np.random.default_rng(7)
    few, many = (bootstrap([dice.normal(3.0, 1.0, count)]) for count in (20, 2000))
    for interval in (few, many):
        assert interval.low < interval.mean < interval.high
    assert many.high - many.low < 0.2 * (few.high - few.low)
    # the interval of a mean of n values is about 2 * 1.96 * sigma / sqrt(n) wide
    assert many.high - many.low == pytest.approx(2 * 1.96 / math.sqrt(2000), rel=0.1)


def test_differences_between_tasks_do_not_widen_an_interval():
    apart = bootstrap([[0.0] * 10, [1.0] * 10])
    assert (apart.mean, apart.low, apart.high, apart.count) == (0.5, 0.5, 0.5, 20)


def test_the_same_values_give_the_same_interval():
    values = [list(np.random.default_rng(8).random(30))]
    assert bootstrap(values) == bootstrap(values)


def test_no_values_give_no_interval():
    assert bootstrap([[], []]) is None


def pixels(picture: Image.Image) -> list[tuple[int, int, int]]:
    return [tuple(int(v) for v in pixel) for pixel in np.asarray(picture).reshape(-1, 3)]
