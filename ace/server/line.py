"""Who goes next: what a request will cost, and a fair line of those that wait.

Costs are counted before anything runs (`ace/model/cost.py`), so that a request that is far too dear is refused at the
door and a step is never given more than fits. The line is fair by work, not by requests: the client that has been given
the least so far is next, a client that comes back from a pause gets no credit for it (start-time fair queueing, Goyal
et al. 1996), and within a client the oldest is first. The next one is never passed over for a smaller one, so that
large requests are not starved.

Not here: threads, the model.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ace.conditions.images import fit_size
from ace.model.cost import step_cost, text_cost

if TYPE_CHECKING:
    from ace.conversation.edit import Job
    from ace.inference.pipeline import ACEPipeline

_WORKING_WIDTHS = (
    16  # arrays of the model's width that one token needs during a block, with what its MLP and q, k, v hold
)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Cost:
    """What one picture costs.

    image_tokens, text_tokens: of one guidance branch; num_branches: 2 with guidance; step_operations: of one denoising
    step of all branches; num_bytes: of memory while it runs; num_target_tokens: the picture's own."""

    image_tokens: int
    text_tokens: int
    num_target_tokens: int
    num_branches: int
    num_steps: int
    step_operations: int
    text_operations: int
    num_bytes: int

    @property
    def operations(self) -> int:
        """All of them, from the texts to the last step (the autoencoder and the text encoder not counted)."""
        return self.text_operations + self.num_steps * self.step_operations


def estimate(job: Job, pipeline: ACEPipeline) -> Cost:
    """The cost of a job, from the sizes of its pictures; texts count as long as they could be at most.

    Raises ImageError for a picture that no model takes."""
    geometry, sizes, frames = pipeline.geometry, pipeline.transformer.sizes, job.unit.frames()
    source, budget, cell = job.unit.source_index, geometry.budget, geometry.cell_px
    side = int(budget**0.5)
    edited = frames[source].image.size if source is not None else (side, side)
    enlarge = geometry.enlarge or source is None
    target = job.settings.size or fit_size(*edited, budget, cell, enlarge=enlarge)
    shown = [
        target if number == source else fit_size(*frame.image.size, budget, cell, enlarge=geometry.enlarge)
        for number, frame in enumerate(frames)
    ]
    tokens = [(width // cell) * (height // cell) for width, height in (target, *shown)]
    most = pipeline.config.max_text_tokens
    texts = [min(most, len(text.encode()) + 2) for text in (job.unit.instruction, *(f.instruction for f in frames))]
    scale = job.settings.guidance_scale
    branches = 2 if (pipeline.config.guidance_scale if scale is None else scale) > 1 else 1
    steps = job.settings.num_inference_steps or pipeline.config.num_inference_steps
    bytes_per_number = pipeline.transformer.dtype.itemsize
    numbers = sizes.hidden_size * (_WORKING_WIDTHS * sum(tokens) + 2 * sizes.depth * sum(texts))
    return Cost(
        image_tokens=sum(tokens[1:]),
        text_tokens=sum(texts),
        num_target_tokens=tokens[0],
        num_branches=branches,
        num_steps=steps,
        step_operations=branches * step_cost(sizes, tokens, texts).total,
        text_operations=branches * text_cost(sizes, texts),
        num_bytes=branches * numbers * bytes_per_number,
    )


@dataclass(frozen=True)
class Place(Generic[Item]):
    """One place in the line."""

    item: Item
    client: str
    work: int


class FairLine(Generic[Item]):
    """Waiting items of several clients. Not locked: whoever uses it from several threads holds a lock."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Place[Item]]] = {}
        self._given: dict[str, int] = {}  # work given to each client so far, never less than `_now` when it comes back
        self._now = 0

    def __len__(self) -> int:
        return sum(len(places) for places in self._waiting.values())

    @property
    def work(self) -> int:
        """Operations of all that wait."""
        return sum(place.work for places in self._waiting.values() for place in places)

    def num_of(self, client: str) -> int:
        """How many items of a client wait."""
        return len(self._waiting.get(client, ()))

    def put(self, item: Item, client: str, work: int) -> None:
        """Join the line; `work` in operations."""
        if client not in self._waiting:
            self._waiting[client] = deque()
            self._given[client] = max(self._given.get(client, 0), self._now)
        self._waiting[client].append(Place(item, client, work))

    def first(self) -> Place[Item] | None:
        """Who is next."""
        if not self._waiting:
            return None
        return self._waiting[min(self._waiting, key=self._given.__getitem__)][0]

    def take(self) -> Item:
        """Take the next one out. Raises IndexError if nobody waits."""
        place = self.first()
        if place is None:
            raise IndexError("nobody waits")
        self._now = self._given[place.client]
        self._given[place.client] += place.work
        self._remove(place)
        self._given = {c: given for c, given in self._given.items() if c in self._waiting or given > self._now}
        return place.item

    def leave(self, item: Item) -> bool:
        """Take one out that no longer wants to wait; False if it is not here."""
        for places in self._waiting.values():
            for place in places:
                if place.item is item:
                    self._remove(place)
                    return True
        return False

    def _remove(self, place: Place[Item]) -> None:
        places = self._waiting[place.client]
        places.remove(place)
        if not places:
            del self._waiting[place.client]
