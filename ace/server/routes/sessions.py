"""Conversations: sessions, their rounds and images, what is going on in them, and a whole session as one file."""

from __future__ import annotations

import base64
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from ace.conversation.job import Made, Settings
from ace.conversation.media import CLIP, medium_of
from ace.conversation.message import Mask, Message, Picture
from ace.conversation.recipe import encode
from ace.conversation.session import Node
from ace.conversation.sketch import extend_canvas, hide_under, sketch_over
from ace.errors import ConfigError, InputError, MaskError
from ace.server.activity import thumbnail
from ace.server.front import Files, Front, OpenedFiles, TheFront, form_or_json, read_files
from ace.server.images import strokes_of
from ace.server.replies import details_of, drift_reply, node_reply, replay_reply, session_reply
from ace.server.schema import (
    MIME,
    AgainBody,
    ArchiveReply,
    Delivery,
    DriftReply,
    HeadBody,
    ListReply,
    NameBody,
    NodeReply,
    ReplayReply,
    RequestReply,
    SessionReply,
    TitleBody,
    TurnBody,
    TurnFields,
    TurnForm,
    TurnReply,
)
from ace.server.service import Accepted, NotFoundError, Opened, Previews, encode_result
from ace.server.streaming import EventWriter, PreviewQueue, stream_request, stream_session

THUMBNAIL_PX = 160
_ZIP_BODY = {"requestBody": {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}}
_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
_DETACHED: dict[int | str, dict[str, Any]] = {202: {"model": RequestReply}, **_EVENTS}
NodeFormat = Literal["png", "jpeg", "webp", "mp4", "thumbnail"]

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.post("", status_code=201)
async def create_session(front: TheFront, request: Request) -> SessionReply:
    """Begin a conversation."""
    session_id = await front.in_worker(front.service.create_session, request.state.client)
    return SessionReply(id=session_id, created=int(time.time()), name=session_id)


@router.get("")
async def list_sessions(front: TheFront, request: Request) -> ListReply:
    """Your conversations, oldest first."""
    found = await front.in_worker(front.service.session_ids, request.state.client)
    return ListReply(data=[{"id": name, "object": "ace.session", "created": made} for name, made in found])


@router.get("/{session_id}")
async def get_session(front: TheFront, request: Request, session_id: str) -> SessionReply:
    """A conversation's tree of edits."""
    opened = await _opened(front, request, session_id)
    return await front.in_worker(session_reply, opened)


@router.delete("/{session_id}", status_code=204)
async def delete_session(front: TheFront, request: Request, session_id: str) -> Response:
    """Delete a conversation and all its images."""
    await front.in_worker(front.service.delete_session, request.state.client, session_id)
    return Response(status_code=204)


@router.patch("/{session_id}")
async def rename_session(front: TheFront, request: Request, session_id: str, body: NameBody) -> SessionReply:
    """Call a conversation by a name."""
    opened = await _opened(front, request, session_id)
    await front.in_worker(opened.session.rename, body.name)
    opened.activity.changed()
    return await front.in_worker(session_reply, opened)


@router.get("/{session_id}/events", responses=_EVENTS)
async def events(front: TheFront, request: Request, session_id: str) -> StreamingResponse:
    """How a conversation stands, as server-sent events named `session` (`SessionEvent`): now, and after every step and
    every change, whoever makes it."""
    return stream_session(front, await _opened(front, request, session_id))


@router.put("/{session_id}/head")
async def set_head(front: TheFront, request: Request, session_id: str, body: HeadBody) -> HeadBody:
    """Remember where somebody is in the tree. Undo is a step to the parent."""
    opened = await _opened(front, request, session_id)
    await front.in_worker(opened.session.set_head, body.node)
    opened.activity.moved()
    return body


@router.post("/{session_id}/turns", response_model=TurnReply, responses=_DETACHED, openapi_extra=form_or_json(TurnBody))
async def turn(front: TheFront, request: Request, session_id: str) -> Response:
    """The next round: goes on from `parent` (default: the latest node) with everything said before it.

    What is edited is the `photo` that comes with it, else the answer that it follows, else the first image. In the
    prompt that is {image}, the other images are {image1}, {image2}, … in order; `@3` means the answer of node 0003, and
    `@a`, `@b`, … the images that are sent along, the photo first."""
    fields, files = await read_files(front, request, TurnForm, TurnBody)
    count = front.check(fields)
    opened = await _opened(front, request, session_id)
    message, parent = await front.on_images(request, _read_turn, front, opened, fields, files)
    queue, previews = _previews_of(fields)
    accepted = await front.accept(front.service.turn, request, opened, message, parent, count, previews)
    return await _deliver_nodes(front, request, opened, accepted, fields, queue, fields.output_format or "png")


