"""Who is next: a queue that is fair by work, not by requests.

The client that has been given the least work so far is next, a client that comes back from a pause gets no credit for
it (start-time fair queueing, Goyal et al. 1996), and within a client the oldest is first. The next one is never passed
over for a smaller one, so that large requests are not starved. Work is counted in operations (`Family.cost`).

Once they run, requests share the machine step by step (`StepShares`), so that a light one is not kept waiting by what
one step of a heavy one costs.

Not here: threads, the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

BURST = 4  # a step that costs at most so many times the lightest one is taken along with it
Item = TypeVar("Item")


@dataclass(frozen=True)
class Entry(Generic[Item]):
    """One item in the queue."""

    item: Item
    client: str
    work: int


class FairQueue(Generic[Item]):
    """Waiting items of several clients. Not thread-safe: the caller holds a lock."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Entry[Item]]] = {}
        self._given: dict[str, int] = {}  # work given to each client so far, never less than `_now` when it comes back
        self._now = 0

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._waiting.values())

    @property
    def work(self) -> int:
        """Operations of all that wait."""
        return sum(entry.work for entries in self._waiting.values() for entry in entries)

    def num_of(self, client: str) -> int:
        """How many items of a client wait."""
        return len(self._waiting.get(client, ()))

    def put(self, item: Item, client: str, work: int) -> None:
        """Add an item; `work` in operations."""
        if client not in self._waiting:
            self._waiting[client] = deque()
            self._given[client] = max(self._given.get(client, 0), self._now)
        self._waiting[client].append(Entry(item, client, work))

    def first(self) -> Entry[Item] | None:
        """The next entry."""
        if not self._waiting:
            return None
        return self._waiting[min(self._waiting, key=self._given.__getitem__)][0]

    def take(self) -> Item:
        """Take the next item out. Raises IndexError if none waits."""
        entry = self.first()
        if entry is None:
            raise IndexError("nothing waits")
        self._now = self._given[entry.client]
        self._given[entry.client] += entry.work
        self._remove(entry)
        self._given = {c: given for c, given in self._given.items() if c in self._waiting or given > self._now}
        return entry.item

    def remove(self, item: Item) -> bool:
        """Take an item out; False if it is not here."""
        for entries in self._waiting.values():
            for entry in entries:
                if entry.item is item:
                    self._remove(entry)
                    return True
        return False

    def _remove(self, entry: Entry[Item]) -> None:
        entries = self._waiting[entry.client]
        entries.remove(entry)
        if not entries:
            del self._waiting[entry.client]


class StepShares(Generic[Item]):
    """Which of the requests that run take the next step, together.

    The lightest and all whose step costs at most `BURST` times as much: always. Heavier ones share as much work again
    as `BURST` light steps between them: each saves its part up until it can pay for a step, and of those that can, one
    a time steps, the one that has waited longest. So a light request takes about `BURST` + 1 times as long as alone,
    however heavy its company is, and the heavy ones lose a fifth of the machine."""

    def __init__(self) -> None:
        self._saved: dict[Item, float] = {}

    def due(self, costs: Mapping[Item, int]) -> list[Item]:
        """Who steps now. costs: operations of one step of each that runs, oldest first."""
        most = BURST * min(costs.values(), default=0)
        heavy = [item for item, cost in costs.items() if cost > most]
        self._saved = {item: self._saved.get(item, 0.0) + most / len(heavy) for item in heavy}
        ready = [item for item in heavy if self._saved[item] >= costs[item]]
        chosen = max(ready, key=lambda item: self._saved[item] / costs[item], default=None)
        if chosen is not None:
            self._saved[chosen] = 0.0
        return [item for item, cost in costs.items() if cost <= most or item is chosen]
