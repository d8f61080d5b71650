"""The studio's plain routes under `/studio/`: the page's own files, pictures by id, uploads, a session as one file.

Nothing that is asked for names a path, and what is sent is counted while it arrives. Each route has a studio as
`request.app.state.studio`.

Not here: events (`app.py`), what a file is good for (`actions.py`).
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from starlette.background import BackgroundTask

from ace.conditions.images import open_image
from ace.conversation.recipe import encode
from ace.conversation.session import Node
from ace.errors import ConfigError, ImageError, InputError
from ace.web import actions
from ace.web.actions import Studio

PAGE = Path(__file__).parent / "page"
MAX_ARCHIVE_BYTES = 2**30
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}

router = APIRouter(prefix="/studio")


def add_files(app: FastAPI, studio: Studio) -> None:
    """Give an application these routes, over a studio."""
    app.state.studio = studio
    app.include_router(router)

    @app.exception_handler(InputError)
    def refused(request: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 422)


def _studio_of(request: Request) -> Studio:
    return request.app.state.studio


TheStudio = Annotated[Studio, Depends(_studio_of)]


# The page's own


@router.get("/studio.css")
def style() -> FileResponse:
    """How the page looks."""
    return FileResponse(PAGE / "studio.css", media_type="text/css")


@router.get("/studio.js")
def script() -> FileResponse:
    """What the page does."""
    return FileResponse(PAGE / "studio.js", media_type="text/javascript")


@router.get("/examples")
def examples() -> list[dict]:
    """The gallery."""
    return actions.gallery()


@router.get("/examples/{name}")
def example_picture(request: Request, name: str) -> Response:
    """A picture of the gallery."""
    for one in actions.EXAMPLES:
        if name in one.pictures:
            return _kept(request, one.picture_paths()[one.pictures.index(name)].read_bytes(), "image/webp")
    return _not_found()


@router.post("/examples/{family}/{task}")
def open_example(studio: TheStudio, family: str, task: str) -> dict:
    """Put an example into the composer."""
    return actions.open_example(studio, f"{family}/{task}")


# Pictures


@router.get("/nodes/{node_id}/{name}")
def picture(studio: TheStudio, request: Request, node_id: str, name: str) -> Response:
    """A node's picture as it is kept, small (`thumbnail`), or to take away (`answer.png`, `.jpg`, `.webp`)."""
    node = studio.chat.session.node(node_id)
    if name == "thumbnail":
        return _kept(request, actions.thumbnail(open_image(node.image_path).image), "image/webp")
    stem, _, suffix = name.rpartition(".")
    if stem == "answer" and suffix in FORMATS:
        return _download(node, suffix)
    path = _files_of(node).get(name)
    if path is None or path.is_symlink():
        return _not_found()
    return _kept(request, path.read_bytes(), "image/png")


@router.get("/uploads/{upload}")
def upload_picture(studio: TheStudio, request: Request, upload: str) -> Response:
    """A picture that was sent and not used yet."""
    stream = io.BytesIO()
    actions.upload_picture(studio, upload).save(stream, "PNG", compress_level=1)
    return _kept(request, stream.getvalue(), "image/png")


@router.post("/uploads")
async def upload(studio: TheStudio, request: Request) -> dict:
    """Take a picture."""
    path = await _receive(request, actions.MAX_UPLOAD_BYTES)
    try:
        return actions.add_upload(studio, path, _file_name(request))
    finally:
        path.unlink()


# A session as one file


@router.get("/session.zip")
def export_session(studio: TheStudio) -> FileResponse:
    """All of the session."""
    descriptor, name = tempfile.mkstemp(prefix="ace-", suffix=".zip")
    try:
        with os.fdopen(descriptor, "wb") as file:
            studio.chat.session.write_archive(file)
    except BaseException:
        os.unlink(name)
        raise
    return FileResponse(
        name,
        media_type="application/zip",
        filename=f"{studio.chat.session.folder.name}.zip",
        background=BackgroundTask(os.unlink, name),
    )


@router.post("/session.zip")
async def import_session(studio: TheStudio, request: Request) -> dict:
    """Add what another session exported."""
    path = await _receive(request, MAX_ARCHIVE_BYTES)
    try:
        actions.import_archive(studio, path, _file_name(request))
    finally:
        path.unlink()
    return {}


# Steps of these


def _files_of(node: Node) -> dict[str, Path]:
    """The pictures and masks that lie in a node's own folder, by name."""
    own = [one.path for one in node.inputs if one.node is None]
    masks = [one.mask_path for one in node.inputs if one.mask_path is not None]
    return {path.name: path for path in (node.image_path, *own, *masks)}


def _download(node: Node, suffix: str) -> Response:
    """The file to take away: with its recipe and the mark of its origin."""
    with Image.open(node.image_path) as image:
        data = encode(image, FORMATS[suffix], node.recipe)
    kind = FORMATS[suffix].lower()
    named = f'attachment; filename="ace-{node.id}.{suffix}"'
    return Response(data, media_type=f"image/{kind}", headers={"content-disposition": named})


def _kept(request: Request, data: bytes, media_type: str) -> Response:
    """A picture that a browser may keep and asks about again: another session has others under the same address."""
    tag = f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'
    headers = {"cache-control": "private, no-cache", "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


def _not_found() -> Response:
    return Response("not found", 404, media_type="text/plain")


def _file_name(request: Request) -> str:
    return unquote(request.headers.get("x-file-name", ""))


async def _receive(request: Request, most: int) -> Path:
    """The body as a file, refused as soon as it is too large. Raises InputError."""
    if "x-ace-studio" not in request.headers:  # a header that another site's page cannot send without asking first
        raise ConfigError("this is for the studio's own page")
    too_large = ImageError(f"the file is too large: send at most {most // 2**20} MB")
    if int(request.headers.get("content-length") or 0) > most:
        raise too_large
    descriptor, name = tempfile.mkstemp(prefix="ace-")
    try:
        size = 0
        with os.fdopen(descriptor, "wb") as file:
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                file.write(part)
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)
