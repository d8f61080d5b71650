"""16 bits per channel, which Pillow cannot hold in colour: read beside the 8-bit picture, written where it survived.

A model reads and makes 8 bits. Where an answer's pixel is still the input's in 8 bits, the written file has the
input's 16 (`deepen`); elsewhere the 8 bits times 257. Reading and coding are OpenCV's and tifffile's, the extra
`deep`.

Not here: what changed and what did not (`inference/preserve.py`, `inference/detail.py`).
"""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib

import numpy as np
from PIL import Image

from ace.extras import install_command

EXTRA = install_command("deep")
XMP_TAG = 700  # of a TIFF file
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def can_keep() -> bool:
    """Whether OpenCV is here."""
    return importlib.util.find_spec("cv2") is not None


def read_sixteen(data: bytes, eight: np.ndarray) -> np.ndarray | None:
    """The 16-bit values of a PNG or TIFF file as stored, not turned: uint16 (H, W, 3), or (H, W, 4) with alpha.

    eight: (H, W, 3) uint8, what Pillow made of it, to compare with. None without OpenCV, or if the two do not agree to
    within one level."""
    if not can_keep():
        return None
    import cv2

    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    if values is None or values.dtype != np.uint16:
        return None
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    elif values.shape[2] == 4:
        values = values[..., [2, 1, 0, 3]]
    elif values.shape[2] == 3:
        values = values[..., ::-1]
    else:
        return None
    if values.shape[:2] != eight.shape[:2]:
        return None
    difference = np.abs((values[..., :3] // 256).astype(np.int16) - eight)  # Pillow takes the high byte
    return np.ascontiguousarray(values) if int(difference.max(initial=0)) <= 1 else None


def deepen(deep: np.ndarray, stored: Image.Image, result: Image.Image) -> np.ndarray:
    """An answer in 16 bits: the input's own values where it equals the input in 8 bits.

    deep: uint16 (H, W, 3 or 4), upright. stored: RGB, the same picture in 8 bits. result: RGB or RGBA of that size;
    its alpha is the input's. Returns uint16 (H, W, 3), or (H, W, 4) if both have alpha."""
    made = np.asarray(result.convert("RGB"))
    same = (made == np.asarray(stored)).all(axis=2)
    colours = np.where(same[..., None], deep[..., :3], made.astype(np.uint16) * 257)
    if result.mode != "RGBA":
        return colours
    if deep.shape[2] == 4:
        return np.concatenate([colours, deep[..., 3:]], axis=2)
    alpha = np.asarray(result.getchannel("A")).astype(np.uint16) * 257
    return np.concatenate([colours, alpha[..., None]], axis=2)


def encode_png(values: np.ndarray, like: bytes) -> bytes:
    """A 16-bit PNG file. values: uint16 (H, W, 3 or 4). like: an 8-bit PNG whose profile and texts it gets too."""
    import cv2

    order = [2, 1, 0, 3][: values.shape[2]]
    done, coded = cv2.imencode(".png", values[..., order], [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise OSError("OpenCV could not code it")
    data = coded.tobytes()
    start = len(_SIGNATURE) + 25  # after the header chunk
    carried = b"".join(
        _chunk(kind, content) for kind, content in _chunks(like) if kind not in (b"IHDR", b"IDAT", b"IEND")
    )
    return data[:start] + carried + data[start:]


def can_write_tiff() -> bool:
    """Whether tifffile is here."""
    return importlib.util.find_spec("tifffile") is not None


def encode_tiff(values: np.ndarray, icc_profile: bytes | None, xmp: bytes | None) -> bytes:
    """A 16-bit TIFF file, compressed without loss. values: uint16 (H, W, 3 or 4), straight alpha."""
    import tifffile

    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        values,
        photometric="rgb",
        extrasamples=["unassalpha"] if values.shape[2] == 4 else None,
        compression="zlib",
        metadata=None,
        software=False,
        iccprofile=icc_profile,
        extratags=[] if xmp is None else [(XMP_TAG, 1, len(xmp), xmp, True)],
    )
    return stream.getvalue()


def plain_png() -> Image.Image:
    """One pixel: what carries texts and profiles into `encode_png`."""
    return Image.new("RGB", (1, 1))


def _chunks(data: bytes):
    stream = io.BytesIO(data[len(_SIGNATURE) :])
    while head := stream.read(8):
        length, kind = struct.unpack(">I4s", head)
        content = stream.read(length)
        stream.read(4)
        yield kind, content


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
