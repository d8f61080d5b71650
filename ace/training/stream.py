"""Global batches from numbered samples: the same whatever the number of workers and processes, resumable anywhere.

A run's samples are numbered from 0. A batch is the next samples in order, by count or under a budget of visual tokens,
over all processes; process r of W makes the samples whose number leaves the remainder r. The place in the data is one
number, the next sample's, and stands in every checkpoint.

A sample that cannot be made becomes a `Skipped`: it is left out, by name. Not here: what a sample is (`sources.py`) and
what the model makes of it (`batches.py`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from ace.errors import AceError
from ace.training.config import TrainingStage

CHUNK = 8  # samples per message from a worker, and numbers that processes tell each other at once
MANY_SKIPPED = 1000  # in a row: then something is wrong with all of them


class TrainingError(AceError):
    """Training cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Item:
    """A sample on its way to a batch.

    number: its place in the run; decides all its dice. name: for messages. tokens: visual tokens. content: what `make`
    of the batch understands."""

    number: int
    name: str
    task: str
    tokens: int
    content: Any


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out, and why."""

    number: int
    name: str
    reason: str


@dataclass(frozen=True)
class GlobalBatch:
    """One step's samples.

    parts: this process's items, cut into as many pieces as every other process's; a piece may be empty. num_samples,
    tokens: over all processes. skipped: by this process. position: number of the first sample after the batch.
    stand_in: an item for this process's empty pieces."""

    parts: tuple[tuple[Item, ...], ...]
    num_samples: int
    tokens: int
    skipped: tuple[Skipped, ...]
    position: int
    stand_in: Item


def global_batches(
    dataset: Dataset, stage: TrainingStage, position: int, num_workers: int, accelerator: Accelerator
) -> Iterator[GlobalBatch]:
    """Batches of a stage, without end, from sample number `position` on.

    dataset: number → `Item` or `Skipped`. Raises TrainingError if nothing usable comes for `MANY_SKIPPED` samples."""
    processes, rank = accelerator.num_processes, accelerator.process_index
    lengths: deque[tuple[int, int]] = deque()  # of all processes, in order: number, tokens (0 = skipped)
    ready: dict[int, Item | Skipped] = {}  # of this process
    following = _loader(dataset, position, rank, processes, num_workers)
    latest: Item | None = None  # that this process had

    def more() -> None:
        own = next(following)
        ready.update((item.number, item) for item in own)
        told = [(item.number, item.tokens if isinstance(item, Item) else 0) for item in own]
        if processes > 1:
            told = accelerator.gather(torch.tensor(told, device=accelerator.device)).tolist()
        lengths.extend(sorted((int(number), int(tokens)) for number, tokens in told))

    while True:
        chosen: list[tuple[int, int]] = []
        skipped: list[Skipped] = []
        tokens = missed = 0
        while True:
            if not stage.batch_tokens and len(chosen) == stage.batch_size:
                break
            if not lengths:
                more()
            number, length = lengths[0]
            if stage.batch_tokens and chosen and tokens + length > stage.batch_tokens:
                break
            lengths.popleft()
            position = number + 1
            too_long = stage.batch_tokens and length > stage.batch_tokens
            if length and not too_long:
                chosen.append((number, length))
                tokens += length
                missed = 0
            else:
                missed += 1
                if number in ready:
                    item = ready.pop(number)
                    reason = f"{length} tokens, the whole batch has {stage.batch_tokens}"
                    skipped.append(Skipped(number, item.name, reason) if isinstance(item, Item) else item)
                if missed == MANY_SKIPPED:
                    last = f": {skipped[-1].name}: {skipped[-1].reason}" if skipped else ""
                    raise TrainingError(f"none of {missed} samples in a row can be used{last}")
        cuts = [
            cut([length for number, length in chosen if number % processes == r], stage.micro_tokens)
            for r in range(processes)
        ]
        num_parts = max(map(len, cuts))
        own: list[Any] = [ready.pop(number) for number, _ in chosen if number % processes == rank]
        latest = own[-1] if own else latest or _any_item(dataset)
        assert latest is not None
        pieces = iter(own)
        parts = [tuple(itertools.islice(pieces, size)) for size in cuts[rank]]
        parts += [()] * (num_parts - len(parts))
        yield GlobalBatch(tuple(parts), len(chosen), tokens, tuple(skipped), position, latest)


def cut(lengths: Sequence[int], most: int) -> list[int]:
    """How many items go into each piece, in order, of at most `most` tokens each (0 = all in one)."""
    sizes: list[int] = []
    total = 0
    for length in lengths:
        if sizes and (not most or total + length <= most):
            sizes[-1] += 1
            total += length
        else:
            sizes.append(1)
            total = length
    return sizes


def _any_item(dataset: Dataset) -> Item:
    return next(item for item in map(dataset.__getitem__, itertools.count()) if isinstance(item, Item))


def _loader(
    dataset: Dataset, position: int, rank: int, processes: int, num_workers: int
) -> Iterator[list[Item | Skipped]]:
    """The process's own samples in order, `CHUNK` at a time, made by workers."""
    first = position + (rank - position) % processes
    chunks = ([first + processes * (CHUNK * c + i) for i in range(CHUNK)] for c in itertools.count())
    loader = DataLoader(
        dataset,
        batch_sampler=chunks,  # type: ignore[arg-type]  # any iterable of lists serves
        num_workers=num_workers,
        collate_fn=list,
        prefetch_factor=4 if num_workers else None,
        generator=torch.Generator(),  # else it draws from the global one
    )
    return iter(loader)
