"""What every route needs: the service behind it, worker threads, and how a request is read, accepted and waited for.

A request is read, understood (`schema.py`, `images.py`), accepted (`service.py`) and waited for; if its client goes
away meanwhile, it is cancelled, unless it is detached. Not here: what is answered (`routes/`,
`replies.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from ace.conditions.images import OpenedImage
from ace.conditions.opener import Call, OpenLimits, current_call
from ace.conditions.units import MAX_IMAGES
from ace.conversation.family import Family
from ace.conversation.job import Settings
from ace.conversation.message import Mask, Picture
from ace.conversation.seeds import read_seed
from ace.errors import ConfigError, InputError
from ace.server.engine import Engine
from ace.server.images import Upload, fetch, mask_of, open_uploads
from ace.server.metrics import Metrics
from ace.server.schema import PictureBody
from ace.server.service import Accepted, NotFoundError, Service
from ace.server.videos import VideoStore

if TYPE_CHECKING:
    from ace.server.settings import ServerSettings

_MAX_FIELD_BYTES = 64 * 1024
# Threads for what blocks, apart from each other so that one kind never keeps another waiting: looking things up,
# taking requests on, and opening and writing images, of which few at once bound the memory that it needs.
_NUM_WORKERS, _NUM_ACCEPTING, _NUM_OPENING = 16, 4, 4
Result = TypeVar("Result")
Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True)
class Front:
    """One server's state, as the routes see it. An application has it as `app.state.front`."""

    service: Service
    metrics: Metrics
    videos: VideoStore = field(default_factory=VideoStore)
    workers: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_NUM_WORKERS))
    accepting: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_NUM_ACCEPTING))
    opening: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_NUM_OPENING))

    @property
    def engine(self) -> Engine:
        """What makes the images."""
        return self.service.engine

    @property
    def family(self) -> Family:
        """The model."""
        return self.engine.family

    @property
    def settings(self) -> ServerSettings:
        """What the operator chose."""
        return self.service.settings

    async def in_worker(self, function: Callable[..., Result], *args: object) -> Result:
        """Call what blocks in a thread."""
        return await to_thread.run_sync(lambda: function(*args), limiter=self.workers)

    async def on_images(self, request: Request, function: Callable[..., Result], *args: object) -> Result:
        """Call what opens or writes images in a thread; what it opens ends when the client goes away."""
        call = Call()
        token = current_call.set(call)

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            call.stop()

        watcher = asyncio.create_task(watch())
        try:
            return await to_thread.run_sync(lambda: function(*args), limiter=self.opening)
        finally:
            current_call.reset(token)
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    # Reading

    def check(self, fields: PictureBody) -> int:
        """How many images are asked for, and whether the model is here. Raises InputError."""
        if fields.model is not None:
            self.check_model(fields.model)
        return self.check_count(fields.n)

    def check_count(self, n: int | None) -> int:
        """How many images are asked for. Raises ConfigError."""
        if n is not None and n > self.settings.max_images:
            raise ConfigError(f"n is {n}: at most {self.settings.max_images} images per request")
        return n or 1

    def check_model(self, name: str) -> None:
        """Raise NotFoundError for a name that is not the model's."""
        if name not in (self.family.name, *self.settings.aliases):
            raise NotFoundError(f"the model {name[:80]!r} does not exist here: use {self.family.name}")

    def settings_of(self, fields: PictureBody) -> Settings:
        """How the images of a request are made; a seed is drawn if it names none. Raises ConfigError."""
        steps, most_px = self.family.describe().get("steps"), self.settings.max_pixels
        settings = fields.settings(read_seed(fields.seed), steps, most_px)
        return replace(settings, adapters=self.service.shelf.choose(fields.adapters or ""))

    async def fetch(self, url: str) -> Upload:
        """The image at an address. Raises InputError or ImageError."""
        return await self.in_worker(fetch, url, self.settings.url_hosts, self.settings.max_upload_bytes)

    @property
    def open_limits(self) -> OpenLimits:
        """Within which the images of a request are opened."""
        return OpenLimits(self.settings.max_pixels, self.settings.decode_timeout_s)

    def open(self, files: Files) -> OpenedFiles:
        """Open the files of a request, all within one budget of memory and time. Raises InputError or BusyError."""
        named = [("image", one) for one in files.images]
        named += [(name, one) for name in _SINGLE if (one := getattr(files, name)) is not None]
        with self.service.holding() as hold:
            opened = open_uploads([one for _, one in named], self.open_limits, lambda pixels: hold(4 * pixels))
        images = tuple(Picture(a, one.ref) for (name, one), a in zip(named, opened, strict=True) if name == "image")
        single = {name: (a, one) for (name, one), a in zip(named, opened, strict=True) if name != "image"}
        return OpenedFiles(
            images,
            photo=Picture(single["photo"][0], single["photo"][1].ref) if "photo" in single else None,
            mask=mask_of(*single["mask"]) if "mask" in single else None,
            drawing=single["drawing"][0] if "drawing" in single else None,
        )

    # Waiting

    async def accept(
        self, take: Callable[..., Accepted], request: Request, *args: object, **kwargs: object
    ) -> Accepted:
        """Take a request on with a method of the service, which gets its id and its client first. Raises as that."""
        state = request.state
        accepted = await to_thread.run_sync(
            lambda: take(state.request_id, state.client, *args, **kwargs), limiter=self.accepting
        )
        self.metrics.watch(accepted)
        return accepted

    async def wait_for(self, request: Request, accepted: Accepted) -> Any:
        """The result; a client that goes away cancels it. Raises the first error."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.service.cancel(accepted)

        watcher = asyncio.create_task(watch())
        try:
            return await self.result_of(accepted)
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def result_of(self, accepted: Accepted) -> Any:
        """The result; a client that disconnects cancels the request."""
        try:
            return await asyncio.wrap_future(accepted.result)
        finally:
            self.service.cancel(accepted)


async def _front_of(request: Request) -> Front:
    return request.app.state.front


TheFront = Annotated[Front, Depends(_front_of)]


@dataclass(frozen=True)
class Files:
    """The files that came with a request, by what they are for."""

    images: tuple[Upload, ...] = ()
    photo: Upload | None = None
    mask: Upload | None = None
    drawing: Upload | None = None


@dataclass(frozen=True)
class OpenedFiles:
    """The same, opened."""

    images: tuple[Picture, ...] = ()
    photo: Picture | None = None
    mask: Mask | None = None
    drawing: OpenedImage | None = None


async def read_files(front: Front, request: Request, form: type[Body], body: type[Body]) -> tuple[Body, Files]:
    """A request with files, as a form or as JSON with addresses; those that the JSON form does not name are refused.

    Raises InputError or HTTPException."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        return await _read_json(front, await request.body(), body)
    if kind != "multipart/form-data":
        raise HTTPException(415, "send multipart/form-data or application/json")
    async with sent_form(request, max_files=_MAX_FILES, max_fields=64) as parts:
        return await _read_form(parts, form, {"image", *(set(_SINGLE) & body.model_fields.keys())})


