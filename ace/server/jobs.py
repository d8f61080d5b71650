"""A request's words, pictures and settings → jobs for the engine. Those of a session are `ChatSession`'s.

Not here: reading HTTP, running jobs.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from ace.conditions.images import OpenedImage
from ace.conditions.masks import Mask
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.conversation.chat import Picture
from ace.conversation.edit import Job, Settings
from ace.conversation.recipe import FileRef, encode
from ace.errors import MaskError
from ace.server.images import Upload, open_mask_upload, open_upload


def open_pictures(uploads: Sequence[Upload], max_pixels: int) -> list[Picture]:
    """Uploaded files as pictures of a message. Raises ImageError."""
    return [Picture(open_upload(upload, max_pixels), upload.ref) for upload in uploads]


def open_mask(upload: Upload, source: OpenedImage, max_pixels: int) -> tuple[Mask, FileRef]:
    """A mask and what a recipe calls it.

    One that came with transparency goes by the hash of the plain mask (PNG, white = change) that it stands for, since
    that is what a replay needs. Raises MaskError or ImageError."""
    mask = open_mask_upload(upload, source, max_pixels)
    if open_upload(upload, max_pixels).alpha is None:
        return mask, upload.ref
    return mask, FileRef(name="mask.png", sha256=hashlib.sha256(encode(mask.image, "PNG")).hexdigest())


def make_job(
    instruction: str, settings: Settings, uploads: Sequence[Upload], mask: Upload | None, max_pixels: int
) -> Job:
    """The job of a request without a session. uploads: the first is the picture to edit; none = a new picture.

    Raises ImageError, MaskError or ConditionError."""
    pictures = open_pictures(uploads, max_pixels)
    masks: list[Image.Image | None] = [None] * len(pictures)
    refs: list[FileRef | None] = [None] * len(pictures)
    notes: tuple[str, ...] = ()
    if mask is not None:
        if not pictures:
            raise MaskError("a mask needs the picture that it belongs to: send the image as well")
        read, refs[0] = open_mask(mask, pictures[0].opened, max_pixels)
        masks[0], notes = read.image, (read.note,)
    unit = ConditionUnit(instruction, tuple(picture.opened.image for picture in pictures), tuple(masks))
    return Job(
        unit=LongContextConditionUnit(unit),
        settings=settings,
        source=pictures[0].opened if pictures else None,
        images=tuple(picture.file for picture in pictures),
        masks=tuple(refs) if mask is not None else (),
        notes=notes,
    )


def variants(job: Job, count: int) -> list[Job]:
    """The job with this and the following seeds."""
    first = job.settings.seed
    return [replace(job, settings=replace(job.settings, seed=(first + n) % 2**63)) for n in range(count)]


def held_bytes(job: Job) -> int:
    """Memory that the pictures of a job hold while it waits and runs."""
    frames = job.unit.frames()
    pixels = {id(frame.image): frame.image.width * frame.image.height for frame in frames}
    masks = {id(frame.mask): frame.mask.width * frame.mask.height for frame in frames if frame.mask is not None}
    return 4 * sum(pixels.values()) + sum(masks.values())


def any_seed() -> int:
    """A seed for a request that names none."""
    return secrets.randbelow(2**31)
