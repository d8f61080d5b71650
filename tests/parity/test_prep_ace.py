"""`prepare_published` against the pictures and masks that the published code prepared."""

import numpy as np
import pytest
from PIL import Image

from ace.conditions.images import fit_size, prepare_image, prepare_mask, prepare_published


@pytest.mark.parity("prep_ace")
def test_published_preparation_gives_the_recorded_pictures_and_masks(case):
    for number, task in enumerate(case.meta["tasks"]):
        image = Image.fromarray(case.tensors[f"in.image.{number}"].numpy())
        mask = case.tensors.get(f"in.mask.{number}")
        ours, ours_mask = prepare_published(
            image,
            None if mask is None else Image.fromarray(mask.numpy()),
            task=task,
            budget=case.meta["max_seq_len"],
        )
        recorded = case.tensors[f"out.image.{number}"].numpy()
        assert ours.shape == recorded.shape
        assert ours.dtype == np.float32
        assert np.abs(ours - recorded).max() <= 2 / 255 + 1e-6  # one grey level
        np.testing.assert_array_equal(ours_mask, case.tensors[f"out.mask.{number}"].numpy())


@pytest.mark.parity("prep_ace")
def test_our_own_preparation_agrees_where_the_published_one_neither_crops_nor_blanks(case):
    compared = 0
    for number, task in enumerate(case.meta["tasks"]):
        image = Image.fromarray(case.tensors[f"in.image.{number}"].numpy())
        recorded = case.tensors[f"out.image.{number}"].numpy()
        if max(image.size) > 4 * min(image.size) or task:
            continue
        size = (recorded.shape[2], recorded.shape[1])
        assert fit_size(*image.size, case.meta["max_seq_len"], 16) == size
        assert np.abs(prepare_image(image, size) - recorded).max() <= 2 / 255 + 1e-6
        if f"in.mask.{number}" not in case.tensors:
            np.testing.assert_array_equal(prepare_mask(None, size), case.tensors[f"out.mask.{number}"].numpy())
        compared += 1
    assert compared or case.name == "prep_ace_aspect"
