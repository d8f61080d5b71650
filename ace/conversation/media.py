"""What an answer is: its medium, an image or a clip; each is a `Medium` in `MEDIA`.

A family declares its medium in its traits; `Answer.content` and `Made.content` are what the medium works on. Pasting
back, measuring, writing with the recipe inside, reading again and comparing go through it, so that nodes, archives,
recipes and replay take any. A node keeps its answer in one file whose name says which medium it is.

Not here: what a request consists of (`job.py`), the record of a recipe (`recipe.py`).
"""

from __future__ import annotations

import io
import itertools
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image, ImageChops

from ace.conditions.colour import in_profile_of, to_srgb
from ace.conditions.images import MAX_PIXELS, OpenedImage, normalise_image, open_bytes, open_image
from ace.conditions.rules import MOST_PIXELS
from ace.conditions.sixteen import can_write_tiff
from ace.conversation.credentials import Signer, sign
from ace.conversation.recipe import (
    FORMATS,
    Recipe,
    Setting,
    check_output,
    encode,
    parse_packet,
    read_packet,
    xmp_packet,
)
from ace.errors import InputError
from ace.files import write_atomically
from ace.inference.detail import Delivered, deliver, size_note
from ace.inference.focus import uncrop
from ace.inference.preserve import DriftReport, drift_report, paste_back
from ace.video.clips import FORMATS as CLIP_FORMATS
from ace.video.clips import Clip, ClipLimits, encode_clip, open_clip, read_clip, read_metadata

if TYPE_CHECKING:
    from ace.conversation.family import Answer
    from ace.conversation.job import Job, Made


