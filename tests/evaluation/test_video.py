"""VBench's dimensions on clips whose answer is known."""

import json
from fractions import Fraction

import numpy as np
import pytest

from ace.errors import DataError
from ace.evaluation.video import (
    consistency,
    flow_dynamic_degree,
    flow_smoothness,
    flow_speed,
    score_list,
    table,
    temporal_flicker,
)
from ace.video.clips import write_clip


def sliding(step: int, num_frames: int = 5, side: int = 64) -> np.ndarray:
    """(T, side, side, 3): blurred noise that moves to the left."""
    import cv2

    wide = np.random.default_rng(0).integers(0, 256, (side, side + step * num_frames, 3), dtype=np.uint8)
    wide = cv2.GaussianBlur(wide, (0, 0), 3)
    wide = ((wide.astype(float) - wide.min()) / np.ptp(wide) * 255).astype(np.uint8)
    return np.stack([wide[:, step * n : step * n + side] for n in range(num_frames)])


def test_a_still_clip_does_not_flicker_or_move():
    still = sliding(0)
    assert temporal_flicker(still) == 1 and flow_speed(still) < 1e-3
    assert flow_smoothness(still) > 0.99 and flow_dynamic_degree(still, 16) == 0


def test_flicker_is_the_mean_step_of_levels():
    frames = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 51, 0)])
    assert temporal_flicker(frames) == pytest.approx(0.8)


def test_a_moving_clip_is_dynamic_and_as_fast_as_it_was_made():
    assert flow_speed(sliding(2)) == pytest.approx(2 / 64, rel=0.3)
    assert flow_dynamic_degree(sliding(2), 16) == 1


def test_even_motion_is_smoother_than_frames_out_of_order():
    even = sliding(2, 6)
    assert flow_smoothness(even) > flow_smoothness(even[[0, 3, 1, 4, 2, 5]]) + 0.01


def test_consistency_is_one_for_one_subject_and_falls_with_another():
    def embed(frames):
        return np.stack([[frame.mean(), 255 - frame.mean()] for frame in frames])

    same, other = [np.full((4, 4, 3), 10, np.uint8)] * 4, [np.full((4, 4, 3), v, np.uint8) for v in (10, 10, 250, 250)]
    assert consistency(same, embed) == pytest.approx(1)
    assert consistency(other, embed) < 0.8


def test_a_list_is_scored_by_task(tmp_path):
    write_clip(tmp_path / "a.mkv", sliding(2), Fraction(16))
    path = tmp_path / "clips.jsonl"
    path.write_text("\n".join(json.dumps({"task": task, "video": "a.mkv"}) for task in ("depth", "inpainting")))
    found = score_list(path, {"mean": lambda frames: np.stack([frame.mean((0, 1)) for frame in frames])})
    assert set(found) == {"depth", "inpainting"} and "mean_consistency" in found["depth"]
    assert table(found).count("\n") == 3
    path.write_text("{}")
    with pytest.raises(DataError, match="no list of clips"):
        score_list(path)
