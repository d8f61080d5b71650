"""Attention over packed ragged sequences: every query segment attends to its own key segment and to nothing else.

An `AttentionPlan` is made once per layout. Where torch has a fused varlen kernel (CUDA, half precision) it runs on
the packed sequence as it is; elsewhere segments of equal query length are stacked, their keys padded and masked, so
one dense call serves a whole group. Both paths share `attend` and one test. Dropout and causal masks are not here:
ACE has neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ace.errors import ShapeError

MOST_SCORES = 2**22  # products of a query and a key that are held at once, 8 MB: about a core's share of the cache
MIN_QUERIES = 256  # of one piece: fewer make slow products

try:  # torch >= 2.10; absent builds use the grouped path
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # pragma: no cover - depends on the torch build
    varlen_attn = None


@dataclass(frozen=True)
class Group:
    """Segments with the same number of queries.

    queries: (G, Lq) token indices. keys: (G, Lk) token indices, padded with 0. bias: (G, 1, 1, Lk) 0 or -inf, or None.
    all_keys: the keys are the packed sequence itself, in order (a reshape instead of a gather)."""

    queries: Tensor
    keys: Tensor
    bias: Tensor | None
    all_keys: bool


@dataclass(frozen=True)
class AttentionPlan:
    """Which query segment reads which key segment.

    cu_queries, cu_keys: (S + 1,) int32 running segment bounds; max_queries, max_keys: longest segments; groups: the
    same segments for the stacked path. round_to_float16: float32 operands and results are rounded to float16, as
    upstream does. key_rows: (Tk,) rows of the keys given to `attend` that are the packed keys; None = they are."""

    cu_queries: Tensor
    cu_keys: Tensor
    max_queries: int
    max_keys: int
    groups: tuple[Group, ...]
    round_to_float16: bool = False
    key_rows: Tensor | None = None


def plan_attention(query_lengths: list[int], key_lengths: list[int], pad_keys_to: int = 1) -> AttentionPlan:
    """Plan attention of segment i's queries to segment i's keys.

    pad_keys_to: in the stacked path keys are padded to a multiple of this, by their own number only, so that a segment
    is computed alike in any company. Raises ShapeError for unequal counts or empty segments."""
    if len(query_lengths) != len(key_lengths) or min([*query_lengths, *key_lengths], default=0) < 1:
        raise ShapeError(f"query segments {query_lengths} do not pair with key segments {key_lengths}")
    cu_queries = F.pad(torch.tensor(query_lengths).cumsum(0), (1, 0))
    cu_keys = F.pad(torch.tensor(key_lengths).cumsum(0), (1, 0))
    by_shape: dict[tuple[int, int, bool], list[int]] = {}
    for segment, (queries, keys) in enumerate(zip(query_lengths, key_lengths, strict=True)):
        padded = -(-keys // pad_keys_to) * pad_keys_to
        by_shape.setdefault((queries, padded, padded > keys), []).append(segment)
    groups = []
    for (num_queries, num_keys, is_padded), segments in by_shape.items():
        chosen = torch.tensor(segments)
        queries = cu_queries[chosen, None] + torch.arange(num_queries)
        offsets = torch.arange(num_keys)
        valid = offsets < torch.tensor([key_lengths[s] for s in segments])[:, None]
        keys = torch.where(valid, cu_keys[chosen, None] + offsets, 0)
        bias = torch.zeros(valid.shape).masked_fill(~valid, float("-inf"))[:, None, None] if is_padded else None
        groups.append(Group(queries, keys, bias, all_keys=len(by_shape) == 1 and not is_padded))
    return AttentionPlan(cu_queries.int(), cu_keys.int(), max(query_lengths), max(key_lengths), tuple(groups))


def attend(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
    """Softmax attention within each segment, scale 1 / sqrt(d).

    query: (Tq, heads, d); key, value: (Tk, heads, d), packed or chosen by the plan's rows. Returns (Tq, heads, d)."""
    if plan.key_rows is not None:
        key, value = (t.index_select(0, plan.key_rows) for t in (key, value))
    if plan.round_to_float16 and query.dtype == torch.float32:
        rounded = (t.half().float() for t in (query, key, value))
        return _attend(*rounded, plan).half().float()
    return _attend(query, key, value, plan)


def _attend(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
    if varlen_attn is not None and takes_ragged_kernel(query):
        out = varlen_attn(query, key, value, plan.cu_queries, plan.cu_keys, plan.max_queries, plan.max_keys)
        return out if isinstance(out, Tensor) else out[0]
    if len(plan.groups) == 1:  # the queries of one group are the packed sequence itself
        (group,) = plan.groups
        out = _dense(query.unflatten(0, group.queries.shape), *_keys_values(key, value, group), group.bias)
        return out.flatten(0, 1)
    outputs, order = [], []
    for group in plan.groups:
        queries = group.queries.flatten()
        stacked = query.index_select(0, queries).unflatten(0, group.queries.shape)
        outputs.append(_dense(stacked, *_keys_values(key, value, group), group.bias).flatten(0, 1))
        order.append(queries)
    return torch.empty_like(query).index_copy(0, torch.cat(order), torch.cat(outputs))


def takes_ragged_kernel(query: Tensor) -> bool:
    """True if torch's kernel for ragged sequences runs on queries like these (T, heads, d)."""
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % 8 == 0


def _keys_values(key: Tensor, value: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Keys and values of a group's segments, (G, Lk, heads, d) each."""
    if group.all_keys:
        return key.unflatten(0, group.keys.shape), value.unflatten(0, group.keys.shape)
    rows = group.keys.flatten()
    keys, values = (t.index_select(0, rows).unflatten(0, group.keys.shape) for t in (key, value))
    return keys, values


def _dense(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """(G, L, heads, d) attention.

    On a CPU in bfloat16 plain matrix products beat torch's fused kernel, if their scores stay in the cache."""
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))  # (G, heads, L, d)
    mask = None if bias is None else bias.to(query.dtype)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        out = _in_pieces(query * query.shape[-1] ** -0.5, key.transpose(-1, -2), value, mask)
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.transpose(1, 2)


def _in_pieces(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention by matrix products: some heads at a time, and some queries of one head where they are long.

    query: (G, heads, Lq, d), scaled; key: (G, heads, d, Lk); value: (G, heads, Lk, d); mask: (G, 1, 1, Lk)."""
    groups, heads, num_queries, _ = query.shape
    num_keys = key.shape[-1]
    if groups * heads * num_queries * num_keys <= MOST_SCORES or torch.is_grad_enabled():
        scores = query @ key
        return (scores if mask is None else scores + mask).softmax(dim=-1) @ value
    heads_at_once = max(1, MOST_SCORES // (num_queries * num_keys))
    queries_at_once = max(MIN_QUERIES, MOST_SCORES // num_keys)
    out = torch.empty_like(query)
    for group in range(groups):
        for head in range(0, heads, heads_at_once):
            part = slice(head, head + heads_at_once)
            for first in range(0, num_queries, queries_at_once):
                rows = slice(first, first + queries_at_once)
                scores = query[group, part, rows] @ key[group, part]
                scores = scores if mask is None else scores + mask[group]
                out[group, part, rows] = scores.softmax(dim=-1) @ value[group, part]
    return out
