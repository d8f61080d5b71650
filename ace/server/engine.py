"""The engine: one thread that owns the model and steps whatever mixture of requests is on its way.

Between two denoising steps requests leave (finished, cancelled) and others join, so a short one never waits for a long
one to end. All that run are stepped together by the model's `Family`, each at its own timestep. What a request gives
does not depend on its neighbours: that is the family's promise, and a request that fails is taken out and fails alone.
An image is finished here; pasting back, measuring and describing it is done by other threads.

Not here: HTTP, images as bytes, who may ask for how much.
"""

from __future__ import annotations

import logging
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from ace.conditions.images import normalise_image
from ace.conversation.family import Answer, Cost, Family, State
from ace.conversation.job import Job, Made, Settings
from ace.conversation.message import Message, Picture, open_message
from ace.conversation.run import conclude
from ace.errors import AceError, BusyError, ConfigError, StoppedError
from ace.model.sizes import free_memory
from ace.server.queue import BURST, FairQueue, StepShares
from ace.server.settings import Limits

log = logging.getLogger(__name__)

# What a request may do wrong inside the model; anything else is a fault of ours, and ends the engine loudly.
FAILURES = (AceError, ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)

Status = Literal["waiting", "running", "finishing", "done", "failed", "cancelled"]
# (number of the image in its request, number of the preview, preview), called by the engine's thread
OnPreview = Callable[[int, int, Image.Image], None]


def room_for_requests() -> int:
    """Bytes that running requests may need together: 60 % of what is free, on a GPU that holds weights or of this
    process."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.memory_allocated():
        return int(free_memory() * 0.6)
    free, _ = torch.cuda.mem_get_info()
    return free * 6 // 10


@dataclass(eq=False)
class EngineRequest:
    """One image on its way. number: of the image among those asked for together, from 0. result: `Made`, or the error
    it failed with; preview_steps: after how many steps each. most_together: how many shared a step with it at most."""

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
    state: State | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.result.set_running_or_notify_cancel()  # `Engine.cancel` alone cancels it

    @property
    def operations_left(self) -> int:
        """What is still to be computed."""
        started = 0 if self.state is None else self.cost.start_operations
        return self.cost.operations - started - self.steps_done * self.cost.step_operations


def first_job(family: Family) -> Job:
    """A small request that a model of any kind can do: the engine's first, which measures the machine."""
    settings = Settings(seed=0, num_inference_steps=2)
    if family.traits.text_to_image:
        return open_message(family, Message("a picture", settings))
    grey = Picture.of_image(normalise_image(Image.new("RGB", (64, 64), "grey")), "grey")
    return open_message(family, Message("a picture", settings, photo=grey))


