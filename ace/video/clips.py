"""Clips: reading any video file, animation or folder of frames within limits, and writing them.

`open_clip` decodes a file once without keeping its frames: it learns the size, the time of every frame and whether the
file is whole, so that a broken or endless one is refused in one line before any model is loaded. `ClipFile.frames` then
yields RGB frames one by one, turned upright, so that memory does not grow with length. `write_clip` writes H.264 (MP4)
or lossless FFV1 (MKV), bit for bit the same for the same frames; `write_folder` writes PNG files.

Container and codec are decided from a file's first bytes and never from its name, and no file may lead to another one:
playlists are refused. Not here: what a model is shown (`prepare.py`), recipes.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from ace.conditions.images import quiet_pillow
from ace.errors import ConfigError, ImageError, MissingDependencyError, OutputError
from ace.video.files import frame_files

DEFAULT_FPS = Fraction(16)  # what the published models were trained at
FORMATS = {".mp4": "MP4", ".mkv": "MKV"}
LOSSLESS = frozenset({"MKV"})
SUFFIXES = (".mp4", ".mkv", ".mov", ".m4v", ".webm", ".avi", ".gif", ".ts", ".mpg", ".ogv")
_QUALITY = "17"  # constant rate factor of H.264: no difference that is seen
_HDR = {16: "PQ", 18: "HLG"}  # transfer functions by their code in ITU-T H.273
_MP4_SOUND = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"})
# First bytes -> the demuxer. Formats that name other files (HLS, DASH, concat) are not among them.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"wide", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (0, b"OggS", "ogg"),
    (0, b"FLV\x01", "flv"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x30\x26\xb2\x75", "asf"),
    (0, b"G", "mpegts"),  # "GIF8" is looked for before
)


@dataclass(frozen=True)
class ClipLimits:
    """What is read at most: frames, pixels of a frame, seconds."""

    frames: int = 20_000
    pixels: int = 4096 * 2304
    seconds: float = 1200.0


@dataclass(frozen=True)
class Clip:
    """Frames in memory. frames: (T, H, W, 3) uint8 RGB; times: (T,) seconds at which each is shown first; fps: of a
    constant rate that comes nearest; sound: the file that its sound is in; notes: how it was read, a line each."""

    frames: np.ndarray
    fps: Fraction = DEFAULT_FPS
    name: str = "clip"
    sound: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in px."""
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def seconds(self) -> float:
        """Length."""
        return float(len(self.frames) / self.fps)


