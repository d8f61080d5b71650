"""The node that prepares clips for ComfyUI's own VACE nodes."""

import numpy as np
import pytest
import torch

from ace.comfyui.video import ACEVideoPrepare
from ace.errors import ConfigError, MaskError
from tests.video.clips import block_masks, ramp_clip


def frames(count: int = 9) -> torch.Tensor:
    return torch.from_numpy(ramp_clip(count, 64, 48).astype(np.float32) / 255)


def lay_out(task: str, count: int = 9, length: int = 9, **options):
    return ACEVideoPrepare().lay_out(frames(count), task, "480p", length, **options)


def test_what_is_repainted_is_grey_and_masked_and_all_else_is_the_clip():
    mask = torch.from_numpy(block_masks(9, 64, 48) / 255.0)
    shown, masks, reference, width, height, length = lay_out("repaint", mask=mask)
    assert (width, height, length) == (64, 48, 9) and shown.shape == (9, 48, 64, 3)
    assert torch.all(shown[masks > 0] == 0.5)
    assert torch.allclose(shown[masks == 0], frames()[masks == 0], atol=1e-6)
    assert torch.equal(masks, mask.float()) and torch.all(reference == 1)


def test_room_is_made_and_clips_go_on():
    shown, masks, *_ = lay_out("extend", left=0.5)
    assert shown.shape == (9, 48, 96, 3) and masks[:, :, :32].min() == 1 and masks[:, :, 32:].max() == 0
    shown, masks, *_ = lay_out("continue", count=5)
    assert masks[:5].max() == 0 and masks[5:].min() == 1
    _, masks, *_ = lay_out("last frame")
    assert masks[-1].max() == 0 and masks[:-1].min() == 1


def test_a_longer_clip_is_spread_over_the_length_and_references_are_letterboxed():
    shown, masks, reference, *_ = lay_out("gray", count=13, references=frames(1)[:, :, :20])
    assert len(shown) == 9 and masks.min() == 1
    assert torch.equal(shown[..., 0], shown[..., 1])
    assert reference.shape == (1, 48, 64, 3) and torch.all(reference[:, :, 0] == 1)


def test_wrong_connections_are_named():
    with pytest.raises(MaskError, match="connect one"):
        lay_out("repaint")
    with pytest.raises(ConfigError, match="4n"):
        lay_out("gray", length=12)
