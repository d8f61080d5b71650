"""Scores of edited pictures as MagicBrush and Emu Edit define them: L1, L2, CLIP-I, DINO, CLIP-T, CLIP direction.

A pair is a finished picture and what it is compared with. Pixel errors compare at the reference's size; features never
do (`encoders.py`). A score whose weights or captions are missing is absent, never guessed.

Alpha is dropped, not composited, as the reference evaluators do.

Not here: which pairs (`benchmarks/`), tables (`tables.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ace.conditions.images import open_image
from ace.errors import InputError
from ace.evaluation.encoders import ClipEncoder, DinoEncoder
from ace.evaluation.lines import append_lines, check_unique, read_lines
from ace.files import write_atomically

CHUNK = 16
FORMAT_VERSION = 2  # of kept rows
DIGITS = 7


@dataclass(frozen=True)
class Pair:
    """A finished picture and what it is compared with.

    key: unique. group: setting or task. made, reference: files. caption: of what the picture should show, "" = none;
    reference_caption: of what the reference shows, for the direction of change."""

    key: str
    group: str
    made: Path
    reference: Path
    caption: str = ""
    reference_caption: str = ""


@dataclass(frozen=True)
class PairScores:
    """l1, l2: mean absolute and mean squared difference, pictures in [0, 1], 0 best. The others are cosines, 1 best:
    clip_i, dino: picture to reference; clip_t: picture to caption; clip_t_oracle: reference to caption;
    clip_dir: change of picture to change of caption, 0 where either does not change. None: absent."""

    l1: float
    l2: float
    clip_i: float | None
    dino: float | None
    clip_t: float | None
    clip_t_oracle: float | None
    clip_dir: float | None
    no_direction: bool


@dataclass(frozen=True)
class ScoredPair:
    """A row: which pair, its scores, and what they follow from: `inputs_sha256`, of both files and both captions.

    resized: the picture is of another size than its reference, and was resized for the pixel errors."""

    key: str
    group: str
    inputs_sha256: str
    resized: bool
    scores: PairScores


def is_picture(path: Path) -> bool:
    """True if a picture is there and can be read."""
    try:
        return path.is_file() and bool(open_image(path))
    except InputError:
        return False


def pixel_errors(made: Image.Image, reference: Image.Image) -> tuple[float, float]:
    """L1 and L2 (mean square, no root) of two pictures in [0, 1]; `made` is resized to the reference, bicubic."""
    made, reference = made.convert("RGB"), reference.convert("RGB")
    if made.size != reference.size:
        made = made.resize(reference.size, Image.Resampling.BICUBIC)
    difference = (np.asarray(made, dtype=np.float64) - np.asarray(reference, dtype=np.float64)) / 255
    return float(np.abs(difference).mean()), float(np.square(difference).mean())


def cosines(first: Tensor, second: Tensor) -> list[float]:
    """Cosine of each row of (N, D) with the same row of the other, in float64; 0 where either is zero."""
    a, b = first.double(), second.double()
    lengths = a.norm(dim=1) * b.norm(dim=1)
    return ((a * b).sum(dim=1) / lengths.where(lengths > 0, 1)).tolist()


def direction_cosines(made: Tensor, reference: Tensor, caption: Tensor, reference_caption: Tensor) -> list[float]:
    """Cosine of the change of the picture with the change of the caption, all (N, D), each normalised before the
    differences are taken (the protocol leaves this open; InstructPix2Pix does so)."""
    unit = torch.nn.functional.normalize
    return cosines(
        unit(made.double(), dim=1) - unit(reference.double(), dim=1),
        unit(caption.double(), dim=1) - unit(reference_caption.double(), dim=1),
    )


def score_pairs(
    pairs: Sequence[Pair],
    clip: ClipEncoder | None,
    dino: DinoEncoder | None,
    rows: Path | None = None,
    advance: Callable[[int], object] = lambda done: None,
) -> list[ScoredPair]:
    """Score pairs in chunks. rows: file of rows already scored; those whose pictures and captions are unchanged are not
    scored again, unless the encoders' weights are others; every chunk is added at its end. Raises DataError if two
    pairs have one key."""
    check_unique((pair.key for pair in pairs), "the pictures")
    kept = {} if rows is None else _kept(rows, clip, dino)
    done: list[ScoredPair] = []
    for start in range(0, len(pairs), CHUNK):
        part = pairs[start : start + CHUNK]
        hashes = [_inputs_sha256(pair) for pair in part]
        old = [kept.get(pair.key) for pair in part]
        if all(row and row.inputs_sha256 == own for row, own in zip(old, hashes, strict=True)):
            done += [row for row in old if row]
        else:
            scored = _score(part, clip, dino)
            done += [ScoredPair(p.key, p.group, own, *both) for p, own, both in zip(part, hashes, scored, strict=True)]
            if rows is not None:
                append_lines(rows, [asdict(row) for row in done[start:]])
        advance(len(part))
    return done


def resized_note(rows: Sequence[ScoredPair]) -> list[str]:
    """What a table says of pictures of another size; nothing without any."""
    keys = [row.key for row in rows if row.resized]
    if not keys:
        return []
    return [f"RESIZED for the pixel errors: {len(keys)} pictures of another size, such as {', '.join(keys[:5])}."]


def _score(pairs: Sequence[Pair], clip: ClipEncoder | None, dino: DinoEncoder | None) -> list[tuple[bool, PairScores]]:
    """Of each pair, whether its picture had to be resized, and its scores."""
    made = [open_image(pair.made).stored for pair in pairs]
    references = [open_image(pair.reference).stored for pair in pairs]
    absent: list[float | None] = [None] * len(pairs)
    columns: dict[str, list[float | None]] = {}
    no_direction = [False] * len(pairs)
    if dino is not None:
        columns["dino"] = [*cosines(dino.images(made), dino.images(references))]
    if clip is not None:
        own, other = clip.images(made), clip.images(references)
        columns["clip_i"] = [*cosines(own, other)]
        captions = clip.texts([pair.caption for pair in pairs])
        has = [bool(pair.caption) for pair in pairs]
        columns["clip_t"] = _where(has, cosines(own, captions))
        columns["clip_t_oracle"] = _where(has, cosines(other, captions))
        both = [bool(pair.caption and pair.reference_caption) for pair in pairs]
        before = clip.texts([pair.reference_caption for pair in pairs])
        columns["clip_dir"] = _where(both, direction_cosines(own, other, captions, before))
        no_direction = [b and pair.caption == pair.reference_caption for b, pair in zip(both, pairs, strict=True)]
        columns["clip_dir"] = [
            0.0 if none else value for none, value in zip(no_direction, columns["clip_dir"], strict=True)
        ]
    errors = [pixel_errors(a, b) for a, b in zip(made, references, strict=True)]
    scores = []
    for number, (l1, l2) in enumerate(errors):
        learned = {
            name: None if (value := columns.get(name, absent)[number]) is None else round(value, DIGITS)
            for name in ("clip_i", "dino", "clip_t", "clip_t_oracle", "clip_dir")
        }
        scores.append(PairScores(round(l1, DIGITS), round(l2, DIGITS), **learned, no_direction=no_direction[number]))
    resized = [a.size != b.size for a, b in zip(made, references, strict=True)]
    return list(zip(resized, scores, strict=True))


def _where(has: Sequence[bool], values: Sequence[float]) -> list[float | None]:
    return [value if there else None for there, value in zip(has, values, strict=True)]


def metric_names() -> tuple[str, ...]:
    """The scores that are numbers, in the order of `PairScores`."""
    return tuple(field.name for field in fields(PairScores) if field.name != "no_direction")


def _kept(rows: Path, clip: ClipEncoder | None, dino: DinoEncoder | None) -> dict[str, ScoredPair]:
    """The rows scored with these weights; those of others are thrown away. The last row of a key counts."""
    settings = {"format_version": FORMAT_VERSION, "clip": clip and clip.sha256, "dino": dino and dino.sha256}
    lines = read_lines(rows)
    if not lines or lines[0] != settings:
        write_atomically(rows, f"{json.dumps(settings)}\n".encode())
        return {}
    return {t["key"]: ScoredPair(**{**t, "scores": PairScores(**t["scores"])}) for t in lines[1:]}


def _inputs_sha256(pair: Pair) -> str:
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (pair.made, pair.reference)]
    return hashlib.sha256(json.dumps([*files, pair.caption, pair.reference_caption]).encode()).hexdigest()
