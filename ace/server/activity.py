"""What is being made in each session, for everybody who looks at it: progress, previews, and how it ended.

A page that is reloaded, or a second one, finds the requests of its session here. Those that ended stay for a while, so
that nobody misses an end.
"""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from ace.conversation.replay import Replay

if TYPE_CHECKING:
    from ace.server.service import Accepted

PREVIEW_PX = 320
_KEPT_ENDED = 16  # requests of a session
_KEPT_SESSIONS = 1000

ENDED = ("done", "failed", "cancelled")
Kind = Literal["turn", "again", "replay"]


@dataclass(frozen=True)
class Preview:
    """How an image is going to look."""

    image: Image.Image

    @cached_property
    def address(self) -> str:
        """A small WebP, as a data: address."""
        return f"data:image/webp;base64,{base64.b64encode(thumbnail(self.image, PREVIEW_PX)).decode()}"


@dataclass(eq=False)
class Active:
    """A request of a session. prompt: what was asked; parent: the node that it follows; nodes: its answers; replay:
    what a replay found; message: why it failed."""

    id: str
    kind: Kind
    prompt: str
    parent: str | None
    accepted: Accepted | None = None
    status: str = "waiting"
    message: str | None = None
    previews: dict[int, Preview] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    replay: Replay | None = None


class Activity:
    """The requests of one session. Any thread may change it. num_moves: how often its head was moved."""

    def __init__(self) -> None:
        self.num_moves = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Active] = OrderedDict()
        self._listeners: set[Callable[[], None]] = set()

    @property
    def idle(self) -> bool:
        """Whether nothing runs and no client listens."""
        with self._lock:
            return not self._listeners and not self._running()

    def entries(self) -> list[Active]:
        """All of them, oldest first."""
        with self._lock:
            return list(self._entries.values())

    def add(self, entry: Active) -> None:
        """A request was accepted."""
        with self._lock:
            self._entries[entry.id] = entry
            ended = [one for one in self._entries.values() if one.status in ENDED]
            for one in ended[: max(0, len(ended) - _KEPT_ENDED)]:
                del self._entries[one.id]
        self.changed()

    def withdraw(self, entry: Active) -> None:
        """It was not accepted after all."""
        with self._lock:
            self._entries.pop(entry.id, None)
        self.changed()

    def preview(self, entry: Active, number: int, image: Image.Image) -> None:
        """Show how image `number` of a request is going to look."""
        entry.previews[number] = Preview(image)
        self.changed()

    def moved(self) -> None:
        """Note that the session's head has moved."""
        self.num_moves += 1
        self.changed()

    def changed(self) -> None:
        """Notify all listeners."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    @contextmanager
    def listen(self, listener: Callable[[], None]) -> Iterator[None]:
        """Within, call a function after every change, from any thread."""
        with self._lock:
            self._listeners.add(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.discard(listener)


class Activities:
    """The activity of every session that is looked at or worked in, by its folder."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: OrderedDict[Path, Activity] = OrderedDict()

    def of(self, folder: Path) -> Activity:
        """A session's."""
        with self._lock:
            activity = self._of.setdefault(folder, Activity())
            self._of.move_to_end(folder)
            for old in list(self._of)[: max(0, len(self._of) - _KEPT_SESSIONS)]:
                if self._of[old].idle:
                    del self._of[old]
            return activity


def thumbnail(image: Image.Image, side_px: int) -> bytes:
    """A small WebP of an image."""
    small = image.convert("RGBA" if image.mode == "RGBA" else "RGB")
    small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=85, method=2)
    return stream.getvalue()
