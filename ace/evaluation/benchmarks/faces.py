"""Facial editing (ACE, table 6): is it still the same person, and how often?

Largest face of each picture by MTCNN, an ArcFace-class embedding that the user names (most such weights are for
non-commercial use, so none is a default), cosine. Effective Score: the share above 0.3493, which is mean minus standard
deviation of the similarities within identities that the paper measured; if somebody judged whether the instruction was
met, also the share of both. How the paper scales its Face Similarity is not said, and its figures contradict a plain
100 × cosine, so three scales are given and none is called the paper's.

A picture without a face: 0 for a result, left out and counted for an original.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ace.conditions.images import open_image
from ace.errors import DataError
from ace.evaluation.metrics import bootstrap
from ace.evaluation.tables import Table, TableRow
from ace.extract.faces import FaceEmbedder, FaceFinder

THRESHOLD = 0.3493
COLUMNS = (
    "mean cosine ↑",
    "100 · cosine ↑",
    "100 · (1 + cosine) / 2 ↑",
    "share above 0.3493 ↑",
    "and instruction met ↑",
)
# ACE, table 6: Face Similarity on the paper's own scale, Effective Score
PUBLISHED = {
    "InstantID (sees landmarks)": (84.08, 0.96),
    "CosXL": (66.49, 0.37),
    "UltraEdit": (62.91, 0.16),
    "IP-Adapter": (66.51, 0.31),
    "FaceChain": (65.46, 0.42),
    "ACE": (70.07, 0.67),
}


@dataclass(frozen=True)
class FacePair:
    """An edit of a face. is_met: whether a person says that the instruction was followed; None = nobody was asked."""

    id: str
    original: Path
    made: Path
    is_met: bool | None = None


def read_pairs(file: Path) -> list[FacePair]:
    """Lines of {"id", "original", "made", "met" (optional)}; files beside the list. Raises DataError."""
    pairs: dict[str, FacePair] = {}
    for number, row in read_lines(file):
        try:
            paths = [beside(file, row[name]) for name in ("original", "made")]
            pair = FacePair(str(row["id"]), *paths, row.get("met"))
        except KeyError as error:
            raise DataError(f"{file.name}, line {number} lacks {error}") from error
        if pair.id in pairs:
            raise DataError(f"{file.name}, line {number}: id {pair.id!r} occurs twice")
        pairs[pair.id] = pair
    return list(pairs.values())


def similarities(
    pairs: Sequence[FacePair],
    finder: FaceFinder,
    embedder: FaceEmbedder,
    advance: Callable[[int], object] = lambda done: None,
) -> dict[str, float | None]:
    """Cosine by id; None where the original shows no face."""
    found: dict[str, float | None] = {}
    for pair in pairs:
        features = []
        for path in (pair.original, pair.made):
            image = np.asarray(open_image(path).image)
            faces = finder.find(image)
            features.append(embedder.embed(image, faces[0]) if faces else None)
        original, made = features
        if original is None:
            found[pair.id] = None
        else:
            found[pair.id] = 0.0 if made is None else float(np.dot(original, made))
        advance(1)
    return found


def make_table(name: str, pairs: Sequence[FacePair], cosines: dict[str, float | None], weights: str) -> Table:
    """What was measured beside ACE's table 6."""
    scored = [(value, pair.is_met) for pair in pairs if (value := cosines[pair.id]) is not None]
    values = [value for value, _ in scored]
    judged = [float(value > THRESHOLD and met) for value, met in scored if met is not None]
    own = TableRow(
        name,
        (
            bootstrap([values]),
            bootstrap([[100 * value for value in values]]),
            bootstrap([[50 * (1 + value) for value in values]]),
            bootstrap([[float(value > THRESHOLD) for value in values]]),
            bootstrap([judged]),
        ),
        "measured",
        len(values),
    )
    published = tuple(
        TableRow(
            f"{label}: FS {similarity}, on a scale the paper does not name",
            (None, None, None, None, effective),
            "ACE, table 6",
        )
        for label, (similarity, effective) in PUBLISHED.items()
    )
    without = len(pairs) - len(values)
    lost = sum(value == 0 for value in values)
    notes = (
        f"Embedding: {weights}; faces: MTCNN, the largest one.",
        f"{without} originals show no face and are left out; {lost} results show none and count as 0.",
        f"The last column is of {len(judged)} results that somebody judged.",
    )
    return Table("Facial editing", COLUMNS, (own, *published), notes)


def read_lines(file: Path) -> list[tuple[int, dict]]:
    """(number, object) of every line of a JSON-lines file. Raises DataError."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = [(number, json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
    except OSError as error:
        raise DataError(f"cannot read {file.name}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file.name} is not JSON lines: {error}") from error
    if wrong := [number for number, row in rows if not isinstance(row, dict)]:
        raise DataError(f"{file.name}, line {wrong[0]} is not an object")
    return rows


def beside(file: Path, name: str) -> Path:
    """A file named relative to the list it stands in, and below its folder. Raises DataError."""
    base = file.parent.resolve()
    path = (base / name).resolve()
    if not path.is_relative_to(base) or not path.is_file():
        raise DataError(f"{name!r} is not a file below {base.name}")
    return path
