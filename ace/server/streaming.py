"""Server-sent events: previews and results of one request as OpenAI's image streams have them, and how a session
stands."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from fastapi.responses import StreamingResponse
from PIL import Image

from ace.conversation.recipe import encode
from ace.errors import AceError
from ace.server.front import Front
from ace.server.refusals import error_of
from ace.server.replies import session_event
from ace.server.service import Accepted, Opened

_TICK_S = 0.15  # between two looks at the steps of what runs
_QUIET_S = 15.0  # after which a connection without events gets a comment, so that both sides know that it lives

Preview = tuple[int, int, Image.Image]  # number of the image, number of its preview, the preview


@dataclass(frozen=True)
class PreviewQueue:
    """Previews on their way from the engine's thread to a stream."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    queue: asyncio.Queue[Preview | None] = field(default_factory=asyncio.Queue)

    def put(self, number: int, preview: int, image: Image.Image) -> None:
        """Send one, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self.loop.call_soon_threadsafe(self.queue.put_nowait, (number, preview, image))


@dataclass(frozen=True)
class EventWriter:
    """Writes the events of one request. kind: what their names begin with."""

    kind: str
    output_format: str = "png"
    quality: str = "auto"

    def event(self, name: str, index: int, image: bytes, size: str, **more: object) -> str:
        """One event with an image."""
        content = {
            "type": f"{self.kind}.{name}",
            "b64_json": base64.b64encode(image).decode(),
            "created_at": int(time.time()),
            "background": "opaque",
            "output_format": self.output_format,
            "quality": self.quality,
            "size": size,
            "image_index": index,
            **more,
        }
        return f"event: {content['type']}\ndata: {json.dumps(content)}\n\n"


def stream_request(
    front: Front,
    accepted: Accepted,
    previews: PreviewQueue,
    writer: EventWriter,
    completed: Callable[[list], AsyncIterator[str]],
) -> StreamingResponse:
    """Answer an accepted request step by step. completed: writes the last events, from its result."""
    events = _events(front, accepted, previews, writer, completed)
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _events(
    front: Front,
    accepted: Accepted,
    previews: PreviewQueue,
    writer: EventWriter,
    completed: Callable[[list], AsyncIterator[str]],
) -> AsyncIterator[str]:
    """The events of an accepted request; a client that disconnects cancels it."""

    async def result() -> list:
        try:
            return await front.result_of(accepted)
        finally:  # whatever happens, there will be no more previews
            previews.queue.put_nowait(None)

    waiting = asyncio.create_task(result())
    try:
        while (preview := await previews.queue.get()) is not None:
            index, number, image = preview
            encoded = await front.in_worker(encode, image, writer.output_format.upper())
            eta_s = front.service.eta_s(accepted)
            size = f"{image.width}x{image.height}"
            yield writer.event("partial_image", index, encoded, size, partial_image_index=number, eta_s=eta_s)
        try:
            made = await waiting
        except AceError as error:
            yield f"event: error\ndata: {json.dumps(error_of(error)[1])}\n\n"
            return
        async for event in completed(made):
            yield event
    finally:
        front.service.cancel(accepted)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError, AceError):
            await waiting


def stream_session(front: Front, opened: Opened) -> StreamingResponse:
    """How a session stands, now and after every change, until the client goes away or the server stops."""
    events = _session_events(front, opened)
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _session_events(front: Front, opened: Opened) -> AsyncIterator[str]:
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    said, said_at = "", 0.0

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(changed.set)

    with opened.activity.listen(wake):
        while not front.engine.stopping:
            changed.clear()
            event = await front.in_worker(session_event, front.service, opened)
            text = event.model_dump_json()
            now = loop.time()
            if text != said:
                said, said_at = text, now
                yield f"event: session\ndata: {text}\n\n"
            elif now - said_at > _QUIET_S:
                said_at = now
                yield ": still here\n\n"
            running = any(one.status in ("waiting", "running") for one in event.requests)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _TICK_S if running else 1.0)
            if running:
                await asyncio.sleep(_TICK_S)  # previews of several images come close together
