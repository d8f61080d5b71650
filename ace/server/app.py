"""The routes: OpenAI's images API, our sessions, and what an operator asks.

`create_app` wires a started engine to them. A request is read, understood (`schema.py`, `jobs.py`), accepted
(`service.py`) and waited for; if its client goes away meanwhile, it is cancelled.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from ace import __version__
from ace.errors import AceError, BusyError, ConfigError, InputError, StoppedError
from ace.inference.chat import Message
from ace.inference.edit import Job, Made
from ace.inference.recipe import encode
from ace.inference.session import Node
from ace.server.engine import Engine
from ace.server.gate import Gate, Refused
from ace.server.images import Upload, fetch
from ace.server.jobs import any_seed, make_job, open_mask, open_pictures, variants
from ace.server.ledger import Ledger
from ace.server.metrics import Metrics
from ace.server.schema import (
    MIME,
    AceDetails,
    EditBody,
    EditForm,
    GenerationBody,
    ImageData,
    ImagesBody,
    ImagesReply,
    ListReply,
    NodeReply,
    PictureBody,
    RequestReply,
    SessionReply,
    TokenDetails,
    TurnBody,
    TurnForm,
    TurnReply,
    Usage,
)
from ace.server.service import Accepted, NotFoundError, Service, encode_result
from ace.server.settings import ServerSettings

log = logging.getLogger(__name__)
_MAX_FIELD_BYTES = 64 * 1024
Result = TypeVar("Result")
Body = TypeVar("Body", bound=BaseModel)


def create_app(engine: Engine, settings: ServerSettings, ledger: Ledger | None = None) -> FastAPI:
    """The application of an engine. ledger: None = one in memory."""
    service = Service(engine, settings, ledger or Ledger(None))
    metrics = Metrics(engine)
    app = FastAPI(
        title="ace",
        version=__version__,
        summary="Create and edit images from instructions; OpenAI's images API, and conversations.",
        openapi_url="/openapi.json",
    )
    app.state.service = service
    workers = CapacityLimiter(4)  # pictures decoded and encoded at once, which bounds the memory that this needs

    async def in_worker(function: Callable[..., Result], *args: object) -> Result:
        return await to_thread.run_sync(lambda: function(*args), limiter=workers)

    # Reading

    async def read_files(
        request: Request, form: type[Body], body: type[Body]
    ) -> tuple[Body, list[Upload], Upload | None]:
        """A request with pictures, as a form or as JSON."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "application/json":
            fields = body.model_validate_json(await request.body())
            addresses = [image.image_url for image in getattr(fields, "images", ())]
            mask = getattr(fields, "mask", None)
            limit = settings.max_upload_bytes
            uploads = [await in_worker(fetch, url, settings.url_hosts, limit) for url in addresses]
            mask_file = None if mask is None else await in_worker(fetch, mask.image_url, settings.url_hosts, limit)
            return fields, uploads, mask_file
        if kind != "multipart/form-data":
            raise HTTPException(415, "send multipart/form-data or application/json")
        async with request.form(max_files=12, max_fields=64, max_part_size=_MAX_FIELD_BYTES) as parts:
            texts: dict[str, str] = {}
            files: dict[str, list[Upload]] = {"image": [], "mask": []}
            for name, value in parts.multi_items():
                plain = name.removesuffix("[]")
                if isinstance(value, UploadFile):
                    if plain not in files:
                        raise InputError(f"unknown file {name[:40]!r}: send image and mask")
                    files[plain].append(Upload(await value.read(), value.filename or plain))
                elif name in texts:
                    raise InputError(f"{name[:40]!r} is there twice")
                else:
                    texts[name] = value
            if len(files["mask"]) > 1:
                raise InputError("there are several masks: send one, for the first image")
            mask_file = files["mask"][0] if files["mask"] else None
            return form.model_validate(texts), files["image"], mask_file

    def check(fields: PictureBody) -> int:
        """How many pictures are asked for, after checking what needs the model. Raises InputError."""
        if fields.model not in (None, engine.model.name, *settings.aliases):
            raise NotFoundError(f"the model {fields.model[:80]!r} does not exist here: use {engine.model.name}")
        if fields.size_px is not None:
            engine.model.check_size(fields.size_px)
        count = fields.n or 1
        if count > settings.max_images:
            raise ConfigError(f"n is {count}: at most {settings.max_images} pictures per request")
        return count

    # Waiting

    async def wait_for(request: Request, accepted: Accepted) -> list[Made]:
        """The results; a client that goes away cancels them. Raises the first error."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            service.cancel(accepted)

        watcher = asyncio.create_task(watch())
        try:
            return await gather(accepted)
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def gather(accepted: Accepted) -> list[Made]:
        try:
            return list(await asyncio.gather(*(asyncio.wrap_future(ticket.result) for ticket in accepted.tickets)))
        finally:  # the first that fails takes its siblings along, and so does whoever gives up waiting
            service.cancel(accepted)

    async def accept(request: Request, jobs: Sequence[Job], *more: object) -> Accepted:
        accepted = await in_worker(service.accept, request.state.request_id, request.state.client, jobs, *more)
        metrics.watch(accepted)
        return accepted

    def details(made: Made, seconds: float) -> AceDetails:
        recipe = made.recipe
        return AceDetails(
            seed=recipe.seed,
            steps=recipe.num_inference_steps,
            guidance_scale=recipe.guidance_scale,
            size=f"{made.image.width}x{made.image.height}",
            model=recipe.model,
            model_sha256=recipe.model_sha256,
            seconds=round(seconds, 3),
            drift=None if made.drift is None else made.drift.as_dict(),
            notes=made.notes,
        )

    def seconds_of(accepted: Accepted, number: int) -> float:
        ticket = accepted.tickets[number]
        return (ticket.ended_at or time.monotonic()) - ticket.asked_at

    def usage_of(accepted: Accepted) -> Usage:
        cost = accepted.tickets[0].cost
        output = cost.num_target_tokens * len(accepted.tickets)
        total = cost.image_tokens + cost.text_tokens
        return Usage(
            input_tokens=total,
            input_tokens_details=TokenDetails(image_tokens=cost.image_tokens, text_tokens=cost.text_tokens),
            output_tokens=output,
            total_tokens=total + output,
        )

    # OpenAI's images

    async def make_images(
        request: Request, fields: ImagesBody, uploads: list[Upload], mask: Upload | None, kind: str
    ) -> Response:
        count = check(fields)
        chosen = fields.settings(any_seed() if fields.seed is None else fields.seed, engine.model.num_inference_steps)
        job = await in_worker(make_job, fields.prompt, chosen, uploads, mask, settings.max_pixels)
        jobs = variants(job, count)
        if fields.stream:
            return await stream_images(request, fields, jobs, kind)
        if fields.partial_images:
            raise InputError("partial_images needs stream: true")
        accepted = await accept(request, jobs)
        made = await wait_for(request, accepted)
        file_format = fields.output_format or "png"
        data = []
        for number, one in enumerate(made):
            encoded = await in_worker(encode_result, one, file_format)
            own = details(one, seconds_of(accepted, number))
            if fields.response_format == "url":
                token = service.keep(encoded, MIME[file_format])
                data.append(ImageData(url=f"{request.base_url}files/{token}", ace=own))
            else:
                data.append(ImageData(b64_json=base64.b64encode(encoded).decode(), ace=own))
        reply = ImagesReply(
            created=int(time.time()),
            id=accepted.id,
            data=data,
            output_format=file_format,
            quality=fields.quality or "auto",
            size=data[0].ace.size,
            usage=usage_of(accepted),
        )
        return JSONResponse(reply.model_dump())

    async def stream_images(request: Request, fields: ImagesBody, jobs: list[Job], kind: str) -> Response:
        """Server-sent events, as OpenAI's: previews on the way, then each picture."""
        loop = asyncio.get_running_loop()
        previews: asyncio.Queue[tuple[int, int, Image.Image] | None] = asyncio.Queue()

        def on_preview(picture: int, number: int, image: Image.Image) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(previews.put_nowait, (picture, number, image))

        accepted = await accept(request, jobs, fields.partial_images or 0, on_preview)
        file_format = fields.output_format or "png"

        async def event(name: str, index: int, image: bytes, size: str, **more: object) -> str:
            content = {
                "type": f"{kind}.{name}",
                "b64_json": base64.b64encode(image).decode(),
                "created_at": int(time.time()),
                "background": "opaque",
                "output_format": file_format,
                "quality": fields.quality or "auto",
                "size": size,
                "image_index": index,
                **more,
            }
            return f"event: {content['type']}\ndata: {json.dumps(content)}\n\n"

        async def events() -> AsyncIterator[str]:
            async def wait() -> list[Made]:
                try:
                    return await gather(accepted)
                finally:
                    previews.put_nowait(None)

            waiting = asyncio.create_task(wait())
            try:
                while (preview := await previews.get()) is not None:
                    index, number, image = preview
                    encoded = await in_worker(encode, image, file_format.upper())
                    size = f"{image.width}x{image.height}"
                    eta = service.eta_s(accepted)
                    yield await event("partial_image", index, encoded, size, partial_image_index=number, eta_s=eta)
                try:
                    made = await waiting
                except AceError as error:
                    yield f"event: error\ndata: {json.dumps(error_of(error)[1])}\n\n"
                    return
                for index, one in enumerate(made):
                    encoded = await in_worker(encode_result, one, file_format)
                    own = details(one, seconds_of(accepted, index)).model_dump()
                    usage = usage_of(accepted).model_dump()
                    yield await event("completed", index, encoded, str(own["size"]), usage=usage, ace=own)
            finally:
                service.cancel(accepted)
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError, AceError):
                    await waiting

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    @app.post("/v1/images/generations", tags=["images"], response_model=ImagesReply)
    async def generations(request: Request, body: GenerationBody) -> Response:
        """Create pictures from words."""
        return await make_images(request, body, [], None, "image_generation")

    @app.post(
        "/v1/images/edits",
        tags=["images"],
        response_model=ImagesReply,
        openapi_extra={
            "requestBody": {
                "content": {
                    "multipart/form-data": {"schema": {"type": "object"}},
                    "application/json": {"schema": EditBody.model_json_schema()},
                }
            }
        },
    )
    async def edits(request: Request) -> Response:
        """Edit pictures. A form with files `image` (or `image[]`, up to nine) and `mask`, or JSON with addresses."""
        fields, uploads, mask = await read_files(request, EditForm, EditBody)
        if not uploads:
            raise InputError("there is no image to edit: send one, or use /v1/images/generations")
        return await make_images(request, fields, uploads, mask, "image_edit")

    @app.get("/files/{token}", tags=["images"])
    async def files(token: Annotated[str, Path(max_length=64)]) -> Response:
        """A result that was asked for with `response_format: url`."""
        mime, data = service.kept(token)
        return Response(data, media_type=mime, headers={"cache-control": "private, max-age=3600"})

    @app.get("/v1/models", tags=["models"])
    async def models() -> ListReply:
        """The model that answers here."""
        return ListReply(data=[model_entry()])

    @app.get("/v1/models/{name}", tags=["models"])
    async def model(name: str) -> dict[str, object]:
        """The model by its name."""
        if name not in (engine.model.name, *settings.aliases):
            raise NotFoundError(f"the model {name[:80]!r} does not exist here")
        return model_entry()

    def model_entry() -> dict[str, object]:
        side = round(engine.model.budget**0.5) * engine.model.cell_px
        return {
            "id": engine.model.name,
            "object": "model",
            "created": 0,
            "owned_by": "ace",
            "ace": {
                "sha256": engine.model.sha256,
                "size": f"{side}x{side}",
                "size_step_px": engine.model.cell_px,
                "steps": engine.model.num_inference_steps,
            },
        }

    # Requests

    @app.get("/v1/requests/{request_id}", tags=["requests"])
    async def request_status(request: Request, request_id: str) -> RequestReply:
        """How a request stands, and what became of it, also after a restart."""
        client = request.state.client
        accepted = service.running(request_id, client)
        if accepted is not None and accepted.tickets:
            tickets = accepted.tickets
            return RequestReply(
                id=request_id,
                status="waiting" if all(ticket.status == "waiting" for ticket in tickets) else "running",
                steps_done=sum(ticket.steps_done for ticket in tickets),
                steps=sum(ticket.cost.num_steps for ticket in tickets),
                eta_s=service.eta_s(accepted),
            )
        found = await in_worker(service.ledger.look_up, request_id, client)
        if found is None:
            raise NotFoundError("you have no request with this id")
        status = "waiting" if found[0] == "accepted" else found[0]  # on its way into the line
        return RequestReply(id=request_id, status=status, message=found[1])

    @app.delete("/v1/requests/{request_id}", tags=["requests"], status_code=202)
    async def cancel_request(request: Request, request_id: str) -> RequestReply:
        """Stop working on a request; whoever waits for it is told."""
        accepted = service.running(request_id, request.state.client)
        if accepted is None:
            raise NotFoundError("you have no running request with this id")
        service.cancel(accepted)
        return RequestReply(id=request_id, status="cancelled")

    # Sessions

    def node_reply(session_id: str, node: Node) -> NodeReply:
        return NodeReply(
            id=node.id,
            parents=node.parents,
            instruction=node.instruction,
            image=f"/v1/sessions/{session_id}/nodes/{node.id}/image",
            seed=node.recipe.seed,
            steps=node.recipe.num_inference_steps,
            size="{}x{}".format(*node.recipe.size_px),
        )

    @app.post("/v1/sessions", tags=["sessions"], status_code=201)
    async def create_session(request: Request) -> SessionReply:
        """Begin a conversation."""
        session_id = await in_worker(service.create_session, request.state.client)
        return SessionReply(id=session_id, created=int(time.time()))

    @app.get("/v1/sessions", tags=["sessions"])
    async def list_sessions(request: Request) -> ListReply:
        """Your conversations, oldest first."""
        found = await in_worker(service.session_ids, request.state.client)
        return ListReply(data=[{"id": name, "object": "ace.session", "created": made} for name, made in found])

    @app.get("/v1/sessions/{session_id}", tags=["sessions"])
    async def get_session(request: Request, session_id: str) -> SessionReply:
        """A conversation's tree of edits."""

        def read() -> SessionReply:
            session = service.session(request.state.client, session_id)
            created = int((session.folder / "session.json").stat().st_mtime)
            nodes = [node_reply(session_id, node) for node in session.nodes()]
            return SessionReply(id=session_id, created=created, nodes=nodes)

        return await in_worker(read)

    @app.delete("/v1/sessions/{session_id}", tags=["sessions"], status_code=204)
    async def delete_session(request: Request, session_id: str) -> Response:
        """Delete a conversation and all its pictures."""
        await in_worker(service.delete_session, request.state.client, session_id)
        return Response(status_code=204)

    @app.post(
        "/v1/sessions/{session_id}/turns",
        tags=["sessions"],
        response_model=TurnReply,
        openapi_extra={
            "requestBody": {
                "content": {
                    "multipart/form-data": {"schema": {"type": "object"}},
                    "application/json": {"schema": TurnBody.model_json_schema()},
                }
            }
        },
    )
    async def turn(request: Request, session_id: str) -> Response:
        """The next round: goes on from `parent` (default: the latest node) with everything said before it.

        In the prompt `@3` means the answer of node 0003, `@a`, `@b`, … the pictures that are sent along."""
        fields, uploads, mask_file = await read_files(request, TurnForm, TurnBody)
        count = check(fields)
        chosen = fields.settings(any_seed() if fields.seed is None else fields.seed, engine.model.num_inference_steps)
        session = await in_worker(service.session, request.state.client, session_id)

        def understand() -> Job:
            parent = None if fields.parent == "none" else fields.parent
            if parent == "latest":
                latest = session.latest()
                parent = None if latest is None else latest.id
            pictures = open_pictures(uploads, settings.max_pixels)
            mask = None
            if mask_file is not None:
                edited = pictures[0].opened if pictures else None if parent is None else session.answer(parent)
                if edited is None:
                    raise InputError("a mask needs the picture that it belongs to: send the image as well")
                mask, _ = open_mask(mask_file, edited, settings.max_pixels)
            return service.open_turn(session, Message(fields.prompt, chosen, tuple(pictures), mask), parent)

        jobs = variants(await in_worker(understand), count)
        accepted = await accept(request, jobs)
        nodes = []
        for number, made in enumerate(await wait_for(request, accepted)):
            node = await in_worker(service.add_node, session, made)
            reply = node_reply(session_id, node)
            encoded = await in_worker(encode_result, made, fields.output_format or "png")
            reply.b64_json = base64.b64encode(encoded).decode()
            reply.ace = details(made, seconds_of(accepted, number))
            nodes.append(reply)
        return JSONResponse(
            TurnReply(id=accepted.id, session=session_id, created=int(time.time()), nodes=nodes).model_dump()
        )

    @app.get("/v1/sessions/{session_id}/nodes/{node_id}/image", tags=["sessions"])
    async def node_image(request: Request, session_id: str, node_id: str) -> Response:
        """The picture of a node (PNG), with its recipe."""

        def read() -> bytes:
            return service.session(request.state.client, session_id).node(node_id).image_path.read_bytes()

        return Response(await in_worker(read), media_type="image/png")

    @app.get("/v1/sessions/{session_id}/archive", tags=["sessions"])
    async def archive(request: Request, session_id: str) -> Response:
        """The whole conversation as one ZIP file, which `ace chat` opens."""
        import tempfile

        session = await in_worker(service.session, request.state.client, session_id)
        file = tempfile.SpooledTemporaryFile(max_size=2**20)  # noqa: SIM115  closed when it is sent
        await in_worker(session.write_archive, file)
        file.seek(0)

        async def chunks() -> AsyncIterator[bytes]:
            with file:
                while chunk := await in_worker(file.read, 2**20):
                    yield chunk

        return StreamingResponse(chunks(), media_type="application/zip")

    # Operators

    @app.get("/health", tags=["operation"])
    async def health() -> JSONResponse:
        """Whether the process works: 503 if it should be started again."""
        return JSONResponse({"status": "ok" if engine.alive else "broken"}, 200 if engine.alive else 503)

    @app.get("/ready", tags=["operation"])
    async def ready() -> JSONResponse:
        """Whether requests are taken."""
        return JSONResponse({"ready": engine.ready}, 200 if engine.ready else 503)

    @app.get("/metrics", tags=["operation"])
    async def prometheus() -> Response:
        """Counters and times for Prometheus."""
        return Response(metrics.text(), media_type=metrics.MIME)

    # Errors

    @app.exception_handler(AceError)
    async def on_ace_error(request: Request, error: AceError) -> Response:
        return refuse(error)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        return refuse_fields(error.errors())

    @app.exception_handler(ValidationError)
    async def on_form_error(request: Request, error: ValidationError) -> Response:
        return refuse_fields(error.errors(include_url=False, include_input=False, include_context=False))

    @app.exception_handler(MultiPartException)
    async def on_broken_form(request: Request, error: MultiPartException) -> Response:
        return JSONResponse(error_body("the form cannot be read: send it again", "invalid_form"), 400)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        code = error.code if isinstance(error, Refused) else None
        return JSONResponse(error_body(str(error.detail), code), error.status_code, error.headers)

    app.add_middleware(Gate, settings=settings, on_end=metrics.request_ended)
    return app


