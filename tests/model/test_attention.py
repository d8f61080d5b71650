"""Packed attention against a plain loop over segments."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

from ace.errors import ShapeError
from ace.model import attention
from ace.model.attention import attend, plan_attention

SEGMENTS = {
    "one": ([7], [3]),
    "equal": ([6, 6, 6], [4, 4, 4]),
    "equal_queries": ([6, 6, 6], [4, 1, 33]),
    "ragged": ([5, 9, 5, 1, 9], [2, 40, 7, 1, 32]),
}


def random(length: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(length, 4, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def segment_by_segment(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, query_lengths: list[int], key_lengths: list[int]
) -> torch.Tensor:
    outputs = []
    for q, k, v in zip(query.split(query_lengths), key.split(key_lengths), value.split(key_lengths), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q.double(), k.double()) * q.shape[-1] ** -0.5
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v.double()))
    return torch.cat(outputs)


@pytest.mark.parametrize("pad_keys_to", [1, 32])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("name", SEGMENTS)
def test_packed_attention_is_attention_within_each_segment(name, dtype, tolerance, pad_keys_to):
    query_lengths, key_lengths = SEGMENTS[name]
    query = random(sum(query_lengths), 1, dtype)
    key, value = random(sum(key_lengths), 2, dtype), random(sum(key_lengths), 3, dtype)
    out = attend(query, key, value, plan_attention(query_lengths, key_lengths, pad_keys_to))
    expected = segment_by_segment(query, key, value, query_lengths, key_lengths)
    assert out.dtype == dtype
    assert (out.double() - expected).abs().max() <= tolerance


@pytest.mark.parametrize("name", SEGMENTS)
def test_gradients_reach_every_segment(name):
    query_lengths, key_lengths = SEGMENTS[name]
    tensors = [random(sum(lengths), n).requires_grad_() for n, lengths in enumerate((query_lengths, key_lengths))]
    value = random(sum(key_lengths), 5).requires_grad_()
    weight = random(sum(query_lengths), 6)
    plain = torch.autograd.grad(
        (segment_by_segment(*tensors, value, query_lengths, key_lengths) * weight).sum(), [*tensors, value]
    )
    packed = torch.autograd.grad(
        (attend(*tensors, value, plan_attention(query_lengths, key_lengths, 32)) * weight).sum(), [*tensors, value]
    )
    for ours, expected in zip(packed, plain, strict=True):
        assert (ours - expected).abs().max() <= 1e-4


def test_a_segment_is_computed_alike_in_any_company():
    query_lengths, key_lengths = SEGMENTS["ragged"]
    query, key, value = random(sum(query_lengths), 1), random(sum(key_lengths), 2), random(sum(key_lengths), 3)
    together = attend(query, key, value, plan_attention(query_lengths, key_lengths, 32)).split(query_lengths)
    pieces = zip(query.split(query_lengths), key.split(key_lengths), value.split(key_lengths), strict=True)
    for (q, k, v), packed in zip(pieces, together, strict=True):
        alone = attend(q, k, v, plan_attention([len(q)], [len(k)], 32))
        assert (alone - packed).abs().max() <= 1e-6


@pytest.mark.parametrize("most", [1, 40, 10**6])
def test_attention_in_pieces_is_the_same(most, monkeypatch):
    query_lengths, key_lengths = [9, 9, 4], [7, 5, 33]
    query = random(sum(query_lengths), 1, torch.bfloat16)
    key, value = (random(sum(key_lengths), seed, torch.bfloat16) for seed in (2, 3))
    plan = plan_attention(query_lengths, key_lengths, 8)
    monkeypatch.setattr(attention, "MOST_SCORES", most)
    monkeypatch.setattr(attention, "MIN_QUERIES", 2)
    with torch.no_grad():
        out = attend(query, key, value, plan)
    expected = segment_by_segment(query, key, value, query_lengths, key_lengths)
    assert (out.double() - expected).abs().max() <= 3e-2


@pytest.mark.skipif(attention.varlen_attn is None, reason="this torch has no ragged kernel")
@pytest.mark.parametrize("name", SEGMENTS)
def test_the_ragged_kernel_is_called_as_its_signature_says_and_gets_the_same_segments(name, monkeypatch):
    signature = inspect.signature(attention.varlen_attn)

    def plain(*args: object, **kwargs: object) -> torch.Tensor:
        """What the kernel computes on a GPU, by a loop."""
        given = list(signature.bind(*args, **kwargs).arguments.values())
        q, k, v, cu_q, cu_k, max_q, max_k = given
        assert cu_q.dtype == cu_k.dtype == torch.int32
        lengths = [cu.diff().tolist() for cu in (cu_q, cu_k)]
        assert [max(own) for own in lengths] == [max_q, max_k]
        return segment_by_segment(q, k, v, *lengths).to(q.dtype)

    query_lengths, key_lengths = SEGMENTS[name]
    query = random(sum(query_lengths), 1)
    key, value = random(sum(key_lengths), 2), random(sum(key_lengths), 3)
    plan = plan_attention(query_lengths, key_lengths, 32)
    stacked = attend(query, key, value, plan)
    monkeypatch.setattr(attention, "varlen_attn", plain)
    monkeypatch.setattr(attention, "takes_ragged_kernel", lambda query: True)
    assert (attend(query, key, value, plan) - stacked).abs().max() <= 1e-5


def test_rounding_to_float16_is_off_unless_asked_for():
    query, key, value = random(9, 1), random(9, 2), random(9, 3)
    plan = plan_attention([9], [9])
    rounded = dataclasses.replace(plan, round_to_float16=True)
    exact = attend(query, key, value, plan)
    assert torch.equal(attend(query, key, value, rounded), attend(query, key, value, rounded).half().float())
    assert not torch.equal(exact, exact.half().float())
    assert torch.equal(
        attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), rounded),
        attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), plan),
    )


@pytest.mark.parametrize(("queries", "keys"), [([2], [1, 1]), ([0], [1]), ([1], [0]), ([], [])])
def test_segments_that_do_not_pair_are_refused(queries, keys):
    with pytest.raises(ShapeError):
        plan_attention(queries, keys)
