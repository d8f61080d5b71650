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
from typing import TYPE_CHECKING

import anyio
import uvicorn
from anyio import to_thread

from ace.errors import ConfigError
from ace.server.app import create_app
from ace.server.engine import Engine
from ace.server.ledger import Ledger
from ace.server.settings import ServerSettings

if TYPE_CHECKING:
    from ace.inference.pipeline import ACEPipeline
    from ace.weights.sources import ModelFiles

_MAX_CONNECTIONS = 1000


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
    load: Callable[[], ACEPipeline],
    model: ModelFiles,
    settings: ServerSettings,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until a signal to stop.

    load: called for the pipeline once the address and the data folder are known to be free. on_ready: called with the
    address once requests are answered. Raises ConfigError if one of them is not free, and whatever `load` raises."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(settings.host, settings.port))
        ledger = stack.enter_context(contextlib.closing(Ledger(settings.data_folder)))
        engine = Engine(load(), model, settings.limits)
        app = create_app(engine, settings, ledger)
        stack.callback(engine.stop)
        engine.start()
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ws="none",
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(settings.drain_s) + 10,
            h11_max_incomplete_event_size=64 * 1024,
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_ready(f"http://{host}:{listener.getsockname()[1]}")
        if threading.current_thread() is threading.main_thread():
            # uvicorn raises the signal again when it is done, which would end the process as if it had been killed
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: None))
        _Server(config, engine, settings.drain_s).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}): choose another --port or --host") from None