@dataclass(frozen=True)
class ClipFile:
    """A file that was decoded once and found whole. size: (width, height) in px, upright; times: (T,) seconds, start
    of every frame; seconds: its length; variable: whether frames last differently long; sound: whether it has any."""

    path: Path
    size: tuple[int, int]
    times: np.ndarray
    seconds: float
    kind: str
    sound: bool = False
    notes: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        """Frames in all."""
        return len(self.times)

    @cached_property
    def fps(self) -> Fraction:
        """Frames per second, on average."""
        return Fraction(self.num_frames / self.seconds).limit_denominator(1001)

    @property
    def variable(self) -> bool:
        """Whether frames last differently long (by more than a millisecond, the step of Matroska's clock)."""
        steps = np.diff(self.times)
        return bool(len(steps) and steps.max() - steps.min() > 0.0025)

    def spans(self) -> np.ndarray:
        """(T, 2) seconds: from when to when each frame is shown."""
        return np.stack([self.times, np.append(self.times[1:], self.seconds)], axis=1)

    def frames(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 RGB each, upright, in order. Raises ImageError if the file has changed since."""
        return _READERS[self.kind](self)

    def take(self, ids: Iterable[int]) -> Iterator[np.ndarray]:
        """The frames of these numbers, which must not go down; one may come several times."""
        wanted = iter(ids)
        following = next(wanted, None)
        for number, frame in enumerate(self.frames()):
            while following == number:
                yield frame
                following = next(wanted, None)
            if following is None:
                return


def open_clip(path: str | Path, limits: ClipLimits | None = None) -> ClipFile:
    """Check a video file, an animation (GIF, WebP, PNG), an image or a folder of images, and learn what it holds.

    Raises ImageError, one line, for what is missing, damaged, not a clip, HDR or beyond the limits."""
    path, limits = Path(path), limits or ClipLimits()
    if path.is_dir():
        return _open_folder(path, limits)
    try:
        with open(path, "rb") as stream:
            start = stream.read(16)
    except OSError as error:
        raise ImageError(f"{path.name} cannot be read ({error.strerror or error}): check the path") from None
    if start[:4] == b"GIF8" or start[:8] == b"\x89PNG\r\n\x1a\n" or start[:2] == b"\xff\xd8" or start[8:12] == b"WEBP":
        return _open_animation(path, limits)
    for offset, magic, name in _MAGIC:
        if start[offset : offset + len(magic)] == magic:
            return _open_video(path, name, limits)
    raise ImageError(
        f"{path.name} is no video, animation or image: use MP4, MKV, MOV, WebM, AVI, GIF, WebP or PNG files"
    )


def is_moving(path: Path) -> bool:
    """Whether a file is a video or a GIF, by its first bytes; False for one that cannot be read."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(16)
    except OSError:
        return False
    return start[:4] == b"GIF8" or any(start[offset : offset + len(magic)] == magic for offset, magic, _ in _MAGIC)


def read_clip(path: str | Path, limits: ClipLimits | None = None) -> Clip:
    """All frames of a file, see `open_clip`."""
    file = open_clip(path, limits)
    frames = np.stack(list(file.frames()))
    return Clip(frames, file.fps, file.path.name, file.path if file.sound else None, file.notes)


def take_clip(file: ClipFile, ids: Iterable[int], fps: Fraction) -> Clip:
    """Some frames of a file as a clip of its own."""
    frames = np.stack(list(file.take(ids)))
    return Clip(frames, fps, file.path.name, file.path if file.sound else None, file.notes)


def resampled_ids(file: ClipFile, fps: Fraction) -> list[int]:
    """Which frame is shown at each tick of a constant rate: numbers that do not go down."""
    count = max(1, round(file.seconds * fps))
    ticks = (np.arange(count) + 0.5) / float(fps)
    return np.clip(np.searchsorted(file.times, ticks, side="right") - 1, 0, file.num_frames - 1).tolist()


# Video files


def import_av() -> Any:
    """PyAV. Raises MissingDependencyError."""
    try:
        import av
    except ModuleNotFoundError:
        raise MissingDependencyError("reading video files needs PyAV: pip install 'ace-allround[video]'") from None
    av.logging.set_level(None)
    return av


def _open_video(path: Path, demuxer: str, limits: ClipLimits) -> ClipFile:
    av = import_av()
    times: list[float] = []
    notes: list[str] = []
    size, last = (0, 0), 0.0
    try:
        with open(path, "rb") as stream, av.open(stream, format=demuxer) as container:
            if not container.streams.video:
                raise ImageError(f"{path.name} has no picture, only sound: name a video file")
            video = container.streams.video[0]
            video.thread_type = "AUTO"
            hdr = _HDR.get(int(video.codec_context.color_trc or 0))
            if hdr is not None:
                raise ImageError(
                    f"{path.name} is HDR ({hdr}): convert it to SDR first, its colours have no meaning here"
                )
            for frame in container.decode(video):
                turned = frame.rotation % 180 != 0
                here = (frame.height, frame.width) if turned else (frame.width, frame.height)
                if not times:
                    size = here
                    notes += _notes_on(frame, path.name)
                    if here[0] * here[1] > limits.pixels:
                        raise ImageError(
                            _too_much(path.name, f"frames of {here[0]}x{here[1]} px", f"{limits.pixels} px")
                        )
                elif here != size:
                    raise ImageError(f"{path.name} changes its size on the way: convert it to one size")
                step = float(1 / (video.average_rate or video.guessed_rate or DEFAULT_FPS))
                at = frame.time if frame.time is not None else last
                times.append(float(at))
                last = at + (float(frame.duration * frame.time_base) if frame.duration else step)
                if len(times) > limits.frames:
                    raise ImageError(_too_much(path.name, "more frames", f"{limits.frames} frames"))
                if last - times[0] > limits.seconds:
                    raise ImageError(_too_much(path.name, "more seconds", f"{limits.seconds:g} s"))
            sound = bool(container.streams.audio)
            rate, told = video.average_rate, float(container.duration or 0) / av.time_base
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        raise ImageError(f"{path.name} is damaged or cut off ({_reason(error)}): use another file") from None
    if not times:
        raise ImageError(f"{path.name} holds no frames: use another file")
    starts = np.asarray(times) - times[0]
    if np.any(np.diff(starts) <= 0):
        starts = np.arange(len(times)) * max(last - times[0], 1e-3) / len(times)  # a file without usable times
    seconds = max(last - times[0], 1e-3)
    if not sound and told - seconds > 2 * seconds / len(times) + 0.1:
        raise ImageError(f"{path.name} is cut off: {seconds:.2f} of {told:.2f} s are there: use the whole file")
    if rate and abs(len(times) / rate - seconds) < 0.5 / rate:  # the container's clock may be coarser than the rate
        seconds = float(len(times) / rate)
    file = ClipFile(path, size, starts, seconds, f"av:{demuxer}", sound, tuple(notes))
    if file.variable:
        file = replace(
            file, notes=(*file.notes, f"{path.name} has a variable frame rate, {float(file.fps):.3g} fps on average")
        )
    return file


def _notes_on(frame: Any, name: str) -> list[str]:
    notes = []
    if frame.rotation:
        notes.append(f"{name} was turned upright, as its metadata says ({frame.rotation}°)")
    bits = max((component.bits for component in frame.format.components), default=8)
    if bits > 8:
        notes.append(f"{name} has {bits} bits per channel, read as 8")
    if _has_alpha(frame):
        notes.append(f"{name} is transparent in parts: laid on white")
    return notes


def _has_alpha(frame: Any) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _video_frames(file: ClipFile) -> Iterator[np.ndarray]:
    av = import_av()
    try:
        with open(file.path, "rb") as stream, av.open(stream, format=file.kind.removeprefix("av:")) as container:
            video = container.streams.video[0]
            video.thread_type = "AUTO"
            for frame in container.decode(video):
                if _has_alpha(frame):
                    array = _on_white(Image.fromarray(frame.to_ndarray(format="rgba")))
                else:
                    array = frame.to_ndarray(format="rgb24")
                yield np.ascontiguousarray(np.rot90(array, round(frame.rotation / 90) % 4))
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise ImageError(f"{file.path.name} is damaged or cut off ({_reason(error)}): use another file") from None


# Animations and folders


def _open_animation(path: Path, limits: ClipLimits) -> ClipFile:
    times, now, notes = [], 0.0, set()
    try:
        with quiet_pillow(), Image.open(path, formats=("GIF", "WEBP", "PNG", "JPEG")) as image:
            size = image.size
            if size[0] * size[1] > limits.pixels:
                raise ImageError(_too_much(path.name, f"frames of {size[0]}x{size[1]} px", f"{limits.pixels} px"))
            for frame in ImageSequence.Iterator(image):
                times.append(now)
                frame.load()
                now += max(float(frame.info.get("duration") or 0), 0) / 1000 or float(1 / DEFAULT_FPS)
                if "A" in frame.mode or "transparency" in frame.info:
                    notes.add(f"{path.name} is transparent in parts: laid on white")
                if len(times) > limits.frames:
                    raise ImageError(_too_much(path.name, "more frames", f"{limits.frames} frames"))
                if now > limits.seconds:
                    raise ImageError(_too_much(path.name, "more seconds", f"{limits.seconds:g} s"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path.name} is damaged or cut off ({_reason(error)}): use another file") from None
    file = ClipFile(path, size, np.asarray(times), now, "animation", False, tuple(sorted(notes)))
    if file.variable:
        file = replace(
            file, notes=(*file.notes, f"{path.name} has a variable frame rate, {float(file.fps):.3g} fps on average")
        )
    return file


def _animation_frames(file: ClipFile) -> Iterator[np.ndarray]:
    with quiet_pillow(), Image.open(file.path, formats=("GIF", "WEBP", "PNG", "JPEG")) as image:
        for frame in ImageSequence.Iterator(image):
            yield _on_white(frame)


def _open_folder(folder: Path, limits: ClipLimits) -> ClipFile:
    files = frame_files(folder)
    if not files:
        raise ImageError(f"{folder.name} holds no images: name a folder of frames or a video file")
    if len(files) > limits.frames:
        raise ImageError(_too_much(folder.name, f"{len(files)} frames", f"{limits.frames} frames"))
    size = None
    for file in files:
        try:
            with quiet_pillow(), Image.open(file) as image:
                image.verify()
                size = size or image.size
                if image.size != size:
                    raise ImageError(
                        f"{file.name} in {folder.name} has another size than the frames before: make all one"
                    )
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError(f"{file.name} in {folder.name} is damaged ({_reason(error)}): use another file") from None
    if size is None or size[0] * size[1] > limits.pixels:
        raise ImageError(_too_much(folder.name, "frames that are too large", f"{limits.pixels} px"))
    step = float(1 / DEFAULT_FPS)
    return ClipFile(folder, size, np.arange(len(files)) * step, len(files) * step, "folder")


def _folder_frames(file: ClipFile) -> Iterator[np.ndarray]:
    for path in frame_files(file.path):
        with quiet_pillow(), Image.open(path) as image:
            yield _on_white(image)


def _on_white(image: Image.Image) -> np.ndarray:
    if image.mode == "RGB":
        return np.asarray(image)
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


class _Readers(dict[str, Any]):
    def __missing__(self, kind: str) -> Any:
        return _video_frames


_READERS = _Readers(animation=_animation_frames, folder=_folder_frames)


def _too_much(name: str, what: str, limit: str) -> str:
    return (
        f"{name} has {what} than is read ({limit}): cut it first"
        if what.startswith("more")
        else (f"{name} has {what}, at most {limit} are read: make it smaller first")
    )


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).strip().split("\n")[0][:120]


# Writing


def check_clip_output(path: Path, lossless: bool = False) -> str:
    """The format ("MP4", "MKV", "PNG" for a folder) of a path by its suffix. Raises OutputError or ConfigError."""
    suffix = path.suffix.lower()
    if suffix and suffix not in FORMATS:
        raise OutputError(
            f"{path.name} has no suffix that a clip can be written with: use .mp4, .mkv or a folder's name"
        )
    if not path.absolute().parent.is_dir():
        raise OutputError(f"the folder of {path.name} does not exist: create it first or choose another")
    if not suffix:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path.name} holds other files: name a new or empty folder for the frames")
        return "PNG"
    if path.is_dir():
        raise OutputError(f"{path.name} is a folder: name a file")
    if lossless and FORMATS[suffix] not in LOSSLESS:
        raise ConfigError(f"{suffix} is not lossless: write .mkv (FFV1) or a folder of PNG files")
    return FORMATS[suffix]


