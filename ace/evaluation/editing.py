"""`ace eval magicbrush` and `ace eval emu-edit`: make the missing answers, score, write tables, rows and a gallery.

Run again on the same folder, both go on where they stopped. What made the answers is in `run.json`; a folder never
mixes two systems.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace.conditions.images import open_image
from ace.errors import ConfigError, DataError
from ace.evaluation.benchmarks import emu_edit, magicbrush
from ace.evaluation.cases import RunCase, write_cases
from ace.evaluation.encoders import ClipEncoder, DinoEncoder
from ace.evaluation.folder import keep_settings
from ace.evaluation.gallery import Case, write_gallery
from ace.evaluation.pairs import Pair, ScoredPair, is_picture, metric_names, score_pairs
from ace.evaluation.run import progress
from ace.evaluation.systems import Contestant
from ace.evaluation.tables import Table, write_parquet, write_tables

CASES = 12  # of the gallery, worst and best each
TRUE_ANSWER, INPUT = "true answer", "input"  # what a picture is compared with
Group = tuple[str, list[tuple[Pair, ScoredPair]]]  # a heading, and what was scored under it


@dataclass(frozen=True)
class Scorers:
    """The encoders at hand; None = its scores are absent. names: what they were loaded from, for the notes."""

    clip: ClipEncoder | None
    dino: DinoEncoder | None
    names: tuple[str, ...] = ()


def evaluate_magicbrush(
    data: Path,
    contestant: Contestant,
    output: Path,
    scorers: Scorers,
    *,
    results: Path | None = None,
    captions: Path | None = None,
    settings: Sequence[str] = magicbrush.SETTINGS,
    limit: int | None = None,
    seed: int = 0,
    batch: int = 8,
    quiet: bool = False,
) -> list[Table]:
    """Score MagicBrush; returns one table per setting.

    data: folder with edit_sessions.json. results: finished pictures; None = output/answers. limit: first so many
    sessions. Raises DataError, or ConfigError for a folder with another run."""
    if unknown := sorted(set(settings) - set(magicbrush.SETTINGS)):
        raise ConfigError(f"unknown setting {', '.join(unknown)}: use {', '.join(magicbrush.SETTINGS)}")
    sessions = magicbrush.read_sessions(data, captions)[:limit]
    answers = results or output / "answers"
    listed = hashlib.sha256((data / "edit_sessions.json").read_bytes()).hexdigest()
    _keep_run(output, "magicbrush", listed, contestant, seed)
    if contestant.edit is not None:
        total = sum(len(session.turns) for session in sessions) * len(settings)
        with progress("answering", total, quiet) as advance:
            magicbrush.make_answers(sessions, settings, contestant.edit, answers, seed, batch, advance)
    cases = [case for setting in settings for case in _conversations(sessions, setting, answers)]
    write_cases(output, cases)
    tables, scored = [], []
    for setting in settings:
        pairs, missing = magicbrush.list_pairs(sessions, setting, answers)
        if not pairs:
            raise DataError(f"{answers.name} has no picture of {setting}: the first would be {_first(missing)}")
        rows = _score(pairs, scorers, output, f"{setting} made", quiet)
        there = {pair.key for pair in pairs}
        copies = [pair for pair in magicbrush.list_copies(sessions, setting) if pair.key in there]
        tables.append(
            magicbrush.make_table(
                setting, contestant.name, rows, _score(copies, scorers, output, f"{setting} copy", quiet), missing
            )
        )
        scored.append((setting, list(zip(pairs, rows, strict=True))))
    noted = _with_encoders(tables, scorers)
    _write(output, noted, scored)
    labels = list(zip(magicbrush.METRICS, magicbrush.COLUMNS, strict=True))
    _write_gallery(output, f"MagicBrush, {contestant.name}", noted, scored, cases, TRUE_ANSWER, labels)
    return tables


def evaluate_emu_edit(
    data: str,
    split: str,
    contestant: Contestant,
    output: Path,
    scorers: Scorers,
    *,
    results: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch: int = 8,
    quiet: bool = False,
) -> list[Table]:
    """Score Emu Edit's test set; returns the main table and one by task. Arguments as `evaluate_magicbrush`."""
    _keep_run(output, "emu_edit", f"{data} {split}", contestant, seed)  # before the inputs are unpacked there
    items = emu_edit.read_items(data, split, output / "inputs")[:limit]
    answers = results or output / "answers"
    if contestant.edit is not None:
        with progress("answering", len(items), quiet) as advance:
            emu_edit.make_answers(items, contestant.edit, answers, seed, batch, advance)
    cases = [_request(item, emu_edit.made_file(answers, item.id)) for item in items]
    write_cases(output, cases)
    pairs, missing = emu_edit.list_pairs(items, answers)
    if not pairs:
        raise DataError(f"{answers.name} has no finished picture: the first would be {_first(missing)}.png")
    rows = _score(pairs, scorers, output, "made", quiet)
    there = {pair.key for pair in pairs}
    copies = [pair for pair in emu_edit.list_copies(items) if pair.key in there]
    tables = emu_edit.make_tables(contestant.name, rows, _score(copies, scorers, output, "copy", quiet), missing)
    noted, scored = _with_encoders(tables, scorers), [("all tasks", list(zip(pairs, rows, strict=True)))]
    _write(output, noted, scored)
    labels = list(zip(emu_edit.METRICS, emu_edit.COLUMNS, strict=True))
    _write_gallery(output, f"Emu Edit test set, {contestant.name}", noted, scored, cases, INPUT, labels)
    return tables


