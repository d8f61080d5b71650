"""Preparation, against numbers recorded from a run of the published tools on the clips of `clips.py`.

`published.npz` holds arrays only; of the clips of composed, fitted and masked tasks every fourth frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ace.errors import ConfigError, ImageError, MaskError
from ace.video.clips import open_clip  # noqa: F401 - the room's doors import
from ace.video.compose import KINDS, compose, subject
from ace.video.controls import gray
from ace.video.prepare import (
    Draft,
    PreparedClip,
    box_mask,
    check_frames,
    continued,
    extended,
    fit,
    grow_mask,
    kept_frames,
    letterbox,
    moving_box,
    nothing,
    outlines,
    parse_box,
    pick_frames,
    place_ids,
    read_label_colors,
    repainted,
    resize_cover,
    working_size,
)
from tests.video.clips import blob, block_masks, ramp_clip

PUBLISHED = np.load(Path(__file__).with_name("published.npz"))


def same(draft: Draft, name: str, every: int = 4, fill_level: int = 128) -> None:
    """A draft shows what the published tool shows; its fill is the published grey, whichever that is."""
    frames, masks = PUBLISHED[f"{name}_frames"].astype(np.float32), PUBLISHED[f"{name}_masks"]
    fill = draft.fill[::every]
    assert np.array_equal(draft.masks[::every], masks)
    assert np.array_equal(draft.frames[::every][~fill], frames[~fill])
    assert fill.any() and np.abs(frames[fill] - 127.5).max() <= 0.5


def test_outpainting_is_as_published():
    same(extended(ramp_clip(), left=0.25, right=0.25), "outpaint_lr")
    same(extended(ramp_clip(), right=0.3, up=0.3), "outpaint_ur")


def test_inpainting_is_as_published():
    masks = np.broadcast_to(blob(), (9, 32, 48))
    same(repainted(ramp_clip(), masks), "inpaint_mask")
    box = box_mask((10.6, 4.2, 30.9, 99), (48, 32))
    same(repainted(ramp_clip(), np.broadcast_to(box, (9, 32, 48))), "inpaint_box")


@pytest.mark.parametrize(
    "name", ["firstframe", "lastframe", "firstlastframe", "firstclip", "lastclip", "firstlastclip"]
)
def test_extension_in_time_is_as_published(name):
    frames, other = ramp_clip(), ramp_clip(seed=3)
    first = {
        "firstframe": frames[:1],
        "firstlastframe": frames[:1],
        "firstclip": frames[:3],
        "firstlastclip": frames[:2],
    }
    last = {"lastframe": other[8:9], "firstlastframe": other[8:9], "lastclip": frames[:3], "firstlastclip": other[:3]}
    same(continued(first.get(name), last.get(name), 4), f"expand_{name}", every=1)


@pytest.mark.parametrize("place", ["first", "last", "firstlast"])
def test_given_frames_are_as_published(place):
    same(kept_frames(ramp_clip(), place_ids(9, place, 2)), f"extract_{place}", every=1)


def test_random_frames_are_given_by_their_seed():
    ids = place_ids(81, "random", 5, seed=3)
    assert ids == place_ids(81, "random", 5, seed=3) != place_ids(81, "random", 5, seed=4)
    assert len(set(ids)) == 5
    draft = kept_frames(ramp_clip(), place_ids(9, "random", 2))
    assert int((draft.masks[:, 0, 0] == 0).sum()) == 2


@pytest.mark.parametrize("shape", ["original", "original_expand", "hull", "hull_expand", "bbox", "bbox_expand"])
def test_masks_grow_as_published(shape):
    assert np.array_equal(grow_mask(blob(), shape, 0.5, 2, (1.0, 0.5, 1.0, 0.25)), PUBLISHED[f"grow_{shape}"])


def test_an_empty_mask_does_not_grow():
    assert not grow_mask(np.zeros((8, 8), np.uint8), "hull_expand").any()


def test_layouts_are_as_published():
    assert np.array_equal(moving_box((4, 4, 20, 18), (24.5, 10, 46, 30), (48, 32), 7), PUBLISHED["layout_box"])
    assert np.array_equal(outlines(block_masks()[:3]), PUBLISHED["layout_mask"])


def test_labels_have_the_colours_of_a_published_list():
    assert read_label_colors("1#;#a cat#;#(1, 2, 255)\n2#;#dog#;#[3,4,5]\n") == {"a cat": (1, 2, 255), "dog": (3, 4, 5)}
    with pytest.raises(ConfigError, match="this is none"):
        read_label_colors("__import__('os')")


def test_gray_weighs_red_and_blue_as_published():
    assert np.array_equal(np.stack([gray(frame) for frame in ramp_clip()])[::4], PUBLISHED["gray"])


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_compositions_are_as_published(first, second):
    def draft(frames: np.ndarray, masks: np.ndarray) -> Draft:
        return Draft(frames, masks, np.zeros(masks.shape, bool))

    other = np.zeros((9, 32, 48), np.uint8)
    other[:, 4:16, 20:40] = 255
    both = compose(draft(ramp_clip(), block_masks()), first, draft(ramp_clip(seed=5), other), second)
    assert np.array_equal(both.frames[::4], PUBLISHED[f"compose_{first}_{second}_frames"])
    assert np.array_equal(both.masks[::4], PUBLISHED[f"compose_{first}_{second}_masks"])


@pytest.mark.parametrize(("width", "height"), [(32, 32), (64, 48), (32, 16)])
def test_frames_are_scaled_and_cut_as_published(width, height):
    ours = resize_cover(ramp_clip(), (width, height))[::4].astype(int)
    assert np.abs(ours - PUBLISHED[f"fit_{width}x{height}"]).max() <= 1  # torch's kernels differ by processor


def test_sizes_and_frames_are_as_published():
    for number, case in enumerate(PUBLISHED["sizes"]):
        count, fps, width, height, area, rows, columns, frames, rate = case.tolist()
        found = working_size((int(width), int(height)), int(count), int(area))
        assert found == (frames, columns, rows)
        starts = np.arange(int(count)) / fps
        ids, now = pick_frames(np.stack([starts, starts + 1 / fps], 1), found[0])
        assert ids == PUBLISHED[f"ids_{number}"].tolist()
        assert float(now) == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize(("number", "size"), [(0, (20, 40)), (1, (100, 37)), (2, (48, 32))])
def test_references_are_letterboxed_on_white_as_published(number, size):
    ours = letterbox(ramp_clip(1, *size, seed=1)[0], (48, 32)) / 127.5 - 1
    assert np.abs(ours - PUBLISHED[f"reference_{number}"]).max() < 1e-5


def test_the_model_is_shown_zero_where_it_is_to_fill():
    prepared = fit(repainted(ramp_clip(9, 64, 48), np.broadcast_to(blob(64, 48), (9, 48, 64))), (32, 32))
    shown = prepared.model_frames()
    assert np.all(shown[prepared.fill] == 0) and prepared.fill.any()
    assert np.all(prepared.masks[prepared.fill] == 255)
    assert prepared.num_tokens == 3 * 2 * 2
    assert isinstance(prepared, PreparedClip)


def test_a_reference_is_a_subject_on_white_cut_to_its_box():
    image = ramp_clip(1)[0]
    cut = subject(image, blob())
    assert cut.shape == (12, 16, 3)
    assert np.all(cut[0, 8:] == 255) and np.array_equal(cut[0, 0], image[8, 14])


@pytest.mark.parametrize("count", [0, 2, 13 - 1, 80])
def test_frame_counts_other_than_4n_plus_1_are_refused(count):
    with pytest.raises(ConfigError, match="4n\\+1"):
        check_frames(count)


def test_what_selects_nothing_or_is_no_box_is_refused():
    with pytest.raises(MaskError, match="selects nothing"):
        box_mask((100, 100, 120, 120), (48, 32))
    with pytest.raises(ConfigError, match="empty"):
        parse_box("5,5,5,9")
    with pytest.raises(ConfigError, match="left,top,right,bottom"):
        parse_box("a,b")
    with pytest.raises(ConfigError, match="extend by nothing"):
        extended(ramp_clip())
    with pytest.raises(ImageError, match="too small"):
        working_size((8, 300), 9, 4096)
    assert nothing(9, (32, 32)).masks.min() == 255
