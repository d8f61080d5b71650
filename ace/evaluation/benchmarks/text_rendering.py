"""Text rendering (ACE, table 7): is the line there, letter by letter, as AnyText measures it?

Every line has its place in the picture; it is warped upright, brought to a height of 48 px, read, and compared.
Sentence accuracy counts exact readings; the "edit distance" of the paper is a similarity, 1 − distance / longer length.
Means are over all lines of all pictures. The reader is PP-OCRv6 instead of the paper's ModelScope
recogniser: same definitions, another reader, so compare systems with each other rather than with the paper's column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ace.conditions.images import open_image
from ace.errors import DataError
from ace.evaluation.benchmarks.faces import beside
from ace.evaluation.facts import text_similarity
from ace.evaluation.lines import check_unique
from ace.evaluation.metrics import bootstrap
from ace.evaluation.pairs import is_picture
from ace.evaluation.tables import Table, TableRow
from ace.extract.text import TextReader
from ace.lists import read_objects

COLUMNS = ("normalised edit distance ↑", "sentence accuracy ↑")
PUBLISHED = {"UDiffText": (0.6827, 0.4110), "AnyText": (0.6035, 0.3313), "ACE": (0.8211, 0.5767)}  # ACE, table 7
HEIGHT_PX, MAX_WIDTH_PX = 48, 320


@dataclass(frozen=True)
class TextLine:
    """A line that should be in a picture. corners: (4, 2) x, y in px, clockwise from the line's top left."""

    id: str
    image: Path
    text: str
    corners: tuple[tuple[float, float], ...]


def read_text_lines(file: Path) -> tuple[list[TextLine], list[str]]:
    """Lines of {"id", "image", "lines": [{"text", "corners": four [x, y]}]}, pictures beside the list; and the ids of
    pictures that are missing or cannot be read. Raises DataError."""
    found: list[TextLine] = []
    ids: list[str] = []
    missing: list[str] = []
    for number, row in read_objects(file):
        try:
            ids.append(str(row["id"]))
            image = beside(file, row["image"], must_exist=False)
            if not is_picture(image):
                missing.append(ids[-1])
                continue
            for place, line in enumerate(row["lines"]):
                corners = tuple((float(x), float(y)) for x, y in line["corners"])
                if len(corners) != 4:
                    raise ValueError("corners are four points")
                found.append(TextLine(f"{row['id']}:{place}", image, str(line["text"]), corners))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file.name}, line {number} is no picture with lines: {error}") from error
    check_unique(ids, file.name)
    if not found:
        raise DataError(f"{file.name}: no picture is there, the first would be that of {(missing or ['nothing'])[0]}")
    return found, missing


def crop_line(picture: Image.Image, corners: Sequence[tuple[float, float]]) -> np.ndarray:
    """The line upright, (48, up to 320, 3) uint8: warped from its corners, turned if it is taller than wide."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    width = max(np.hypot(bx - ax, by - ay), np.hypot(cx - dx, cy - dy), 1.0)
    height = max(np.hypot(dx - ax, dy - ay), np.hypot(cx - bx, cy - by), 1.0)
    upright = picture.convert("RGB").transform(
        (round(width), round(height)),
        Image.Transform.QUAD,
        (ax, ay, dx, dy, cx, cy, bx, by),
        Image.Resampling.BICUBIC,
    )
    if upright.height > 1.2 * upright.width:
        upright = upright.rotate(90, expand=True)
    scaled = max(1, min(MAX_WIDTH_PX, round(upright.width * HEIGHT_PX / upright.height)))
    return np.asarray(upright.resize((scaled, HEIGHT_PX), Image.Resampling.BICUBIC))


def score_lines(
    lines: Sequence[TextLine], reader: TextReader, advance: Callable[[int], object] = lambda done: None
) -> dict[str, tuple[str, float, float]]:
    """By id: what was read, similarity, 1 if it is exact (case counts, nothing is trimmed)."""
    scores = {}
    for line in lines:
        read = reader.read_line(crop_line(open_image(line.image).image, line.corners))
        scores[line.id] = (read, text_similarity(read, line.text), float(read == line.text))
        advance(1)
    return scores


def make_table(name: str, scores: dict[str, tuple[str, float, float]], missing: Sequence[str] = ()) -> Table:
    """What was measured beside ACE's table 7. missing: ids of pictures that are not there."""
    values = (
        bootstrap([[similarity for _, similarity, _ in scores.values()]]),
        bootstrap([[exact for _, _, exact in scores.values()]]),
    )
    published = tuple(TableRow(label, row, "ACE, table 7") for label, row in PUBLISHED.items())
    notes = ["Reader: PP-OCRv6; the paper's rows were read by another network."]
    if missing:
        notes.append(f"PARTIAL: {len(missing)} pictures are missing, such as {', '.join(missing[:5])}.")
    rows = (TableRow(name, values, "measured", len(scores)), *published)
    return Table("Text rendering", COLUMNS, rows, tuple(notes))
