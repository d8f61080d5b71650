"""What a task is made from (`Source`), and why one could not be (`Rejected`)."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

SMALLEST_SIDE_PX = 64  # below it nothing can be extracted, masked or written


@dataclass(frozen=True)
class Source:
    """One picture of a collection, with the others of its mined set.

    image: RGB, any size. id: unique in the collection, decided by the content. caption: what it shows, "" = unknown.
    others: further pictures of the same set (one person, one style, one series), in the set's order, empty = no set.
    relation: what the set shares: "content", "face", "style", "series", "any" = nothing, other
    pictures of the collection for the tasks that need a second one, "" = no set. style: the name of the style that
    the picture is in, "" = unknown."""

    image: Image.Image
    id: str
    caption: str = ""
    others: tuple[Source, ...] = ()
    relation: str = ""
    style: str = ""


@dataclass(frozen=True)
class Rejected:
    """No sample came of a source. reason: one of few, counted in reports ("no text found"); detail: of this one."""

    reason: str
    detail: str = ""
