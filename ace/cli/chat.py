"""`ace chat`: the studio in the browser."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from ace.cli.options import Device, Model, NumberType, Quiet
from ace.cli.terminal import Output, load, short
from ace.errors import ConfigError

FIRST_PORT, NUM_PORTS = 7860, 40


def chat(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Session folder of the conversations; made if missing.")
    ] = Path("ace-studio"),
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            "-p",
            help="Port on this machine. Default: the first free one from 7860.",
            min=1,
            max=65535,
            show_default=False,
        ),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the browser.")] = False,
    model: Model = None,
    device: Device = "auto",
    dtype: NumberType = "auto",
    quiet: Quiet = False,
) -> None:
    """Open the studio: a conversation with the model, in the browser, on this machine only.

    \b
    ace chat
    ace chat holiday --model ace-0.6b-512
    ace chat --port 8080 --no-browser
    """
    from ace.cli.making import check_session
    from ace.conversation.session import Session
    from ace.weights.sources import find_model

    output = Output(quiet=quiet)
    files = find_model(model)
    check_session(folder)
    listening = _listen(port)
    with closing(listening):
        import threading
        import webbrowser

        from ace.conversation.chat import ChatSession
        from ace.web.actions import Studio
        from ace.web.app import make_app  # says what to install if Gradio is missing

        import uvicorn  # isort: skip

        with output.progress(f"loading {files.name}"):
            pipeline = load(files, device, dtype)
            pipeline.set_progress_bar_config(disable=True)
            session = Session.open_or_create(folder)
            app = make_app(Studio(ChatSession(session, pipeline, files)))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        output.say(f"ace chat is at {address}  (model {files.name}, session {short(folder)}; Ctrl-C ends it)")
        if not no_browser:
            threading.Timer(0.5, webbrowser.open, (address,)).start()
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=2))
        server.run(sockets=[listening])


def _listen(port: int | None) -> socket.socket:
    """A listening socket on the loopback address. Raises ConfigError if the port is taken."""
    for number in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", number))
            listening.listen(128)
        except OSError as error:
            listening.close()
            if port is not None:
                raise ConfigError(
                    f"port {port} cannot be used ({(error.strerror or str(error)).lower()}): choose another with --port"
                ) from None
        else:
            return listening
    raise ConfigError(f"no free port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}: choose one with --port")
