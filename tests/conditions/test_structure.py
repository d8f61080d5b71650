"""Picture files that are small and take long, and the processes in which files from elsewhere are opened."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ace.conditions.images import open_bytes
from ace.conditions.opener import Call, OpenLimits, current_call, open_files, start_opener
from ace.conditions.structure import MAX_CHUNKS, MAX_SCANS, check_structure
from ace.errors import BusyError, ImageError, MissingDependencyError

CASES = Path(__file__).parents[1] / "cases"


def noise(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    values = np.random.default_rng(0).integers(0, 255, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def file_of(image: Image.Image, kind: str, **settings: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def of_scans(count: int) -> bytes:
    data = file_of(noise(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def of_chunks(count: int) -> bytes:
    data = file_of(noise(), "PNG")
    chunk = struct.pack(">I", 0) + b"teXt" + struct.pack(">I", zlib.crc32(b"teXt"))
    return data[:33] + chunk * count + data[33:]


def of_pages(count: int, strips: int = 0) -> bytes:
    entry = struct.pack("<HHII", 273, 4, strips, 8) if strips else struct.pack("<HHII", 256, 4, 1, 1)
    pages = b"".join(
        struct.pack("<H", 1) + entry + struct.pack("<I", 8 + 18 * (number + 1) if number + 1 < count else 0)
        for number in range(count)
    )
    return b"II*\0" + struct.pack("<I", 8) + pages


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (of_scans(10_000), f"more than {MAX_SCANS} scans"),
        (of_chunks(MAX_CHUNKS + 1), f"more than {MAX_CHUNKS} chunks"),
        (of_pages(5000), "more than 1000 pages"),
        (of_pages(1, strips=10**9), "1000000000 strips or tiles"),
        (b"II*\0" + struct.pack("<IH", 8, 60_000), "60000 entries in a page"),
    ],
    ids=["scans", "chunks", "pages", "strips", "entries"],
)
def test_files_of_too_many_parts_are_refused_at_every_door(data, what, tmp_path):
    for opener in (open_bytes, lambda data: open_files([(data, "image")])):
        with pytest.raises(ImageError, match=what):
            opener(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF"])
def test_real_files_pass_and_the_stream_stays_where_it_is(kind):
    stream = io.BytesIO(b"before" + file_of(noise(), kind))
    stream.seek(6)
    check_structure(stream, "image")
    assert stream.tell() == 6


def test_progressive_files_of_real_tools_pass():
    for settings in ({"progressive": True}, {"progressive": True, "quality": 100, "subsampling": 0}, {}):
        check_structure(io.BytesIO(file_of(noise().resize((512, 300)), "JPEG", **settings)), "image")


def test_damaged_heads_pass_on_to_the_decoder_which_says_so():
    for whole in (of_scans(3), of_chunks(3), of_pages(3)):
        for length in range(0, min(len(whole), 120), 3):
            check_structure(io.BytesIO(whole[:length]), "image")


# In processes of their own


def same(one, other) -> bool:
    pairs = [(one.image, other.image), (one.stored, other.stored), (one.alpha, other.alpha)]
    pixels = all((a is None) == (b is None) and (a is None or a.tobytes() == b.tobytes()) for a, b in pairs)
    deep = (one.deep is None) == (other.deep is None) and (one.deep is None or np.array_equal(one.deep, other.deep))
    rest = (one.icc_profile, one.mode, one.converted, one.name) == (
        other.icc_profile,
        other.mode,
        other.converted,
        other.name,
    )
    return pixels and deep and rest and (one.image is one.stored) == (other.image is other.stored)


def kinds_of_files() -> dict[str, bytes]:
    from PIL import ImageCms

    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    sixteen = Image.fromarray(np.random.default_rng(1).integers(0, 65535, (16, 24), dtype=np.uint16))
    files = {
        "rgb.png": file_of(noise(), "PNG"),
        "alpha.png": file_of(noise(mode="RGBA"), "PNG"),
        "turned.jpg": file_of(noise(), "JPEG", exif=exif),
        "cmyk.jpg": file_of(noise().convert("CMYK"), "JPEG"),
        "odd profile.png": file_of(noise(), "PNG", icc_profile=profile),
        "grey.png": file_of(noise(mode="L"), "PNG"),
        "sixteen.png": file_of(sixteen, "PNG"),
        "palette.gif": file_of(noise().convert("P"), "GIF"),
    }
    return files | {path.name: path.read_bytes() for path in CASES.iterdir() if path.is_file()}


def test_other_processes_open_what_this_one_would_to_the_byte():
    for name, data in kinds_of_files().items():
        try:
            here = open_bytes(data, name=name)
        except MissingDependencyError:
            continue
        (there,) = open_files([(data, name)])
        assert same(there, here), name
    first, second = open_files([(data, name) for name, data in list(kinds_of_files().items())[:2]])
    assert (first.name, second.name) == ("rgb.png", "alpha.png")
    assert open_files([]) == []


def test_errors_are_those_of_this_process():
    whole = file_of(noise(), "PNG")
    for data in (b"", b"%PDF", whole[:60], whole[:-40], b"\x89PNG\r\n\x1a\n" + bytes(99)):
        with pytest.raises(ImageError) as here:
            open_bytes(data, name="p.png")
        with pytest.raises(ImageError) as there:
            open_files([(data, "p.png")])
        assert str(there.value) == str(here.value)
    with pytest.raises(ImageError, match="million pixels"):
        open_files([(whole, "p.png")], OpenLimits(max_pixels=100))


def test_whoever_asks_is_told_the_pixels_first_and_may_refuse():
    told: list[int] = []

    def refuse(pixels: int) -> None:
        told.append(pixels)
        raise BusyError("no room", 1.0)

    files = [(file_of(noise(), "PNG"), "a"), (file_of(noise(10, 10), "PNG"), "b")]
    with pytest.raises(BusyError, match="no room"):
        open_files(files, on_pixels=refuse)
    assert told == [48 * 32 + 100]
    assert len(open_files(files)) == 2  # the process goes on


def test_what_takes_too_long_is_killed_and_the_next_file_is_opened():
    slow = file_of(Image.new("RGB", (7000, 7000)), "PNG")
    start_opener()
    with pytest.raises(ImageError, match="takes too long to open"):
        open_files([(slow, "slow.png")], OpenLimits(timeout_s=0.05))
    assert open_files([(file_of(noise(), "PNG"), "a")])[0].size == (48, 32)


def test_who_goes_away_stops_what_is_opened_for_them():
    slow = file_of(Image.new("RGB", (7000, 7000)), "PNG")
    call = Call()
    token = current_call.set(call)
    try:
        threading.Timer(0.2, call.stop).start()
        began = time.monotonic()
        with pytest.raises(ImageError, match="nobody waits"):
            open_files([(slow, "slow.png")] * 40)
        assert time.monotonic() - began < OpenLimits().timeout_s
    finally:
        current_call.reset(token)
    assert open_files([(file_of(noise(), "PNG"), "a")])


def test_nothing_is_given_back_where_a_file_is_only_looked_over():
    assert open_files([(file_of(noise(), "PNG"), "a")], decode=False) == []
    with pytest.raises(ImageError):
        open_files([(file_of(noise(), "PNG")[:-40], "a")], decode=False)