def encode_clip(
    frames: Iterable[np.ndarray],
    fps: Fraction,
    file_format: str,
    *,
    sound: Path | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A clip as the bytes of a file, see `encode_into`."""
    with tempfile.TemporaryDirectory(prefix="ace-clip-") as folder:
        path = Path(folder) / f"clip.{file_format.lower()}"
        encode_into(path, frames, fps, file_format, sound=sound, metadata=metadata)
        return path.read_bytes()


def encode_into(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: Fraction,
    file_format: str,
    *,
    sound: Path | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write frames (H, W, 3) uint8, as they come, to an "MP4" (H.264, lossy) or "MKV" (FFV1, lossless) file.

    The same frames give the same bytes. sound: a file whose first sound track is copied as it is, if the format takes
    it (see `keeps_sound`). Raises OutputError; use `write_clip` for what must not be half-written."""
    av = import_av()
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise OutputError("a clip without frames cannot be written")
    height, width = first.shape[:2]
    options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if file_format == "MP4" else {})
    muxer = "mp4" if file_format == "MP4" else "matroska"
    try:
        with av.open(str(path), "w", format=muxer, options=options) as container:
            container.metadata.update(metadata or {})
            stream = _add_picture(container, file_format, (width, height), fps)
            for packet in _copy_sound(container, sound, file_format):
                container.mux(packet)
            for number, frame in enumerate(itertools.chain([first], frames)):
                if frame.shape != first.shape:
                    raise OutputError(
                        f"frame {number} is {frame.shape[1]}x{frame.shape[0]} px, the clip {width}x{height}"
                    )
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                if file_format == "MP4":
                    picture = picture.reformat(format=stream.pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG")
                picture.pts, picture.time_base = number, 1 / fps
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    except (av.error.FFmpegError, ValueError) as error:
        raise OutputError(
            f"a clip of {width}x{height} px cannot be written as {file_format} ({_reason(error)})"
        ) from None


def _add_picture(container: Any, file_format: str, size: tuple[int, int], fps: Fraction) -> Any:
    """The picture stream of a new file."""
    from av.codec.context import Flags

    if file_format == "MP4":
        stream = container.add_stream("libx264", rate=fps, options={"crf": _QUALITY, "preset": "medium"})
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1
    else:
        stream = container.add_stream("ffv1", rate=fps, options={"level": "3", "slicecrc": "1"})
        stream.pix_fmt = "bgr0"
    stream.width, stream.height = size
    stream.codec_context.thread_count = 1  # the number of threads is written into the file
    stream.codec_context.flags |= Flags.bitexact
    stream.codec_context.time_base = 1 / fps
    return stream


def _copy_sound(container: Any, sound: Path | None, file_format: str) -> Iterator[Any]:
    """Packets of a file's first sound track, for a container that has not been written to yet."""
    if sound is None or not keeps_sound(sound, file_format):
        return iter(())
    source = import_av().open(str(sound))
    track = source.streams.audio[0]
    copied = container.add_stream_from_template(track)

    def packets() -> Iterator[Any]:
        with source:
            for packet in source.demux(track):
                if packet.dts is not None:
                    packet.stream = copied
                    yield packet

    return packets()


def keeps_sound(sound: Path, file_format: str) -> bool:
    """Whether a file has a sound track that a format can hold as it is."""
    if file_format not in ("MP4", "MKV"):
        return False
    with import_av().open(str(sound)) as source:
        if not source.streams.audio:
            return False
        return file_format == "MKV" or source.streams.audio[0].codec_context.name in _MP4_SOUND


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: Fraction,
    *,
    sound: Path | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a clip whole or not at all, frame by frame: .mp4, .mkv, or a folder of PNG files. Raises OutputError."""
    file_format = check_clip_output(path)
    if file_format == "PNG":
        write_folder(path, frames)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        encode_into(part, frames, fps, file_format, sound=sound, metadata=metadata)
        os.replace(part, os.path.realpath(path))
    except OSError as error:
        raise OutputError(f"{path.name} cannot be written ({error.strerror or error}): choose another") from None
    finally:
        part.unlink(missing_ok=True)


def write_folder(folder: Path, frames: Iterable[np.ndarray]) -> None:
    """Write frames as 00000.png, 00001.png, … into a new folder, which appears when all are there."""
    part = folder.with_name(f".{folder.name}.part")
    try:
        part.mkdir(exist_ok=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(part / f"{number:05d}.png", compress_level=4)
        if folder.is_dir():
            folder.rmdir()
        os.replace(part, folder)
    except OSError as error:
        raise OutputError(f"{folder.name} cannot be written ({error.strerror or error}): choose another") from None


def read_metadata(path: Path, key: str = "comment") -> str | None:
    """A word of a video file's own metadata, or None. Raises ImageError for what is no video."""
    with open(path, "rb") as stream:
        start = stream.read(16)
    demuxer = next((name for offset, magic, name in _MAGIC if start[offset : offset + len(magic)] == magic), None)
    if demuxer is None:
        return None
    av = import_av()
    try:
        with open(path, "rb") as stream, av.open(stream, format=demuxer) as container:
            found = {name.lower(): value for name, value in container.metadata.items()}
    except (av.error.FFmpegError, ValueError) as error:
        raise ImageError(f"{path.name} is damaged or cut off ({_reason(error)}): use another file") from None
    return found.get(key)