# Errors, as OpenAI's API has them


def error_body(message: str, code: str | None, param: str | None = None, kind: str = "invalid_request_error") -> dict:
    """The content of an error's answer."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_of(error: AceError) -> tuple[int, dict, dict[str, str]]:
    """(status, content, headers) of an error."""
    if isinstance(error, BusyError):
        headers = {"retry-after": str(math.ceil(error.retry_after_s))}
        return 429, error_body(str(error), "busy", kind="rate_limit_error"), headers
    if isinstance(error, StoppedError) and error.cancelled:
        return 410, error_body(str(error), "cancelled"), {}
    if isinstance(error, StoppedError):
        return 503, error_body(str(error), "stopped", kind="server_error"), {"retry-after": "5"}
    if isinstance(error, NotFoundError):
        return 404, error_body(str(error), "not_found"), {}
    if isinstance(error, InputError):
        return 400, error_body(str(error), type(error).__name__.removesuffix("Error").lower()), {}
    return 500, error_body("the server could not make this picture", "server_error", kind="server_error"), {}


def refuse(error: AceError) -> Response:
    """The answer to a request that an error ended."""
    status, content, headers = error_of(error)
    if status == 500:
        log.error("request failed", exc_info=error)
    return JSONResponse(content, status, headers)


def refuse_fields(errors: Sequence) -> Response:
    """The answer to fields that are missing, unknown or wrong: the first of them."""
    first = errors[0]
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    return JSONResponse(error_body(message[:300], first["type"], param), 400)
