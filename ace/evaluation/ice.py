"""`ace eval ice-bench`: make the missing answers, score, write the benchmark's own files, tables, rows and a gallery.

Run again on the same folder, it goes on where it stopped: answers that are there are kept, and an item is scored again
only if its answer, the networks or the judge are others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from ace.conditions.images import open_image
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.errors import ConditionError, DataError, InputError
from ace.evaluation.benchmarks.ice_bench import IceItem, make_table, raw_metrics, write_raw
from ace.evaluation.benchmarks.ice_metrics import IceNetworks, network_metrics, pixel_metrics
from ace.evaluation.cases import RunCase, write_cases
from ace.evaluation.gallery import Case, write_gallery
from ace.evaluation.judge import Judge
from ace.evaluation.lines import append_lines, read_lines
from ace.evaluation.run import answer_seed
from ace.evaluation.systems import Editor, png_bytes
from ace.evaluation.tables import Table, write_parquet, write_tables
from ace.inference.recipe import write_atomically

CASES = 12  # of the gallery, worst and best each
Advance = Callable[[int], object]
Scores = dict[str, dict[str, float]]


def make_answers(
    items: Sequence[IceItem], edit: Editor, folder: Path, seed: int, advance: Advance = lambda done: None
) -> dict[str, Path]:
    """Answer every item that has no picture yet; returns the pictures by id, and keeps them in gen_info.json.

    What the editor has no form for (a mask, several pictures) is left out."""
    made: dict[str, Path] = {}
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(items):
        path = folder / "answers" / f"{hashlib.sha256(item.id.encode()).hexdigest()[:24]}.png"
        if not path.is_file():
            try:
                (picture,) = edit([request_of(item)], [answer_seed(seed, "ice_bench", number)])
                write_atomically(path, png_bytes(picture))
            except ConditionError:
                advance(1)
                continue
        made[item.id] = path
        advance(1)
    named = {key: str(path.relative_to(folder)) for key, path in made.items()}
    write_atomically(folder / "gen_info.json", (json.dumps(named, indent=1, ensure_ascii=False) + "\n").encode())
    return made


def request_of(item: IceItem) -> LongContextConditionUnit:
    """An item as a request: source, then references; `<SOURCE>` and `<REF_1>` become the names of those pictures."""
    files = [*([item.source] if item.source else []), *item.references]
    images = [open_image(path).image for path in files]
    masks: list[Image.Image | None] = [None for _ in images]
    if item.source and item.mask:
        mask = open_image(item.mask).image.convert("L")
        masks[0] = mask if mask.size == images[0].size else mask.resize(images[0].size)
    first = 1 if item.source else 0

    def name(number: int) -> str:
        return "{image}" if number == 0 else f"{{image{number}}}"

    words = item.instruction.replace("<SOURCE>", name(0) if item.source else "")
    words = re.sub(r"<REF_(\d+)>", lambda found: name(first + int(found[1]) - 1), words)
    return LongContextConditionUnit(ConditionUnit(words, tuple(images), tuple(masks)))


def read_gen_info(file: Path) -> dict[str, Path]:
    """Finished pictures by id. Raises DataError for a file that is none, or an id that occurs twice."""

    def once(pairs: list[tuple[str, str]]) -> dict[str, str]:
        ids = [key for key, _ in pairs]
        if twice := sorted({key for key in ids if ids.count(key) > 1}):
            raise DataError(f"{file.name}: {len(twice)} ids occur twice, such as {twice[0]}")
        return dict(pairs)

    try:
        named = json.loads(file.read_bytes(), object_pairs_hook=once)
        return {key: file.parent / path for key, path in named.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{file.name} is not a gen_info.json: {error}") from error


def score_items(
    items: Sequence[IceItem],
    made: Mapping[str, Path],
    networks: IceNetworks,
    judge: Judge | None = None,
    more: Mapping[str, Mapping[str, float]] | None = None,
    rows: Path | None = None,
    measured_by: str = "",
    advance: Advance = lambda done: None,
) -> Scores:
    """Raw metrics of every item with a readable picture. more: metrics that other tools computed, by id; they do not
    replace ours. rows: file of what was scored already. measured_by: names of networks and judge; with others, all is
    scored again."""
    kept = _kept(rows, measured_by)
    scores: Scores = {}
    for item in items:
        advance(1)
        path = made.get(item.id)
        if path is None or not path.is_file():
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        own = kept.get((item.id, digest))
        if own is None:
            try:
                picture = open_image(path).stored
            except InputError:
                continue  # damaged: counted with the missing ones
            own = {**pixel_metrics(item, picture), **network_metrics(item, picture, networks)}
            if judge is not None and "vllmqa" in raw_metrics(item.task):
                own["vllmqa"] = judge.ask(item.instruction, item.source or path, path, item.mask, item.reference)
            if rows is not None:
                append_lines(rows, [{"id": item.id, "answer_sha256": digest, "scores": own}])
        scores[item.id] = {**(more or {}).get(item.id, {}), **own}
    return scores


def _kept(rows: Path | None, measured_by: str) -> dict[tuple[str, str], dict[str, float]]:
    if rows is None:
        return {}
    lines = read_lines(rows)
    if not lines or lines[0] != measured_by:
        rows.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(rows, f"{json.dumps(measured_by, ensure_ascii=False)}\n".encode())
        return {}
    return {(line["id"], line["answer_sha256"]): line["scores"] for line in lines[1:]}


def write_results(
    folder: Path, name: str, items: Sequence[IceItem], made: Mapping[str, Path], scores: Scores, notes: Sequence[str]
) -> Table:
    """Write eval_result.txt, table.md, table.tex, table.json, rows.parquet, cases.jsonl and gallery.html."""
    folder.mkdir(parents=True, exist_ok=True)
    write_raw(folder / "eval_result.txt", items, scores)
    table = make_table(name, items, scores)
    table = Table(table.title, table.columns, table.rows, (*table.notes, *notes))
    write_tables(folder, [table])
    metrics = sorted({metric for own in scores.values() for metric in own})
    write_parquet(
        folder / "rows.parquet",
        [
            {"id": item.id, "task": item.task, **{metric: scores[item.id].get(metric) for metric in metrics}}
            for item in items
            if item.id in scores
        ],
    )
    write_cases(folder, [_case(item, made.get(item.id)) for item in items])
    ranked = sorted((item for item in items if "clip_cap" in scores.get(item.id, ())), key=_by(scores))
    worst, best = ranked[: -(-len(ranked) // 2)][:CASES], ranked[::-1][: len(ranked) // 2][:CASES]
    sections = [
        (heading, [_shown(item, made[item.id], scores[item.id]) for item in chosen])
        for heading, chosen in (("furthest from the caption", worst), ("nearest to it", best))
    ]
    write_gallery(folder / "gallery.html", f"ICE-Bench, {name}", sections)
    return table


def _by(scores: Scores) -> Callable[[IceItem], float]:
    return lambda item: scores[item.id]["clip_cap"]


def _case(item: IceItem, answer: Path | None) -> RunCase:
    inputs = (*([item.source] if item.source else []), *item.references)
    there = answer if answer is not None and answer.is_file() else None
    return RunCase(f"{item.task}/{item.id}", item.instruction, inputs, item.mask, there)


def _shown(item: IceItem, made: Path, scores: Mapping[str, float]) -> Case:
    files = [("source", item.source), ("mask", item.mask), ("reference", item.reference), ("answer", made)]
    pictures = tuple((label, open_image(path).image) for label, path in files if path is not None)
    note = " · ".join(f"{metric} {value:.3f}" for metric, value in scores.items())
    return Case(pictures, item.instruction, f"{item.task} · {item.id} · {note}")
