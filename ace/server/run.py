"""From a model and settings to a server that listens, and that goes down in good order.

A signal to stop closes the door, gives accepted work `drain_s` to end, fails the rest explicitly, and only then ends
the process.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable

import anyio
import uvicorn
from anyio import to_thread
from fastapi import FastAPI

from ace.conditions.opener import OpenLimits, start_opener, stop_openers
from ace.conversation.family import Family
from ace.errors import ConfigError
from ace.server.app import create_app
from ace.server.connections import ConnectionLimits, room_for_connections, uvicorn_config
from ace.server.engine import Engine
from ace.server.ledger import Ledger
from ace.server.settings import ServerSettings


class _Server(uvicorn.Server):
    """uvicorn's server, which drains the engine while it waits for open requests."""

    def __init__(self, config: uvicorn.Config, engine: Engine, drain_s: float) -> None:
        super().__init__(config)
        self.engine, self.drain_s = engine, drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(to_thread.run_sync, self.engine.stop, self.drain_s)
            await super().shutdown(sockets)


def serve(
    load: Callable[[], Family],
    settings: ServerSettings,
    on_ready: Callable[[str], None] = lambda url: None,
    *,
    make_app: Callable[[Engine, ServerSettings, Ledger], FastAPI] = create_app,
    listener: socket.socket | None = None,
) -> None:
    """Serve until a signal to stop.

    load: called for the loaded model once the address and the data folder are known to be free. on_ready: called with
    the address once requests are answered. listener: None = one of `listen`. Raises ConfigError if address or folder
    is not free, and whatever `load` raises."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listener or listen(settings.host, settings.port))
        ledger = stack.enter_context(contextlib.closing(Ledger(settings.data_folder)))
        opener = threading.Thread(target=start_opener, args=(OpenLimits(settings.max_pixels),), daemon=True)
        opener.start()  # is ready when the model is
        stack.callback(stop_openers)
        stack.callback(opener.join)
        engine = Engine(load(), settings.limits)
        app = make_app(engine, settings, ledger)
        stack.callback(engine.stop)
        engine.start()
        config = uvicorn_config(
            app,
            ConnectionLimits(room_for_connections(settings.max_connections), trusted=settings.proxies),
            log_level="warning",
            timeout_graceful_shutdown=int(settings.drain_s) + 10,
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_ready(f"http://{host}:{listener.getsockname()[1]}")
        if threading.current_thread() is threading.main_thread():
            # uvicorn raises the signal again when it is done, which would end the process as if it had been killed
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: None))
        _Server(config, engine, settings.drain_s).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Its connections send small answers at once (TCP_NODELAY), which asyncio sees to only for
    sockets that were made for TCP by name. Raises ConfigError if the address cannot be used."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}): choose another --port or --host") from None
