"""Pairs out of many features: K-means, connected components twice, all pairs, cleaning (section 3.1 of the paper).

Works on plain arrays: `mine.py` makes the features and says what became of the pictures. Features may be float16 and
memory-mapped; they are read in blocks, so a million of 768 numbers need little more memory than the file itself.

The paper assigns each picture to one cluster. A pair whose members fall on two sides of a border is lost then, so a
picture is also compared with the members of its next nearest clusters (`neighbours`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ace.data.recipe import Mining
from ace.errors import MissingDependencyError, ShapeError
from ace.extras import install_command

KEPT, NEAR_IDENTICAL, UNRELATED = 0, 1, 2  # what became of a pair
REASONS = ("", "near-identical", "too little in common")

LARGEST_CLUSTER = 8192  # larger ones are divided again
LARGEST_SET = 1024  # a chain of so many is no set: its links are drawn tighter
PER_CLUSTER = 500
_BLOCK = 16_384  # rows at a time
_TRAINED_ON = 48  # features per centroid that K-means learns from
_ROUNDS = 8

# members of a set (n,) int64 → their scores with each other (n, n) float32
Score = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Mined:
    """What was found. sets: the members of each, ascending. pairs: (P, 2) int64, all of each set, the first below the
    second; cosines: (P,) float32; fates: (P,) int8, `KEPT` or why not."""

    sets: list[np.ndarray]
    pairs: np.ndarray
    cosines: np.ndarray
    fates: np.ndarray


def mine(features: np.ndarray, settings: Mining, score: Score | None = None, seed: int = 0) -> Mined:
    """Find sets and pairs among features (N, D) of length 1, float16 or float32.

    score: of the second turn; None = the features' own cosine. Raises ShapeError for features that are no matrix."""
    if features.ndim != 2:
        raise ShapeError(f"features have shape {features.shape}: give (N, D)")
    score = score or (lambda members: rows_of(features, members) @ rows_of(features, members).T)
    first = first_turn(features, settings, seed)
    sets = [part for members in first for part in second_turn(members, score, settings)]
    pairs, cosines = all_pairs(features, sets)
    fates = np.zeros(len(pairs), np.int8)
    fates[cosines >= settings.feature_high] = NEAR_IDENTICAL
    fates[cosines < settings.min_relevance] = UNRELATED
    return Mined(sets, pairs, cosines, fates)


def first_turn(features: np.ndarray, settings: Mining, seed: int = 0) -> list[np.ndarray]:
    """Sets by the features: pictures of nearby clusters whose cosine lies in the bounds, joined."""
    if len(features) < 2:
        return []
    links = [edges for edges in _links(features, settings, seed) if len(edges)]
    edges = np.concatenate(links) if links else np.empty((0, 2), np.int64)
    sets = union(edges)
    return [part for members in sets for part in _tightened(features, members, settings.feature_low, settings)]


def second_turn(members: np.ndarray, score: Score, settings: Mining) -> Iterator[np.ndarray]:
    """The sets within a set whose scores lie in the bounds, joined again."""
    scores = score(members)
    low, high = settings.score_bounds
    inside = np.triu((scores >= low) & (scores < high), 1)
    if inside.sum() == inside.shape[0] * (inside.shape[0] - 1) // 2:  # all joined, the common case
        yield members
        return
    for part in union(np.argwhere(inside)):
        yield members[part]


def union(edges: np.ndarray) -> list[np.ndarray]:
    """The disjoint sets of two or more that edges (E, 2) join, members ascending, sets by first member."""
    if not len(edges):
        return []
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    except ModuleNotFoundError:
        raise MissingDependencyError(f"mining needs scipy: {install_command('data')}") from None

    nodes, joined = np.unique(edges, return_inverse=True)
    rows, columns = joined.reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges), np.bool_), (rows, columns)), shape=(len(nodes), len(nodes)))
    _, labels = connected_components(graph, directed=False)  # numbered by their first node
    return [nodes[group] for group in _grouped(labels).values()]


