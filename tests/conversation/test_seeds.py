"""Seeds: 0 to 2^64 - 1, variants count up and wrap, -1 is a random one, a string in JSON is exact."""

import json

import pytest

from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.conversation import Job, Settings
from ace.conversation.job import variants
from ace.conversation.seeds import NUM_SEEDS, read_seed, seeds_of
from ace.errors import ConfigError


@pytest.mark.parametrize("seed", [0, 1, 2**53 + 1, 2**63 - 1, 2**63, NUM_SEEDS - 1])
def test_every_seed_in_range_stays_what_it_is_as_a_number_and_as_a_string(seed):
    assert read_seed(seed) == read_seed(str(seed)) == read_seed(json.loads(json.dumps(str(seed)))) == seed


@pytest.mark.parametrize("seed", [-2, NUM_SEEDS, "18446744073709551616", "1.5", "x", True, -(10**30)])
def test_any_other_is_refused_in_one_line(seed):
    with pytest.raises(ConfigError, match="use 0 to 18446744073709551615, or -1"):
        read_seed(seed)


@pytest.mark.parametrize("seed", [None, -1, "-1", ""])
def test_without_a_seed_it_is_a_random_one(seed):
    found = {read_seed(seed) for _ in range(20)}
    assert len(found) > 15
    assert all(0 <= one < 2**32 for one in found)


def test_variants_count_up_and_wrap():
    assert seeds_of(5, 3) == [5, 6, 7]
    assert seeds_of(NUM_SEEDS - 1, 3) == [NUM_SEEDS - 1, 0, 1]
    job = Job(LongContextConditionUnit(ConditionUnit("a cat")), Settings(seed=2**63 - 1))
    assert [one.settings.seed for one in variants(job, 2)] == [2**63 - 1, 2**63]
    for count in (0, 17):
        with pytest.raises(ConfigError, match=f"{count} variants: use 1 to 16"):
            variants(job, count)
