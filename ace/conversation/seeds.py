"""Seeds: whole numbers from 0 to 2^64 - 1, one rule for every door.

Variants count up and wrap. None and -1 stand for a random seed. In JSON for a browser a seed is a string, since
JavaScript's numbers are exact only up to 2^53.
"""

from __future__ import annotations

import secrets

from ace.errors import ConfigError

NUM_SEEDS = 2**64


def read_seed(seed: int | str | None) -> int:
    """The seed asked for, or a random one of 32 bits for None and -1. Raises ConfigError for anything else."""
    try:
        number = -1 if seed is None or seed == "" else int(seed)
    except (TypeError, ValueError):
        number = -2
    if number == -1:
        return secrets.randbelow(2**32)
    if isinstance(seed, bool) or not 0 <= number < NUM_SEEDS:
        raise ConfigError(f"seed {str(seed)[:40]}: use 0 to {NUM_SEEDS - 1}, or -1 for a random one")
    return number


def seeds_of(first: int, count: int) -> list[int]:
    """The seeds of `count` variants: `first` and those after it, 0 after the largest."""
    return [(first + number) % NUM_SEEDS for number in range(count)]
