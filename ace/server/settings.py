"""How a server is set up: frozen records, checked when they are made. Imports nothing heavy."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from ace.conversation.credentials import Signer
from ace.errors import ConfigError
from ace.server.images import AllowedHost


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Limits:
    """How much an engine takes on.

    max_waiting, max_waiting_per_client: images in the queue. max_running: images stepped together;
    max_running_bytes: of memory that they need together (an image that alone needs more is refused), None = see
    `room_for_requests`. max_operations: of one image; max_seconds: that all images of a request
    would take together, as fast as this machine has been seen to be; None = any."""

    max_waiting: int = 64
    max_waiting_per_client: int = 32
    max_running: int = 16
    max_running_bytes: int | None = None
    max_operations: float = 1e16
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if min(self.max_waiting, self.max_waiting_per_client, self.max_running, self.max_running_bytes or 1) < 1:
            raise ConfigError("a limit of the server is less than 1: nothing could run")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ConfigError("the longest request takes more than 0 seconds: raise --max-seconds")


@dataclass(frozen=True)
class ServerSettings:
    """What an operator chooses.

    host, port: where to listen. api_keys: who may ask; none = anybody, on loopback only. data_folder: sessions and the
    ledger of requests; None = nothing is kept over a restart. adapters_folder: adapters that requests may name.
    opened_sessions: (id, folder) of sessions that lie elsewhere and that every client has. cookie: name of a cookie
    that may carry the key, for a page of ours; foreign `Host` and `Origin` are refused then as they are without keys.
    host_names: by which that page may be reached beside 127.0.0.1. aliases: further names for the model. url_hosts:
    from where images may be fetched, see `AllowedHost`. max_upload_bytes: of one request; upload_timeout_s: for all of
    it. max_small_bytes: of a request that carries no image. max_receiving_bytes: of all requests that are being read
    at once. max_held_bytes: of the decoded images of all that wait or run. max_pixels: of one image. max_images: images
    made per request (`n`). images_per_minute: of one client, None = no quota. max_sessions, max_session_nodes: that one
    client may keep. kept_bytes: of results for `response_format: url`. drain_s: after a signal to stop, how long
    accepted work may take. max_connections: open at once; proxies: addresses of reverse proxies, through which many
    clients come. decode_timeout_s: for the images of one request. max_unsafe: results that are more likely unsafe are
    refused, unless a request says `moderation: low`. signer: of content credentials in results, None = they have none.

    Raises ConfigError for an address that is not loopback without a key, and for impossible numbers."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    data_folder: Path | None = None
    adapters_folder: Path | None = None
    opened_sessions: tuple[tuple[str, Path], ...] = ()
    cookie: str | None = None
    host_names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    url_hosts: tuple[AllowedHost, ...] = ()
    limits: Limits = field(default_factory=Limits)
    max_upload_bytes: int = 50_000_000
    max_small_bytes: int = 256 * 1024
    upload_timeout_s: float = 60.0
    max_receiving_bytes: int = 512 * 2**20
    max_held_bytes: int = 2 * 2**30
    max_pixels: int = 32_000_000
    max_images: int = 10
    images_per_minute: float | None = None
    max_sessions: int = 1000
    max_session_nodes: int = 1000
    kept_bytes: int = 256 * 2**20
    drain_s: float = 60.0
    max_connections: int = 1000
    proxies: tuple[str, ...] = ()
    decode_timeout_s: float = 30.0
    max_unsafe: float = 0.9
    signer: Signer | None = None

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.api_keys:
            raise ConfigError(
                f"{self.host} can be reached from other machines: set ACE_API_KEYS or --key-file, or use 127.0.0.1"
            )
        if any(len(key) < 16 for key in self.api_keys):
            raise ConfigError(
                'an API key is shorter than 16 characters: make one with `python -c "import secrets; '
                'print(secrets.token_urlsafe())"`'
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port}: use 1 to 65535, or 0 for any free one")
        if self.images_per_minute is not None and self.images_per_minute <= 0:
            raise ConfigError("the quota is less than 1 image: raise it, or leave it out")
        sizes = (self.max_upload_bytes, self.max_receiving_bytes, self.max_held_bytes, self.max_pixels)
        sizes = (*sizes, self.max_small_bytes)
        counts = (self.upload_timeout_s, self.max_images, self.max_sessions, self.max_session_nodes)
        counts = (*counts, self.max_connections, self.decode_timeout_s)
        if min(*sizes, *counts) < 1 or self.kept_bytes < 0 or self.drain_s < 0:
            raise ConfigError("a limit of the server is less than 1: nothing could be asked")
        if not 0 < self.max_unsafe <= 1:
            raise ConfigError(f"a threshold of {self.max_unsafe:g}: use a probability above 0, up to 1 for no refusals")
        for address in self.proxies:
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise ConfigError(f"{address!r} is no address of a proxy: write it as 10.0.0.2") from None