@router.post("/{session_id}/nodes/{node_id}/again", response_model=TurnReply, responses=_DETACHED)
async def again(front: TheFront, request: Request, session_id: str, node_id: str, body: AgainBody) -> Response:
    """Try again: the same request with other seeds, as siblings of the node."""
    count = front.check_count(body.n)
    opened = await _opened(front, request, session_id)
    queue, previews = _previews_of(body)
    accepted = await front.accept(front.service.again, request, opened, node_id, body.seed, count, previews)
    return await _deliver_nodes(front, request, opened, accepted, body, queue, "png")


@router.post("/{session_id}/nodes/{node_id}/replay", response_model=ReplayReply, responses=_DETACHED)
async def replay(front: TheFront, request: Request, session_id: str, node_id: str, body: Delivery) -> Response:
    """Make a node again from what the session keeps, and compare it with the answer that is there. Adds nothing."""
    if body.stream:
        raise ConfigError("a replay has no stream: ask for it detached and follow the session's events")
    opened = await _opened(front, request, session_id)
    _, previews = _previews_of(body)
    accepted = await front.accept(front.service.replay, request, opened, node_id, previews)
    if body.detached:
        return _accepted_only(accepted)
    return JSONResponse(replay_reply(await front.wait_for(request, accepted)).model_dump())


@router.get("/{session_id}/nodes/{node_id}")
async def get_node(front: TheFront, request: Request, session_id: str, node_id: str) -> NodeReply:
    """A node without its image."""
    opened = await _opened(front, request, session_id)
    await front.in_worker(opened.session.node, node_id)
    return await front.in_worker(node_reply, opened, node_id)


@router.patch("/{session_id}/nodes/{node_id}")
async def rename_node(front: TheFront, request: Request, session_id: str, node_id: str, body: TitleBody) -> TitleBody:
    """Call a node by a title."""
    opened = await _opened(front, request, session_id)
    await front.in_worker(opened.session.rename_node, node_id, body.title)
    opened.activity.changed()
    return body


@router.delete("/{session_id}/nodes/{node_id}", status_code=204)
async def delete_node(front: TheFront, request: Request, session_id: str, node_id: str) -> Response:
    """Delete a node. What was made from it stays, and keeps the files of it that it needs."""
    opened = await _opened(front, request, session_id)
    await front.in_worker(front.service.delete_nodes, opened, (node_id,))
    return Response(status_code=204)


@router.delete("/{session_id}/nodes", status_code=204)
async def delete_all_nodes(front: TheFront, request: Request, session_id: str) -> Response:
    """Delete all nodes of a conversation. Their numbers are not used again."""
    opened = await _opened(front, request, session_id)
    await front.in_worker(lambda: front.service.delete_nodes(opened, opened.session.shown_ids()[::-1]))
    return Response(status_code=204)


@router.get("/{session_id}/nodes/{node_id}/drift")
async def drift(front: TheFront, request: Request, session_id: str, node_id: str) -> DriftReply:
    """How far a node's answer moved from what it edited, outside its mask, and what should be known of its request."""
    opened = await _opened(front, request, session_id)
    return await front.in_worker(drift_reply, opened, node_id)


