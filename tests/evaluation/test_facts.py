"""Scores of a task's own: perfect for the true answer, bad for the input, and between for something between."""

import numpy as np
import pytest
from PIL import Image

from ace.data.world import SpriteLibrary, World
from ace.data.world.sprites import SHIPPED_PACK
from ace.evaluation.facts import Judges, limb_distance, mean_iou, ssim, task_scores, text_similarity
from ace.evaluation.metrics import changed_pixels, levels
from ace.evaluation.scores import edited_input
from ace.extract.pose import draw_skeleton
from ace.extract.text import TextReader


@pytest.fixture(scope="module")
def world() -> World:
    return World(64, "held_out", SpriteLibrary(SHIPPED_PACK))


def scores(world, task, number, answer, reader=None):
    sample = world.sample(number, task)
    given, mask = edited_input(sample)
    changed = changed_pixels(levels(given), levels(sample.target), mask)
    shown = sample.target if answer == "true" else given if answer == "copy" else answer
    return task_scores(sample, given, shown, changed, Judges(reader))


@pytest.mark.parametrize(
    ("task", "name", "best", "worst"),
    [
        ("low_level_analysis/segmentation", "iou", 1.0, 0.6),
        ("low_level_analysis/depth", "depth_error", 0.0, 0.1),
        ("low_level_analysis/pose", "limb_distance", 0.0, 0.2),
        ("element_editing/object_add", "object_success", 1.0, 0.0),
        ("element_editing/object_remove", "object_success", 1.0, 0.0),
        ("element_editing/object_replace", "object_success", 1.0, 0.0),
    ],
)
def test_the_true_answer_is_right_and_the_input_is_not(world, task, name, best, worst):
    for number in range(3):
        true, copy = scores(world, task, number, "true")[name], scores(world, task, number, "copy")[name]
        assert true == best
        assert copy <= worst if best > worst else copy >= worst


def test_words_are_read_off_the_picture(world):
    reader = TextReader()
    added = scores(world, "element_editing/text_add", 0, "true", reader)
    assert added["text_read"] == added["text_read_true"] == 1 and added["text_similarity"] > 0.99
    assert scores(world, "element_editing/text_add", 0, "copy", reader)["text_read"] == 0
    assert scores(world, "element_editing/text_remove", 0, "true", reader)["text_gone"] == 1
    assert scores(world, "element_editing/text_remove", 0, "copy", reader)["text_gone"] == 0


def test_a_smudge_in_the_right_place_is_no_success(world):
    sample = world.sample(1, "element_editing/object_add")
    given, mask = edited_input(sample)
    changed = changed_pixels(levels(given), levels(sample.target), mask)
    smudge = levels(given).astype(np.uint8)
    smudge[changed] = levels(sample.target)[changed].mean(axis=0)
    assert scores(world, "element_editing/object_add", 1, Image.fromarray(smudge))["object_success"] == 0


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise():
    picture = np.random.default_rng(0).integers(0, 256, (32, 40, 3)).astype(np.int16)
    noisy = (picture + np.random.default_rng(1).integers(-40, 41, picture.shape)).clip(0, 255).astype(np.int16)
    assert ssim(picture, picture) == pytest.approx(1)
    assert 0.5 < ssim(noisy, picture) < 0.98
    flat = np.full_like(picture, 128)
    assert ssim(flat, flat // 2) == pytest.approx((2 * 128 * 64 + 6.5025) / (128**2 + 64**2 + 6.5025))  # luminance term


def test_iou_counts_every_class_of_the_true_map_alike():
    true = np.array([[0, 0, 0, 1]])
    assert mean_iou(np.array([[0, 0, 0, 0]]), true) == pytest.approx((3 / 4 + 0) / 2)


def test_limbs_are_measured_by_how_far_they_are():
    points = np.random.default_rng(3).uniform(0.25, 0.75, (17, 2)).astype(np.float32)
    true = draw_skeleton(points, 96).astype(np.int16)
    near, far = (draw_skeleton(points + shift, 96).astype(np.int16) for shift in (0.03, 0.2))
    assert 0 < limb_distance(near, true) < limb_distance(far, true) < 1
    assert limb_distance(np.zeros_like(true), true) == 1


@pytest.mark.parametrize(
    ("read", "true", "expected"), [("cat", "cat", 1), ("cut", "cat", 2 / 3), ("", "cat", 0), ("", "", 1)]
)
def test_text_similarity_is_one_minus_the_share_of_letters_to_change(read, true, expected):
    assert text_similarity(read, true) == pytest.approx(expected, abs=1e-4)
