"""A page of cases: pictures side by side with what was asked and how it scored, in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ace.files import write_atomically
from ace.pages import image_url, render

SIDE_PX = 256


@dataclass(frozen=True)
class Case:
    """pictures: (label, picture) side by side. words: what was asked. note: scores and the like."""

    pictures: tuple[tuple[str, Image.Image], ...]
    words: str
    note: str


def write_gallery(
    path: Path, title: str, sections: Sequence[tuple[str, Sequence[Case]]], notes: Sequence[str] = ()
) -> None:
    """Write one page, a section of cases per heading; everything in a case is shown as text, never as markup.

    notes: what the scores are of and what is missing, a line each; folded up unless one says PARTIAL or RESIZED."""
    shown = [(heading, [_shown(case) for case in cases]) for heading, cases in sections if cases]
    notes_open = any("PARTIAL" in note or "RESIZED" in note for note in notes)
    page = render("gallery", title=title, sections=shown, notes=notes, notes_open=notes_open)
    write_atomically(path, page.encode())


def _shown(case: Case) -> dict[str, Any]:
    pictures = [(label, image_url(picture, SIDE_PX)) for label, picture in case.pictures]
    return {"pictures": pictures, "words": case.words, "note": case.note}
