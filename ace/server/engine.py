"""The engine: one thread that owns the model and steps whatever mixture of requests is on its way.

Between two denoising steps requests leave (finished, cancelled) and others join, so a short one never waits for a long
one to end. All that run are stepped in one packed pass, each at its own timestep. What a request gives does not depend
on its neighbours: that is the pipeline's promise (`ace/inference/pipeline.py`), and a request that fails is taken out
and fails alone. A picture is decoded here, pasted back, measured and described by other threads.

Not here: HTTP, pictures as bytes, who may ask for how much.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.conversation.edit import Job, Made, Settings, decode_jobs, finish_job, prepare_jobs
from ace.errors import AceError, BusyError, ConfigError, StoppedError
from ace.server.line import Cost, FairLine, estimate
from ace.server.settings import Limits

if TYPE_CHECKING:
    from PIL import Image

    from ace.inference.pipeline import ACEPipeline, RequestState
    from ace.weights.sources import ModelFiles

log = logging.getLogger(__name__)

# What a request may do wrong inside the model; anything else is a fault of ours, and ends the engine loudly.
FAILURES = (AceError, ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)

Status = Literal["waiting", "running", "finishing", "done", "failed", "cancelled"]
# (number of the picture in its request, number of the preview, preview), called by the engine's thread
OnPreview = Callable[[int, int, "Image.Image"], None]


def room_for(pipeline: ACEPipeline) -> int:
    """Bytes that running requests may need together: 60 % of what is free on a GPU, else 2 GiB."""
    if pipeline.device.type != "cuda":
        return 2 * 2**30
    import torch

    free, _ = torch.cuda.mem_get_info(pipeline.device)
    return free * 6 // 10


@dataclass(eq=False)
class Ticket:
    """One picture on its way. number: of the picture in its request, from 0. result: `Made`, or the error it failed
    with; preview_steps: after how many steps each. most_together: how many shared a pass with it at most."""

    job: Job
    number: int
    client: str
    cost: Cost
    preview_steps: tuple[int, ...] = ()
    on_preview: OnPreview | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    result: Future[Made] = field(default_factory=Future)
    status: Status = "waiting"
    steps_done: int = 0
    most_together: int = 1
    asked_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    ended_at: float | None = None
    cancelled: bool = False
    state: RequestState | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.result.set_running_or_notify_cancel()  # `Engine.cancel` alone cancels it

    @property
    def operations_left(self) -> int:
        """What is still to be computed."""
        started = 0 if self.state is None else self.cost.text_operations
        return self.cost.operations - started - self.steps_done * self.cost.step_operations


class Engine:
    """Runs a pipeline for many clients. `start` it, `submit` jobs, wait for each ticket's `result`, `stop` it."""

    def __init__(self, pipeline: ACEPipeline, model: ModelFiles, limits: Limits | None = None) -> None:
        self.pipeline, self.model, self.limits = pipeline, model, limits or Limits()
        self.max_running_bytes = self.limits.max_running_bytes or room_for(pipeline)
        self._changed = threading.Condition()
        self._line: FairLine[Ticket] = FairLine()
        self._running: list[Ticket] = []
        self._finishing: set[Ticket] = set()
        self._draining = self._stopping = False
        self._rate: float | None = None  # operations a second, while busy
        self.num_steps = self.num_picture_steps = 0
        self._thread = threading.Thread(target=self._run, name="ace-engine", daemon=True)
        self._finishers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="ace-finish")

    # From other threads

    def start(self) -> None:
        """Start the thread and make one small picture, after which `ready` holds and times can be told."""
        self._thread.start()
        unit = LongContextConditionUnit(ConditionUnit("a picture"))
        (ticket,) = self.submit([Job(unit, Settings(seed=0, num_inference_steps=2))], "warm-up")
        ticket.result.result()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.alive and self._rate is not None and not self._draining

    @property
    def num_waiting(self) -> int:
        """Pictures in the line."""
        return len(self._line)

    @property
    def num_running(self) -> int:
        """Pictures being stepped, or being finished after that."""
        return len(self._running) + len(self._finishing)

    def submit(
        self, jobs: Sequence[Job], client: str, *, num_previews: int = 0, on_preview: OnPreview | None = None
    ) -> list[Ticket]:
        """Take on all of these jobs, or none.

        client: whose share of the work it is. num_previews: pictures on the way, of each job. Raises ConfigError for a
        job that is too dear or that the model cannot do, BusyError if there is no room, StoppedError after `drain`."""
        tickets = []
        for number, job in enumerate(jobs):
            cost = estimate(job, self.pipeline)
            self._check_affordable(cost)
            every = [round(cost.num_steps * (n + 1) / (num_previews + 1)) for n in range(num_previews)]
            steps = tuple(sorted({step for step in every if 0 < step < cost.num_steps}))
            tickets.append(Ticket(job, number, client, cost, steps, on_preview))
        with self._changed:
            if self._draining or not self._thread.is_alive():
                raise StoppedError("the server is shutting down: ask again when it is back")
            self._check_room(len(jobs), client)
            for ticket in tickets:
                self._line.put(ticket, client, ticket.cost.operations)
            self._changed.notify_all()
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Stop working on these; a running one leaves before the next step. Finished ones stay finished."""
        with self._changed:
            for ticket in tickets:
                ticket.cancelled = True
                if self._line.leave(ticket):
                    self._end(ticket, "cancelled", StoppedError("cancelled before it began", cancelled=True))
            self._changed.notify_all()

    def drain(self) -> None:
        """Take nothing new; what was accepted goes on."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def stop(self, timeout_s: float = 0.0) -> None:
        """Drain, wait at most `timeout_s` for accepted work, fail the rest explicitly, end the thread."""
        self.drain()
        until = time.monotonic() + timeout_s
        with self._changed:
            while (self.num_waiting or self.num_running) and self.alive and time.monotonic() < until:
                self._changed.wait(until - time.monotonic())
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._finishers.shutdown(wait=True)

    def eta_s(self, ticket: Ticket) -> float | None:
        """Seconds until this picture is done, as things stand; None while nothing is known.

        Those that run share the machine step by step, so that one with few steps left is done before the long ones."""
        with self._changed:
            if self._rate is None or ticket.status in ("done", "failed", "cancelled"):
                return 0.0 if self._rate is not None else None
            mine = ticket.cost.num_steps - ticket.steps_done
            work = ticket.operations_left
            for other in self._running:
                if other is not ticket:
                    steps = min(mine, other.cost.num_steps - other.steps_done)
                    work += steps * other.cost.step_operations if ticket.status == "running" else other.operations_left
            if ticket.status == "waiting":
                work += max(self._line.work - ticket.cost.operations, 0)
            return work / self._rate

    def _check_affordable(self, cost: Cost) -> None:
        if cost.operations > self.limits.max_operations:
            raise ConfigError(
                f"this request would take {cost.operations:.1e} operations, at most {self.limits.max_operations:.1e} "
                "are allowed: use fewer steps, fewer or smaller pictures"
            )
        if cost.num_bytes > self.max_running_bytes:
            raise ConfigError("this request would need more memory than there is: use fewer or smaller pictures")

    def _check_room(self, count: int, client: str) -> None:
        if count > min(self.limits.max_waiting, self.limits.max_waiting_per_client):
            raise ConfigError(f"{count} pictures at once: fewer fit in the line, ask for them in several requests")
        waiting = self._line.num_of(client)
        if waiting + count > self.limits.max_waiting_per_client:
            raise BusyError(f"{waiting} of your pictures are waiting already: try again later", self._relief_s())
        if len(self._line) + count > self.limits.max_waiting:
            raise BusyError("the server is busy: try again later", self._relief_s())

    def _relief_s(self) -> float:
        """When about half of the line will be gone."""
        ahead = self._line.work / 2 + sum(ticket.operations_left for ticket in self._running)
        return max(1.0, ahead / self._rate) if self._rate else 1.0

    # In the engine's thread

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                began = time.monotonic()
                before = sum(ticket.operations_left for ticket in self._running)
                self._join()
                before += sum(t.cost.operations for t in self._running if t.started_at and t.started_at >= began)
                self._step()
                self._leave()
                self._measure(before - sum(t.operations_left for t in self._running), time.monotonic() - began)
        finally:  # stopped, or broken: nobody may be left waiting
            with self._changed:
                self._draining = True
                rest = list(self._running)
                while len(self._line):
                    rest.append(self._line.take())
                self._running = []
                for ticket in rest:
                    self._end(ticket, "failed", StoppedError("the server was stopped before this was finished"))

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False when the engine is to end. Cancelled ones leave here."""
        with self._changed:
            while not self._stopping and not self._running and not len(self._line):
                self._changed.wait()
            for ticket in [ticket for ticket in self._running if ticket.cancelled]:
                self._running.remove(ticket)
                self._end(
                    ticket, "cancelled", StoppedError(f"cancelled after {ticket.steps_done} steps", cancelled=True)
                )
            return not self._stopping

    def _join(self) -> None:
        """Take from the line what fits beside those that run, and prepare it."""
        joining: list[Ticket] = []
        with self._changed:
            memory = sum(ticket.cost.num_bytes for ticket in self._running)
            while (place := self._line.first()) is not None:
                memory += place.item.cost.num_bytes
                together = len(self._running) + len(joining)
                if together and (together >= self.limits.max_running or memory > self.max_running_bytes):
                    break
                joining.append(self._line.take())
            for ticket in joining:
                ticket.status, ticket.started_at = "running", time.monotonic()
        if not joining:
            return
        states = self._alone_if_failing(joining, lambda some: prepare_jobs(self.pipeline, [t.job for t in some]))
        with self._changed:
            for ticket, state in states:
                ticket.state = state
                self._running.append(ticket)

    def _step(self) -> None:
        """One denoising step of all that run; previews of those that are due."""
        stepped = self._alone_if_failing(self._running, self._step_together)
        with self._changed:
            self._running = [ticket for ticket, _ in stepped]
        for ticket, state in stepped:
            if ticket.steps_done in ticket.preview_steps and ticket.on_preview is not None and not ticket.cancelled:
                try:
                    picture = self.pipeline.preview(state, exact=True)
                except FAILURES:
                    log.warning("no preview of %s", ticket.id, exc_info=True)
                    continue
                ticket.on_preview(ticket.number, ticket.preview_steps.index(ticket.steps_done), picture)

    def _step_together(self, tickets: Sequence[Ticket]) -> list[RequestState]:
        states = [ticket.state for ticket in tickets if ticket.state is not None]
        if behind := [s for t, s in zip(tickets, states, strict=True) if s.step_index == t.steps_done]:
            self.pipeline.step(behind)  # all of them, unless a step together failed half way
        self.num_steps += 1
        self.num_picture_steps += len(tickets)
        for ticket, state in zip(tickets, states, strict=True):
            ticket.steps_done = state.step_index
            ticket.most_together = max(ticket.most_together, len(tickets))
        return states

    def _leave(self) -> None:
        """Decode those that are done and hand them to the finishing threads."""
        done = [t for t in self._running if t.state is not None and t.state.done and not t.cancelled]
        if not done:
            return
        decoded = self._alone_if_failing(done, self._decode)
        with self._changed:
            self._running = [ticket for ticket in self._running if ticket not in done]
            for ticket, _ in decoded:
                ticket.status = "finishing"
                self._finishing.add(ticket)
        for ticket, picture in decoded:
            self._finishers.submit(self._finish, ticket, picture)

    def _decode(self, tickets: Sequence[Ticket]) -> list[Image.Image]:
        states = [ticket.state for ticket in tickets if ticket.state is not None]
        return decode_jobs(self.pipeline, [ticket.job for ticket in tickets], states)

    def _measure(self, operations: int, seconds: float) -> None:
        if seconds > 0 and operations > 0:
            rate = operations / seconds
            self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate

    def _alone_if_failing(self, tickets, function):
        """[(ticket, result)] of a function over several tickets; if it fails, of each by itself, and who fails alone
        is out."""
        if not tickets:
            return []
        try:
            return list(zip(tickets, function(tickets), strict=True))
        except FAILURES as error:
            if len(tickets) > 1:
                return [pair for ticket in list(tickets) for pair in self._alone_if_failing([ticket], function)]
            with self._changed:
                if tickets[0] in self._running:
                    self._running.remove(tickets[0])
                self._end(tickets[0], "failed", error)
            return []

    # In the finishing threads

    def _finish(self, ticket: Ticket, picture: Image.Image) -> None:
        made: Made | None = None
        failure: Exception = StoppedError("the server could not finish this picture")
        try:
            assert ticket.state is not None
            made = finish_job(self.pipeline, self.model, ticket.job, ticket.state, picture, ticket.most_together)
        except FAILURES as error:
            failure = error
        finally:
            with self._changed:
                self._finishing.discard(ticket)
                self._settle(ticket, "failed" if made is None else "done")
            _deliver(ticket, made or failure)

    def _end(self, ticket: Ticket, status: Status, error: Exception) -> None:
        """Say that it ended without a result; called with the lock held, so others tell whoever waits for it."""
        self._settle(ticket, status)
        self._finishers.submit(_deliver, ticket, error)

    def _settle(self, ticket: Ticket, status: Status) -> None:
        ticket.status, ticket.ended_at = status, time.monotonic()
        ticket.state = None
        self._changed.notify_all()


def _deliver(ticket: Ticket, outcome: Made | Exception) -> None:
    if isinstance(outcome, Made):
        ticket.result.set_result(outcome)
        return
    if not isinstance(outcome, AceError):
        log.error("picture %s failed", ticket.id, exc_info=outcome)
    ticket.result.set_exception(outcome)