def _conversations(sessions: Sequence[magicbrush.EditSession], setting: str, answers: Path) -> list[RunCase]:
    """What each scored answer of a setting was asked: one turn from its true input, or all turns from the first one."""
    single = setting == "single-turn"
    found = []
    for session in sessions:
        for turn in session.turns if single else session.turns[-1:]:
            told = (turn,) if single else session.turns
            words = turn.instruction if len(told) == 1 else "; ".join(f"{t.number}. {t.instruction}" for t in told)
            made = magicbrush.made_file(answers, setting, session.id, turn.number)
            answer = made if is_picture(made) else None
            found.append(RunCase(f"{setting}/{session.id}_{turn.number}", words, (told[0].source,), None, answer))
    return found


def _request(item: emu_edit.EmuItem, made: Path) -> RunCase:
    return RunCase(f"{item.task}/{item.id}", item.instruction, (item.source,), None, made if is_picture(made) else None)


def _score(pairs: Sequence[Pair], scorers: Scorers, output: Path, name: str, quiet: bool) -> list[ScoredPair]:
    (output / "scored").mkdir(parents=True, exist_ok=True)
    with progress("scoring", len(pairs), quiet) as advance:
        rows = output / "scored" / f"{name.replace(' ', '-')}.jsonl"
        return score_pairs(pairs, scorers.clip, scorers.dino, rows, advance)


def _with_encoders(tables: Sequence[Table], scorers: Scorers) -> list[Table]:
    """The tables, with what encoders there were and how many captions they cut."""
    encoders = (("CLIP", scorers.clip), ("DINO", scorers.dino))
    absent = [f"{name} is absent: name its weights" for name, encoder in encoders if encoder is None]
    cut = 0 if scorers.clip is None else scorers.clip.num_truncated
    notes = [*absent, *([f"Encoders: {', '.join(scorers.names)}."] if scorers.names else [])]
    notes += [f"{cut} captions were cut at 77 tokens."] if cut else []
    return [Table(t.title, t.columns, t.rows, (*t.notes, *notes)) for t in tables]


def _write(output: Path, tables: Sequence[Table], scored: Sequence[Group]) -> None:
    """Tables and rows.parquet."""
    write_tables(output, tables)
    rows = [
        {"id": row.key, "group": group, "resized": row.resized, **{m: getattr(row.scores, m) for m in metric_names()}}
        for group, own in scored
        for _, row in own
    ]
    write_parquet(output / "rows.parquet", rows)


def _write_gallery(
    output: Path,
    title: str,
    tables: Sequence[Table],
    scored: Sequence[Group],
    cases: Sequence[RunCase],
    compared_with: str,
    labels: Sequence[tuple[str, str]],
) -> None:
    """gallery.html: of each group, the answers furthest from what they are compared with, and the nearest."""
    asked = {case.item: case for case in cases}
    sections = []
    for group, own in scored:
        ranked = sorted(own, key=lambda both: both[1].scores.l1)
        best, worst = ranked[: min(CASES, len(ranked) // 2)], ranked[-min(CASES, -(-len(ranked) // 2)) :][::-1]
        for heading, chosen in ((f"furthest from the {compared_with} (L1)", worst), ("nearest to it", best)):
            shown = [_case(p, r, asked[f"{p.group}/{p.key}"], compared_with, labels) for p, r in chosen]
            sections.append((f"{group}: {heading}", shown))
    notes = [f"{table.title}: {note}" for table in tables for note in table.notes]
    write_gallery(output / "gallery.html", title, sections, notes)


def _case(pair: Pair, row: ScoredPair, asked: RunCase, compared_with: str, labels: Sequence[tuple[str, str]]) -> Case:
    files = {INPUT: asked.inputs[0], "answer": pair.made, compared_with: pair.reference}
    pictures = tuple((label, open_image(path).image) for label, path in files.items())
    scores = [(label, getattr(row.scores, metric)) for metric, label in labels]
    note = [pair.key, *(f"{label} {value:.3f}" for label, value in scores if value is not None)]
    return Case(pictures, asked.instruction, " · ".join([*note, *(["resized"] if row.resized else [])]))


def _keep_run(output: Path, benchmark: str, data: str, contestant: Contestant, seed: int) -> None:
    """Write run.json, or check that this folder's run is the same one: system, seed and set."""
    output.mkdir(parents=True, exist_ok=True)
    settings = {"benchmark": benchmark, "data": data, "name": contestant.name, "seed": seed, **contestant.settings}
    keep_settings(output, settings)


def _first(missing: Sequence[str]) -> str:
    return missing[0] if missing else "nothing"
