"""LaMa's mask strategy: boxes and strokes of every size, the same from the same dice."""

from random import Random

import numpy as np

from ace.data.tasks.masks import LARGEST_SHARE, SMALLEST_SHARE, draw_border, draw_boxes, draw_mask, draw_strokes


def test_masks_cover_between_a_little_and_most_of_the_picture():
    shares = [draw_mask(120, 200, Random(seed)).mean() for seed in range(200)]
    assert min(shares) >= SMALLEST_SHARE and max(shares) <= LARGEST_SHARE
    assert min(shares) < 0.1 and max(shares) > 0.4  # both kinds of difficulty


def test_the_same_dice_draw_the_same_mask():
    assert np.array_equal(draw_mask(99, 130, Random(4)), draw_mask(99, 130, Random(4)))
    assert not np.array_equal(draw_mask(99, 130, Random(4)), draw_mask(99, 130, Random(5)))


def test_boxes_keep_clear_of_the_border_and_strokes_do_not_have_to():
    for seed in range(40):
        mask = draw_boxes(256, 256, Random(seed))
        assert not mask[:10].any() and not mask[:, :10].any() and not mask[-10:].any()
    assert any(draw_strokes(256, 256, Random(seed))[:, 0].any() for seed in range(40))


def test_borders_lie_where_their_directions_say_and_leave_a_middle():
    seen = set()
    for seed in range(60):
        mask, directions = draw_border(100, 160, Random(seed))
        seen |= set(directions)
        sides = {"left": mask[50, 0], "right": mask[50, -1], "top": mask[0, 80], "bottom": mask[-1, 80]}
        assert {side for side, covered in sides.items() if covered} == set(directions)
        assert not mask[50, 80]
    assert seen == {"left", "right", "top", "bottom"}
