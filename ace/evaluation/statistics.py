"""Is one system better than another, or is that chance? Paired tests, intervals, and the refusal to name a winner.

Both systems answer the same samples, so the difference is taken sample by sample. An interval comes from the bootstrap,
a p-value from exchanging the two systems' answers at random (scipy's paired permutation test, exact for few samples).
A difference is called one only if both agree: the interval leaves out zero and p is below the level, divided by the
number of comparisons made at once (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ace.errors import DataError, MissingDependencyError
from ace.evaluation.metrics import Interval, bootstrap
from ace.extras import install_command

LEVEL = 0.05
NUM_PERMUTATIONS = 9999


@dataclass(frozen=True)
class Difference:
    """First minus second, over paired samples. p: two-sided. level: below which p counts, after Bonferroni."""

    first: Interval
    second: Interval
    gap: Interval
    p: float
    level: float

    @property
    def is_shown(self) -> bool:
        """True if the two differ by more than chance explains."""
        return self.p < self.level and (self.gap.low > 0 or self.gap.high < 0)

    def verdict(self, first: str, second: str, smaller_is_better: bool) -> str:
        """Which is better, in words; "no difference shown" if that is so."""
        if not self.is_shown:
            return "no difference shown"
        first_wins = (self.gap.mean < 0) == smaller_is_better
        return f"{first if first_wins else second} is better"


def paired_difference(first: Sequence[float], second: Sequence[float], num_comparisons: int = 1) -> Difference:
    """Compare two systems on the same samples, in the same order.

    num_comparisons: how many such tests are read together. Always the same resamples, so a report can be made again.
    Raises DataError for lists of different lengths or fewer than two samples."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.size < 2:
        raise DataError(f"{a.size} and {b.size} scores cannot be paired: both systems must answer the same samples")
    own, other, gap = bootstrap([first]), bootstrap([second]), bootstrap([list(a - b)])
    assert own is not None and other is not None and gap is not None
    return Difference(own, other, gap, _permutation_p(a, b), LEVEL / max(1, num_comparisons))


def _permutation_p(a: np.ndarray, b: np.ndarray) -> float:
    try:
        from scipy.stats import permutation_test
    except ImportError as error:
        raise MissingDependencyError(f"comparing needs scipy: {install_command('eval')}") from error
    if not np.any(a != b):
        return 1.0
    result = permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=NUM_PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)
