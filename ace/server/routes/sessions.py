"""Conversations: sessions, their rounds and pictures, and a whole session as one file."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ace.conversation.chat import Message
from ace.conversation.edit import Job, Made, Settings
from ace.conversation.session import Session
from ace.errors import InputError
from ace.server.front import Front, TheFront, form_or_json, read_pictures
from ace.server.images import Upload
from ace.server.jobs import open_mask, open_pictures, variants
from ace.server.replies import details_of, node_reply
from ace.server.schema import ArchiveReply, ListReply, NodeReply, SessionReply, TurnBody, TurnForm, TurnReply
from ace.server.service import Accepted, encode_result

_ZIP_BODY = {"requestBody": {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}}

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.post("", status_code=201)
async def create_session(front: TheFront, request: Request) -> SessionReply:
    """Begin a conversation."""
    session_id = await front.in_worker(front.service.create_session, request.state.client)
    return SessionReply(id=session_id, created=int(time.time()))


@router.get("")
async def list_sessions(front: TheFront, request: Request) -> ListReply:
    """Your conversations, oldest first."""
    found = await front.in_worker(front.service.session_ids, request.state.client)
    return ListReply(data=[{"id": name, "object": "ace.session", "created": made} for name, made in found])


@router.get("/{session_id}")
async def get_session(front: TheFront, request: Request, session_id: str) -> SessionReply:
    """A conversation's tree of edits."""

    def read() -> SessionReply:
        session = front.service.session(request.state.client, session_id)
        created = int((session.folder / "session.json").stat().st_mtime)
        nodes = [node_reply(session_id, node) for node in session.nodes()]
        return SessionReply(id=session_id, created=created, nodes=nodes)

    return await front.in_worker(read)


@router.delete("/{session_id}", status_code=204)
async def delete_session(front: TheFront, request: Request, session_id: str) -> Response:
    """Delete a conversation and all its pictures."""
    await front.in_worker(front.service.delete_session, request.state.client, session_id)
    return Response(status_code=204)


@router.post("/{session_id}/turns", response_model=TurnReply, openapi_extra=form_or_json(TurnBody))
async def turn(front: TheFront, request: Request, session_id: str) -> Response:
    """The next round: goes on from `parent` (default: the latest node) with everything said before it.

    In the prompt `@3` means the answer of node 0003, `@a`, `@b`, … the pictures that are sent along."""
    fields, uploads, mask = await read_pictures(front, request, TurnForm, TurnBody)
    count = front.check(fields)
    settings = front.settings_of(fields)
    session = await front.in_worker(front.service.session, request.state.client, session_id)
    job = await front.in_worker(_open_turn, front, session, fields, settings, uploads, mask)
    accepted = await front.accept(request, variants(job, count))
    made = await front.wait_for(request, accepted)
    file_format = fields.output_format or "png"
    nodes = [await _keep(front, session, accepted, made, number, file_format) for number in range(count)]
    reply = TurnReply(id=accepted.id, session=session_id, created=int(time.time()), nodes=nodes)
    return JSONResponse(reply.model_dump())


@router.get("/{session_id}/nodes/{node_id}/image")
async def node_image(front: TheFront, request: Request, session_id: str, node_id: str) -> Response:
    """The picture of a node (PNG), with its recipe."""

    def read() -> bytes:
        return front.service.session(request.state.client, session_id).node(node_id).image_path.read_bytes()

    return Response(await front.in_worker(read), media_type="image/png")


@router.get("/{session_id}/archive")
async def archive(front: TheFront, request: Request, session_id: str) -> Response:
    """The whole conversation as one ZIP file, which `ace chat`, `ace session` and another server add to theirs."""
    session = await front.in_worker(front.service.session, request.state.client, session_id)
    file = tempfile.SpooledTemporaryFile(max_size=2**20)  # noqa: SIM115  closed when it is sent
    await front.in_worker(session.write_archive, file)
    file.seek(0)

    async def chunks() -> AsyncIterator[bytes]:
        with file:
            while chunk := await front.in_worker(file.read, 2**20):
                yield chunk

    return StreamingResponse(chunks(), media_type="application/zip")


@router.post("/{session_id}/archive", status_code=201, openapi_extra=_ZIP_BODY)
async def add_archive(front: TheFront, request: Request, session_id: str) -> ArchiveReply:
    """Add the rounds of an exported conversation to this one. The body is the ZIP file."""
    session = await front.in_worker(front.service.session, request.state.client, session_id)
    numbers = await front.in_worker(front.service.add_archive, session, await request.body())
    return ArchiveReply(session=session_id, nodes=numbers)


def _open_turn(
    front: Front, session: Session, fields: TurnForm, settings: Settings, uploads: list[Upload], mask: Upload | None
) -> Job:
    """The job of a round. Raises InputError."""
    parent = None if fields.parent == "none" else fields.parent
    if parent == "latest":
        latest = session.latest()
        parent = None if latest is None else latest.id
    pictures = open_pictures(uploads, front.settings.max_pixels)
    opened = None
    if mask is not None:
        edited = pictures[0].opened if pictures else None if parent is None else session.answer(parent)
        if edited is None:
            raise InputError("a mask needs the picture that it belongs to: send the image as well")
        opened = open_mask(mask, edited, front.settings.max_pixels)[0].image
    return front.service.open_turn(session, Message(fields.prompt, settings, tuple(pictures), opened), parent)


async def _keep(
    front: Front, session: Session, accepted: Accepted, made: list[Made], number: int, file_format: str
) -> NodeReply:
    """Keep a result as a node; what is said of it, with its picture."""
    node = await front.in_worker(front.service.add_node, session, made[number])
    reply = node_reply(session.folder.name, node)
    encoded = await front.in_worker(encode_result, made[number], file_format)
    reply.b64_json = base64.b64encode(encoded).decode()
    reply.ace = details_of(made[number], accepted, number)
    return reply
