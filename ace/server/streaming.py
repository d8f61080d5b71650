"""Server-sent events, as OpenAI's image streams have them: previews on the way, then each picture."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import StreamingResponse
from PIL import Image

from ace.conversation.edit import Job, Made
from ace.conversation.recipe import encode
from ace.errors import AceError
from ace.server.front import Front
from ace.server.refusals import error_of
from ace.server.replies import details_of, usage_of
from ace.server.schema import ImagesBody
from ace.server.service import Accepted, encode_result

Preview = tuple[int, int, Image.Image]  # number of the picture, number of its preview, the preview


async def stream_images(
    front: Front, request: Request, fields: ImagesBody, jobs: Sequence[Job], kind: str
) -> StreamingResponse:
    """Take a request on and answer it step by step. kind: what the events' names begin with."""
    loop = asyncio.get_running_loop()
    previews: asyncio.Queue[Preview | None] = asyncio.Queue()

    def on_preview(picture: int, number: int, image: Image.Image) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(previews.put_nowait, (picture, number, image))

    accepted = await front.accept(request, jobs, fields.partial_images or 0, on_preview)
    writer = _Writer(kind, fields.output_format or "png", fields.quality or "auto", fields.metadata)
    events = _events(front, accepted, previews, writer)
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _events(
    front: Front, accepted: Accepted, previews: asyncio.Queue[Preview | None], writer: _Writer
) -> AsyncIterator[str]:
    """The events of an accepted request; whoever stops listening cancels it."""
    waiting = asyncio.create_task(_results(front, accepted, previews))
    try:
        while (preview := await previews.get()) is not None:
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
        usage = usage_of(accepted).model_dump()
        for index, one in enumerate(made):
            encoded = await front.in_worker(encode_result, one, writer.output_format, writer.metadata)
            own = details_of(one, accepted, index)
            yield writer.event("completed", index, encoded, own.size, usage=usage, ace=own.model_dump())
    finally:
        front.service.cancel(accepted)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError, AceError):
            await waiting


async def _results(front: Front, accepted: Accepted, previews: asyncio.Queue[Preview | None]) -> list[Made]:
    """The results; that there will be no more previews is said whatever happens."""
    try:
        return await front.gather(accepted)
    finally:
        previews.put_nowait(None)


@dataclass(frozen=True)
class _Writer:
    """Writes the events of one request."""

    kind: str
    output_format: str
    quality: str
    metadata: bool

    def event(self, name: str, index: int, image: bytes, size: str, **more: object) -> str:
        """One event with a picture."""
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
