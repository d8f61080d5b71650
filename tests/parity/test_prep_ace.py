"""`prepare_published` against the pictures and masks that the published code prepared."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from ace.conditions.images import fit_size, prepare_image, prepare_mask, prepare_published
from tests.parity.resampling import off_by_levels


def image_of(case, number: int) -> Image.Image:
    return Image.fromarray(case.tensors[f"in.image.{number}"].numpy())


def prepared(case, number: int) -> tuple[np.ndarray, np.ndarray]:
    mask = case.tensors.get(f"in.mask.{number}")
    return prepare_published(
        image_of(case, number),
        None if mask is None else Image.fromarray(mask.numpy()),
        task=case.meta["tasks"][number],
        budget=case.meta["max_seq_len"],
    )


@pytest.mark.parity("prep_ace")
def test_published_preparation_gives_the_recorded_pictures_and_masks(case):
    for number in range(len(case.meta["tasks"])):
        ours, ours_mask = prepared(case, number)
        recorded = case.tensors[f"out.image.{number}"].numpy()
        assert ours.shape == recorded.shape
        assert ours.dtype == np.float32
        assert off_by_levels(lambda number=number: prepared(case, number)[0], recorded, 2 / 255) <= 1
        np.testing.assert_array_equal(ours_mask, case.tensors[f"out.mask.{number}"].numpy())


@pytest.mark.parity("prep_ace")
def test_our_own_preparation_agrees_where_the_published_one_neither_crops_nor_blanks(case):
    for number, task in enumerate(case.meta["tasks"]):
        image = image_of(case, number)
        recorded = case.tensors[f"out.image.{number}"].numpy()
        if max(image.size) > 4 * min(image.size) or task:
            continue
        size = (recorded.shape[2], recorded.shape[1])
        assert fit_size(*image.size, case.meta["max_seq_len"], 16) == size
        assert off_by_levels(partial(prepare_image, image, size), recorded, 2 / 255) <= 1
        if f"in.mask.{number}" not in case.tensors:
            np.testing.assert_array_equal(prepare_mask(None, size), case.tensors[f"out.mask.{number}"].numpy())
