"""Clips of the world: their masks, depth, flow and tracks are exact, and a mask is followed through them."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from ace.cli import app
from ace.data.world import SpriteLibrary
from ace.data.world.clips import world_clip
from ace.errors import ConfigError, MaskError
from ace.video.clips import read_clip
from ace.video.track import overlap, track


@pytest.fixture(scope="module")
def library() -> SpriteLibrary:
    return SpriteLibrary()


def test_a_clip_is_decided_by_its_seed(library):
    one, same, other = (world_clip(seed, 64, 5, library) for seed in (1, 1, 2))
    assert np.array_equal(one.frames, same.frames) and np.array_equal(one.flow, same.flow)
    assert not np.array_equal(one.frames, other.frames)
    assert one.masks.shape == (len(one.names), 5, 64, 64) and one.depth.shape == (5, 64, 64)


def test_flow_leads_each_visible_pixel_to_itself(library):
    """Inside an object and on the ground, the next frame holds the same colour where the flow leads."""
    clip = world_clip(3, 96, 5, library)
    rows, columns = np.meshgrid(np.arange(96), np.arange(96), indexing="ij")
    right, moved = 0, 0
    for number, flow in enumerate(clip.flow):
        x, y = np.rint(columns + flow[..., 0]).astype(int), np.rint(rows + flow[..., 1]).astype(int)
        inside = (x >= 0) & (x < 96) & (y >= 0) & (y < 96)
        there = clip.frames[number + 1][y.clip(0, 95), x.clip(0, 95)].astype(int)
        difference = np.abs(there - clip.frames[number]).max(axis=2)
        right, moved = right + int((difference[inside] < 40).sum()), moved + int(inside.sum())
    assert right / moved > 0.8  # the rest is hidden in the next frame, or an edge


def test_tracks_are_the_middles_of_the_objects(library):
    clip = world_clip(1, 96, 5, library)
    rows, columns = np.nonzero(clip.masks[-1, 0])  # the one in front
    assert np.hypot(columns.mean() - clip.tracks[-1, 0, 0], rows.mean() - clip.tracks[-1, 0, 1]) < 12
    assert np.hypot(*(clip.tracks[:, -1] - clip.tracks[:, 0]).T).min() > 5


def test_what_is_in_front_hides_and_is_nearer(library):
    clip = next(found for seed in range(20) if len((found := world_clip(seed, 64, 5, library)).names) > 1)
    assert not (clip.masks.sum(axis=0) > 1).any()
    assert clip.depth[:, 0, 0].max() < clip.depth[clip.masks[-1]].min()


@pytest.mark.slow
def test_a_tracked_mask_overlaps_the_truth_by_nine_tenths_on_50_clips(library):
    found = []
    for seed in range(50):
        clip = world_clip(seed, 128, 9, library)
        front = clip.masks[-1]
        masks = list(track(clip.frames, front[0].astype(np.uint8) * 255))
        found += [overlap(mask, truth) for mask, truth in zip(masks[1:], front[1:], strict=True)]
    assert np.mean(found) >= 0.9


def test_a_mask_is_followed(library):
    clip = world_clip(2, 96, 5, library)
    masks = list(track(clip.frames, clip.masks[-1, 0].astype(np.uint8) * 255))
    assert overlap(masks[-1], clip.masks[-1, -1]) > 0.75 > overlap(masks[0], clip.masks[-1, -1])
    with pytest.raises(MaskError, match="selects nothing"):
        list(track(clip.frames, np.zeros((96, 96), np.uint8)))


def test_the_command_writes_clips_with_their_truth(tmp_path):
    result = CliRunner().invoke(
        app, ["data", "world", "--video", "-n", "1", "--size", "32", "--frames", "5", "-o", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    (line,) = [json.loads(text) for text in (tmp_path / "clips.jsonl").read_text().splitlines()]
    truth = np.load(tmp_path / line["truth"])
    assert np.array_equal(read_clip(tmp_path / line["mask"]).frames[..., 0] > 127, truth["masks"][0])
    assert np.array_equal(read_clip(tmp_path / line["video"]).frames, world_clip(0, 32, 5).frames)
    assert CliRunner().invoke(app, ["data", "world", "-o", str(tmp_path)]).exit_code == 2
    with pytest.raises(ConfigError, match="at least 2 frames"):
        world_clip(0, 16, 9)
