"""What the makers are made of: words, places, colours, styles, cleaning of removals, generators of diffusers."""

from dataclasses import replace
from random import Random

import cv2
import numpy as np
import pytest
from PIL import Image

from ace.conditions import ConditionUnit, LongContextConditionUnit
from ace.data.sample import EditSample
from ace.data.tasks import check
from ace.data.tasks.common import say
from ace.data.tasks.describe import name_color, name_place_of
from ace.data.tasks.stylers import STYLERS
from ace.data.tasks.things import LEAST_VISIBLE, is_part, seam, solidity, visible_change
from ace.data.tasks.tools import Tools
from tests.extract.photographs import needs, photograph


def test_only_templates_with_exactly_these_slots_are_used():
    templates = ("make it <color>", "make the <thing> <color>", "change it")
    assert say(templates, {"color": "red"}, Random(0)) == "make it red"
    assert say(templates, {}, Random(0)) == "change it"
    assert say(("add a <thing>",), {"thing": "orange object"}, Random(0)) == "add an orange object"


def test_places_and_colours_are_said_as_they_are():
    image = np.full((90, 90, 3), 128, np.uint8)
    mask = np.zeros((90, 90), bool)
    mask[5:25, 65:85] = True
    image[mask] = (210, 30, 30)
    assert name_place_of(mask) == "in the top right corner" and name_color(image, mask) == "red"
    image[mask] = np.random.default_rng(0).integers(0, 255, (int(mask.sum()), 3))
    assert name_color(image, mask) is None


@pytest.mark.parametrize("style", STYLERS)
def test_a_style_changes_the_picture_visibly_and_keeps_its_size(style):
    image = photograph("chelsea", 200)
    styled = STYLERS[style](image)
    assert styled.shape == image.shape and styled.dtype == np.uint8
    assert np.abs(styled.astype(int) - image).mean() > 4
    assert np.array_equal(styled, STYLERS[style](image))


def test_styles_differ_from_each_other():
    image = photograph("chelsea", 200)
    styled = [STYLERS[style](image).astype(int) for style in STYLERS]
    assert min(np.abs(a - b).mean() for n, a in enumerate(styled) for b in styled[n + 1 :]) > 5


def test_a_hard_patch_has_a_seam_and_a_smooth_filling_has_none():
    image = np.ascontiguousarray(photograph("coffee", 256)).copy()
    hole = np.zeros(image.shape[:2], bool)
    hole[40:90, 20:60] = True
    patched = image.copy()
    patched[hole] = (0, 255, 0)
    smooth = cv2.inpaint(image, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    assert seam(patched, hole) > 2 * seam(smooth, hole)


def test_one_texture_in_place_of_a_like_one_is_no_visible_change():
    dice = np.random.default_rng(0)
    gravel, other = (dice.integers(60, 200, (160, 160, 3)).astype(np.uint8) for _ in range(2))
    mask = np.zeros((160, 160), bool)
    mask[50:110, 50:110] = True
    same, ball = np.where(mask[..., None], other, gravel), gravel.copy()
    ball[mask] = (200, 40, 40)
    assert np.abs(same.astype(int) - gravel)[mask].mean() > 30, "every pixel differs"
    assert visible_change(gravel, same, mask) < LEAST_VISIBLE < visible_change(gravel, ball, mask)
    unit = ConditionUnit("remove it from {image}", (Image.fromarray(gravel),))
    sample = EditSample(LongContextConditionUnit(unit), Image.fromarray(same), "element_editing/object_remove", {})
    assert check(sample, Tools()) == "hardly anything changed"
    assert check(replace(sample, target=Image.fromarray(ball)), Tools()) is None


def test_rims_and_parts_are_no_whole_objects():
    y, x = np.mgrid[:120, :120]
    distance = np.hypot(y - 60, x - 60)
    disc, rim, inner = distance < 40, (distance < 40) & (distance > 30), distance < 28
    assert solidity(disc) > 0.95 and solidity(rim) < 0.6
    assert is_part(inner, rim) and is_part(inner, disc)
    assert not is_part(disc, inner) and not is_part(disc, np.ones_like(disc))
    assert not is_part(np.roll(inner, 50, 1), disc)


POSE_AND_NAMES = ("pose-detector", "pose-landmarks", "mtcnn-p", "mtcnn-r", "mtcnn-o", "efficientnet-lite2")


@needs(*POSE_AND_NAMES)
def test_an_animal_is_no_person_and_is_called_by_its_name():
    tools = Tools()
    assert tools.person(photograph("astronaut")) is not None
    assert tools.person(photograph("chelsea")) is None
    cat = photograph("chelsea")
    assert tools.word(cat, np.ones(cat.shape[:2], bool)) == "cat"
    astronaut = photograph("astronaut")
    assert tools.word(astronaut, np.ones(astronaut.shape[:2], bool)) == "person"
