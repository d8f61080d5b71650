"""The sources of a recipe: its pictures, listed and looked at once, then opened whenever a stage needs them.

A source is a picture that can be used; its facts (id, pointer, size, hash, sharpness, set) are what the stages hand on.
Later stages open the picture again: pixels are never kept.

Not here: where pictures lie and how they are decoded (`collect.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ace.data import collect
from ace.data.collect import Pointer
from ace.data.engine import DataJob, OnProgress, Part, Record, Where, run_stage
from ace.data.recipe import DataRecipe
from ace.data.tasks.source import Rejected, Source
from ace.errors import AceError
from ace.files import write_atomically

PER_JOB = 32  # pictures of reading and embedding
# what a picture, a file or a library can do to a stage; anything else is a bug and stops the run
OF_ONE_PICTURE = (AceError, OSError, ValueError, RuntimeError, ArithmeticError, LookupError, MemoryError)


def read_sources(
    recipe: DataRecipe, work: Path, where: Where, on_progress: OnProgress | None
) -> tuple[list[Part], list[dict[str, Any]], list[Record]]:
    """The parts of reading, the facts of every picture that is the first of its pixels, and the doubles."""
    pointers = _listed(recipe, work)
    slices = [pointers[i : i + PER_JOB] for i in range(0, len(pointers), PER_JOB)]
    jobs = [DataJob(f"{n:06d}", {"pictures": [p.to_json() for p in part]}) for n, part in enumerate(slices)]
    read = run_stage("read", jobs, partial(read_pictures, recipe), work, where, on_progress)
    return read, *_unique(read)


def read_pictures(recipe: DataRecipe, job: DataJob) -> Iterator[Record]:
    """Look at each picture once: what it is, or why it is not used."""
    reader = _reader(recipe)
    for found in job.payload["pictures"]:
        pointer = Pointer(**found)
        try:
            data = reader.read(pointer)
            image = collect.open_picture(data, pointer.name, recipe.source)
        except OF_ONE_PICTURE as error:
            yield Record(pointer.name, reason="cannot be read", detail=str(error)[:200])
            continue
        if isinstance(image, Rejected):
            yield Record(pointer.name, reason=image.reason, detail=image.detail)
        elif recipe.source.require_caption and not pointer.caption.strip():
            yield Record(pointer.name, reason="no caption")
        else:
            facts = {
                "id": collect.picture_id(image),
                "pointer": found,
                "size": [image.width, image.height],
                "hash": f"{collect.perceptual_hash(image):016x}",
                "sharpness": round(collect.sharpness(image), 3),
            }
            if pointer.set:
                facts |= {"set": pointer.set, "relation": pointer.relation}
            yield Record(pointer.name, facts=facts)


def load_source(recipe: DataRecipe, facts: dict[str, Any]) -> Source:
    """The picture of a source, decoded, with the others of its set."""
    pointer = Pointer(**facts["pointer"])
    return Source(
        _picture(recipe, pointer),
        facts["id"],
        pointer.caption,
        tuple(load_source(recipe, {**other, "others": []}) for other in facts.get("others", ())),
        facts.get("relation", ""),
        pointer.style,
    )


def _listed(recipe: DataRecipe, work: Path) -> list[Pointer]:
    """The pictures, listed once: what is added later belongs to another run."""
    file = work / "pictures.json"
    if not file.exists():
        pointers = collect.list_pictures(recipe.source)
        write_atomically(file, json.dumps([p.to_json() for p in pointers], ensure_ascii=False).encode())
    return [Pointer(**found) for found in json.loads(file.read_text(encoding="utf-8"))]


def _unique(parts: Sequence[Part]) -> tuple[list[dict[str, Any]], list[Record]]:
    """The facts of every picture that is the first of its pixels, in order; and the doubles."""
    seen: dict[str, str] = {}
    sources, doubles = [], []
    for part in parts:
        for record in part.records(samples=False):
            if record.reason:
                continue
            first = seen.setdefault(record.facts["id"], record.what)
            if first is record.what:
                sources.append(record.facts)
            else:
                doubles.append(Record(record.what, reason="duplicate", detail=f"the same as {first}"))
    return sources, doubles


@lru_cache(maxsize=2)
def _reader(recipe: DataRecipe) -> collect.PictureReader:
    return collect.PictureReader(recipe.source)


@lru_cache(maxsize=48)  # at 768x768 px these are 85 MB
def _picture(recipe: DataRecipe, pointer: Pointer):
    image = collect.open_picture(_reader(recipe).read(pointer), pointer.name, recipe.source)
    if isinstance(image, Rejected):
        raise OSError(f"{pointer.name} has changed since it was read: {image.reason}")
    return image
