"""The studio as a web application: the page and its events, and who may ask for anything.

The page is one `gr.HTML` component whose script (`page/studio.js`) draws a view and sends events; Gradio carries both
and streams the views while an answer is being made. Pictures, uploads and exports go through plain routes
(`files.py`).

Only this machine may ask: the server listens on the loopback address, refuses requests under another host name (DNS
rebinding) and from other sites' pages, and closes those of Gradio's own routes that read or write files. There is no
`share`, and the page loads nothing from elsewhere.

Not here: what an event does (`actions.py`), loading models (`ace/cli/chat.py`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from ace.errors import AceError, MissingDependencyError
from ace.web import actions
from ace.web.actions import E, Studio

try:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gradio as gr
    from fastapi import FastAPI, Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ace.web.files import add_files
except ImportError:
    raise MissingDependencyError("the studio needs Gradio: pip install 'ace-allround[web]'") from None

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
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
    add_files(app, studio)
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
