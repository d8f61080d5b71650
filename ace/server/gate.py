"""The gate: what is checked before a request is read any further.

In this order: is it meant for this server (where a browser needs no key, or sends it by itself in a cookie, any web
page could send requests here, so a foreign `Host` or `Origin` is refused), does it show a key, is it too large (by its
header, and again as it arrives), does it arrive in time, and is there memory for it. Everything that passes has an id
and a client in `scope["state"]`.

A refusal may be ready before the request has arrived whole. Then the connection is not closed at once, which would
reset it and could lose the answer: the rest is read and thrown away first, for a moment.

A plain ASGI middleware: the framework's own read the body first.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import anyio
from starlette.exceptions import HTTPException

from ace.server.keys import Keys
from ace.server.settings import ServerSettings, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Paths without a key, with all below where one ends in "/": they say nothing about anybody's images, or their name is
# the secret (`/files/`).
OPEN = ("/health", "/ready", "/docs", "/redoc", "/openapi.json", "/files/")
_LINGER_S = 2.0  # for the rest of a request that has been answered already
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Refused(HTTPException):
    """A request that is refused before or while it is read. code: for programs."""

    def __init__(self, status: int, message: str, code: str) -> None:
        headers = {"connection": "close", **({"retry-after": "5"} if status == 503 else {})}
        super().__init__(status, message, headers)
        self.code = code


class RequestGate:
    """Stands before an application."""

    def __init__(
        self,
        app: App,
        settings: ServerSettings,
        on_end: Callable[[str, int, float], None],
        open_paths: tuple[str, ...] = (),
    ) -> None:
        self.app, self.settings, self.on_end = app, settings, on_end
        self.open_paths = (*OPEN, *open_paths)
        self.keys = Keys(settings.api_keys)
        self._receiving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-client-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        began, status = time.monotonic(), 499  # 499: the client went away before an answer

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            elif status >= 400 and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await body.discard()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        body = _Body(receive, self)
        try:
            client = self._check(scope["path"], headers)
            scope.setdefault("state", {}).update(client=client, request_id=request_id)
            await self.app(scope, body.receive, answer)
        except Refused as refused:
            if status == 499:
                await _refuse(answer, refused)
        finally:
            self._receiving -= body.num_bytes
            self.on_end(scope["path"], status, time.monotonic() - began)

    def _check(self, path: str, headers: dict[str, str]) -> str:
        """The client's name. Raises Refused."""
        origin = headers.get("origin")
        host = headers.get("host", "")
        if not self.settings.api_keys or self.settings.cookie:
            if not is_loopback(_name_of(host)) and _name_of(host) not in self.settings.host_names:
                raise Refused(403, "this server answers to 127.0.0.1 and localhost only", "wrong_host")
            if (origin is not None and (origin == "null" or urlsplit(origin).netloc != host)) or _is_foreign(headers):
                raise Refused(403, "requests from other web pages are refused", "wrong_origin")
        shown = headers.get("authorization")
        if shown is None and self.settings.cookie:
            shown = f"Bearer {_cookie_of(headers.get('cookie', ''), self.settings.cookie)}"
        client = self.keys.client_of(shown)
        if client is None:
            if not self._is_open(path):
                raise Refused(401, "no valid API key: send it as Authorization: Bearer …", "invalid_api_key")
            client = "nobody"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.settings.max_upload_bytes:
            raise self.too_large()
        return client

    def _is_open(self, path: str) -> bool:
        """Whether a path needs no key."""
        return any(path == known or (known[-1] == "/" != known and path.startswith(known)) for known in self.open_paths)

    def received(self, count: int) -> None:
        """Count bytes that have arrived. Raises Refused if all requests together hold too many."""
        self._receiving += count
        if self._receiving > self.settings.max_receiving_bytes:
            raise Refused(503, "too much is being sent at once: try again later", "busy")

    def too_large(self) -> Refused:
        """The refusal of a request of too many bytes."""
        most = self.settings.max_upload_bytes / 1e6
        return Refused(413, f"the request is too large: at most {most:g} MB", "too_large")


class _Body:
    """A request's body as it arrives, counted and timed."""

    def __init__(self, receive: Receive, gate: RequestGate) -> None:
        self._receive, self._gate = receive, gate
        self._until = time.monotonic() + gate.settings.upload_timeout_s
        self._complete = False
        self.num_bytes = 0

    async def receive(self) -> Message:
        """The next part; after the last one only the end of the connection is awaited, for as long as it takes."""
        if self._complete:
            return await self._receive()
        with anyio.move_on_after(max(0.0, self._until - time.monotonic())) as scope:
            message = await self._receive()
        if scope.cancelled_caught:
            raise Refused(408, "the request took too long to arrive", "timeout")
        if message["type"] == "http.request":
            count = len(message.get("body", b""))
            self.num_bytes += count
            self._gate.received(count)
            if self.num_bytes > self._gate.settings.max_upload_bytes:
                raise self._gate.too_large()
            self._complete = not message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Read what is still to come and forget it, for `_LINGER_S` at most."""
        with anyio.move_on_after(_LINGER_S):
            while not self._complete:
                message = await self._receive()
                self._complete = message["type"] != "http.request" or not message.get("more_body", False)


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that another site's page asks for something to use in itself; links may be followed."""
    link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not link


def _cookie_of(header: str, name: str) -> str:
    """The value of a cookie; "" without it."""
    pairs = (pair.strip().partition("=") for pair in header.split(";"))
    return next((value for key, _, value in pairs if key == name), "")


async def _refuse(send: Send, refused: Refused) -> None:
    kind = "authentication_error" if refused.status_code == 401 else "invalid_request_error"
    error = {"message": refused.detail, "type": kind, "param": None, "code": refused.code}
    body = json.dumps({"error": error}).encode()
    named = {"content-type": "application/json", "content-length": str(len(body)), **(refused.headers or {})}
    headers = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": refused.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