@contextlib.asynccontextmanager
async def sent_form(request: Request, max_files: int, max_fields: int) -> AsyncIterator[FormData]:
    """The form that a request is. Raises HTTPException for one that cannot be read."""
    try:
        form = await request.form(max_files=max_files, max_fields=max_fields, max_part_size=_MAX_FIELD_BYTES)
    except (LookupError, UnicodeError):  # of a character set that there is not
        raise HTTPException(400, "the form cannot be read: send it in UTF-8") from None
    try:
        yield form
    finally:
        await form.close()


_SINGLE = ("photo", "mask", "drawing")
_MAX_FILES = MAX_IMAGES + len(_SINGLE)


async def _read_json(front: Front, content: bytes, body: type[Body]) -> tuple[Body, Files]:
    fields = await front.in_worker(body.model_validate_json, content)
    images = tuple([await front.fetch(image.image_url) for image in getattr(fields, "images", ())])
    single = {name: getattr(fields, name, None) for name in _SINGLE}
    return fields, Files(
        images, **{name: await front.fetch(of.image_url) for name, of in single.items() if of is not None}
    )


async def _read_form(parts: FormData, form: type[Body], names: set[str]) -> tuple[Body, Files]:
    texts: dict[str, str] = {}
    images: list[Upload] = []
    single: dict[str, Upload] = {}
    for name, value in parts.multi_items():
        plain = name.removesuffix("[]")
        if isinstance(value, UploadFile):
            if plain not in names:
                raise InputError(f"unknown file {name[:40]!r}: send {', '.join(sorted(names))}")
            upload = Upload(await value.read(), value.filename or plain)
            if plain == "image":
                images.append(upload)
            elif plain in single:
                raise InputError(f"there are several files {plain!r}: send one")
            else:
                single[plain] = upload
        elif name in texts:
            raise InputError(f"{name[:40]!r} is there twice")
        else:
            texts[name] = value
    return form.model_validate(texts), Files(tuple(images), **single)


def form_or_json(body: type[BaseModel]) -> dict:
    """What the API's description says of a route that reads its request by itself."""
    content = {
        "multipart/form-data": {"schema": {"type": "object"}},
        "application/json": {"schema": body.model_json_schema()},
    }
    return {"requestBody": {"content": content}}
