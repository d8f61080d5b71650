"""`ace chat`: the studio in the browser."""

from __future__ import annotations

import socket
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ace.cli.options import Device, Lora, MaxPixels, Memory, Model, NumberType, Quiet
from ace.cli.terminal import Output, short
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
    max_pixels: MaxPixels = "64MP",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the browser.")] = False,
    model: Model = None,
    lora: Lora = None,
    memory: Memory = "auto",
    device: Device = "auto",
    dtype: NumberType = "auto",
    quiet: Quiet = False,
) -> None:
    """Open the studio: a conversation with the model, in the browser, on this machine only.

    The address that is printed opens it once; the next one is printed when it has been used.

    \b
    ace chat
    ace chat holiday --model ace-0.6b-512
    ace chat --port 8080 --no-browser
    """
    from ace.cli.serve import check_installed, load_family
    from ace.conditions.rules import parse_pixels
    from ace.conversation.family import Loading
    from ace.conversation.session import Session
    from ace.families import find_family

    check_installed("fastapi", "uvicorn", "prometheus_client", extra="web")
    output, most_px = Output(quiet=quiet), parse_pixels(max_pixels)
    loading = Loading(device=device, dtype=dtype, memory=memory, adapters=tuple(lora or ()))
    family = find_family(model, loading)
    with closing(_listen(port)) as listening:
        import threading
        import webbrowser

        from ace.server.run import serve
        from ace.web.app import StartLink, make_app, studio_settings

        session = Session.open_or_create(folder)
        settings = studio_settings(session.folder, listening.getsockname()[1], most_px)
        address = f"http://127.0.0.1:{settings.port}"
        start = StartLink(lambda path: output.say(f"to open it once more: {address}{path}"))

        def opened(_: str) -> None:
            link = f"{address}{start.path}"
            output.say(f"ace chat is at {link}  (model {family.name}, session {short(folder)}; Ctrl-C ends it)")
            if quiet and no_browser:  # there is no other way in
                typer.echo(link)
            if not no_browser:
                threading.Timer(0.5, webbrowser.open, (link,)).start()

        app = partial(make_app, start=start)
        serve(lambda: load_family(family, loading, output), settings, opened, make_app=app, listener=listening)


def _listen(port: int | None) -> socket.socket:
    """A listening socket on the loopback address. Raises ConfigError if the port is taken."""
    from ace.server.run import listen

    if port is not None:
        return listen("127.0.0.1", port)
    for number in range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
        try:
            return listen("127.0.0.1", number)
        except ConfigError:
            continue
    raise ConfigError(f"no free port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}: choose one with --port")
