"""The original's steps one by one, where the recorded calls do not reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.diffusion import guide
from ace.errors import ConditionError, ImageError, InputError
from ace.inference.inputs import Geometry
from ace.inference.published import (
    PublishedUnit,
    cut_to_levels,
    guide_over_padding,
    prepare_published_inputs,
    published_unit,
)

GEOMETRY = Geometry(budget=16, cell_px=16, latent_px=8, enlarge=False, mask_by_area=False)


def picture(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (200, 100, 50))


def conversation(instruction: str, num_images: int = 1, **settings: object) -> LongContextConditionUnit:
    rounds = (
        Turn(ConditionUnit("a cat"), picture(32, 32)),
        Turn(ConditionUnit("first {image}", (picture(64, 48),)), picture(64, 48)),
        Turn(ConditionUnit("then {image} to {image1}", (picture(48, 48), picture(32, 32))), picture(48, 48)),
    )
    images = tuple(picture(32, 48) for _ in range(num_images))
    return LongContextConditionUnit(ConditionUnit(instruction, images), rounds, **settings)


def test_history_becomes_first_images_and_literally_renamed_prompts():
    unit = published_unit(conversation("last {image}"))
    assert unit.prompts == ("first {image}", "then {image1} to {image1}", "last {image2}")
    assert [image.size for image in unit.images] == [(64, 48), (48, 48), (32, 48)]
    assert unit.target_index == 0
    assert prepare_published_inputs(unit, GEOMETRY, None).size == (64, 48)  # the oldest picture's


def test_without_history_every_image_carries_the_instruction():
    images = (picture(32, 32), picture(48, 48))
    unit = published_unit(LongContextConditionUnit(ConditionUnit("{image} on {image1}", images), target_index=1))
    assert unit.prompts == ("{image} on {image1}",) * 2
    inputs = prepare_published_inputs(unit, GEOMETRY, (16, 16))
    assert inputs.size == (48, 48)  # a size is for text to image only
    assert inputs.texts == ("{image} on {image1}",) * 3
    assert inputs.current == (True, False, True)


def test_a_conversation_takes_one_current_image():
    for count in (0, 2):
        with pytest.raises(ConditionError, match="one image after a conversation"):
            published_unit(conversation("last", count))


def test_only_the_last_prompt_is_replaced_for_guidance():
    inputs = prepare_published_inputs(conversation("last {image}"), GEOMETRY, None)
    assert inputs.null_texts == ("", "first {image}", "then {image1} to {image1}", "")


def test_masks_follow_the_original():
    black = Image.new("L", (64, 64), 0)
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    unit = PublishedUnit(("a",) * 3, (picture(64, 64),) * 3, (black, half, half), ("", "", "inpainting"))
    inputs = prepare_published_inputs(unit, GEOMETRY, None)
    assert inputs.frame_masks[0].min() == 1  # nothing painted means everything
    assert inputs.frame_masks[1].tolist() == [[[1.0] * 4 + [0.0] * 4] * 8]
    assert (inputs.frames[2][:, :, :32] == -1).all()
    assert np.array_equal(inputs.frames[2][:, :, 32:], inputs.frames[1][:, :, 32:])


def test_impossible_requests_are_refused():
    with pytest.raises(ConditionError, match="2 images need 2 prompts"):
        PublishedUnit(("a",), (picture(32, 32),) * 2)
    with pytest.raises(ConditionError, match="target_index is 2"):
        PublishedUnit(("a",) * 2, (picture(32, 32),) * 2, target_index=2)
    with pytest.raises(ImageError, match="at least 16 px"):
        prepare_published_inputs(PublishedUnit(("a",), (picture(60, 15),)), GEOMETRY, None)
    with pytest.raises(InputError, match="multiples of 16"):
        prepare_published_inputs(PublishedUnit(("a",)), GEOMETRY, (40, 32))


def test_guidance_counts_padding_only_beside_larger_samples():
    generator = torch.Generator().manual_seed(0)
    small = [torch.randn(4, 2, 2, generator=generator) for _ in "yu"]
    large = [torch.randn(4, 4, 6, generator=generator) for _ in "yu"]
    own = guide(small[0][None], small[1][None], 4.5, 0.5)[0]
    torch.testing.assert_close(guide_over_padding([small], [4.5], [0.5])[0], own)
    beside = guide_over_padding([small, large], [4.5, 4.5], [0.5, 0.5])
    rectangle = [torch.zeros(2, 4, 24) for _ in "yu"]
    for n, both in enumerate((small, large)):
        for branch, one in zip(rectangle, both, strict=True):
            branch[n, :, : one[0].numel()] = one.flatten(1)
    expected = guide(*rectangle, 4.5, 0.5)
    torch.testing.assert_close(beside[0], expected[0, :, :4].view(4, 2, 2))
    torch.testing.assert_close(beside[1], expected[1].view(4, 4, 6))
    torch.testing.assert_close(guide_over_padding([small[:1]], [1.0], [0.5])[0], small[0])


def test_grey_levels_are_cut_off():
    levels = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 1.5]).view(1, 2, 3).expand(3, 2, 3)
    assert np.asarray(cut_to_levels(levels))[..., 0].ravel().tolist() == [0, 0, 127, 254, 255, 255]
