"""Filters: what is dropped after synthesis, with its reason; nothing vanishes without a trace.

Each sample is looked at once (`judge_part`, in the engine): sharpness, words, safety, nearness to a benchmark's
pictures. Then all of them together (`decide`): which are duplicates, which side of the split they are on, and which
training samples show nearly a held-out picture. Nearness is the distance in bits of perceptual hashes
(`collect.perceptual_hash`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ace.data import collect
from ace.data.engine import DataJob, Part, Record, StageReport, report_stage
from ace.data.recipe import Collection, DataRecipe, Filtering
from ace.data.shards import MANIFEST, read_shards
from ace.data.sources import OF_ONE_PICTURE
from ace.data.tasks.source import Rejected
from ace.files import write_atomically

if TYPE_CHECKING:
    from ace.extract.safety import SafetyNet

_TELLING_BITS = 6  # a hash with fewer bits set, or unset, is of a flat picture and tells nothing


@dataclass(frozen=True)
class Verdicts:
    """For every part, by row: the side of the split of what is kept, or why it is dropped (reason, detail)."""

    sides: list[dict[int, str]]
    reasons: list[dict[int, tuple[str, str]]]


def check_ready(rules: Filtering) -> None:
    """Raise DataError for a benchmark that is not there, MissingDependencyError without the weights of a network."""
    for place in rules.benchmarks:
        if not (Path(place) / MANIFEST).is_file():
            collect.list_pictures(Collection(place))
    load_safety(rules)


def judge_part(recipe: DataRecipe, work: str, banned: tuple[int, ...], job: DataJob) -> Iterator[Record]:
    """Look at every accepted sample of a part; facts: its hashes, for `decide`."""
    table = np.array(banned, np.uint64)
    for number, record in enumerate(Part(Path(work) / job.payload["part"]).records()):
        row = record.sample
        if record.reason or row is None:
            continue
        pictures = [_opened(picture) for picture in (row["target"], *row["images"])]
        hashes = [collect.perceptual_hash(picture) for picture in pictures]
        facts = {
            "row": number,
            "hashes": [f"{h:016x}" for h in hashes],
            "instruction": row["instruction"],
            "source": str(json.loads(row["provenance"]).get("source", "")),
        }
        reason, detail = _why_dropped(recipe.filter, row["instruction"], pictures, hashes, table)
        yield Record(row["id"], task=record.task, reason=reason, detail=detail, facts=facts)


def _why_dropped(
    rules: Filtering, instruction: str, pictures: Sequence[Image.Image], hashes: Sequence[int], banned: np.ndarray
) -> tuple[str, str]:
    """The reason and its detail, both empty if the sample may stay. pictures: the target, then the inputs."""
    leak = next((h for h in hashes if is_telling(h) and nearest(h, banned) <= rules.leak_bits), None)
    if leak is not None:
        return "shows a benchmark's picture", f"{leak:016x}"
    said = instruction.casefold()
    word = next((word for word in rules.words if word.casefold() in said), None)
    if word is not None:
        return "a word that is not wanted", word
    if rules.min_sharpness and (sharp := collect.sharpness(pictures[0])) < rules.min_sharpness:
        return "blurred", f"{sharp:.1f}"
    safety = load_safety(rules)
    if safety and (unsafe := safety([np.asarray(picture) for picture in pictures]).max()) > rules.max_unsafe:
        return "unsafe", f"{unsafe:.2f}"
    return "", ""


@lru_cache(maxsize=1)
def load_safety(rules: Filtering) -> SafetyNet | None:
    """Who looks for unsafe pictures, None if nobody shall. Raises MissingDependencyError without its weights."""
    if rules.max_unsafe == 1:
        return None
    from ace.extract.safety import SafetyNet

    return SafetyNet()


def decide(recipe: DataRecipe, judged: Sequence[Part], sets: Mapping[str, str]) -> Verdicts:
    """Judge all samples together, in order: the first of a kind stays.

    sets: the set of every source, so that a set stays on one side of the split."""
    rules = recipe.filter
    sides: list[dict[int, str]] = [{} for _ in judged]
    reasons: list[dict[int, tuple[str, str]]] = [{} for _ in judged]
    seen_ids: set[str] = set()
    seen: dict[tuple[str, str], list[list[int]]] = defaultdict(list)
    hashes_of: dict[tuple[int, int], list[int]] = {}
    # rewritten instructions are further samples of the same edit
    wanted = recipe.synthesize.samples_per_task * (1 + (recipe.label.rewrites if recipe.label else 0))
    taken: Counter[str] = Counter()
    for number, part in enumerate(judged):
        for record in part.records(samples=False):
            row = record.facts["row"]
            if record.reason:
                reasons[number][row] = (record.reason, record.detail)
                continue
            hashes = [int(text, 16) for text in record.facts["hashes"]]
            key = (record.task, record.facts["instruction"])
            if record.what in seen_ids or (
                rules.duplicate_bits >= 0 and _has_near(seen[key], hashes, rules.duplicate_bits)
            ):
                reasons[number][row] = ("duplicate", "the same task, words and pictures as an earlier sample")
                continue
            if wanted and taken[record.task] == wanted:
                reasons[number][row] = ("more than asked for", "")
                continue
            taken[record.task] += 1
            seen_ids.add(record.what)
            seen[key].append(hashes)
            hashes_of[number, row] = hashes
            source = record.facts["source"]
            sides[number][row] = side_of(sets.get(source, source), rules)
    if rules.held_out:
        out = {h for at, hs in hashes_of.items() if sides[at[0]].get(at[1]) != "train" for h in hs if is_telling(h)}
        table = np.array(sorted(out), np.uint64)
        for (number, row), hashes in hashes_of.items():
            if sides[number].get(row) == "train" and any(
                is_telling(h) and nearest(h, table) <= rules.leak_bits for h in hashes
            ):
                del sides[number][row]
                reasons[number][row] = ("shows a held-out picture", "")
    return Verdicts(sides, reasons)


def report_verdicts(judged: Sequence[Part], verdicts: Verdicts) -> StageReport:
    """The stage report of the filter."""
    looked = report_stage("filter", judged)
    rejected = Counter(reason for part in verdicts.reasons for reason, _ in part.values())
    return StageReport(
        "filter", looked.entered, looked.entered - rejected.total(), dict(sorted(rejected.items())), looked.seconds
    )


def side_of(group: str, rules: Filtering) -> str:
    """Which side of the split a set (or a source without one) is on: decided by its name alone."""
    share = int.from_bytes(sha256(f"split:{group}".encode()).digest()[:6], "big") / 2**48
    return "held_out" if share < rules.held_out else "train"


def benchmark_hashes(rules: Filtering, work: Path) -> tuple[int, ...]:
    """Perceptual hashes of every telling picture of the benchmarks, kept in the work folder once computed.

    Raises DataError for a benchmark that is not there."""
    if not rules.benchmarks:
        return ()
    file = work / "benchmarks.json"
    if not file.exists():
        found = sorted({h for place in rules.benchmarks for h in hashes_in(Path(place))})
        write_atomically(file, json.dumps([h for h in found if is_telling(h)]).encode())
    return tuple(json.loads(file.read_text()))


def hashes_in(place: Path) -> Iterator[int]:
    """The perceptual hashes of all pictures of a data set of ours, or of any collection."""
    if (place / MANIFEST).is_file():
        for row in read_shards(place).rows():
            for picture in (row["target"], *row["images"]):
                yield collect.perceptual_hash(_opened(picture))
        return
    collection = Collection(str(place), min_side_px=1)
    reader = collect.PictureReader(collection)
    for pointer in collect.list_pictures(collection):
        try:
            image = collect.open_picture(reader.read(pointer), "", collection)
        except OF_ONE_PICTURE:  # nobody can show a picture that nobody can open
            continue
        if not isinstance(image, Rejected):
            yield collect.perceptual_hash(image)


def is_telling(bits: int) -> bool:
    """False for the hash of a picture that is nearly flat, which many have."""
    return _TELLING_BITS <= bits.bit_count() <= 64 - _TELLING_BITS


def nearest(bits: int, table: np.ndarray) -> int:
    """The smallest distance in bits from a hash to those of a table (N,) uint64; 65 if it is empty."""
    return int(np.bitwise_count(table ^ np.uint64(bits)).min()) if len(table) else 65


def _has_near(earlier: Sequence[list[int]], hashes: list[int], bits: int) -> bool:
    return any(
        len(other) == len(hashes) and all((a ^ b).bit_count() <= bits for a, b in zip(other, hashes, strict=True))
        for other in earlier
    )


def _opened(picture: Mapping[str, bytes]) -> Image.Image:
    with Image.open(BytesIO(picture["bytes"])) as image:
        return image.convert("RGB")