_TIFF = (b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class FinishedAnswer:
    """An answer that everything was done to. content: of the medium; unpasted: with a mask, the model's own content
    before it was pasted back; notes: a line each; settings: what a recipe says of it; own: whether it is the model's
    alone, so that the next round may go on from its latents; delivered: how it was carried to its full size."""

    content: Any
    unpasted: Any = None
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    own: bool = True
    delivered: Delivered | None = None


class Medium(ABC):
    """One kind of answer. Content is what a family makes of it in memory.

    node_file: the answer's name in a node's folder; no other medium has its suffix. formats: suffixes that an answer
    can be written with -> the names of the formats. mime_type: of the node's file."""

    node_file: ClassVar[str]
    formats: ClassVar[Mapping[str, str]]
    mime_type: ClassVar[str]

    @property
    def node_format(self) -> str:
        """The format of a node's file."""
        return self.formats[Path(self.node_file).suffix]

    @abstractmethod
    def finish(self, job: Job, answer: Answer) -> FinishedAnswer:
        """The model's own content with everything outside the mask as it was."""

    @abstractmethod
    def drift(self, job: Job, content: Any) -> DriftReport | None:
        """How far the content moved from what was edited, outside its mask; None if nothing was edited."""

    @abstractmethod
    def still(self, content: Any) -> Image.Image:
        """One image that stands for the content."""

    @abstractmethod
    def encode(self, content: Any, file_format: str, recipe: Recipe | None = None) -> bytes:
        """The content as a file of one of `formats`, with its recipe inside. Raises OutputError."""

    @abstractmethod
    def as_written(self, made: Made, data: bytes) -> Made:
        """A result with its drift measured in a written file's bytes, where the format is lossy."""

    @abstractmethod
    def open(self, path: Path, max_pixels: int = MAX_PIXELS) -> OpenedImage:
        """A file of this medium as one image that stands for it, after checking the whole file. Raises InputError."""

    @abstractmethod
    def load(self, path: Path) -> Any:
        """The content of a file, checked as by `open`. Raises InputError."""

    @abstractmethod
    def size_px(self, path: Path) -> tuple[int, int]:
        """(width, height) of a file, from its head. Raises OSError or ValueError."""

    @abstractmethod
    def format_of(self, path: Path) -> str:
        """In which of `formats` a file is, whatever its name. Raises InputError."""

    @abstractmethod
    def recipe_packet(self, path: Path) -> bytes:
        """The XMP packet inside a file. Raises InputError if there is none."""

    @abstractmethod
    def largest_difference(self, before: bytes, after: bytes) -> int:
        """Of all values of two files of this medium, in levels of 255; 255 if their sizes differ."""


class ImageMedium(Medium):
    """Still images: `PIL.Image.Image` in sRGB or in the edited image's colour profile."""

    node_file = "image.png"
    formats = FORMATS
    mime_type = "image/png"

    def finish(self, job: Job, answer: Answer) -> FinishedAnswer:
        """Paste back where a mask keeps the original; else in the original's colour profile."""
        image, unpasted, delivered, notes, settings = answer.content, None, None, (), {}
        if job.part is not None:
            settings["focus_box"] = str(job.part.box)
        if job.source is not None and job.mask is not None:
            unpasted = image if job.part is None else uncrop(job.source, image, job.part.box)
            rule, feather_px = job.settings.rules.get("blend", 1), job.settings.images.feather_px
            image = paste_back(job.source, unpasted, job.mask, feather_px=feather_px, rule=rule)
        elif job.source is not None and job.delivers:
            delivered = deliver(job.source, image, answer.round_trip)
            image, settings["changes"] = delivered.image, str(delivered)
        elif job.source is not None:
            image = in_profile_of(image, job.source.icc_profile)
            if image.size != job.source.size:
                notes = (size_note(image.size, job.source.size),)
        if job.source is not None and job.source.deep is not None and "sixteen_bit" not in image.info:
            notes = (
                *notes,
                f"{job.source.name} has 16 bits per channel, the answer 8",
            )
        # what holds pixels of the edited image goes on from them: they are exact, and the latents' are not
        merged = unpasted is not None if delivered is None else delivered.redrawn < 1
        return FinishedAnswer(image, unpasted, notes, settings, not merged, delivered)

    def drift(self, job: Job, content: Image.Image) -> DriftReport | None:
        """With a mask in the file's own values, else in sRGB."""
        if job.source is None:
            return None
        if job.mask is not None:
            return drift_report(job.source.stored, content.convert("RGB"), job.mask)
        return drift_report(job.source.image, to_srgb(content.convert("RGB"), job.source.icc_profile))

    def still(self, content: Image.Image) -> Image.Image:
        """Itself."""
        return content

    def encode(self, content: Image.Image, file_format: str, recipe: Recipe | None = None) -> bytes:
        """PNG, JPEG or WebP, see `ace.conversation.recipe.encode`."""
        return encode(content, file_format, recipe)

    def as_written(self, made: Made, data: bytes) -> Made:
        """JPEG is lossy, and 16 bits per channel are kept by PNG and TIFF alone."""
        keeps = data.startswith(b"\x89PNG") or (data.startswith(_TIFF) and can_write_tiff())
        if "sixteen_bit" in made.content.info and not keeps:
            made = replace(made, notes=(*made.notes, "this file has 8 bits per channel: write .png to keep 16"))
        if made.drift is None or not data.startswith(b"\xff\xd8"):
            return made
        notes = made.notes
        if made.job.mask is not None:
            notes += ("JPEG is lossy: what the mask kept is near the input, not equal to it; write .png to keep it",)
        stored = open_bytes(data, max_pixels=MOST_PIXELS).stored
        return replace(made, drift=self.drift(made.job, stored), notes=notes)

    def open(self, path: Path, max_pixels: int = MAX_PIXELS) -> OpenedImage:
        """The image with its alpha and colour profile."""
        return open_image(path, max_pixels=max_pixels)

    def load(self, path: Path) -> Image.Image:
        """RGB, in the file's own values."""
        return open_image(path).stored

    def size_px(self, path: Path) -> tuple[int, int]:
        """Without decoding it."""
        with Image.open(path) as opened:
            return opened.size

    def format_of(self, path: Path) -> str:
        """By its content."""
        with Image.open(path) as opened:
            return opened.format or "PNG"

    def recipe_packet(self, path: Path) -> bytes:
        """From an iTXt chunk (PNG), an APP1 segment (JPEG) or an XMP chunk (WebP)."""
        return read_packet(path, path.name)

    def largest_difference(self, before: bytes, after: bytes) -> int:
        """Alpha included."""
        with Image.open(io.BytesIO(before)) as one, Image.open(io.BytesIO(after)) as other:
            if one.size != other.size:
                return 255
            return int(np.asarray(ImageChops.difference(one.convert("RGBA"), other.convert("RGBA"))).max())


class ClipMedium(Medium):
    """Moving images: `ace.video.clips.Clip`. A node keeps them lossless; its recipe is the file's comment."""

    node_file = "clip.mkv"
    formats = CLIP_FORMATS
    mime_type = "video/x-matroska"

    def finish(self, job: Job, answer: Answer) -> FinishedAnswer:
        """The family has pasted back already, window by window."""
        return FinishedAnswer(answer.content)

    def drift(self, job: Job, content: Clip) -> DriftReport | None:
        """None: outside a mask nothing moves, and `as_written` says what a lossy format changed."""
        return None

    def still(self, content: Clip) -> Image.Image:
        """The first frame."""
        return Image.fromarray(next(iter(content.frames)))

    def encode(self, content: Clip, file_format: str, recipe: Recipe | None = None) -> bytes:
        """MP4 (H.264) or MKV (FFV1), with the sound of its source."""
        metadata = {} if recipe is None else {"comment": xmp_packet(recipe).decode()}
        return encode_clip(content.frames, content.fps, file_format, sound=content.sound, metadata=metadata)

    def as_written(self, made: Made, data: bytes) -> Made:
        """What H.264 changed, over all frames."""
        if data[4:8] != b"ftyp":
            return made
        largest, total, count = 0, 0.0, 0
        for before, after in zip(made.content.frames, _frames_in(data), strict=False):
            difference = np.abs(before.astype(np.int16) - after)
            largest, total, count = max(largest, int(difference.max())), total + float(difference.mean()), count + 1
        note = (
            f"H.264 is lossy: values differ from the answer's by {total / max(count, 1):.2f} of 255 levels on average, "
            f"at most {largest}; write .mkv or a folder to keep them"
        )
        return replace(made, notes=(*made.notes, note))

    def open(self, path: Path, max_pixels: int = MAX_PIXELS) -> OpenedImage:
        """The first frame."""
        file = open_clip(path, ClipLimits(pixels=max_pixels))
        return normalise_image(Image.fromarray(next(iter(file.frames()))), name=path.name)

    def load(self, path: Path) -> Clip:
        """All frames."""
        return read_clip(path)

    def size_px(self, path: Path) -> tuple[int, int]:
        """Of the first frame."""
        return open_clip(path).size

    def format_of(self, path: Path) -> str:
        """By its content."""
        with open(path, "rb") as stream:
            return "MP4" if stream.read(8)[4:] == b"ftyp" else "MKV"

    def recipe_packet(self, path: Path) -> bytes:
        """From the file's comment."""
        try:
            found = read_metadata(path)
        except OSError:
            raise InputError(f"{path.name} cannot be read: check the path") from None
        if not found:
            raise InputError(f"{path.name} carries no recipe: it was not made by ace, or was saved without metadata")
        return found.encode()

    def largest_difference(self, before: bytes, after: bytes) -> int:
        """Over all frames; 255 if there are not as many."""
        largest = 0
        for one, other in itertools.zip_longest(_frames_in(before), _frames_in(after)):
            if one is None or other is None or one.shape != other.shape:
                return 255
            largest = max(largest, int(np.abs(one.astype(np.int16) - other).max()))
        return largest


def _frames_in(data: bytes) -> Iterator[np.ndarray]:
    """The frames of a clip's bytes."""
    with tempfile.TemporaryDirectory(prefix="ace-clip-") as folder:
        path = Path(folder) / "clip"
        path.write_bytes(data)
        yield from open_clip(path).frames()


IMAGE = ImageMedium()
CLIP = ClipMedium()
MEDIA: tuple[Medium, ...] = (IMAGE, CLIP)


def medium_of(path: str | Path) -> Medium:
    """The medium of a file by its suffix; images are the default, whose reader says what is wrong with a file."""
    suffix = Path(path).suffix.lower()
    return next((medium for medium in MEDIA if suffix in medium.formats), IMAGE)


def write(made: Made, path: Path, *, metadata: bool = True, signer: Signer | None = None) -> Made:
    """Write a result in the format of the path's suffix, whole or not at all, with its recipe unless without metadata.

    Returns the result as it is in the file. Raises OutputError."""
    medium = made.medium
    file_format = check_output(path, medium.formats)
    data = medium.encode(made.content, file_format, made.recipe if metadata else None)
    if signer is not None and metadata:
        data = sign(data, file_format, made.recipe, made.job.origins, signer)
        made = replace(made, notes=(*made.notes, signer.note))
    write_atomically(path, data)
    return medium.as_written(made, data)


def read_recipe(path: str | Path) -> Recipe:
    """The recipe inside a file of any medium. Raises InputError if there is none that can be trusted to be whole."""
    path = Path(path)
    return parse_packet(medium_of(path).recipe_packet(path), path.name)
