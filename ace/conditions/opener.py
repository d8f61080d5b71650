"""Picture files from elsewhere, opened where it can be killed: in processes of bounded memory, within a time limit.

`open_files` gives what `images.open_bytes` gives. The bytes go to a process of their own (this file, run as a module),
which says first how large the pictures are, so that whoever asks can refuse them or make room before anything is
decoded; it decodes one after another and goes on to the next request. A decoder that takes too long, needs too much
memory or crashes ends its process and nothing else. Nothing is pickled between the two.

Not here: what a picture is (`images.py`), how many may be opened at once (whoever asks).
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ace.conditions.images import DECODE_ERRORS, OpenedImage, open_bytes, open_header, quiet_pillow
from ace.conditions.rules import MAX_PIXELS
from ace.errors import AceError, ImageError, InputError, MissingDependencyError

TIMEOUT_S = 30.0  # for the pictures of one request
_BASE_BYTES, _BYTES_PER_PIXEL = 2**31, 48  # of address space: libraries and threads; what 16 bits and profiles take
_KEPT = 4  # processes that wait for the next request
_ERRORS = {kind.__name__: kind for kind in (ImageError, InputError, MissingDependencyError)}


@dataclass(frozen=True)
class OpenLimits:
    """max_pixels: of one picture; timeout_s: for all pictures of a request."""

    max_pixels: int = MAX_PIXELS
    timeout_s: float = TIMEOUT_S


@dataclass(eq=False)
class Call:
    """Somebody who waits for pictures, and may stop waiting from another thread."""

    stopped: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stop(self) -> None:
        """End whatever is being opened for it."""
        with self._lock:
            self.stopped = True
            if self._process is not None:
                self._process.kill()

    @contextlib.contextmanager
    def using(self, process: subprocess.Popen[bytes]) -> Generator[None]:
        """Within, stopping kills the process."""
        with self._lock:
            self._process = process
            if self.stopped:
                process.kill()
        try:
            yield
        finally:
            with self._lock:
                self._process = None


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)


def open_files(
    files: Sequence[tuple[bytes, str]],
    limits: OpenLimits | None = None,
    on_pixels: Callable[[int], Any] = lambda pixels: None,
    *,
    decode: bool = True,
) -> list[OpenedImage]:
    """Open picture files, given as (bytes, name for messages), as `open_bytes` does.

    on_pixels: told how many pixels they have together, before any is decoded; what it raises is raised here. decode:
    False = decode them, to see that they are sound, and give none back. Raises ImageError, also for files that take too
    long, and MissingDependencyError."""
    limits = limits or OpenLimits()
    if not files:
        return []
    call = current_call.get() or Call()
    process = _taken(limits)
    timed_out = threading.Event()

    def give_up() -> None:
        timed_out.set()
        process.kill()

    timer = threading.Timer(limits.timeout_s, give_up)
    timer.start()
    whole = False
    try:
        with call.using(process):
            found = _ask(process, files, limits, on_pixels, decode)
        whole = True
        return found
    except (OSError, EOFError):  # it is gone
        if call.stopped:
            raise ImageError("nobody waits for this picture any more") from None
        names = ", ".join(name for _, name in files)[:200]
        what = "takes too long to open" if timed_out.is_set() else "cannot be opened, it is damaged or far too large"
        raise ImageError(f"{names} {what}: save it again as PNG or JPEG") from None
    except _ToldError as told:
        whole = True
        raise _ERRORS[told.kind](str(told)) from None
    except _RefusedError as refused:
        whole = True
        raise refused.error from None
    finally:
        timer.cancel()
        if whole and not timed_out.is_set() and not call.stopped:
            _give_back(process, limits)
        else:
            _end(process)


def start_opener(limits: OpenLimits | None = None) -> None:
    """Have a process ready before the first request."""
    limits = limits or OpenLimits()
    _give_back(_taken(limits), limits)


class _RefusedError(Exception):
    """What `on_pixels` raised."""

    def __init__(self, error: AceError) -> None:
        super().__init__(str(error))
        self.error = error


class _ToldError(Exception):
    """An error that the other process found."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind if kind in _ERRORS else "ImageError"


# This side

_waiting: dict[int, list[subprocess.Popen[bytes]]] = {}  # by the memory that they may use
_lock = threading.Lock()


def _taken(limits: OpenLimits) -> subprocess.Popen[bytes]:
    with _lock:
        ready = _waiting.setdefault(limits.max_pixels, [])
        while ready:
            process = ready.pop()
            if process.poll() is None:
                return process
            _end(process)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "ace.conditions.opener", str(_BASE_BYTES + _BYTES_PER_PIXEL * limits.max_pixels)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C is for whoever asks
    )


def _give_back(process: subprocess.Popen[bytes], limits: OpenLimits) -> None:
    with _lock:
        ready = _waiting.setdefault(limits.max_pixels, [])
        if len(ready) < _KEPT:
            ready.append(process)
            return
    _end(process)


