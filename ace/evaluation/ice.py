"""`ace eval ice-bench`: make the missing answers, score, write the benchmark's own files, tables, rows and a gallery.

Run again on the same folder, it goes on where it stopped: answers that are there are kept, and an item is scored again
only if its answer, the networks or the judge are others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ace.conditions.images import open_image
from ace.conditions.masks import read_mask
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.errors import ConditionError, DataError, InputError
from ace.evaluation.benchmarks.ice_bench import RESIZED, IceItem, make_table, raw_metrics, read_items, write_raw
from ace.evaluation.benchmarks.ice_metrics import IceNetworks, network_metrics, pixel_metrics
from ace.evaluation.cases import RunCase, write_cases
from ace.evaluation.folder import keep_settings
from ace.evaluation.gallery import Case, write_gallery
from ace.evaluation.judge import Judge
from ace.evaluation.lines import append_lines, read_lines, unique_keys
from ace.evaluation.metrics import bootstrap
from ace.evaluation.pairs import is_picture
from ace.evaluation.run import answer_seed, progress
from ace.evaluation.systems import Contestant, Editor, png_bytes
from ace.evaluation.tables import Table, write_parquet, write_tables
from ace.files import write_atomically

CASES = 12  # of the gallery, worst and best each
FORMAT_VERSION = 2  # of kept scores
UNCLEAR = "vllmqa_unclear"  # replies of the judge without a 0 or 1; enters no score
Advance = Callable[[int], object]
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class IceScorers:
    """What ICE-Bench's items are scored with.

    names: what networks were loaded from; other names or other weights, and all is scored again. absent: which are not
    there, and why. raw: metrics that other tools computed, by id; they do not replace ours."""

    networks: IceNetworks
    names: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    judge: Judge | None = None
    raw: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def measured_by(self) -> str:
        """All of them in one line."""
        asked = [] if self.judge is None else [f"judge {self.judge.model} in {self.judge.language}"]
        return ", ".join((*self.names, *asked)) or "no network"


def evaluate_ice_bench(
    data: Path,
    contestant: Contestant,
    output: Path,
    scorers: IceScorers,
    *,
    results: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Table:
    """Score ICE-Bench.

    data: its data.jsonl. results: gen_info.json of finished pictures; None = the contestant answers. limit: first so
    many items. Raises DataError, or ConfigError for a folder with another run."""
    everything = read_items(data)
    items = everything[:limit]
    output.mkdir(parents=True, exist_ok=True)
    listed = hashlib.sha256(data.read_bytes()).hexdigest()
    settings = {"benchmark": "ice-bench", "data": listed, "name": contestant.name, "seed": seed, **contestant.settings}
    keep_settings(output, settings)
    if contestant.edit is not None:
        with progress("answering", len(items), quiet) as advance:
            made = make_answers(items, contestant.edit, output, seed, advance)
    elif results is not None:
        made = read_gen_info(results)
    else:
        raise DataError(f"{contestant.name} makes no pictures: name the gen_info.json of its finished ones")
    with progress("scoring", len(items), quiet) as advance:
        scores = score_items(items, made, scorers, output / "scored.jsonl", advance)
    notes = [f"Measured by: {scorers.measured_by}.", *(f"Absent: {line}." for line in scorers.absent)]
    known = {item.id for item in everything}
    unknown = [key for key in dict.fromkeys((*made, *scorers.raw)) if key not in known]
    if unknown:
        notes.append(f"{len(unknown)} ids of the results are no items of the benchmark: {', '.join(unknown[:5])}.")
    asked = [own for own in scores.values() if UNCLEAR in own]
    if scorers.judge is not None and asked:
        unclear, mean = sum(int(own[UNCLEAR]) for own in asked), bootstrap([[own["vllmqa"] for own in asked]])
        notes.append(f"vllmqa: {scorers.judge.repeats} times each, {unclear} replies unclear, mean {mean}.")
    return write_results(output, contestant.name, items, made, scores, notes)


def make_answers(
    items: Sequence[IceItem], edit: Editor, folder: Path, seed: int, advance: Advance = lambda done: None
) -> dict[str, Path]:
    """Answer every item that has no readable picture yet; returns the pictures by id, and keeps them in gen_info.json.

    What the editor has no form for (a mask, several pictures) is left out."""
    made: dict[str, Path] = {}
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(items):
        path = folder / "answers" / f"{hashlib.sha256(item.id.encode()).hexdigest()[:24]}.png"
        if not is_picture(path):
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
    opened = [open_image(path) for path in files]
    images = [one.image for one in opened]
    masks: list[Image.Image | None] = [None for _ in images]
    if item.source and item.mask:
        masks[0] = read_mask(item.mask, opened[0], whole=True).image
    first = 1 if item.source else 0

    def name(number: int) -> str:
        return "{image}" if number == 0 else f"{{image{number}}}"

    words = item.instruction.replace("<SOURCE>", name(0) if item.source else "")
    words = re.sub(r"<REF_(\d+)>", lambda found: name(first + int(found[1]) - 1), words)
    return LongContextConditionUnit(ConditionUnit(words, tuple(images), tuple(masks)))


def read_gen_info(file: Path) -> dict[str, Path]:
    """Finished pictures by id. Raises DataError for a file that is none, or an id that occurs twice."""

    try:
        named = json.loads(file.read_bytes(), object_pairs_hook=unique_keys(file.name))
        return {key: file.parent / path for key, path in named.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{file.name} is not a gen_info.json: {error}") from error


def score_items(
    items: Sequence[IceItem],
    made: Mapping[str, Path],
    scorers: IceScorers,
    rows: Path | None = None,
    advance: Advance = lambda done: None,
) -> Scores:
    """Raw metrics of every item with a readable picture. rows: file of what was scored already; an item is scored again
    if its answer, any of its own files or the scorers are others."""
    kept = {} if rows is None else _kept(rows, scorers)
    scores: Scores = {}
    for item in items:
        advance(1)
        path = made.get(item.id)
        if path is None or not path.is_file():
            continue
        digest = _inputs_sha256(item, path)
        own = kept.get((item.id, digest))
        if own is None:
            try:
                own = _score(item, path, scorers)
            except InputError:
                continue  # damaged: counted with the missing ones
            if rows is not None:
                append_lines(rows, [{"id": item.id, "inputs_sha256": digest, "scores": own}])
        scores[item.id] = {**scorers.raw.get(item.id, {}), **own}
    return scores


def _score(item: IceItem, path: Path, scorers: IceScorers) -> dict[str, float]:
    picture = open_image(path).stored
    scores = {**pixel_metrics(item, picture), **network_metrics(item, picture, scorers.networks)}
    if scorers.judge is not None and "vllmqa" in raw_metrics(item.task):
        source = item.source or path
        verdict = scorers.judge.ask(item.instruction, source, path, item.mask, item.reference)
        scores |= {"vllmqa": verdict.score, UNCLEAR: verdict.num_unclear}
    return scores


def _inputs_sha256(item: IceItem, made: Path) -> str:
    files = [made, *(path for path in (item.source, item.mask, item.reference) if path is not None)]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hashlib.sha256(json.dumps([*digests, item.task, item.instruction, item.caption]).encode()).hexdigest()


def _kept(rows: Path, scorers: IceScorers) -> dict[tuple[str, str], dict[str, float]]:
    """The scores by these networks and this judge; those by others are thrown away."""
    by = {"measured_by": scorers.measured_by, "weights_sha256": scorers.networks.sha256}
    settings = {"format_version": FORMAT_VERSION, **by}
    lines = read_lines(rows)
    if not lines or lines[0] != settings:
        write_atomically(rows, f"{json.dumps(settings, ensure_ascii=False)}\n".encode())
        return {}
    return {(line["id"], line["inputs_sha256"]): line["scores"] for line in lines[1:]}


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
    sections = [
        (heading, [_shown(item, made[item.id], scores[item.id]) for item in chosen])
        for heading, chosen in _worst_and_best([item for item in items if item.id in scores], scores)
    ]
    write_gallery(folder / "gallery.html", f"ICE-Bench, {name}", sections, table.notes)
    return table


def _worst_and_best(items: Sequence[IceItem], scores: Scores) -> list[tuple[str, Sequence[IceItem]]]:
    """The scored items that the gallery shows, under headings; without CLIP nothing ranks items of every task."""
    ranked = sorted(
        (item for item in items if "clip_cap" in scores[item.id]), key=lambda item: scores[item.id]["clip_cap"]
    )
    if not ranked:
        return [("the first items, unranked: CLIP is absent", items[: 2 * CASES])]
    worst, best = ranked[: -(-len(ranked) // 2)][:CASES], ranked[::-1][: len(ranked) // 2][:CASES]
    return [("furthest from the caption (clip_cap)", worst), ("nearest to it", best)]


def _case(item: IceItem, answer: Path | None) -> RunCase:
    inputs = (*([item.source] if item.source else []), *item.references)
    there = answer if answer is not None and is_picture(answer) else None
    return RunCase(f"{item.task}/{item.id}", item.instruction, inputs, item.mask, there)


def _shown(item: IceItem, made: Path, scores: Mapping[str, float]) -> Case:
    references = [(f"REF_{number}", path) for number, path in enumerate(item.references, 1)]
    files = [("SOURCE", item.source), ("mask", item.mask), *references, ("answer", made)]
    pictures = tuple((label, open_image(path).image) for label, path in files if path is not None)
    note = [f"{metric} {value:.3f}" for metric, value in scores.items() if metric != RESIZED]
    note += [RESIZED] if scores.get(RESIZED) else []
    return Case(pictures, item.instruction, " · ".join([item.task, item.id, *note]))
