"""Bytes, data: addresses or an allowed URL → images and masks of a message, after intake.

Nothing is decoded here, nor in this process: `ace/conditions/opener.py` opens what comes, the same formats as
everywhere, and only if its header claims a sensible size. A URL is fetched only from a host that the operator named;
its name is looked up once, an address that is not public is refused, and the connection is made to that very address,
so that a name cannot change its meaning in between. No redirects, no more bytes and no more time than allowed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from ace.conditions.images import OpenedImage
from ace.conditions.opener import OpenLimits, open_files
from ace.conversation.message import Mask, Picture
from ace.conversation.recipe import FileRef
from ace.errors import ConfigError, ImageError, InputError, MaskError, MissingDependencyError

_FETCH_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Upload:
    """A file as it came: its bytes and the name it was given, for messages and recipes only, never a path."""

    data: bytes
    name: str = "image"

    @property
    def ref(self) -> FileRef:
        """Name and hash, as recipes have them."""
        plain = self.name.replace("\\", "/").rsplit("/", 1)[-1]
        plain = "".join(c for c in plain if c.isprintable())[-200:] or "image"
        return FileRef(name=plain, sha256=hashlib.sha256(self.data).hexdigest())


def open_uploads(
    uploads: Sequence[Upload], limits: OpenLimits, on_pixels: Callable[[int], Any] = lambda pixels: None
) -> list[OpenedImage]:
    """Images of one request; of several frames the first. on_pixels: see `open_files`. Raises ImageError for what
    cannot be read here, too many pixels, damage, or what takes too long."""
    try:
        return open_files([(upload.data, upload.ref.name) for upload in uploads], limits, on_pixels)
    except MissingDependencyError as error:
        raise ImageError(f"this server cannot read it: {error}") from None


def open_upload(upload: Upload, max_pixels: int) -> OpenedImage:
    """One image; otherwise as `open_uploads`."""
    return open_uploads([upload], OpenLimits(max_pixels))[0]


def open_picture(upload: Upload, max_pixels: int) -> Picture:
    """An uploaded file as an image of a message. Raises ImageError."""
    return Picture(open_upload(upload, max_pixels), upload.ref, data=upload.data)


def open_mask(upload: Upload, max_pixels: int) -> Mask:
    """An uploaded file as the mask of a message. Raises ImageError."""
    return mask_of(open_upload(upload, max_pixels), upload)


def mask_of(opened: OpenedImage, upload: Upload) -> Mask:
    """An opened file as the mask of a message, read as everywhere (`ace/conditions/masks.py`).

    Where a file with transparency can be read two ways, OpenAI's rule decides: what is transparent changes. Such a file
    goes by the hash of the plain mask that it stands for, since that is what a replay needs."""
    return Mask(opened, upload.ref if opened.alpha is None else None, undecided="transparent")


def strokes_of(opened: OpenedImage) -> Image.Image:
    """An opened drawing, RGBA: coloured strokes on a transparent ground. Raises MaskError."""
    if opened.alpha is None:
        raise MaskError(f"{opened.name} has no transparent ground: draw strokes on one, of the size of the image")
    strokes = opened.stored.convert("RGBA")
    strokes.putalpha(opened.alpha)
    return strokes


# Addresses


@dataclass(frozen=True)
class AllowedHost:
    """A host from which images may be fetched: `images.example.org`, `https://host:8443` or, on a private network, an
    address such as `http://10.0.0.5:9000` (a name must always lead to a public address)."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> AllowedHost:
        """Read one. Raises ConfigError."""
        parts = urlsplit(text if "://" in text else f"https://{text}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.path not in ("", "/"):
            raise ConfigError(f"{text!r} is no host to fetch from: write it as images.example.org or https://host:8443")
        return cls(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80))


def fetch(url: str, allowed: tuple[AllowedHost, ...], max_bytes: int) -> Upload:
    """The file behind a data: address, or behind a URL of an allowed host.

    Raises InputError for any other, ImageError if nothing useful comes back."""
    if url.startswith("data:"):
        return _read_data_address(url, max_bytes)
    if not allowed:
        raise InputError("this server fetches no images from addresses: upload the file or send a data: address")
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        wanted = AllowedHost(parts.scheme, parts.hostname or "", port)
    except ValueError:
        raise InputError("the image's address cannot be read: check it") from None
    if wanted not in allowed or parts.username or parts.password:
        raise InputError(f"this server fetches no images from {wanted.host[:100]!r}: upload the file instead")
    address = resolve(wanted)
    return Upload(_download(parts.path or "/", parts.query, wanted, address, max_bytes), parts.path.rsplit("/", 1)[-1])


def resolve(host: AllowedHost) -> str:
    """The one address to connect to. Raises InputError if a name leads anywhere but to the public internet."""
    try:
        return str(ipaddress.ip_address(host.host))  # the operator named this very address
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host.host, host.port, type=socket.SOCK_STREAM)
    except OSError:
        raise InputError(f"{host.host} cannot be found: check the address") from None
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise InputError(f"{host.host} leads to an address inside a network: upload the file instead")
    return str(addresses[0])


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is on the public internet, also where it is dressed up as IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is not None:
            return is_public(inner)
        if address in ipaddress.ip_network("64:ff9b::/96"):
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address.is_global and not address.is_multicast


def _download(path: str, query: str, host: AllowedHost, address: str, max_bytes: int) -> bytes:
    import httpx2

    netloc = f"[{address}]" if ":" in address else address
    target = httpx2.URL(f"{host.scheme}://{netloc}:{host.port}{path}{'?' + query if query else ''}")
    name = host.host if host.port in (80, 443) else f"{host.host}:{host.port}"
    until, data = time.monotonic() + _FETCH_TIMEOUT_S, bytearray()
    try:
        with (
            httpx2.Client(follow_redirects=False, trust_env=False, timeout=_FETCH_TIMEOUT_S) as client,
            client.stream("GET", target, headers={"Host": name}, extensions={"sni_hostname": host.host}) as answer,
        ):
            if answer.status_code != 200:
                raise ImageError(f"{host.host} answered {answer.status_code} instead of an image: check the address")
            for chunk in answer.iter_raw():
                data += chunk
                if len(data) > max_bytes:
                    raise ImageError(f"the image at {host.host} is larger than {max_bytes / 1e6:g} MB: use a smaller")
                if time.monotonic() > until:
                    raise ImageError(f"{host.host} took too long: upload the file instead")
    except (httpx2.HTTPError, httpx2.InvalidURL):
        raise ImageError(f"{host.host} could not be reached: upload the file instead") from None
    return bytes(data)


def _read_data_address(url: str, max_bytes: int) -> Upload:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InputError("a data: address must be base64: data:image/png;base64,…")
    if len(body) > max_bytes * 4 // 3 + 4:
        raise ImageError(f"the image is larger than {max_bytes / 1e6:g} MB: use a smaller one")
    try:
        return Upload(base64.b64decode(body, validate=True))
    except (binascii.Error, ValueError):
        raise InputError("the data: address holds no base64: encode the file again") from None
