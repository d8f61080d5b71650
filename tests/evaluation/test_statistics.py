"""A difference is called one when there is one, and not otherwise."""

import numpy as np
import pytest

from ace.errors import DataError
from ace.evaluation.statistics import paired_difference


def scores(seed: int, count: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 0.1, count)


def test_a_steady_gain_is_shown_although_samples_vary_much_more():
    base = scores(0)
    found = paired_difference(list(base - 0.02), list(base))
    assert found.is_shown and found.gap.mean == pytest.approx(-0.02)
    assert found.verdict("A", "B", smaller_is_better=True) == "A is better"
    assert found.verdict("A", "B", smaller_is_better=False) == "B is better"


def test_two_runs_of_the_same_quality_are_not_told_apart():
    shown = [paired_difference(list(scores(2 * n)), list(scores(2 * n + 1))).is_shown for n in range(40)]
    assert sum(shown) <= 5  # at a level of 5 %
    assert not paired_difference([0.1, 0.2], [0.1, 0.2]).is_shown


def test_many_comparisons_at_once_ask_for_more():
    base = scores(0, 30)
    noisy = list(base - 0.03 + (scores(5, 30) - 0.3) * 0.7)
    assert paired_difference(noisy, list(base), 1).level == 0.05
    assert paired_difference(noisy, list(base), 50).level == pytest.approx(0.001)


def test_the_same_comparison_gives_the_same_numbers():
    a, b = list(scores(3)), list(scores(4))
    assert paired_difference(a, b) == paired_difference(a, b)


def test_scores_that_cannot_be_paired_are_refused():
    with pytest.raises(DataError, match="paired"):
        paired_difference([1.0, 2.0], [1.0])