def all_pairs(features: np.ndarray, sets: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of every set (P, 2), and its cosine (P,)."""
    pairs, cosines = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for members in sets:
        rows = rows_of(features, members)
        i, j = np.triu_indices(len(members), 1)
        pairs.append(np.stack([members[i], members[j]], axis=1))
        cosines.append((rows @ rows.T)[i, j])
    return np.concatenate(pairs), np.concatenate(cosines)


def assign(features: np.ndarray, settings: Mining, seed: int = 0) -> np.ndarray:
    """The clusters of every picture (N, neighbours) int32, the nearest first; −1 where there are no more."""
    faiss = load_faiss()
    count, width = features.shape
    k = min(settings.num_clusters or max(1, round(count / PER_CLUSTER)), count)
    near = min(settings.neighbours, k)
    if k == 1:
        return np.zeros((count, 1), np.int32)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[: k * _TRAINED_ON])
    learner = faiss.Kmeans(
        width,
        k,
        niter=_ROUNDS,
        spherical=True,
        seed=seed + 1,
        min_points_per_centroid=1,
        max_points_per_centroid=_TRAINED_ON,
    )
    learner.train(rows_of(features, chosen))
    centres = faiss.IndexFlatIP(width)
    centres.add(learner.centroids)
    found = np.empty((count, near), np.int32)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        found[start:stop] = centres.search(rows_of(features, slice(start, stop)), near)[1]
    return found


def load_faiss() -> Any:
    """The library. Raises MissingDependencyError without it."""
    try:
        import faiss
    except ModuleNotFoundError:
        raise MissingDependencyError(f"mining needs faiss: {install_command('data')}") from None
    return faiss


def _links(features: np.ndarray, settings: Mining, seed: int) -> Iterator[np.ndarray]:
    """Pairs (E, 2) within the bounds, cluster by cluster."""
    clusters = assign(features, settings, seed)
    homes = clusters[:, 0]
    by_home = _grouped(homes)
    guests = _grouped(clusters[:, 1:].reshape(-1)) if clusters.shape[1] > 1 else {}
    further = clusters.shape[1] - 1
    for cluster, members in by_home.items():
        if len(members) > LARGEST_CLUSTER and len(members) < len(features):  # a crowd: divide it by itself
            for edges in _links(rows_of(features, members), settings, seed):
                yield members[edges]
            others = guests.get(cluster, np.empty(0, np.int64)) // max(further, 1)
            yield from _between(features, members, others, settings, within=False)
            continue
        others = guests.get(cluster, np.empty(0, np.int64)) // max(further, 1)
        yield from _between(features, members, others, settings, within=True)


def _between(
    features: np.ndarray, members: np.ndarray, guests: np.ndarray, settings: Mining, within: bool
) -> Iterator[np.ndarray]:
    """Pairs within the bounds among members, and between members and guests."""
    mine = rows_of(features, members)
    for start in range(0, len(members) if within else 0, 2048):
        cosines = mine[start : start + 2048] @ mine[start:].T
        inside = np.triu((cosines >= settings.feature_low) & (cosines < settings.feature_high), 1)
        yield members[np.argwhere(inside) + start]
    for start in range(0, len(guests), 2048):
        part = guests[start : start + 2048]
        cosines = rows_of(features, part) @ mine.T
        i, j = np.nonzero((cosines >= settings.feature_low) & (cosines < settings.feature_high))
        yield np.stack([part[i], members[j]], axis=1)


def _tightened(features: np.ndarray, members: np.ndarray, low: float, settings: Mining) -> Iterator[np.ndarray]:
    """A set, or, if it is a long chain, the sets that stay of it as its links are drawn tighter."""
    if len(members) <= LARGEST_SET:
        yield members
        return
    low += 0.02
    if low >= settings.feature_high:
        return
    rows = rows_of(features, members)
    edges = []
    for start in range(0, len(members), 2048):
        cosines = rows[start : start + 2048] @ rows.T
        i, j = np.nonzero((cosines >= low) & (cosines < settings.feature_high))
        edges.append(np.stack([i + start, j], axis=1)[i + start < j])
    for part in union(np.concatenate(edges)):
        yield from _tightened(features, members[part], low, settings)


def _grouped(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Positions by label."""
    order = np.argsort(labels, kind="stable")
    found = labels[order]
    cuts = np.flatnonzero(np.diff(found)) + 1
    return {int(labels[group[0]]): group for group in np.split(order, cuts) if len(group) and labels[group[0]] >= 0}


def rows_of(features: np.ndarray, which: np.ndarray | slice) -> np.ndarray:
    """Some rows, as float32 in memory."""
    return np.ascontiguousarray(features[which], dtype=np.float32)