@router.get("/{session_id}/nodes/{node_id}/image")
async def node_image(
    front: TheFront,
    request: Request,
    session_id: str,
    node_id: str,
    output_format: Annotated[NodeFormat | None, Query(alias="format")] = None,
) -> Response:
    """The image of a node with its recipe: as it is kept (PNG), in another format to take away, or a small one."""
    opened = await _opened(front, request, session_id)

    def read() -> tuple[bytes, str]:
        node = opened.session.node(node_id)
        if output_format is None:
            return _read_own(node.answer_path), node.medium.mime_type
        if output_format == "thumbnail":
            return thumbnail(node.medium.open(node.answer_path).image, THUMBNAIL_PX), MIME["webp"]
        opened.session.answer(node_id)  # raises SessionError if the file is damaged
        if node.medium is CLIP and output_format != "mp4":
            return encode(CLIP.open(node.answer_path).image, output_format.upper()), MIME[output_format]
        if node.medium is CLIP:
            return CLIP.encode(CLIP.load(node.answer_path), "MP4", node.recipe), "video/mp4"
        if output_format == "mp4":
            raise InputError(f"node {node_id} is an image: ask for png, jpeg or webp")
        with Image.open(node.answer_path) as image:
            return encode(image, output_format.upper(), node.recipe), MIME[output_format]

    data, mime_type = await front.on_images(request, read)
    if output_format in MIME or output_format == "mp4":
        named = {"content-disposition": f'attachment; filename="ace-{node_id}.{output_format}"'}
        return Response(data, media_type=mime_type, headers=named)
    return _revalidated(request, data, mime_type)


@router.get("/{session_id}/nodes/{node_id}/{kind}/{number}")
async def node_input(
    front: TheFront,
    request: Request,
    session_id: str,
    node_id: str,
    kind: Literal["inputs", "masks"],
    number: int,
) -> Response:
    """An image of a node's request (PNG), or the mask of one."""
    opened = await _opened(front, request, session_id)

    def read() -> tuple[bytes, str]:
        inputs = opened.session.node(node_id).inputs
        one = inputs[number] if 0 <= number < len(inputs) else None
        path = None if one is None else one.path if kind == "inputs" else one.mask_path
        if path is None:
            raise NotFoundError(f"node {node_id} has no such image")
        return _read_own(path), medium_of(path).mime_type

    return _revalidated(request, *await front.in_worker(read))


@router.get("/{session_id}/archive")
async def archive(front: TheFront, request: Request, session_id: str) -> Response:
    """The whole conversation as one ZIP file, which `ace chat`, `ace session` and another server add to theirs."""
    opened = await _opened(front, request, session_id)
    file = tempfile.SpooledTemporaryFile(max_size=2**20)  # noqa: SIM115  closed when it is sent
    await front.in_worker(opened.session.write_archive, file)
    file.seek(0)

    async def chunks() -> AsyncIterator[bytes]:
        with file:
            while chunk := await front.in_worker(file.read, 2**20):
                yield chunk

    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in opened.session.folder.name)
    named = {"content-disposition": f'attachment; filename="{plain}.zip"'}
    return StreamingResponse(chunks(), media_type="application/zip", headers=named)


@router.post("/{session_id}/archive", status_code=201, openapi_extra=_ZIP_BODY)
async def add_archive(front: TheFront, request: Request, session_id: str) -> ArchiveReply:
    """Add the rounds of an exported conversation to this one. The body is the ZIP file."""
    opened = await _opened(front, request, session_id)
    numbers = await front.on_images(request, front.service.add_archive, opened.session, await request.body())
    if numbers:
        await front.in_worker(opened.session.set_head, list(numbers.values())[-1])
    opened.activity.moved()
    return ArchiveReply(session=session_id, nodes=numbers)


# Steps of these


async def _opened(front: Front, request: Request, session_id: str) -> Opened:
    return await front.in_worker(front.service.open_session, request.state.client, session_id)


def _previews_of(fields: Delivery) -> tuple[PreviewQueue, Previews]:
    if fields.stream and fields.detached:
        raise ConfigError("both stream and detached: give one of them")
    if fields.partial_images and not (fields.stream or fields.detached):
        raise ConfigError("partial_images needs stream: true or detached: true")
    queue = PreviewQueue()
    moderated = getattr(fields, "moderation", None) != "low"
    return queue, Previews(fields.partial_images or 0, queue.put if fields.stream else None, moderated)


def _read_turn(front: Front, opened: Opened, fields: TurnFields, files: Files) -> tuple[Message, str | None]:
    """A round's message and the node that it follows. Raises InputError."""
    session, sent = opened.session, front.open(files)
    parent = None if fields.parent == "none" else fields.parent
    if parent == "latest":
        latest = session.latest()
        parent = None if latest is None else latest.id
    elif parent == "head":
        parent = session.head()
    message = Message(
        fields.prompt,
        front.settings_of(fields),
        photo=sent.photo,
        references=sent.images,
        mask=sent.mask,
        max_history=fields.max_history,
        change_mask=fields.change_mask,
    )
    return _sketch(opened, message, parent, fields, sent), parent


