"""A page of cases: pictures side by side with what was asked and how it scored, in one HTML file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ace.files import write_atomically

SIDE_PX = 256
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem}
body{color:#1c1e24;background:#fafaf8}
figure{margin:0;background:#fff;border:1px solid #dededa;border-radius:10px;padding:.8rem}
.cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr));gap:1rem}
details{font-size:13px;color:#747882}
figure div{display:flex;gap:.4rem}figure span{flex:1;font-size:12px;color:#747882;min-width:0;max-width:256px}
img{width:100%;display:block;border-radius:6px;box-shadow:0 0 0 1px #8884}
figcaption{margin-top:.5rem}small{color:#747882}
@media(prefers-color-scheme:dark){body{background:#17181c;color:#e8e8e6}figure{background:#202227;border-color:#33353c}}
"""


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
    parts = [
        f"<section><h2>{html.escape(heading)}</h2><div class='cases'>{''.join(map(_case, cases))}</div></section>"
        for heading, cases in sections
        if cases
    ]
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>{_notes(notes)}{''.join(parts)}</html>"
    )
    write_atomically(path, page.encode())


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    shown = " open" if any("PARTIAL" in note or "RESIZED" in note for note in notes) else ""
    return f"<details{shown}><summary>What this is of, and what is missing</summary><ul>{items}</ul></details>"


def _case(case: Case) -> str:
    spans = "".join(
        f"<span>{html.escape(label)}<img alt='{html.escape(label)}' src='{_data_url(picture)}'></span>"
        for label, picture in case.pictures
    )
    words, note = html.escape(case.words), html.escape(case.note)
    return f"<figure><div>{spans}</div><figcaption>{words}<br><small>{note}</small></figcaption></figure>"


def _data_url(picture: Image.Image) -> str:
    shown = picture.convert("RGB")
    shown.thumbnail((SIDE_PX, SIDE_PX))
    stream = io.BytesIO()
    shown.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
