"""Files that are small and take long: how many parts a picture file has, counted before anything is decoded.

A progressive JPEG may have any number of scans, each as dear as the whole picture; a PNG any number of chunks, a TIFF
any number of pages and strips, each read by itself. Real files have few. Only headers are walked here, except where a
JPEG has several scans.

Not here: what else may take long, which is decoded where it can be killed (`opener.py`).
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

from ace.errors import ImageError

MAX_SCANS = 100  # of a JPEG; cameras and tools write about 10
MAX_CHUNKS = 50_000  # of a PNG, and segments of a JPEG
MAX_PAGES = 1_000  # of a TIFF
MAX_STRIPS = 200_000  # or tiles, of a page
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in coded data: no stuffed byte, no restart
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_STRIPS = {273, 324}


def check_structure(stream: BinaryIO, name: str) -> None:
    """Raise ImageError for a JPEG, PNG or TIFF file of more parts than any real one has; other files pass. The stream
    stays where it is."""
    start = stream.tell()
    try:
        head = stream.read(16)
        stream.seek(start)
        if head.startswith(b"\xff\xd8"):
            many = _too_many_scans(stream)
        elif head.startswith(b"\x89PNG\r\n\x1a\n"):
            many = _too_many_chunks(stream)
        elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            many = _too_many_pages(stream, start)
        else:
            many = None
    except (struct.error, IndexError, OverflowError, ValueError):
        many = None  # cut off: the decoder says so
    finally:
        stream.seek(start)
    if many is not None:
        raise ImageError(f"{name} has {many}, more than any real picture: save it again as PNG or JPEG")


def _too_many_scans(stream: BinaryIO) -> str | None:
    stream.seek(2, 1)
    several, components = False, 0
    for _ in range(MAX_CHUNKS):
        (marker, code) = stream.read(2)
        if marker != 0xFF or code == 0xD9:
            return None
        if code == 0xFF or 0xD0 <= code <= 0xD8 or code == 0x01:  # fill bytes and markers without a length
            stream.seek(-1 if code == 0xFF else 0, 1)
            continue
        (length,) = struct.unpack(">H", stream.read(2))
        if code in _FRAMES:
            segment = stream.read(length - 2)
            several, components = code in _PROGRESSIVE, segment[5]
        elif code == 0xDA:
            several = several or stream.read(1)[0] < components
            return _count_scans(stream.read()) if several else None
        else:
            stream.seek(length - 2, 1)
    return f"more than {MAX_CHUNKS} segments"


def _count_scans(data: bytes) -> str | None:
    """data: from the first scan on."""
    scans, place = 1, 0
    while (found := _MARKER.search(data, place)) is not None:
        code = data[found.start() + 1]
        if code == 0xD9:
            return None
        scans += code == 0xDA
        if scans > MAX_SCANS:
            return f"more than {MAX_SCANS} scans"
        (length,) = struct.unpack_from(">H", data, found.end())
        place = found.end() + max(2, length)
    return None


def _too_many_chunks(stream: BinaryIO) -> str | None:
    stream.seek(8, 1)
    for _ in range(MAX_CHUNKS):
        head = stream.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return None
        stream.seek(struct.unpack(">I", head[:4])[0] + 4, 1)
    return f"more than {MAX_CHUNKS} chunks"


def _too_many_pages(stream: BinaryIO, start: int) -> str | None:
    head = stream.read(16)
    order, big = ("<" if head[:1] == b"I" else ">"), 43 in head[2:4]
    count_format, entry_bytes, offset_format = (f"{order}Q", 20, f"{order}Q") if big else (f"{order}H", 12, f"{order}I")
    (offset,) = struct.unpack_from(offset_format, head, 8 if big else 4)
    for _ in range(MAX_PAGES):
        if offset == 0:
            return None
        stream.seek(start + offset)
        (count,) = struct.unpack(count_format, stream.read(struct.calcsize(count_format)))
        if count > 4096:
            return f"{count} entries in a page"
        entries = stream.read(count * entry_bytes)
        for place in range(0, count * entry_bytes, entry_bytes):
            (tag,) = struct.unpack_from(f"{order}H", entries, place)
            (values,) = struct.unpack_from(offset_format, entries, place + 4)
            if tag in _STRIPS and values > MAX_STRIPS:
                return f"{values} strips or tiles"
        (offset,) = struct.unpack(offset_format, stream.read(struct.calcsize(offset_format)))
    return f"more than {MAX_PAGES} pages"
