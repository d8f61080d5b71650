"""The studio as a web application: the page, its events and its files, and who may ask for them.

The page is one `gr.HTML` component whose script (`page/studio.js`) draws a view and sends events; Gradio carries both
and streams the views while an answer is being made. Pictures, uploads and exports go through plain routes under
`/studio/`, by id and never by path.

Only this machine may ask: the server listens on the loopback address, refuses requests under another host name (DNS
rebinding) and from other sites' pages, and closes those of Gradio's own routes that read or write files. There is no
`share`, and the page loads nothing from elsewhere.

Not here: what an event does (`actions.py`), loading models (`ace/cli/chat.py`).
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from ace.conditions.images import open_image
from ace.errors import AceError, ConfigError, ImageError, InputError, MissingDependencyError
from ace.inference.recipe import encode
from ace.web import actions
from ace.web.actions import E, Studio

try:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gradio as gr
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import FileResponse, JSONResponse
    from starlette.background import BackgroundTask
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError:
    raise MissingDependencyError("the studio needs Gradio: pip install 'ace-allround[web]'") from None

PAGE = Path(__file__).parent / "page"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MAX_ARCHIVE_BYTES = 2**30
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
# Gradio reads the names of the page's events from this script.
_START = """
// events: 'send' 'stop' 'go' 'again' 'replay' 'refresh'
Promise.all([import("/studio/studio.js"), fetch("/studio/examples").then((answer) => answer.json())])
  .then(([page, examples]) => page.default({ element, props, trigger, watch, examples }));
"""
# Gradio's routes that take or give files or fetch addresses: the page needs none of them
CLOSED = ("/gradio_api/upload", "/gradio_api/file", "/gradio_api/proxy", "/gradio_api/stream", "/gradio_api/mcp")
HEADERS = {
    b"content-security-policy": (
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; "
        b"form-action 'self'; base-uri 'self'"
    ),
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


def make_app(studio: Studio) -> FastAPI:
    """The whole application around a studio, for uvicorn."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_files(app, studio)
    gr.mount_gradio_app(
        app,
        _blocks(studio),
        path="/",
        footer_links=[],
        show_error=False,
        max_file_size="1kb",
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        head='<link rel="stylesheet" href="/studio/studio.css">',
    )
    app.add_middleware(OnlyThisMachine)
    return app


class OnlyThisMachine:
    """Refuses requests under a host name that is not this machine's, and those that another site's page sends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403 or 404."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        refusal = _refuse(headers.get(b"host", ""), headers.get(b"origin"), scope["path"])
        if refusal is not None:
            await Response(refusal[1], refusal[0], media_type="text/plain")(scope, receive, send)
            return

        async def with_headers(message) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message.get("headers", []) if name.lower() not in HEADERS]
                message = {**message, "headers": [*own, *HEADERS.items()]}
            await send(message)

        await self.app(scope, receive, with_headers)


def _refuse(host: str, origin: str | None, path: str) -> tuple[int, str] | None:
    """Why a request is refused, None if it is not."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name.lower() not in LOOPBACK:
        return 403, "ace chat answers on this machine only"
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return 403, "ace chat answers its own page only"
    if path.rstrip("/").startswith(CLOSED):
        return 404, "not found"
    return None


# The page


def _blocks(studio: Studio) -> gr.Blocks:
    """The layout, which is one component, and which event calls what."""

    def respond(kind: type[E], act: Callable[[Studio, E], None]) -> Callable[[gr.EventData], Iterator[dict]]:
        def answer(event: gr.EventData) -> Iterator[dict]:
            try:
                act(studio, actions.read_event(kind, event._data))
            except AceError as error:
                actions.complain(studio, error)
            yield from actions.watch(studio)

        return answer

    def now() -> Iterator[dict]:
        yield from actions.watch(studio)

    def stop() -> None:
        actions.stop(studio)

    with gr.Blocks(title="ace studio", analytics_enabled=False, fill_width=True) as blocks:
        page = gr.HTML(
            value={},
            html_template='<div class="studio" id="studio"></div>',
            js_on_load=_START,
            apply_default_css=False,
            elem_id="page",
        )
        quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        blocks.load(now, outputs=page, **quiet)
        page.send(respond(actions.Said, actions.send), outputs=page, **quiet)
        page.again(respond(actions.Again, actions.again), outputs=page, **quiet)
        page.replay(respond(actions.At, actions.replay), outputs=page, **quiet)
        page.go(respond(actions.At, actions.go), outputs=page, **quiet)
        page.refresh(now, outputs=page, **quiet)
        page.stop(stop, queue=False, **quiet)
    return blocks


