"""Planted sets are found among distractors, whichever way the clusters fall."""

import numpy as np
import pytest

from ace.data.cluster import KEPT, NEAR_IDENTICAL, assign, mine, union
from ace.data.recipe import Mining
from benchmarks.planted import plant, recall_and_precision


def test_union_joins_what_edges_join_and_nothing_else():
    edges = np.array([(5, 9), (1, 2), (9, 7), (2, 3), (40, 41)])
    assert [part.tolist() for part in union(edges)] == [[1, 2, 3], [5, 7, 9], [40, 41]]
    chain = np.random.default_rng(0).permutation(np.stack([np.arange(500), np.arange(1, 501)], axis=1))
    assert [part.tolist() for part in union(chain)] == [list(range(501))]
    assert union(np.empty((0, 2), np.int64)) == []


def test_planted_pairs_are_found_and_distractors_are_not():
    planted = plant(4000, 64, seed=3)
    found = mine(planted.features, Mining(num_clusters=12, neighbours=4), planted.score, seed=1)
    recall, precision = recall_and_precision(planted, found)
    assert recall >= 0.98
    assert precision >= 0.98


def test_comparing_across_borders_finds_more_than_one_cluster_each():
    planted = plant(4000, 64, seed=4)
    across, alone = (
        recall_and_precision(planted, mine(planted.features, Mining(num_clusters=40, neighbours=n), planted.score))[0]
        for n in (4, 1)
    )
    assert across > alone


def test_a_crowd_in_one_place_is_still_divided(monkeypatch):
    monkeypatch.setattr("ace.data.cluster.LARGEST_CLUSTER", 300)
    planted = plant(2000, 32, seed=5)
    found = mine(planted.features, Mining(num_clusters=3, neighbours=3), planted.score)
    recall, precision = recall_and_precision(planted, found)
    assert recall > 0.9
    assert precision > 0.95


def test_near_identical_pictures_are_not_a_pair():
    planted = plant(1000, 64, seed=6)
    twin = planted.features[:1].astype(np.float32)
    third = twin + 0.06 * np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    rows = np.concatenate([twin, twin, third / np.linalg.norm(third)])
    found = mine(rows, Mining())
    fates = dict(zip(map(tuple, found.pairs.tolist()), found.fates.tolist(), strict=True))
    assert fates == {(0, 1): NEAR_IDENTICAL, (0, 2): KEPT, (1, 2): KEPT}


def test_a_chain_of_everything_is_drawn_tighter(monkeypatch):
    monkeypatch.setattr("ace.data.cluster.LARGEST_SET", 20)
    turns = np.linspace(0, np.pi / 2, 200)
    ring = np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
    assert all(len(members) <= 20 for members in mine(ring, Mining(feature_high=0.9995, min_relevance=0)).sets)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_pictures_are_no_problem(count):
    rows = np.eye(8, dtype=np.float16)[:count]
    assert len(mine(rows, Mining()).pairs) == 0
    assert len(assign(rows, Mining())) == count if count else True
