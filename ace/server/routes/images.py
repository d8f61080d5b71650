"""OpenAI's images API: images from words, edits, streams of either, and results by address."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response

from ace.conversation.job import Job, Made, variants
from ace.conversation.media import IMAGE
from ace.conversation.message import Message, open_message
from ace.errors import InputError
from ace.server.front import Files, Front, TheFront, form_or_json, read_files
from ace.server.replies import details_of, usage_of
from ace.server.schema import MIME, EditBody, EditForm, GenerationBody, ImageData, ImagesBody, ImagesReply
from ace.server.service import Accepted, Previews, encode_result
from ace.server.streaming import EventWriter, PreviewQueue, stream_request

router = APIRouter(tags=["images"])


@router.post("/v1/images/generations", response_model=ImagesReply)
async def generations(front: TheFront, request: Request, body: GenerationBody) -> Response:
    """Create images from words."""
    return await _answer(front, request, body, Files(), "generation")


@router.post("/v1/images/edits", response_model=ImagesReply, openapi_extra=form_or_json(EditBody))
async def edits(front: TheFront, request: Request) -> Response:
    """Edit images. A form with files `image` (or `image[]`, up to nine) and `mask`, or JSON with addresses."""
    fields, files = await read_files(front, request, EditForm, EditBody)
    if not files.images:
        raise InputError("there is no image to edit: send one, or use /v1/images/generations")
    return await _answer(front, request, fields, files, "edit")


@router.get("/files/{token}")
async def files(front: TheFront, token: Annotated[str, Path(max_length=64)]) -> Response:
    """A result that was asked for with `response_format: url`."""
    mime, data = front.service.kept(token)
    return Response(data, media_type=mime, headers={"cache-control": "private, max-age=3600"})


async def _answer(front: Front, request: Request, fields: ImagesBody, files: Files, kind: str) -> Response:
    if front.family.traits.medium is not IMAGE:
        raise InputError(f"{front.family.name} makes clips: use /v1/videos")
    count = front.check(fields)
    jobs = variants(await front.on_images(request, _open, front, fields, files), count, front.settings.max_images)
    if fields.stream:
        return await _stream(front, request, fields, jobs, kind)
    if fields.partial_images:
        raise InputError("partial_images needs stream: true")
    moderated = Previews(moderated=fields.moderation != "low")
    accepted = await front.accept(front.service.accept, request, jobs, kind, previews=moderated)
    made = await front.wait_for(request, accepted)
    data = [await _data_of(front, request, fields, accepted, made, number) for number in range(count)]
    reply = ImagesReply(
        created=int(time.time()),
        id=accepted.id,
        data=data,
        output_format=fields.output_format or "png",
        quality=fields.quality or "auto",
        size=data[0].ace.size,
        usage=usage_of(accepted),
    )
    return JSONResponse(reply.model_dump())


def _open(front: Front, fields: ImagesBody, files: Files) -> Job:
    """The job of a request without a session: the first image is edited. Raises InputError."""
    opened = front.open(files)
    pictures = opened.images
    message = Message(
        fields.prompt,
        front.settings_of(fields),
        photo=pictures[0] if pictures else None,
        references=pictures[1:],
        mask=opened.mask,
        change_mask=fields.change_mask,
    )
    return open_message(front.family, message)


async def _stream(front: Front, request: Request, fields: ImagesBody, jobs: list[Job], kind: str) -> Response:
    queue = PreviewQueue()
    writer = EventWriter(f"image_{kind}", fields.output_format or "png", fields.quality or "auto")
    previews = Previews(fields.partial_images or 0, queue.put, fields.moderation != "low")
    accepted = await front.accept(front.service.accept, request, jobs, kind, previews=previews)

    async def completed(made: list[Made]) -> AsyncIterator[str]:
        usage = usage_of(accepted).model_dump()
        for index, one in enumerate(made):
            encoded = await front.in_worker(
                encode_result, one, writer.output_format, fields.metadata, front.settings.signer
            )
            written = await front.in_worker(one.medium.as_written, one, encoded)
            own = details_of(written, accepted, index, fields.change_mask)
            yield writer.event("completed", index, encoded, own.size, usage=usage, ace=own.model_dump())

    return stream_request(front, accepted, queue, writer, completed)


async def _data_of(
    front: Front, request: Request, fields: ImagesBody, accepted: Accepted, made: list[Made], number: int
) -> ImageData:
    """One image of a reply: in it, or kept and named by its address."""
    file_format = fields.output_format or "png"
    one = made[number]
    encoded = await front.on_images(request, encode_result, one, file_format, fields.metadata, front.settings.signer)
    written = await front.in_worker(one.medium.as_written, one, encoded)
    own = details_of(written, accepted, number, fields.change_mask)
    if fields.response_format == "url":
        token = front.service.keep(encoded, MIME[file_format])
        return ImageData(url=f"{request.base_url}files/{token}", ace=own)
    return ImageData(b64_json=base64.b64encode(encoded).decode(), ace=own)