# Files


def _add_files(app: FastAPI, studio: Studio) -> None:
    @app.exception_handler(InputError)
    def refused(request: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 422)

    @app.get("/studio/studio.css")
    def style() -> FileResponse:
        return FileResponse(PAGE / "studio.css", media_type="text/css")

    @app.get("/studio/studio.js")
    def script() -> FileResponse:
        return FileResponse(PAGE / "studio.js", media_type="text/javascript")

    @app.get("/studio/examples")
    def examples() -> list[dict]:
        return actions.gallery()

    @app.get("/studio/nodes/{node_id}/{name}")
    def picture(request: Request, node_id: str, name: str) -> Response:
        node = studio.chat.session.node(node_id)
        if name == "thumbnail":
            return _kept(request, actions.thumbnail(open_image(node.image_path).image), "image/webp")
        stem, _, suffix = name.rpartition(".")
        if stem == "answer" and suffix in FORMATS:  # the file to take away: with its recipe and the mark of its origin
            with Image.open(node.image_path) as image:
                data = encode(image, FORMATS[suffix], node.recipe)
            return Response(
                data,
                media_type=f"image/{'jpeg' if suffix == 'jpg' else suffix}",
                headers={"content-disposition": f'attachment; filename="ace-{node_id}.{suffix}"'},
            )
        files = {node.image_path.name: node.image_path}
        for one in node.inputs:
            for path in (one.path if one.node is None else None, one.mask_path):
                if path is not None:
                    files[path.name] = path
        if name not in files or files[name].is_symlink():
            return Response("not found", 404, media_type="text/plain")
        return _kept(request, files[name].read_bytes(), "image/png")

    @app.get("/studio/uploads/{upload}")
    def upload_picture(request: Request, upload: str) -> Response:
        stream = io.BytesIO()
        actions.upload_picture(studio, upload).save(stream, "PNG", compress_level=1)
        return _kept(request, stream.getvalue(), "image/png")

    @app.get("/studio/examples/{name}")
    def example_picture(request: Request, name: str) -> Response:
        for one in actions.EXAMPLES:
            if name in one.pictures:
                return _kept(request, one.picture_paths()[one.pictures.index(name)].read_bytes(), "image/webp")
        return Response("not found", 404, media_type="text/plain")

    @app.post("/studio/uploads")
    async def upload(request: Request) -> dict:
        path = await _receive(request, actions.MAX_UPLOAD_BYTES)
        try:
            return actions.add_upload(studio, path, _file_name(request))
        finally:
            path.unlink()

    @app.post("/studio/examples/{family}/{task}")
    def open_example(family: str, task: str) -> dict:
        return actions.open_example(studio, f"{family}/{task}")

    @app.get("/studio/session.zip")
    def export() -> FileResponse:
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

    @app.post("/studio/session.zip")
    async def add_session(request: Request) -> dict:
        path = await _receive(request, MAX_ARCHIVE_BYTES)
        try:
            actions.import_archive(studio, path, _file_name(request))
        finally:
            path.unlink()
        return {}


def _kept(request: Request, data: bytes, media_type: str) -> Response:
    """A picture that a browser may keep and asks about again: another session has others under the same address."""
    tag = f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'
    headers = {"cache-control": "private, no-cache", "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


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
