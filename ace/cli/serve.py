"""`ace serve` and `ace mcp`: the model for other programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.options import Device, Lora, MaxPixels, Memory, Model, NumberType, Quiet, Sign
from ace.cli.terminal import Output, complain, quiet_libraries
from ace.errors import ConfigError, MissingDependencyError
from ace.extras import install_command

if TYPE_CHECKING:
    from ace.conversation.family import Family, Loading


Host = Annotated[str, typer.Option("--host", help="Address to listen on; others than loopback need a key.")]
Port = Annotated[int, typer.Option("--port", "-p", help="Port to listen on; 0 = any free one, printed.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="API keys, one per line; they can also be in $ACE_API_KEYS, separated by commas.",
        show_default=False,
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Where sessions and the ledger of requests are kept. Default: nothing is kept.",
        show_default=False,
    ),
]
Aliases = Annotated[
    list[str] | None,
    typer.Option(
        "--alias", metavar="NAME", help="A further name for the model, such as gpt-image-1.", show_default=False
    ),
]
UrlHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--url-host",
        metavar="HOST",
        help="A host from which images may be fetched by URL. Default: none.",
        show_default=False,
    ),
]
PerMinute = Annotated[
    float | None,
    typer.Option("--quota", metavar="N", help="Images per minute and key. Default: no quota.", show_default=False),
]
MaxWaiting = Annotated[int, typer.Option("--max-waiting", help="Images that may wait in the queue.")]
MaxTogether = Annotated[int, typer.Option("--max-together", help="Images that are made at once.")]
MaxSeconds = Annotated[
    float,
    typer.Option(
        "--max-seconds",
        metavar="SECONDS",
        help="Refuse a request whose images would take longer together on this machine, as measured; 0 = any.",
        min=0,
    ),
]
MaxUnsafe = Annotated[
    float,
    typer.Option(
        "--max-unsafe",
        metavar="P",
        help="Refuse results more likely unsafe than this, where a request does not say moderation: low and the "
        "weights are here (`ace data setup nsfwjs-model nsfwjs-weights`); 1 disables.",
        min=0,
        max=1,
    ),
]
Proxies = Annotated[
    list[str] | None,
    typer.Option(
        "--proxy",
        metavar="ADDRESS",
        help="Address of a reverse proxy, exempt from the bound on connections of one address; repeatable.",
        show_default=False,
    ),
]
DrainSeconds = Annotated[
    float, typer.Option("--drain", metavar="SECONDS", help="Time for accepted work after a signal to stop.")
]


def serve(
    model: Model = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    key_file: KeyFile = None,
    data: DataFolder = None,
    alias: Aliases = None,
    url_host: UrlHosts = None,
    quota: PerMinute = None,
    max_waiting: MaxWaiting = 64,
    max_together: MaxTogether = 16,
    max_seconds: MaxSeconds = 1800,
    max_unsafe: MaxUnsafe = 0.9,
    proxy: Proxies = None,
    drain: DrainSeconds = 60,
    max_pixels: MaxPixels = "32MP",
    sign: Sign = None,
    lora: Lora = None,
    memory: Memory = "auto",
    device: Device = "auto",
    dtype: NumberType = "auto",
    quiet: Quiet = False,
) -> None:
    """Serve the model over HTTP: OpenAI's images API, and conversations.

    \b
    ace serve                                   # http://127.0.0.1:8000/v1, any key
    ace serve --port 9000 --data runs/server    # with sessions under /v1/sessions
    ace serve --host 0.0.0.0 --key-file keys    # for others: needs keys

    \b
    from openai import OpenAI
    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="any")
    client.images.generate(prompt="a red apple on a green background")
    """
    check_installed("fastapi", "uvicorn", "prometheus_client", extra="server")
    from ace.conditions.rules import parse_pixels
    from ace.conversation.credentials import Signer
    from ace.conversation.family import Loading
    from ace.families import find_family
    from ace.server.images import AllowedHost
    from ace.server.settings import Limits, ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=read_keys(key_file),
        data_folder=data,
        aliases=tuple(alias or ()),
        url_hosts=tuple(AllowedHost.parse(text) for text in url_host or ()),
        limits=Limits(max_waiting=max_waiting, max_running=max_together, max_seconds=max_seconds or None),
        max_unsafe=max_unsafe,
        proxies=tuple(proxy or ()),
        images_per_minute=quota,
        max_pixels=parse_pixels(max_pixels),
        signer=None if sign is None else Signer.of(sign),
        drain_s=drain,
    )
    loading = Loading(device=device, dtype=dtype, memory=memory, adapters=tuple(lora or ()))
    family = find_family(model, loading)
    output = Output(quiet=quiet)

    from ace.server.run import serve as run

    run(
        lambda: load_family(family, loading, output),
        settings,
        lambda url: output.say(f"{family.name} at {url}/v1, documentation at {url}/docs"),
    )


def load_family(family: Family, loading: Loading, output: Output) -> Family:
    """The model, loaded without what the libraries print; what people should know goes to standard error."""
    with output.progress(f"loading {family.name}") as progress, quiet_libraries():
        family.load(loading, lambda line: None if output.quiet else complain(line), progress)
    return family


def check_installed(*packages: str, extra: str) -> None:
    """Raise MissingDependencyError for packages that an extra brings and that are not here."""
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"{', '.join(missing)} missing: {install_command(extra)}")


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The API keys in $ACE_API_KEYS and in a file. Raises ConfigError."""
    keys = [key.strip() for key in os.environ.get("ACE_API_KEYS", "").split(",")]
    if path is not None:
        try:
            keys += [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"the key file {path.name} cannot be read: check the path") from None
        if not any(keys):
            raise ConfigError(f"the key file {path.name} holds no key: write one per line")
    return tuple(key for key in keys if key and not key.startswith("#"))


def mcp(
    model: Model = None,
    max_pixels: MaxPixels = "64MP",
    session: Annotated[
        Path | None,
        typer.Option(
            "--session",
            metavar="FOLDER",
            help="Session that results are kept in; made if missing. Default: one that is deleted at the end.",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--pictures", metavar="FOLDER", help="Folder whose images may be read. Default: none.", show_default=False
        ),
    ] = None,
    lora: Lora = None,
    memory: Memory = "auto",
    device: Device = "auto",
    dtype: NumberType = "auto",
) -> None:
    """Give agents the model as tools (generate, edit, history) over the Model Context Protocol.

    An agent's program starts this itself and talks to it over standard input and output.

    \b
    claude mcp add ace -- ace mcp --session talk --pictures ~/Pictures
    """
    import tempfile

    from ace.conditions.rules import parse_pixels
    from ace.conversation.family import Loading
    from ace.conversation.session import Session
    from ace.families import find_family

    check_installed("mcp", extra="server")
    most_px = parse_pixels(max_pixels)
    if pictures is not None and not pictures.is_dir():
        raise ConfigError(f"there is no folder {pictures.name} to read images from: check the path")
    loading = Loading(device=device, dtype=dtype, memory=memory, adapters=tuple(lora or ()))
    family = find_family(model, loading)
    with tempfile.TemporaryDirectory(prefix="ace-mcp-") as passing:
        opened = Session.open_or_create(Path(passing) / "session" if session is None else session)
        load_family(family, loading, Output(quiet=True))

        from ace.conversation.chat import ChatSession
        from ace.server.tools import run_tools

        run_tools(ChatSession(opened, family), pictures, most_px)