def _hard_edged(settings: Settings) -> Settings:
    """The settings for a mask under which nothing is left to blend with."""
    return replace(settings, images=replace(settings.images, feather_px=0))


def _sketch(opened: Opened, message: Message, parent: str | None, fields: TurnFields, files: OpenedFiles) -> Message:
    """The message with its canvas extended, drawn on or hidden, where that is asked. Raises InputError."""
    given = [fields.extend is not None, files.drawing is not None, message.mask is not None]
    if sum(given) > 1:
        raise MaskError("extend, drawing and mask: send one of them")
    if fields.hide and message.mask is None:
        raise MaskError("hide needs a mask: send what is to be hidden")
    if not (fields.extend or files.drawing or fields.hide):
        return message
    edited, references = message.photo, message.references
    if edited is None and parent is not None:
        edited = opened.chat.answer(parent)
    elif edited is None and references:
        edited, references = references[0], references[1:]
    if edited is None:
        raise MaskError("there is no image to paint on: send one")
    settings = message.settings
    if fields.extend is not None:
        canvas, mask = extend_canvas(edited.opened, **fields.extend.model_dump())
        photo, settings = Picture.of_image(canvas, "canvas"), _hard_edged(settings)
    elif files.drawing is not None:
        drawn, mask = sketch_over(edited.opened, strokes_of(files.drawing))
        photo = Picture.of_image(drawn, "drawing")
    else:
        assert message.mask is not None
        mask, _ = message.mask.opened(edited.opened, settings.images)
        hidden = hide_under(edited.opened, mask.image)
        photo, settings = Picture.of_image(hidden, "hidden"), _hard_edged(settings)
    photo = replace(photo, node=edited.node, data=edited.data)
    return replace(message, photo=photo, references=references, mask=Mask(mask), settings=settings)


async def _deliver_nodes(
    front: Front,
    request: Request,
    opened: Opened,
    accepted: Accepted,
    fields: Delivery,
    queue: PreviewQueue,
    file_format: str,
) -> Response:
    """The answer to a request that makes nodes: at once, as a stream, or when it is done."""
    change_mask = isinstance(fields, TurnFields) and fields.change_mask
    if fields.detached:
        return _accepted_only(accepted)
    if fields.stream:

        async def completed(made: list[tuple[Made, Node]]) -> AsyncIterator[str]:
            for number, one in enumerate(made):
                reply = await _full_reply(front, opened, accepted, one, number, file_format, change_mask)
                yield f"event: turn.completed\ndata: {reply.model_dump_json()}\n\n"

        return stream_request(front, accepted, queue, EventWriter("turn", file_format), completed)
    made = await front.wait_for(request, accepted)
    nodes = [await _full_reply(front, opened, accepted, one, n, file_format, change_mask) for n, one in enumerate(made)]
    reply = TurnReply(id=accepted.id, session=opened.id, created=int(time.time()), nodes=nodes)
    return JSONResponse(reply.model_dump())


def _accepted_only(accepted: Accepted) -> Response:
    reply = RequestReply(id=accepted.id, status="waiting", n=len(accepted.requests), steps=accepted.steps)
    return JSONResponse(reply.model_dump(), 202)


async def _full_reply(
    front: Front,
    opened: Opened,
    accepted: Accepted,
    made: tuple[Made, Node],
    number: int,
    file_format: str,
    change_mask: bool,
) -> NodeReply:
    """A new node with its image."""
    one, node = made
    reply = await front.in_worker(node_reply, opened, node.id)
    encoded = await front.in_worker(encode_result, one, file_format, True, front.settings.signer)
    own = details_of(await front.in_worker(one.medium.as_written, one, encoded), accepted, number, change_mask)
    return reply.model_copy(update={"b64_json": base64.b64encode(encoded).decode(), "ace": own})


def _read_own(path: Path) -> bytes:
    """A file of a session, which must not be a link. Raises NotFoundError."""
    try:
        if not path.is_symlink() and path.is_file():
            return path.read_bytes()
    except FileNotFoundError:  # deleted meanwhile
        pass
    raise NotFoundError(f"{path.name} is not there")


def _revalidated(request: Request, data: bytes, media_type: str) -> Response:
    """An image that a browser may keep and asks about again: another session has others under the same address."""
    tag = f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'
    headers = {"cache-control": "private, no-cache", "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)
