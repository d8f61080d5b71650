"""What Prometheus is told: requests by route and status, pictures by outcome, waiting and working times, the load."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from ace.server.engine import Engine, Ticket
    from ace.server.service import Accepted

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
_ROUTES = re.compile(r"/(v1/(images/(generations|edits)|models|sessions|requests)|health|ready|metrics|files)\b")


class Metrics:
    """The numbers of one server, in a registry of its own."""

    MIME = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("ace_requests", "HTTP requests", ["route", "status"], registry=self.registry)
        self._pictures = Counter("ace_pictures", "Pictures by outcome", ["outcome"], registry=self.registry)
        self._seconds = Histogram(
            "ace_request_seconds", "HTTP requests", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._waiting_s = Histogram(
            "ace_waiting_seconds", "Before the first step", buckets=_SECONDS, registry=self.registry
        )
        self._working_s = Histogram(
            "ace_working_seconds", "From the first step to the picture", buckets=_SECONDS, registry=self.registry
        )
        for name, text, value in (
            ("ace_pictures_waiting", "Pictures in the line", lambda: engine.num_waiting),
            ("ace_pictures_running", "Pictures being made", lambda: engine.num_running),
            ("ace_passes", "Packed passes so far", lambda: engine.num_steps),
            ("ace_picture_steps", "Denoising steps of pictures so far", lambda: engine.num_picture_steps),
            ("ace_ready", "1 = requests are taken", lambda: float(engine.ready)),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)
        self._started = time.time()

    def request_ended(self, path: str, status: int, seconds: float) -> None:
        """Count an HTTP request; unknown paths count as one, so that nobody can fill the memory with them."""
        found = _ROUTES.match(path)
        route = found[0] if found else "other"
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def watch(self, accepted: Accepted) -> None:
        """Count the pictures of a request when they end."""
        for ticket in accepted.tickets:
            ticket.result.add_done_callback(lambda _, ticket=ticket: self._ended(ticket))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

    def _ended(self, ticket: Ticket) -> None:
        self._pictures.labels(ticket.status).inc()
        if ticket.started_at is not None:
            self._waiting_s.observe(ticket.started_at - ticket.asked_at)
            if ticket.ended_at is not None and ticket.status == "done":
                self._working_s.observe(ticket.ended_at - ticket.started_at)
