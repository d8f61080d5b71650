"""OpenAI's images API: pictures from words, edits, streams of either, and results by address."""

from __future__ import annotations

import base64
import time
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response

from ace.conversation.edit import Made
from ace.errors import InputError
from ace.server.front import Front, TheFront, form_or_json, read_pictures
from ace.server.images import Upload
from ace.server.jobs import make_job, variants
from ace.server.replies import details_of, usage_of
from ace.server.schema import MIME, EditBody, EditForm, GenerationBody, ImageData, ImagesBody, ImagesReply
from ace.server.service import Accepted, encode_result
from ace.server.streaming import stream_images

router = APIRouter(tags=["images"])


@router.post("/v1/images/generations", response_model=ImagesReply)
async def generations(front: TheFront, request: Request, body: GenerationBody) -> Response:
    """Create pictures from words."""
    return await _answer(front, request, body, [], None, "image_generation")


@router.post("/v1/images/edits", response_model=ImagesReply, openapi_extra=form_or_json(EditBody))
async def edits(front: TheFront, request: Request) -> Response:
    """Edit pictures. A form with files `image` (or `image[]`, up to nine) and `mask`, or JSON with addresses."""
    fields, uploads, mask = await read_pictures(front, request, EditForm, EditBody)
    if not uploads:
        raise InputError("there is no image to edit: send one, or use /v1/images/generations")
    return await _answer(front, request, fields, uploads, mask, "image_edit")


@router.get("/files/{token}")
async def files(front: TheFront, token: Annotated[str, Path(max_length=64)]) -> Response:
    """A result that was asked for with `response_format: url`."""
    mime, data = front.service.kept(token)
    return Response(data, media_type=mime, headers={"cache-control": "private, max-age=3600"})


async def _answer(
    front: Front, request: Request, fields: ImagesBody, uploads: list[Upload], mask: Upload | None, kind: str
) -> Response:
    count = front.check(fields)
    settings = front.settings_of(fields)
    job = await front.in_worker(make_job, fields.prompt, settings, uploads, mask, front.settings.max_pixels)
    jobs = variants(job, count)
    if fields.stream:
        return await stream_images(front, request, fields, jobs, kind)
    if fields.partial_images:
        raise InputError("partial_images needs stream: true")
    accepted = await front.accept(request, jobs)
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


async def _data_of(
    front: Front, request: Request, fields: ImagesBody, accepted: Accepted, made: list[Made], number: int
) -> ImageData:
    """One picture of a reply: in it, or kept and named by its address."""
    file_format = fields.output_format or "png"
    encoded = await front.in_worker(encode_result, made[number], file_format, fields.metadata)
    own = details_of(made[number], accepted, number)
    if fields.response_format == "url":
        token = front.service.keep(encoded, MIME[file_format])
        return ImageData(url=f"{request.base_url}files/{token}", ace=own)
    return ImageData(b64_json=base64.b64encode(encoded).decode(), ace=own)
