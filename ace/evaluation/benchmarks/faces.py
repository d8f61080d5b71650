"""Facial editing (ACE, table 6): is it still the same person, and how often?

Largest face of each picture by MTCNN, an ArcFace-class embedding that the user names (most such weights are for
non-commercial use, so none is a default), cosine. Effective Score: the share above 0.3493, which is mean minus standard
deviation of the similarities within identities that the paper measured; if somebody judged whether the instruction was
met, also the share of both. How the paper scales its Face Similarity is not said, and its figures contradict a plain
100 × cosine, so three scales are given and none is called the paper's.

A picture without a face: 0 for a result, left out and counted for an original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ace.conditions.images import open_image
from ace.errors import DataError
from ace.evaluation.lines import check_unique
from ace.evaluation.metrics import bootstrap
from ace.evaluation.pairs import is_picture
from ace.evaluation.tables import Table, TableRow
from ace.extract.faces import FaceEmbedder, FaceFinder
from ace.lists import read_objects

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


def read_pairs(file: Path) -> tuple[list[FacePair], list[str]]:
    """Lines of {"id", "original", "made", "met" (optional)}, files beside the list; and the ids whose result is missing
    or cannot be read. Raises DataError."""
    pairs: list[FacePair] = []
    missing: list[str] = []
    for number, row in read_objects(file):
        try:
            key, original = str(row["id"]), beside(file, row["original"])
            made = beside(file, row["made"], must_exist=False)
        except KeyError as error:
            raise DataError(f"{file.name}, line {number} lacks {error}") from error
        if is_picture(made):
            pairs.append(FacePair(key, original, made, row.get("met")))
        else:
            missing.append(key)
    check_unique([*(pair.id for pair in pairs), *missing], file.name)
    if not pairs:
        raise DataError(f"{file.name}: no result is there, the first would be that of {(missing or ['nothing'])[0]}")
    return pairs, missing


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


def make_absent_table(name: str, count: int) -> Table:
    """The table without an embedding: the paper's rows, and what is absent."""
    note = (
        "Face Similarity and Effective Score are absent: name an ArcFace ONNX file that you may use (--face-weights)."
    )
    empty = TableRow(name, (None,) * len(COLUMNS), "absent")
    return Table("Facial editing", COLUMNS, (empty, *_published()), (note, f"{count} pairs are listed, 0 were scored."))


def make_table(
    name: str,
    pairs: Sequence[FacePair],
    cosines: dict[str, float | None],
    weights: str,
    missing: Sequence[str] = (),
) -> Table:
    """What was measured beside ACE's table 6. missing: ids of pairs whose result is not there."""
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
    without = len(pairs) - len(values)
    lost = sum(value == 0 for value in values)
    notes = (
        f"Embedding: {weights}; faces: MTCNN, the largest one.",
        f"{without} originals show no face and are left out; {lost} results show none and count as 0.",
        f"The last column is of {len(judged)} results that somebody judged.",
    )
    if missing:
        notes += (f"PARTIAL: {len(missing)} of {len(pairs) + len(missing)} results are missing: {_some(missing)}.",)
    return Table("Facial editing", COLUMNS, (own, *_published()), notes)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


def _published() -> tuple[TableRow, ...]:
    return tuple(
        TableRow(
            f"{label}: FS {similarity}, on a scale the paper does not name",
            (None, None, None, None, effective),
            "ACE, table 6",
        )
        for label, (similarity, effective) in PUBLISHED.items()
    )


def beside(file: Path, name: str, *, must_exist: bool = True) -> Path:
    """A file named relative to the list it stands in, and below its folder. Raises DataError."""
    base = file.parent.resolve()
    path = (base / name).resolve()
    if not path.is_relative_to(base) or (must_exist and not path.is_file()):
        raise DataError(f"{name!r} is not a file below {base.name}")
    return path
