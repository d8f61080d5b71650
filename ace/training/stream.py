"""Global batches from numbered samples: the same whatever the number of workers and processes, resumable anywhere.

A run's samples are numbered from 0. A batch is the next samples in order, by count or up to a number of visual tokens,
over all processes; process r of W makes the samples whose number leaves the remainder r. The place in the data is one
number, the next sample's, and stands in every checkpoint. `choose`, `deal` and `own_numbers` say which samples go where
and in which order, from numbers alone; `global_batches` makes the samples and tells the processes their lengths.

A sample that cannot be made becomes a `Skipped`: it is left out, by name. Not here: what a sample is (`sources.py`) and
what the model makes of it (`batches.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from ace.errors import AceError
from ace.training.config import TrainingStage

CHUNK = 8  # samples per message from a worker, and lengths that processes exchange at once
MANY_SKIPPED = 1000  # in a row: then something is wrong with all of them


class TrainingError(AceError):
    """Training cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Item:
    """A sample on its way to a batch.

    number: its place in the run; decides everything that is drawn for it. name: for messages. tokens: visual tokens.
    content: what the task's `collate` understands."""

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


@dataclass(frozen=True)
class Choice:
    """Which samples make a batch. chosen: (number, tokens) of each; missed: the same of those left out, 0 tokens = it
    could not be made; position: number of the first sample after the batch."""

    chosen: tuple[tuple[int, int], ...]
    missed: tuple[tuple[int, int], ...]
    position: int

    @property
    def tokens(self) -> int:
        """Of the whole batch."""
        return sum(length for _, length in self.chosen)


class _NothingUsable(Exception):
    """So many samples in a row were left out. missed: (number, tokens) of all of this batch."""

    def __init__(self, missed: Sequence[tuple[int, int]]) -> None:
        self.missed = missed


def choose(lengths: Iterator[tuple[int, int]], stage: TrainingStage) -> Iterator[Choice]:
    """Cut samples in order into batches: of `stage.batch_size`, or the longest of at most `stage.batch_tokens` tokens.

    lengths: (number, tokens) of every sample, tokens 0 = it could not be made; read no further than a batch needs."""
    waiting: tuple[int, int] | None = None  # read, and too long for the batch before
    while True:
        chosen: list[tuple[int, int]] = []
        missed: list[tuple[int, int]] = []
        tokens = in_a_row = position = 0
        while stage.batch_tokens or len(chosen) < stage.batch_size:
            sample, waiting = waiting or next(lengths), None
            number, length = sample
            if stage.batch_tokens and chosen and tokens + length > stage.batch_tokens:
                waiting = sample
                break
            position = number + 1
            if length and not (stage.batch_tokens and length > stage.batch_tokens):
                chosen.append(sample)
                tokens += length
                in_a_row = 0
            else:
                missed.append(sample)
                in_a_row += 1
                if in_a_row == MANY_SKIPPED:
                    raise _NothingUsable(missed)
        yield Choice(tuple(chosen), tuple(missed), position)


def deal(choice: Choice, processes: int, micro_tokens: int) -> list[list[int]]:
    """How many of its own samples every process puts into each piece: all have as many pieces, some of 0 samples."""
    sizes = [
        cut([length for number, length in choice.chosen if number % processes == rank], micro_tokens)
        for rank in range(processes)
    ]
    most = max(map(len, sizes))
    return [own + [0] * (most - len(own)) for own in sizes]


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


def own_numbers(position: int, rank: int, processes: int) -> Iterator[list[int]]:
    """The numbers of a process's own samples from a position on, in order, `CHUNK` at a time."""
    first = position + (rank - position) % processes
    return ([first + processes * (CHUNK * c + i) for i in range(CHUNK)] for c in itertools.count())


def global_batches(
    dataset: Dataset, stage: TrainingStage, position: int, num_workers: int, accelerator: Accelerator
) -> Iterator[GlobalBatch]:
    """Batches of a stage, without end, from sample number `position` on.

    dataset: number → `Item` or `Skipped`. Raises TrainingError if nothing usable comes for `MANY_SKIPPED` samples."""
    processes, rank = accelerator.num_processes, accelerator.process_index
    ready: dict[int, Item | Skipped] = {}  # of this process
    following = _made(dataset, own_numbers(position, rank, processes), num_workers)
    latest: Item | None = None  # that this process had
    choices = choose(_told(following, ready, accelerator), stage)
    while True:
        try:
            choice = next(choices)
        except _NothingUsable as error:
            skipped = _skipped(error.missed, ready, stage)
            last = f": {skipped[-1].name}: {skipped[-1].reason}" if skipped else ""
            raise TrainingError(f"none of {MANY_SKIPPED} samples in a row can be used{last}") from None
        own: list[Any] = [ready.pop(number) for number, _ in choice.chosen if number % processes == rank]
        newest: Item = own[-1] if own else latest or _any_item(dataset)
        items = iter(own)
        parts = tuple(
            tuple(itertools.islice(items, size)) for size in deal(choice, processes, stage.micro_tokens)[rank]
        )
        skipped = _skipped(choice.missed, ready, stage)
        yield GlobalBatch(parts, len(choice.chosen), choice.tokens, skipped, choice.position, newest)
        latest = newest


def _told(
    following: Iterator[list[Item | Skipped]], ready: dict[int, Item | Skipped], accelerator: Accelerator
) -> Iterator[tuple[int, int]]:
    """(number, tokens) of the samples of all processes, in order; what this process made is put into `ready`."""
    for own in following:
        ready.update((item.number, item) for item in own)
        told = [(item.number, item.tokens if isinstance(item, Item) else 0) for item in own]
        if accelerator.num_processes > 1:
            told = accelerator.gather(torch.tensor(told, device=accelerator.device)).tolist()
        yield from sorted((int(number), int(tokens)) for number, tokens in told)


def _skipped(
    missed: Sequence[tuple[int, int]], ready: dict[int, Item | Skipped], stage: TrainingStage
) -> tuple[Skipped, ...]:
    """Why samples of this process were left out."""
    own = [(ready.pop(number), length) for number, length in missed if number in ready]
    return tuple(
        Skipped(item.number, item.name, f"{length} tokens, the whole batch has {stage.batch_tokens}")
        if isinstance(item, Item)
        else item
        for item, length in own
    )


def _any_item(dataset: Dataset) -> Item:
    return next(item for item in map(dataset.__getitem__, itertools.count()) if isinstance(item, Item))


def _made(dataset: Dataset, chunks: Iterator[list[int]], num_workers: int) -> Iterator[list[Item | Skipped]]:
    """Samples by their numbers, a chunk at a time, made by workers."""
    loader = DataLoader(
        dataset,
        batch_sampler=chunks,  # type: ignore[arg-type]  # any iterable of lists serves
        num_workers=num_workers,
        collate_fn=list,
        prefetch_factor=4 if num_workers else None,
        generator=torch.Generator(),  # else it draws from the global one
    )
    return iter(loader)
