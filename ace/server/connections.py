"""Connections: how many there may be, how long one may be silent, and who is cut off.

A request's head must arrive within `IDLE_S` of the connection or of the last answer; an answer of which nothing is
taken for `STALL_S` ends with its connection, so that nobody keeps results and descriptors by not reading. Where there
is no room for another connection, the one that has been idle longest makes room: a crowd of silent ones keeps nobody
out. The parser is h11 whatever else is installed: its bound on heads is known and tested.

Not here: what a request says (`gate.py`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ace.server.settings import is_loopback

MAX_HEAD_BYTES = 64 * 1024
_LOOKS = 4  # at a connection within its shortest deadline
_SPARE_DESCRIPTORS = 200  # for files, the model and the ledger


@dataclass(frozen=True)
class ConnectionLimits:
    """What connections may take.

    most: open at once; most_per_address: of one address, unless it is loopback or in `trusted` (a reverse proxy).
    idle_s: without a whole request's head; stall_s: with an answer of which nothing is taken."""

    most: int = 1000
    most_per_address: int = 100
    trusted: tuple[str, ...] = ()
    idle_s: float = 30.0
    stall_s: float = 30.0


def room_for_connections(most: int) -> int:
    """How many connections fit into the descriptors that this process may open, `most` at most."""
    try:
        import resource
    except ImportError:  # not on Windows
        return most
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(16, min(most, soft - _SPARE_DESCRIPTORS))


def uvicorn_config(app: object, limits: ConnectionLimits | None = None, **settings: object) -> uvicorn.Config:
    """How every server of ours listens. settings: further ones of uvicorn."""
    bound = limits or ConnectionLimits()

    class Bound(Connection):
        limits = bound

    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=Bound,
        ws="none",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(bound.idle_s) + 1,  # ours comes first
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        **settings,  # type: ignore[arg-type]
    )


class Connection(H11Protocol):
    """One connection."""

    limits = ConnectionLimits()
    _looking: asyncio.TimerHandle | None = None
    _left = 0  # bytes of answers that the other side has not taken, when last looked at

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, or the place of one that is idle."""
        super().connection_made(transport)
        self.idle_since = self._moved_at = self.loop.time()
        others = [one for one in self.connections if isinstance(one, Connection) and one is not self]
        self._make_room(others, self.limits.most)
        address = self.client[0] if self.client else ""
        if not is_loopback(address) and address not in self.limits.trusted:
            same = [one for one in others if one.client is not None and one.client[0] == address]
            self._make_room(same, self.limits.most_per_address)
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The next request may come."""
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as every other fault is answered."""
        error = {"message": "this is no HTTP request", "type": "invalid_request_error", "param": None, "code": None}
        body = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", f"req-{secrets.token_hex(12)}".encode()),
            (b"connection", b"close"),
        ]
        try:
            self.transport.write(self.conn.send(h11.Response(status_code=400, headers=headers)) or b"")
            self.transport.write(self.conn.send(h11.Data(data=body)) or b"")
            self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError:  # an answer was on its way already
            pass
        self.transport.close()

    def _make_room(self, others: Collection[Connection], most: int) -> None:
        """Close the one of `others` that has been idle longest, if they are too many; this one if all are busy."""
        there = [one for one in others if not one.transport.is_closing()]
        if len(there) < most or self.transport.is_closing():
            return
        idle = [one for one in there if one.idle]
        (min(idle, key=lambda one: one.idle_since) if idle else self).transport.abort()

    def _look_later(self) -> None:
        seconds = min(self.limits.idle_s, self.limits.stall_s) / _LOOKS
        self._looking = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Close the connection if it has been silent or has taken nothing for too long."""
        now, left = self.loop.time(), self.transport.get_write_buffer_size()
        if left == 0 or left < self._left:
            self._moved_at = now
        self._left = left
        stalled = left > 0 and now - self._moved_at > self.limits.stall_s
        silent = self.idle and left == 0 and now - self.idle_since > self.limits.idle_s
        if stalled:  # nor may what the system still holds for it wait to be taken
            held = self.transport.get_extra_info("socket")
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if stalled or silent:
            self.transport.abort()
        else:
            self._look_later()
