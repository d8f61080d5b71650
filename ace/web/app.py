"""The studio: the server's application for one person on this machine, with a page in front of it.

Who may ask: whoever opened the start link. The server makes a key of its own at every start; the link, which works
once, gives the browser that key in a cookie that no script can read and that other sites' pages cannot use. The address
that stays holds no secret. As for every server with a cookie, a foreign `Host` or `Origin` is refused (`gate.py`). The
page loads nothing from elsewhere and runs no inline script, and a content security policy says so.

Not here: what the page does (`page/`), what a request means (`ace/server`), loading models (`ace/cli/chat.py`).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ace.conditions.images import MAX_PIXELS
from ace.conversation.job import MAX_VARIANTS
from ace.server.app import create_app
from ace.server.engine import Engine
from ace.server.ledger import Ledger
from ace.server.settings import Limits, ServerSettings
from ace.web.lessons import Lessons, lessons_router
from ace.web.selecting import Selector, select_router

PAGE = Path(__file__).parent / "page"
SESSION_ID = "studio"  # under which the page finds its session
MAX_UPLOAD_BYTES = 2**30  # sessions are imported as one file
HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self'; "
        b"connect-src 'self'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
    ),
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
}
# A page that goes on by itself: then it is our own page that asks for the next one, with the cookie.
_GO_ON = (
    '<!doctype html><title>ace</title><link rel="icon" href="data:,"><meta http-equiv="refresh" content="0; url=/">'
)


def studio_settings(
    folder: Path,
    port: int,
    host: str = "127.0.0.1",
    names: Sequence[str] = (),
    keys: Sequence[str] = (),
    max_pixels: int = MAX_PIXELS,
) -> ServerSettings:
    """The server's settings for one person and one session folder, with a new key.

    host: where it listens; names: by which the page is reached from other machines; keys: further ones, for programs.
    max_pixels: of one image.
    Raises ConfigError for keys that are too short."""
    return ServerSettings(
        host=host,
        port=port,
        host_names=tuple(names),
        api_keys=(secrets.token_urlsafe(32), *keys),
        cookie=f"ace-studio-{port}",  # browsers keep cookies by host, whatever the port
        opened_sessions=((SESSION_ID, folder),),
        adapters_folder=folder.resolve().parent / "adapters",
        limits=Limits(max_operations=float("inf")),
        max_upload_bytes=MAX_UPLOAD_BYTES,
        max_receiving_bytes=2 * MAX_UPLOAD_BYTES,
        upload_timeout_s=600.0,
        max_pixels=max_pixels,
        max_images=MAX_VARIANTS,
        max_session_nodes=100_000,
        drain_s=0.0,
        max_unsafe=1.0,
    )


class StartLink:
    """The link that opens the studio, once. on_new: called with its path, and after each use with the next one's."""

    def __init__(self, on_new: Callable[[str], None] = lambda path: None) -> None:
        self._on_new = on_new
        self._token = secrets.token_urlsafe(24)

    @property
    def path(self) -> str:
        """Where it leads."""
        return f"/start/{self._token}"

    def use(self, token: str) -> bool:
        """Whether a token is the one that opens the studio; it is used up then."""
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return False
        self._token = secrets.token_urlsafe(24)
        self._on_new(self.path)
        return True


def make_app(
    engine: Engine,
    settings: ServerSettings,
    ledger: Ledger | None = None,
    *,
    start: StartLink,
    model: str | None = None,
) -> FastAPI:
    """The whole application of a started engine. settings: of `studio_settings`; model: what lessons teach, by name or
    folder, None = the default."""
    lessons = Lessons(settings.adapters_folder, model)
    more = _router(settings, start), lessons_router(lessons), select_router(Selector())
    app = create_app(engine, settings, ledger, more=more, open_paths=("/", "/start/", "/page/"), docs=False)
    app.router.add_event_handler("shutdown", lessons.end)
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_middleware(WithHeaders)
    return app


class WithHeaders:
    """Adds the page's headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS.items()]}
            await send(message)

        await self.app(scope, receive, with_headers)


def _router(settings: ServerSettings, start: StartLink) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def page(request: Request) -> Response:
        """The studio, or how to get in."""
        known = request.state.client != "nobody"
        return FileResponse(
            PAGE / ("studio.html" if known else "locked.html"), 200 if known else 401, {"cache-control": "no-store"}
        )

    @router.get("/start/{token}")
    def begin(token: str) -> Response:
        """Give the browser its key."""
        if not start.use(token):
            return FileResponse(PAGE / "locked.html", 403, {"cache-control": "no-store"})
        answer = HTMLResponse(_GO_ON, headers={"cache-control": "no-store"})
        answer.set_cookie(settings.cookie or "", settings.api_keys[0], path="/", httponly=True, samesite="strict")
        return answer

    return router
