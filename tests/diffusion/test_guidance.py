"""Guidance and rescale: per sample, whatever the neighbours."""

import pytest
import torch

from ace.diffusion import guide
from ace.errors import ShapeError


def test_guidance_moves_from_the_null_prediction_past_the_conditional_one():
    cond, uncond = torch.full((1, 4), 2.0), torch.full((1, 4), 1.0)
    assert guide(cond, uncond, 4.5).tolist() == [[5.5] * 4]


@pytest.mark.parametrize("scale", [1.0, 0.0, 0.5])
def test_scale_one_or_less_is_the_conditional_prediction_itself(scale):
    cond, uncond = torch.randn(2, 7), torch.randn(2, 7)
    assert torch.equal(guide(cond, uncond, scale, 0.5), cond)


def test_full_rescale_gives_the_guided_prediction_the_spread_of_the_conditional_one():
    cond, uncond = torch.randn(2, 4, 30), torch.randn(2, 4, 30)
    guided = guide(cond, uncond, 6.0, 1.0)
    torch.testing.assert_close(guided.flatten(1).std(1), cond.flatten(1).std(1))


def test_each_sample_is_guided_as_if_alone_bit_for_bit():
    lengths, scales, rescales = [3, 40, 11], [4.5, 1.0, 2.0], [0.5, 0.5, 0.0]
    cond, uncond = torch.randn(54, 16), torch.randn(54, 16)
    together = guide(cond, uncond, scales, rescales, lengths=lengths)
    alone = [
        guide(y, u, g, r, lengths=[y.shape[0]])
        for y, u, g, r in zip(cond.split(lengths), uncond.split(lengths), scales, rescales, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_the_published_form_counts_the_padding_of_the_batch():
    lengths = [2, 6]
    cond, uncond = torch.randn(8, 4), torch.randn(8, 4) + 1
    published = guide(cond, uncond, 4.5, 0.5, lengths=lengths, published=True)
    dense_cond, dense_uncond = torch.zeros(2, 6, 4), torch.zeros(2, 6, 4)
    for n, (y, u) in enumerate(zip(cond.split(lengths), uncond.split(lengths), strict=True)):
        dense_cond[n, : lengths[n]], dense_uncond[n, : lengths[n]] = y, u
    dense = guide(dense_cond, dense_uncond, 4.5, 0.5, published=True)
    torch.testing.assert_close(published, torch.cat([dense[0, :2], dense[1]]))
    ours = guide(cond, uncond, 4.5, 0.5, lengths=lengths)
    assert not torch.allclose(ours[:2], published[:2], rtol=1e-3)
    torch.testing.assert_close(ours[2:], published[2:])


def test_half_precision_predictions_come_back_in_their_dtype():
    assert guide(torch.randn(1, 9).half(), torch.randn(1, 9).half(), 3.0, 0.5).dtype == torch.float16


def test_what_does_not_fit_is_refused():
    x = torch.zeros(4, 2)
    with pytest.raises(ShapeError, match="differ"):
        guide(x, torch.zeros(3, 2), 2.0)
    with pytest.raises(ShapeError, match="add up"):
        guide(x, x, 2.0, lengths=[1, 2])
    with pytest.raises(ShapeError, match="guidance_scale"):
        guide(x, x, [2.0, 3.0])
