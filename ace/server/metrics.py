"""What Prometheus is told: requests by route and status, images by outcome, waiting and working times, the load."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from ace.server.engine import Engine, EngineRequest
    from ace.server.service import Accepted

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
_ROUTES = re.compile(r"/(v1/(images/(generations|edits)|models|sessions|requests)|health|ready|metrics|files)\b")


class Metrics:
    """The numbers of one server, in a registry of its own."""

    MIME = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("ace_requests", "HTTP requests", ["route", "status"], registry=self.registry)
        self._pictures = Counter("ace_pictures", "Images by outcome", ["outcome"], registry=self.registry)
        self._seconds = Histogram(
            "ace_request_seconds", "HTTP requests", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._waiting_s = Histogram(
            "ace_waiting_seconds", "Before the first step", buckets=_SECONDS, registry=self.registry
        )
        self._working_s = Histogram(
            "ace_working_seconds", "From the first step to the image", buckets=_SECONDS, registry=self.registry
        )
        for name, text, value in (
            ("ace_pictures_waiting", "Images in the queue", lambda: engine.num_waiting),
            ("ace_pictures_running", "Images being made", lambda: engine.num_running),
            ("ace_passes", "Steps of the engine so far", lambda: engine.num_steps),
            ("ace_picture_steps", "Denoising steps of images so far", lambda: engine.num_image_steps),
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
        """Count the images of a request when they end."""
        for request in accepted.requests:
            request.result.add_done_callback(lambda _, request=request: self._ended(request))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

    def _ended(self, request: EngineRequest) -> None:
        self._pictures.labels(request.status).inc()
        if request.started_at is not None:
            self._waiting_s.observe(request.started_at - request.asked_at)
            if request.ended_at is not None and request.status == "done":
                self._working_s.observe(request.ended_at - request.started_at)
