"""What every route needs: the service behind it, worker threads, and how a request is read, accepted and waited for.

A request is read, understood (`schema.py`, `jobs.py`), accepted (`service.py`) and waited for; if its client goes away
meanwhile, it is cancelled. Not here: what is answered (`routes/`, `replies.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from ace.conversation.edit import Job, Made, Settings
from ace.errors import ConfigError, InputError
from ace.server.engine import Engine, OnPreview
from ace.server.images import Upload, fetch
from ace.server.jobs import any_seed
from ace.server.metrics import Metrics
from ace.server.schema import PictureBody
from ace.server.service import Accepted, NotFoundError, Service

if TYPE_CHECKING:
    from ace.server.settings import ServerSettings

_MAX_FIELD_BYTES = 64 * 1024
_NUM_WORKERS = 4  # pictures decoded and encoded at once, which bounds the memory that this needs
Result = TypeVar("Result")
Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True)
class Front:
    """One server's state, as the routes see it. An application has it as `app.state.front`."""

    service: Service
    metrics: Metrics
    workers: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_NUM_WORKERS))

    @property
    def engine(self) -> Engine:
        """What makes the pictures."""
        return self.service.engine

    @property
    def settings(self) -> ServerSettings:
        """What the operator chose."""
        return self.service.settings

    async def in_worker(self, function: Callable[..., Result], *args: object) -> Result:
        """Call what blocks in a thread."""
        return await to_thread.run_sync(lambda: function(*args), limiter=self.workers)

    # Reading

    def check(self, fields: PictureBody) -> int:
        """How many pictures are asked for, after checking what needs the model. Raises InputError."""
        if fields.model is not None:
            self.check_model(fields.model)
        if fields.size_px is not None:
            self.engine.model.check_size(fields.size_px)
        count = fields.n or 1
        if count > self.settings.max_images:
            raise ConfigError(f"n is {count}: at most {self.settings.max_images} pictures per request")
        return count

    def check_model(self, name: str) -> None:
        """Raise NotFoundError for a name that is not the model's."""
        if name not in (self.engine.model.name, *self.settings.aliases):
            raise NotFoundError(f"the model {name[:80]!r} does not exist here: use {self.engine.model.name}")

    def settings_of(self, fields: PictureBody) -> Settings:
        """How the pictures of a request are made; a seed is drawn if it names none."""
        seed = any_seed() if fields.seed is None else fields.seed
        return fields.settings(seed, self.engine.model.num_inference_steps)

    async def fetch(self, url: str) -> Upload:
        """The picture at an address. Raises InputError or ImageError."""
        return await self.in_worker(fetch, url, self.settings.url_hosts, self.settings.max_upload_bytes)

    # Waiting

    async def accept(
        self, request: Request, jobs: Sequence[Job], num_previews: int = 0, on_preview: OnPreview | None = None
    ) -> Accepted:
        """Take a request on. Raises as `Service.accept`."""
        state = request.state
        accepted = await self.in_worker(
            self.service.accept, state.request_id, state.client, jobs, num_previews, on_preview
        )
        self.metrics.watch(accepted)
        return accepted

    async def wait_for(self, request: Request, accepted: Accepted) -> list[Made]:
        """The results; a client that goes away cancels them. Raises the first error."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.service.cancel(accepted)

        watcher = asyncio.create_task(watch())
        try:
            return await self.gather(accepted)
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def gather(self, accepted: Accepted) -> list[Made]:
        """The results. The first that fails takes its siblings along, and so does whoever gives up waiting."""
        try:
            return list(await asyncio.gather(*(asyncio.wrap_future(ticket.result) for ticket in accepted.tickets)))
        finally:
            self.service.cancel(accepted)


async def _front_of(request: Request) -> Front:
    return request.app.state.front


TheFront = Annotated[Front, Depends(_front_of)]


async def read_pictures(
    front: Front, request: Request, form: type[Body], body: type[Body]
) -> tuple[Body, list[Upload], Upload | None]:
    """A request with pictures and perhaps a mask, as a form or as JSON. Raises InputError or HTTPException."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        return await _read_json(front, await request.body(), body)
    if kind != "multipart/form-data":
        raise HTTPException(415, "send multipart/form-data or application/json")
    async with request.form(max_files=12, max_fields=64, max_part_size=_MAX_FIELD_BYTES) as parts:
        return await _read_form(parts, form)


async def _read_json(front: Front, content: bytes, body: type[Body]) -> tuple[Body, list[Upload], Upload | None]:
    fields = body.model_validate_json(content)
    uploads = [await front.fetch(image.image_url) for image in getattr(fields, "images", ())]
    mask = getattr(fields, "mask", None)
    return fields, uploads, None if mask is None else await front.fetch(mask.image_url)


async def _read_form(parts: FormData, form: type[Body]) -> tuple[Body, list[Upload], Upload | None]:
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
    return form.model_validate(texts), files["image"], files["mask"][0] if files["mask"] else None


def form_or_json(body: type[BaseModel]) -> dict:
    """What the API's description says of a route that reads its request by itself."""
    content = {
        "multipart/form-data": {"schema": {"type": "object"}},
        "application/json": {"schema": body.model_json_schema()},
    }
    return {"requestBody": {"content": content}}
