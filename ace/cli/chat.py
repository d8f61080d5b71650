"""`ace chat`: the studio in the browser."""

from __future__ import annotations

import io
import socket
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ace.cli.options import Device, Lora, MaxPixels, Memory, Model, NumberType, Quiet
from ace.cli.serve import KeyFile
from ace.cli.terminal import Output, complain, short
from ace.errors import ConfigError

FIRST_PORT, NUM_PORTS = 7860, 40
Port = Annotated[
    int | None,
    typer.Option(
        "--port",
        "-p",
        help="Port on this machine. Default: the first free one from 7860.",
        min=1,
        max=65535,
        show_default=False,
    ),
]
Host = Annotated[
    str,
    typer.Option("--host", help="Address to listen on; 0.0.0.0 for other devices, with a QR code of the link."),
]


def chat(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Session folder of the conversations; made if missing.")
    ] = Path("ace-studio"),
    port: Port = None,
    max_pixels: MaxPixels = "64MP",
    host: Host = "127.0.0.1",
    key_file: KeyFile = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the browser.")] = False,
    model: Model = None,
    lora: Lora = None,
    memory: Memory = "auto",
    device: Device = "auto",
    dtype: NumberType = "auto",
    quiet: Quiet = False,
) -> None:
    """Open the studio: a conversation with the model, in the browser; on this machine only, unless --host says more.

    The link that is printed opens it once, in one browser; the next one is printed when it has been used. Programs use
    the API of `ace serve` at the same address, with a key of --key-file or $ACE_API_KEYS.

    \b
    ace chat
    ace chat holiday --model ace-0.6b-512
    ace chat --port 8080 --no-browser
    ace chat --host 0.0.0.0                     # from a phone: scan the code
    """
    from ace.cli.serve import check_installed, load_family, read_keys
    from ace.conditions.rules import parse_pixels
    from ace.conversation.family import Loading
    from ace.conversation.session import Session
    from ace.families import find_family

    check_installed("fastapi", "uvicorn", "prometheus_client", extra="web")
    output, most_px = Output(quiet=quiet), parse_pixels(max_pixels)
    loading = Loading(device=device, dtype=dtype, memory=memory, adapters=tuple(lora or ()))
    family = find_family(model, loading)
    keys = read_keys(key_file)
    with closing(_listen(host, port)) as listening:
        import threading
        import webbrowser

        from ace.server.run import serve
        from ace.server.settings import is_loopback
        from ace.web.app import StartLink, make_app, studio_settings

        session = Session.open_or_create(folder)
        name = _reached_by(host)
        names = () if is_loopback(name) else (name, socket.gethostname().lower())
        settings = studio_settings(session.folder, listening.getsockname()[1], host, names, keys, most_px)
        address = f"http://{f'[{name}]' if ':' in name else name}:{settings.port}"

        def show_next(path: str) -> None:
            output.say(f"to open it once more: {address}{path}")
            if names:
                output.say(_code(f"{address}{path}"))

        start = StartLink(show_next)

        def opened(_: str) -> None:
            link = f"{address}{start.path}"
            output.say(f"ace chat is at {link}  (model {family.name}, session {short(folder)}; Ctrl-C ends it)")
            if names:
                output.say(_code(link))
                complain("other devices reach it with that link; what goes over the network is not encrypted")
            if quiet and no_browser:  # there is no other way in
                typer.echo(link)
            if not no_browser:
                threading.Timer(0.5, webbrowser.open, (link,)).start()

        app = partial(make_app, start=start, model=model)
        serve(lambda: load_family(family, loading, output), settings, opened, make_app=app, listener=listening)


def _reached_by(host: str) -> str:
    """The address under which other devices reach one that listens everywhere; any other one is its own."""
    if host not in ("0.0.0.0", "::"):
        return "127.0.0.1" if host == "localhost" else host
    kind, away = (socket.AF_INET, "192.0.2.1") if host == "0.0.0.0" else (socket.AF_INET6, "2001:db8::1")
    with socket.socket(kind, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((away, 9))  # sends nothing: it only chooses the way there
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1" if kind == socket.AF_INET else "::1"


def _code(link: str) -> str:
    """A link as a QR code for the terminal; "" where the package for it is missing."""
    try:
        import segno
    except ModuleNotFoundError:
        return ""
    stream = io.StringIO()
    segno.make(link, error="l").terminal(stream, compact=True)
    return stream.getvalue()


def _listen(host: str, port: int | None) -> socket.socket:
    """A listening socket. Raises ConfigError if the address cannot be used, or the port is taken."""
    from ace.server.run import listen

    if port is not None:
        return listen(host, port)
    for number in range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
        try:
            return listen(host, number)
        except ConfigError:
            continue
    raise ConfigError(f"no free port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}: choose one with --port")
