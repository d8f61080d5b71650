"""Features with sets planted in them, for `bench_mining.py` and its tests.

The world: topics, each a direction; on every topic lie sets of 2 to 8 pictures that belong together, pictures that
belong to nobody, and distractors made to be mistaken for members: some just below the feature threshold of a member,
some above it but with a score below the second turn's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

LOW, HIGH, SCORE_LOW = 0.75, 0.985, 0.6
SCORE_WIDTH = 16


@dataclass(frozen=True)
class Planted:
    """features: (N, D) float16 of length 1; second: (N, 16) float32, what the second turn's score compares; owner: the
    planted set of every picture, −1 = none."""

    features: np.ndarray
    second: np.ndarray
    owner: np.ndarray

    def score(self, members: np.ndarray) -> np.ndarray:
        """1 for one planted set or two bystanders, below `SCORE_LOW` where the second turn should part them."""
        rows = self.second[members]
        return np.where(rows @ rows.T >= SCORE_LOW, rows @ rows.T, -1.0)

    @property
    def pairs(self) -> set[int]:
        """Every planted pair, as first · N + second."""
        order = np.argsort(self.owner, kind="stable")
        owners = self.owner[order]
        found = []
        cuts = np.flatnonzero(np.diff(owners)) + 1
        for group in np.split(order, cuts):
            if self.owner[group[0]] >= 0:
                i, j = np.triu_indices(len(group), 1)
                group = np.sort(group)
                found.append(group[i] * len(self.owner) + group[j])
        return set(np.concatenate(found).tolist())


def plant(count: int, width: int, seed: int = 0, file: Path | None = None) -> Planted:
    """A world of `count` pictures; file: where the features go, as a memory map (None = in memory)."""
    dice = np.random.default_rng(seed)
    shape = (count, width)
    features = np.lib.format.open_memmap(file, "w+", np.float16, shape) if file else np.empty(shape, np.float16)
    second = np.empty((count, SCORE_WIDTH), np.float32)
    owner = np.full(count, -1, np.int64)
    topics = max(2, count // 700)
    at, sets = 0, 0
    while at < count:  # topic by topic, so that nothing but the file grows
        size = min(max(count // topics, 20), count - at)
        rows, scores, owners = _topic(size, width, dice)
        features[at : at + size] = rows
        second[at : at + size] = scores
        owner[at : at + size] = np.where(owners >= 0, owners + sets, -1)
        sets += int(owners.max(initial=-1)) + 1
        at += size
    mixed = dice.permutation(count) if file is None else None  # on disk the order stays: shuffling would cost memory
    return Planted(features, second, owner) if mixed is None else Planted(features[mixed], second[mixed], owner[mixed])


def recall_and_precision(planted: Planted, found) -> tuple[float, float]:
    """Of the planted pairs how many were found, of the found ones how many were planted."""
    kept = found.pairs[found.fates == 0]
    got = set((kept[:, 0] * len(planted.owner) + kept[:, 1]).tolist())
    want = planted.pairs
    return len(got & want) / max(len(want), 1), len(got & want) / max(len(got), 1)


def _topic(size: int, width: int, dice: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One topic's rows: a third in sets, a sixth distractors of each kind, the rest alone."""
    topic = _unit(dice.standard_normal((1, width)))
    rows = np.empty((size, width), np.float32)
    owners = np.full(size, -1, np.int64)
    scores = _unit(dice.standard_normal((size, SCORE_WIDTH)))
    at, number = 0, 0
    while at < size:
        # a subject of the topic, at cosine 0.6 with it: two subjects are about 0.36 alike
        subject = _unit(0.6 * topic + 0.8 * _across(topic, dice, 1))
        members = min(int(dice.integers(2, 9)), size - at)
        if members >= 2:
            # members at cosine c with the subject are c² alike: 0.81 to 0.92
            rows[at : at + members] = _near(subject, dice.uniform(0.90, 0.96), members, dice)
            owners[at : at + members] = number
            scores[at : at + members] = _near(scores[at : at + 1], 0.95, members, dice)
            number += 1
        else:
            rows[at : at + members] = subject
        first = rows[at : at + 1].copy()
        at += members
        for cosine in (dice.uniform(0.66, 0.74), dice.uniform(0.76, 0.80)):  # below the first turn; above, other score
            if at < size:
                rows[at] = _near(first, cosine, 1, dice)[0]
                at += 1
        alone = min(int(dice.integers(2, 9)), size - at)
        rows[at : at + alone] = _unit(0.6 * topic + 0.8 * _across(topic, dice, alone))
        at += alone
    return rows, scores.astype(np.float32), owners


def _near(centre: np.ndarray, cosine: float, count: int, dice: np.random.Generator) -> np.ndarray:
    return _unit(cosine * centre + np.sqrt(1 - cosine**2) * _across(centre, dice, count))


def _across(centre: np.ndarray, dice: np.random.Generator, count: int) -> np.ndarray:
    """Directions at right angles to `centre`."""
    found = dice.standard_normal((count, centre.shape[1]))
    return _unit(found - (found @ centre.T) * centre)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