@atexit.register
def stop_openers() -> None:
    """End the processes that wait for requests."""
    with _lock:
        ready = [process for some in _waiting.values() for process in some]
        _waiting.clear()
    for process in ready:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


def _ask(
    process: subprocess.Popen[bytes],
    files: Sequence[tuple[bytes, str]],
    limits: OpenLimits,
    on_pixels: Callable[[int], Any],
    decode: bool,
) -> list[OpenedImage]:
    assert process.stdin is not None and process.stdout is not None
    asked = {
        "files": [{"name": name, "bytes": len(data)} for data, name in files],
        "max_pixels": limits.max_pixels,
        "decode": decode,
    }
    _write(process.stdin, asked, *(data for data, _ in files))
    pixels = _told(_read(process.stdout))["pixels"]
    try:
        on_pixels(pixels)
    except AceError as error:
        _write(process.stdin, {"go_on": False})
        raise _RefusedError(error) from None
    _write(process.stdin, {"go_on": True})
    found: list[OpenedImage] = []
    for _ in files:
        about = _told(_read(process.stdout))
        if decode:
            found.append(_received(process.stdout, about))
    return found


def _told(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise _ToldError(answer["error"], answer["message"])
    return answer


def _received(stream: IO[bytes], about: dict[str, Any]) -> OpenedImage:
    size = (about["width"], about["height"])

    def picture(mode: str, channels: int) -> Image.Image:
        image = Image.frombytes(mode, size, _exactly(stream, size[0] * size[1] * channels))
        if mode == "RGB" and icc_profile is not None:
            image.info["icc_profile"] = icc_profile
        return image

    icc_profile = _exactly(stream, about["icc_profile"]) if about["icc_profile"] else None
    stored = picture("RGB", 3)
    image = picture("RGB", 3) if about["image_differs"] else stored
    alpha = picture("L", 1) if about["alpha"] else None
    deep = None
    if about["deep"]:
        shape = (size[1], size[0], about["deep"])
        deep = np.frombuffer(_exactly(stream, 2 * size[0] * size[1] * about["deep"]), np.uint16).reshape(shape)
    return OpenedImage(
        image, stored, alpha, icc_profile, about["mode"], about["converted"], name=about["name"], deep=deep
    )


# Both sides


def _write(stream: IO[bytes], about: dict[str, Any], *parts: bytes | memoryview) -> None:
    stream.write(json.dumps(about).encode() + b"\n")
    for part in parts:
        stream.write(part)
    stream.flush()


def _read(stream: IO[bytes]) -> dict[str, Any]:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return json.loads(line)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError
    return data


# The other side


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are none."""
    while True:
        try:
            asked = _read(requests)
        except EOFError:
            return
        files = [(_exactly(requests, one["bytes"]), one["name"]) for one in asked["files"]]
        try:
            _write(answers, {"pixels": _count_pixels(files, asked["max_pixels"])})
            for data, name in files if _read(requests)["go_on"] else ():
                opened = open_bytes(data, max_pixels=asked["max_pixels"], name=name)
                if asked["decode"]:
                    _write(answers, *_sent(opened))
                else:
                    _write(answers, {})
        except (ImageError, InputError, MissingDependencyError) as error:
            _write(answers, {"error": type(error).__name__, "message": str(error)})


def _count_pixels(files: Sequence[tuple[bytes, str]], max_pixels: int) -> int:
    """Of all files together, by their headers. Raises as `open_bytes`."""
    pixels = 0
    for data, name in files:
        try:
            with quiet_pillow(), open_header(io.BytesIO(data), name) as image:
                size = image.size
        except (*DECODE_ERRORS, Image.DecompressionBombError):
            size = (0, 0)
        if not 0 < size[0] * size[1] <= max_pixels:
            open_bytes(data, max_pixels=max_pixels, name=name)  # says what is wrong
        pixels += size[0] * size[1]
    return pixels


def _sent(opened: OpenedImage) -> list[Any]:
    parts: list[Any] = [opened.icc_profile or b"", opened.stored.tobytes()]
    if opened.image is not opened.stored:
        parts.append(opened.image.tobytes())
    if opened.alpha is not None:
        parts.append(opened.alpha.tobytes())
    if opened.deep is not None:
        parts.append(np.ascontiguousarray(opened.deep).data.cast("B"))
    about = {
        "width": opened.size[0],
        "height": opened.size[1],
        "image_differs": opened.image is not opened.stored,
        "alpha": opened.alpha is not None,
        "icc_profile": len(opened.icc_profile or b""),
        "deep": 0 if opened.deep is None else opened.deep.shape[2],
        "mode": opened.mode,
        "converted": opened.converted,
        "name": opened.name,
    }
    return [about, *parts]


def main() -> None:
    """The process that opens."""
    try:
        import resource

        room = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # no such limits on this system
    _serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