class Engine:
    """Runs a loaded model for many clients. `start` it, `submit` jobs, wait for each request's `result`, `stop` it."""

    def __init__(self, family: Family, limits: Limits | None = None) -> None:
        self.family, self.limits = family, limits or Limits()
        self.max_running_bytes = self.limits.max_running_bytes or room_for_requests()
        self._changed = threading.Condition()
        self._queue: FairQueue[EngineRequest] = FairQueue()
        self._running: list[EngineRequest] = []
        self._finishing: set[EngineRequest] = set()
        self._draining = self._stopping = False
        self._shares: StepShares[EngineRequest] = StepShares()
        self._rate: float | None = None  # operations a second, while busy
        self._best_rate = 0.0
        self.num_steps = self.num_image_steps = 0
        self._thread = threading.Thread(target=self._run, name="ace-engine", daemon=True)
        self._finishers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="ace-finish")

    # From other threads

    def start(self) -> None:
        """Start the thread and make one small image, after which `ready` holds and times can be told."""
        self._thread.start()
        (request,) = self.submit([first_job(self.family)], "warm-up")
        request.result.result()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.alive and self._rate is not None and not self._draining

    @property
    def stopping(self) -> bool:
        """Whether it takes nothing new, because it is to end or has broken."""
        return self._draining

    @property
    def num_waiting(self) -> int:
        """Images in the queue."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """Images being stepped, or being finished after that."""
        return len(self._running) + len(self._finishing)

    def submit(
        self, jobs: Sequence[Job], client: str, *, num_previews: int = 0, on_preview: OnPreview | None = None
    ) -> list[EngineRequest]:
        """Take on all of these jobs, or none.

        client: whose share of the work it is. num_previews: images on the way, of each job. Raises ConfigError for a
        job that costs too much, BusyError if there is no room, StoppedError after `drain`."""
        requests = []
        for number, job in enumerate(jobs):
            cost = self.family.cost(job.worked)
            self._check_affordable(cost)
            every = [round(cost.num_steps * (n + 1) / (num_previews + 1)) for n in range(num_previews)]
            steps = tuple(sorted({step for step in every if 0 < step < cost.num_steps}))
            requests.append(EngineRequest(job, number, client, cost, steps, on_preview))
        self._check_time(sum(request.cost.operations for request in requests))
        with self._changed:
            if self._draining or not self._thread.is_alive():
                raise StoppedError("the server is shutting down: ask again when it is back")
            self._check_room(len(jobs), client)
            for request in requests:
                self._queue.put(request, client, request.cost.operations)
            self._changed.notify_all()
        return requests

    def cancel(self, requests: Sequence[EngineRequest]) -> None:
        """Stop working on these; a running one leaves before the next step. Finished ones stay finished."""
        with self._changed:
            for request in requests:
                request.cancelled = True
                if self._queue.remove(request):
                    self._end(request, "cancelled", StoppedError("cancelled before it began", cancelled=True))
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

    def eta_s(self, request: EngineRequest) -> float | None:
        """Seconds until this image is done, as things stand; None while nothing is known.

        Those that run share the machine step by step, so that one with few steps left is done before the long ones."""
        with self._changed:
            if self._rate is None or request.status in ("done", "failed", "cancelled"):
                return 0.0 if self._rate is not None else None
            mine = request.cost.num_steps - request.steps_done
            work = request.operations_left
            heavy, own = 0, request.cost.step_operations
            for other in self._running:
                if other is request:
                    continue
                left, each = other.cost.num_steps - other.steps_done, other.cost.step_operations
                if request.status != "running":
                    work += other.operations_left
                elif each > BURST * own:
                    heavy += min(mine, left) * each
                else:
                    work += (left if own > BURST * each else min(mine, left)) * each
            work += min(heavy, mine * BURST * own)
            if request.status == "waiting":
                work += max(self._queue.work - request.cost.operations, 0)
            return work / self._rate

    def _check_affordable(self, cost: Cost) -> None:
        if cost.operations > self.limits.max_operations:
            raise ConfigError(
                f"this request would take {cost.operations:.1e} operations, at most {self.limits.max_operations:.1e} "
                "are allowed: use fewer steps, fewer or smaller images"
            )
        if cost.num_bytes > self.max_running_bytes:
            raise ConfigError("this request would need more memory than there is: use fewer or smaller images")

    def _check_time(self, operations: int) -> None:
        """By the fastest that this machine has been seen to be, so that nothing is refused that would fit."""
        most = self.limits.max_seconds
        if most is not None and self._best_rate and operations / self._best_rate > most:
            raise ConfigError(
                f"this request would take about {operations / self._best_rate:.0f} s, at most {most:g} s are allowed: "
                "use fewer steps, fewer or smaller images"
            )

    def _check_room(self, count: int, client: str) -> None:
        if count > min(self.limits.max_waiting, self.limits.max_waiting_per_client):
            raise ConfigError(f"{count} images at once: fewer fit in the queue, ask for them in several requests")
        waiting = self._queue.num_of(client)
        if waiting + count > self.limits.max_waiting_per_client:
            raise BusyError(f"{waiting} of your images are waiting already: try again later", self._relief_s())
        if len(self._queue) + count > self.limits.max_waiting:
            raise BusyError("the server is busy: try again later", self._relief_s())

    def _relief_s(self) -> float:
        """When about half of the queue will be gone."""
        ahead = self._queue.work / 2 + sum(request.operations_left for request in self._running)
        return max(1.0, ahead / self._rate) if self._rate else 1.0

    # In the engine's thread

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                began = time.monotonic()
                before = sum(request.operations_left for request in self._running)
                self._join()
                before += sum(r.cost.operations for r in self._running if r.started_at and r.started_at >= began)
                self._step()
                self._leave()
                self._measure(before - sum(r.operations_left for r in self._running), time.monotonic() - began)
        finally:  # stopped, or broken: nobody may be left waiting
            with self._changed:
                self._draining = True
                rest = list(self._running)
                while len(self._queue):
                    rest.append(self._queue.take())
                self._running = []
                for request in rest:
                    self._end(request, "failed", StoppedError("the server was stopped before this was finished"))

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False when the engine is to end. Cancelled ones leave here."""
        with self._changed:
            while not self._stopping and not self._running and not len(self._queue):
                self._changed.wait()
            for request in [request for request in self._running if request.cancelled]:
                self._running.remove(request)
                self._end(
                    request, "cancelled", StoppedError(f"cancelled after {request.steps_done} steps", cancelled=True)
                )
            return not self._stopping

    def _join(self) -> None:
        """Take from the queue what fits beside those that run, and prepare it."""
        joining: list[EngineRequest] = []
        with self._changed:
            memory = sum(request.cost.num_bytes for request in self._running)
            while (place := self._queue.first()) is not None:
                memory += place.item.cost.num_bytes
                together = [*self._running, *joining]
                if together and (
                    len(together) >= self.limits.max_running
                    or memory > self.max_running_bytes
                    or place.item.job.settings.adapters != together[0].job.settings.adapters  # its turn comes
                ):
                    break
                joining.append(self._queue.take())
            for request in joining:
                request.status, request.started_at = "running", time.monotonic()
        if not joining:
            return
        states = self._alone_if_failing(joining, lambda some: self.family.prepare([one.job.worked for one in some]))
        with self._changed:
            for request, state in states:
                request.state = state
                self._running.append(request)

    def _step(self) -> None:
        """One denoising step of those whose turn it is; previews of those that are due."""
        due = self._shares.due({request: request.cost.step_operations for request in self._running})
        stepped = self._alone_if_failing(due, self._step_together)
        with self._changed:
            left = {id(request) for request in due} - {id(request) for request, _ in stepped}
            self._running = [request for request in self._running if id(request) not in left]
        for request, state in stepped:
            if request.steps_done in request.preview_steps and request.on_preview is not None and not request.cancelled:
                try:
                    image = self.family.preview(state)
                except FAILURES:
                    log.warning("no preview of %s", request.id, exc_info=True)
                    continue
                request.on_preview(request.number, request.preview_steps.index(request.steps_done), image)

    def _step_together(self, requests: Sequence[EngineRequest]) -> list[State]:
        states = [request.state for request in requests if request.state is not None]
        if behind := [s for r, s in zip(requests, states, strict=True) if s.step_index == r.steps_done]:
            self.family.step(behind)  # all of them, unless a step together failed half way
        self.num_steps += 1
        self.num_image_steps += len(requests)
        for request, state in zip(requests, states, strict=True):
            request.steps_done = state.step_index
            request.most_together = max(request.most_together, len(requests))
        return states

    def _leave(self) -> None:
        """Finish those that are done and hand them to the finishing threads."""
        done = [r for r in self._running if r.state is not None and r.state.done and not r.cancelled]
        if not done:
            return
        finished = self._alone_if_failing(done, self._answers)
        with self._changed:
            self._running = [request for request in self._running if request not in done]
            for request, _ in finished:
                request.status = "finishing"
                self._finishing.add(request)
        for request, answer in finished:
            self._finishers.submit(self._conclude, request, answer)

    def _answers(self, requests: Sequence[EngineRequest]) -> list[Answer]:
        return self.family.finish([request.state for request in requests if request.state is not None])

    def _measure(self, operations: int, seconds: float) -> None:
        if seconds > 0 and operations > 0:
            rate = operations / seconds
            self._best_rate = max(self._best_rate, rate)
            self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate

    def _alone_if_failing(self, requests, function):
        """[(request, result)] of a function over several requests; if it fails, run it on each by itself and drop those
        that fail."""
        if not requests:
            return []
        try:
            return list(zip(requests, function(requests), strict=True))
        except FAILURES as error:
            if len(requests) > 1:
                return [pair for request in list(requests) for pair in self._alone_if_failing([request], function)]
            with self._changed:
                if requests[0] in self._running:
                    self._running.remove(requests[0])
                self._end(requests[0], "failed", error)
            return []

    # In the finishing threads

    def _conclude(self, request: EngineRequest, answer: Answer) -> None:
        made: Made | None = None
        failure: Exception = StoppedError("the server could not finish this image")
        try:
            made = conclude(self.family, request.job, answer)
        except FAILURES as error:
            failure = error
        finally:
            with self._changed:
                self._finishing.discard(request)
                self._settle(request, "failed" if made is None else "done")
            _deliver(request, made or failure)

    def _end(self, request: EngineRequest, status: Status, error: Exception) -> None:
        """Mark it as ended without a result. Called with the lock held, so the caller notifies those who wait."""
        self._settle(request, status)
        self._finishers.submit(_deliver, request, error)

    def _settle(self, request: EngineRequest, status: Status) -> None:
        request.status, request.ended_at = status, time.monotonic()
        request.state = None
        self._changed.notify_all()


def _deliver(request: EngineRequest, outcome: Made | Exception) -> None:
    if isinstance(outcome, Made):
        request.result.set_result(outcome)
        return
    if not isinstance(outcome, AceError):
        log.error("image %s failed", request.id, exc_info=outcome)
    request.result.set_exception(outcome)
