"""Signal maps against pictures whose facts are known."""

import numpy as np
import pytest

from ace.errors import ConfigError, ShapeError
from ace.extract import draw_depth, draw_edges, draw_segments, draw_skeleton
from ace.extract.degrade import blur, gray, jpeg, low_resolution, mosaic, noise
from ace.extract.edges import canny
from ace.extract.lines import doodle, draw_contours, line_drawing, scribble
from ace.extract.segments import CLASSES, PALETTE


@pytest.fixture
def square():
    """A red square on blue, equally bright, 64 px."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:] = (0, 0, 255)
    image[16:48, 20:44] = (97, 0, 0)
    return image


def test_edges_follow_the_border_of_a_shape_and_nothing_else(square):
    edges = canny(square)
    rows, columns = np.nonzero(edges)
    assert 15 <= rows.min() <= 16 and 47 <= rows.max() <= 48
    assert 19 <= columns.min() <= 20 and 43 <= columns.max() <= 44
    assert not edges[20:44, 24:40].any()
    assert edges.sum() < 2 * (32 + 24) * 2


def test_edges_are_thin(square):
    assert (canny(square)[32].sum(), canny(square)[:, 32].sum()) == (2, 2)


def test_weak_edges_stay_only_where_they_join_strong_ones():
    image = np.full((64, 64, 3), 100, np.uint8)
    image[:, 32:] = np.linspace(100, 220, 64).astype(np.uint8)[:, None, None]  # one edge, ever stronger downwards
    image[5:12, 8:14] = 120  # weak and alone
    edges = canny(image, 60, 200)
    assert edges[60, 30:34].any() and edges[30, 30:34].any()
    assert not edges[:, :20].any()


def test_edge_thresholds_in_the_wrong_order_are_refused(square):
    with pytest.raises(ConfigError, match="low <= high"):
        canny(square, 100, 50)


def test_an_even_picture_has_no_lines():
    flat = np.full((64, 64, 3), 90, np.uint8)
    assert not draw_edges(flat).any()
    assert (scribble(flat) == 255).all() and (line_drawing(flat) == 255).all()


def test_a_mosaic_keeps_the_mean_of_each_block():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    blocks = mosaic(image, 8)
    assert np.abs(blocks[8:16, 24:32] - image[8:16, 24:32].mean((0, 1))).max() <= 0.5
    assert len(np.unique(blocks.reshape(-1, 3), axis=0)) <= 64


def test_a_mosaic_of_a_size_that_does_not_divide_cuts_the_last_blocks():
    image = np.random.default_rng(0).integers(0, 256, (30, 45, 3)).astype(np.uint8)
    blocks = mosaic(image, 8)
    assert blocks.shape == image.shape
    assert np.abs(blocks[24:, 40:] - image[24:, 40:].mean((0, 1))).max() <= 0.5


def test_gray_has_equal_channels_and_keeps_gray(square):
    made = gray(square)
    assert (made[..., 0] == made[..., 1]).all() and (made[..., 1] == made[..., 2]).all()
    assert np.array_equal(gray(made), made)


@pytest.mark.parametrize("worse", [lambda i: blur(i, 2.0), lambda i: jpeg(i, 5), lambda i: low_resolution(i, 4)])
def test_degradations_change_a_picture_but_keep_its_mean(square, worse):
    made = worse(square)
    assert made.shape == square.shape and made.dtype == np.uint8
    assert not np.array_equal(made, square)
    assert np.abs(made.mean((0, 1)) - square.mean((0, 1))).max() < 6


def test_noise_is_decided_by_its_seed(square):
    assert np.array_equal(noise(square, 20, 3), noise(square, 20, 3))
    assert not np.array_equal(noise(square, 20, 3), noise(square, 20, 4))


def test_contours_run_around_a_mask_and_leave_its_inside_white():
    mask = np.zeros((64, 64), np.float32)
    mask[20:40, 20:40] = 1
    lines = draw_contours([mask], 64)[..., 0] < 128
    assert lines[19, 20:40].all() and lines[20:40, 40].all()
    assert not lines[20:40, 20:40].any() and not lines[:15].any()


def test_a_doodle_is_ink_on_white_paper():
    art = np.zeros((8, 8, 4), np.uint8)
    art[4] = (200, 10, 10, 255)
    drawn = doodle(art)
    assert (drawn[0] == 255).all() and (drawn[4] < 40).all()


def test_segments_have_their_own_colours():
    classes = np.arange(len(CLASSES)).reshape(1, -1)
    drawn = draw_segments(classes)
    assert [tuple(int(v) for v in c) for c in drawn[0]] == list(PALETTE.values())
    assert len(set(PALETTE.values())) == len(PALETTE)
    with pytest.raises(ConfigError, match="has no colour"):
        draw_segments(classes + 1)


def test_near_is_bright():
    drawn = draw_depth(np.array([[0.0, 0.5, 1.0]]))
    assert drawn[0, :, 0].tolist() == [0, 128, 255]


def test_a_skeleton_lies_between_its_joints_and_skips_unknown_ones():
    points = np.full((17, 2), np.nan, np.float32)
    points[11], points[13] = (0.25, 0.5), (0.75, 0.5)
    drawn = draw_skeleton(points, 64).max(2)
    assert (drawn[31:33, 18:46].max(0) > 100).all()
    assert not drawn[:28].any() and not drawn[36:].any() and not drawn[:, :12].any()
    with pytest.raises(ShapeError, match="17"):
        draw_skeleton(points[:5], 64)
