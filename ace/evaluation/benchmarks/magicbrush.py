"""MagicBrush (Zhang et al. 2023): single-turn, multi-turn, and multi-turn with the whole conversation as context.

Single-turn is every turn from its true input; multi-turn is the last turn of a session, each turn going on from the
system's own answer. With long context the model also gets the earlier instructions and pictures (ACE, table 1, "w/
LC"). Finished pictures lie as the official evaluator wants them, so its own script can be run on the same folder:
`{id}/{id}_1.png`, `{id}_inde_{n}.png` from true inputs, `{id}_iter_{n}.png` from own answers.

Data: a folder of the dev or test archive, or a Hugging Face set in the hub's columns, unpacked once into that layout.
Captions come from a file of their own: the authors' paper used local ones. Not here: what a score is (`pairs.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ace.conditions.images import open_image
from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.errors import DataError
from ace.evaluation.benchmarks.hub import hub_rows
from ace.evaluation.lines import check_unique, unique_keys
from ace.evaluation.metrics import bootstrap
from ace.evaluation.pairs import Pair, ScoredPair, is_picture, resized_note
from ace.evaluation.run import answer_seed
from ace.evaluation.systems import Editor, png_bytes
from ace.evaluation.tables import Table, TableRow
from ace.files import write_atomically

SETTINGS = ("single-turn", "multi-turn", "multi-turn with long context")
HUB_COLUMNS = ("img_id", "turn_index", "source_img", "mask_img", "instruction", "target_img")
COLUMNS = ("L1 ↓", "L2 ↓", "CLIP-I ↑", "DINO ↑", "CLIP-T ↑")
METRICS = ("l1", "l2", "clip_i", "dino", "clip_t")
CAPTIONS = ("local_descriptions.json", "local_captions.json", "global_descriptions.json")
NUM_PAIRS = {"single-turn": 1053, "multi-turn": 535, "multi-turn with long context": 535}  # of the test split

# ACE, table 1. GLIDE and Blended Diffusion are left out: their L1 and L2 lie outside what the formulas can give.
_SINGLE = {
    "SD-SDEdit (description)": (0.1014, 0.0278, 0.8526, 0.7726, 0.2777),
    "Null Text Inversion (description)": (0.0749, 0.0197, 0.8827, 0.8206, 0.2737),
    "ACE (description)": (0.0505, 0.0160, 0.9436, 0.9184, 0.2833),
    "HIVE": (0.1092, 0.0380, 0.8519, 0.7500, None),
    "InstructPix2Pix": (0.1122, 0.0371, 0.8524, 0.7428, 0.2764),
    "MagicBrush": (0.0625, 0.0203, 0.9332, 0.8987, 0.2781),
    "UltraEdit": (0.0575, 0.0172, 0.9307, 0.8982, None),
    "ACE": (0.0507, 0.0165, 0.9453, 0.9215, 0.2841),
}
_MULTI = {
    "SD-SDEdit (description)": (0.1616, 0.0602, 0.7933, 0.6212, 0.2694),
    "Null Text Inversion (description)": (0.1057, 0.0335, 0.8468, 0.7529, 0.2710),
    "ACE (description)": (0.0778, 0.0290, 0.9124, 0.8611, 0.2843),
    "HIVE": (0.1521, 0.0557, 0.8004, 0.6463, 0.2673),
    "InstructPix2Pix": (0.1584, 0.0598, 0.7924, 0.6177, 0.2726),
    "MagicBrush": (0.0964, 0.0353, 0.8924, 0.8273, 0.2754),
    "UltraEdit": (0.0745, 0.0236, 0.9045, 0.8505, None),
    "ACE": (0.0773, 0.0293, 0.9128, 0.8661, 0.2855),
}
_LONG = {
    "ACE with long context (description)": (0.0768, 0.0285, 0.9136, 0.8635, 0.2819),
    "ACE with long context": (0.0761, 0.0284, 0.9140, 0.8668, 0.2809),
}
PUBLISHED = {"single-turn": _SINGLE, "multi-turn": _MULTI, "multi-turn with long context": _LONG}


@dataclass(frozen=True)
class EditTurn:
    """One turn of a session, numbered from 1. source: its true input; target: its true answer; caption: of the target,
    "" = none."""

    number: int
    source: Path
    target: Path
    instruction: str
    caption: str


@dataclass(frozen=True)
class EditSession:
    """A picture and its turns, in order."""

    id: str
    turns: tuple[EditTurn, ...]


def read_sessions(folder: Path, captions: Path | None = None) -> list[EditSession]:
    """The sessions of an unpacked archive, by id.

    captions: {id: {file name: caption}}; None = the first of `CAPTIONS` that is there. Raises DataError, also for
    sessions, or turns (by the picture they end in), that occur twice."""
    sessions = _json(folder / "edit_sessions.json")
    named = captions or next((folder / name for name in CAPTIONS if (folder / name).is_file()), None)
    texts = {} if named is None else _json(named)
    found = []
    for key, turns in sorted(sessions.items()):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
            raise DataError(f"session {key!r}: an id is letters, digits, - and _ only")
        images = folder / "images" / key
        own = [
            EditTurn(
                number,
                images / _plain(turn["input"]),
                images / _plain(turn["output"]),
                turn["instruction"],
                texts.get(key, {}).get(_plain(turn["output"]), ""),
            )
            for number, turn in enumerate(turns, 1)
        ]
        found.append(EditSession(key, tuple(own)))
    turns = [(session.id, turn) for session in found for turn in session.turns]
    check_unique((f"{key} {turn.target.name}" for key, turn in turns), "edit_sessions.json")
    missing = [f"{key} turn {t.number}" for key, t in turns if not (t.source.is_file() and t.target.is_file())]
    if missing:
        raise DataError(f"{len(missing)} turns lack a picture, the first is {missing[0]}: unpack the archive again")
    if not found:
        raise DataError(f"{folder.name} has no session: name the folder that holds edit_sessions.json")
    return found


def unpack_hub_set(source: str, split: str, folder: Path) -> Path:
    """Write a set in the hub's columns (img_id, turn_index, source_img, mask_img, instruction, target_img) in the
    archive's layout, once; returns the folder. The hub's set has no captions.

    source: hub name, or a folder of Parquet files. Raises as `hub_rows`, and DataError for ids that are wrong."""
    if (folder / "edit_sessions.json").is_file():
        return folder
    rows = hub_rows(source, split, HUB_COLUMNS, ("img_id", "turn_index"))
    sessions: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        key, number = str(row["img_id"]), int(row["turn_index"])
        turn = {
            "input": f"{key}-input.png" if number == 1 else f"{key}-output{number - 1}.png",
            "mask": f"{key}-mask{number}.png",
            "output": f"{key}-output{number}.png",
            "instruction": row["instruction"],
        }
        turns = sessions.setdefault(key, [])
        if number != len(turns) + 1:
            raise DataError(f"session {key}: turn {number} comes after {len(turns)} turns; the set must be in order")
        turns.append(turn)
        place = folder / "images" / _plain(key)
        place.mkdir(parents=True, exist_ok=True)
        for name, column in (("input", "source_img"), ("mask", "mask_img"), ("output", "target_img")):
            if not (place / turn[name]).exists():
                write_atomically(place / turn[name], png_bytes(row[column].convert("RGB")))
    write_atomically(folder / "edit_sessions.json", json.dumps(sessions).encode())
    return folder


def made_file(results: Path, setting: str, session: str, number: int) -> Path:
    """Where the answer to a turn lies."""
    kind = "" if number == 1 else ("inde_" if setting == "single-turn" else "iter_")
    root = results / "long_context" if setting == SETTINGS[2] else results
    return root / session / f"{session}_{kind}{number}.png"


def make_answers(
    sessions: Sequence[EditSession],
    settings: Iterable[str],
    edit: Editor,
    results: Path,
    seed: int,
    batch: int = 8,
    advance: Callable[[int], object] = lambda done: None,
) -> None:
    """Answer every turn that has no readable picture yet. Turn n of all sessions goes before turn n + 1, `batch` at a
    time."""
    for setting in settings:
        depth = max(len(session.turns) for session in sessions)
        for number in range(1, depth + 1):
            own = [session for session in sessions if len(session.turns) >= number]
            todo = [s for s in own if not is_picture(made_file(results, setting, s.id, number))]
            advance(len(own) - len(todo))
            for start in range(0, len(todo), batch):
                part = todo[start : start + batch]
                units = [_unit(session, number, setting, results) for session in part]
                seeds = [answer_seed(seed, session.id, number) for session in part]
                for session, picture in zip(part, edit(units, seeds), strict=True):
                    path = made_file(results, setting, session.id, number)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(path, png_bytes(picture))
                advance(len(part))


def list_pairs(sessions: Sequence[EditSession], setting: str, results: Path) -> tuple[list[Pair], list[str]]:
    """The pairs of one setting that can be scored, and the ids of those without a finished picture that
    can be read."""
    pairs, missing = [], []
    for session in sessions:
        for turn in session.turns if setting == "single-turn" else session.turns[-1:]:
            made, key = made_file(results, setting, session.id, turn.number), f"{session.id}_{turn.number}"
            if is_picture(made):
                pairs.append(Pair(key, setting, made, turn.target, turn.caption))
            else:
                missing.append(key)
    return pairs, missing


def list_copies(sessions: Sequence[EditSession], setting: str) -> list[Pair]:
    """The baseline: every input left as it is. In multi-turn that is the session's first picture."""
    single = setting == "single-turn"
    return [
        Pair(f"{s.id}_{t.number}", setting, t.source if single else s.turns[0].source, t.target, t.caption)
        for s in sessions
        for t in (s.turns if single else s.turns[-1:])
    ]


def make_table(
    setting: str, name: str, rows: Sequence[ScoredPair], copies: Sequence[ScoredPair], missing: Sequence[str]
) -> Table:
    """One setting as a table: what was measured, the copied input, and ACE's table 1."""
    measured = [
        TableRow(label, tuple(_mean(own, metric) for metric in METRICS), "measured", len(own))
        for label, own in ((name, rows), ("copy of the input", copies))
    ]
    published = [TableRow(label, values, "ACE, table 1") for label, values in PUBLISHED[setting].items()]
    oracle = _mean(rows, "clip_t_oracle")
    notes = [f"Pairs: {len(rows)} of {len(rows) + len(missing)}; the published rows are of {NUM_PAIRS[setting]}."]
    if missing:
        notes.append(f"PARTIAL: {len(missing)} pictures are missing or damaged, such as {', '.join(missing[:5])}.")
    notes += resized_note(rows)
    if oracle is not None:
        notes.append(f"CLIP-T of the true answers: {oracle.mean:.5f} (test split, local captions: .28259 and .28554).")
    notes.append("Intervals: 95 % bootstrap. L2 is the mean square. Pixel errors at the true answer's size.")
    return Table(f"MagicBrush, {setting}", COLUMNS, (*measured, *published), tuple(notes))


def _mean(rows: Sequence[ScoredPair], metric: str):
    values = [value for row in rows if (value := getattr(row.scores, metric)) is not None]
    return bootstrap([values])


def _unit(session: EditSession, number: int, setting: str, results: Path) -> LongContextConditionUnit:
    turn = session.turns[number - 1]
    if setting == "single-turn" or number == 1:
        return LongContextConditionUnit(ConditionUnit(turn.instruction, (_open(turn.source),)))
    before = [_open(made_file(results, setting, session.id, n)) for n in range(1, number)]
    if setting != SETTINGS[2]:
        return LongContextConditionUnit(ConditionUnit(turn.instruction, (before[-1],)))
    given = [_open(session.turns[0].source), *before]
    history = [
        Turn(ConditionUnit(t.instruction, (shown,)), answer)
        for t, shown, answer in zip(session.turns, given, before, strict=False)
    ]
    return LongContextConditionUnit(ConditionUnit(turn.instruction, (before[-1],)), tuple(history))


def _open(path: Path) -> Image.Image:
    return open_image(path).image


def _plain(name: str) -> str:
    if Path(name).name != name or name in ("", ".", ".."):
        raise DataError(f"{name!r} is not a plain file name: the set's files lie in its own folder only")
    return name


def _json(path: Path) -> dict:
    try:
        table = json.loads(path.read_bytes(), object_pairs_hook=unique_keys(path.name))
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror}; name the unpacked archive's folder") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is not JSON") from error
    if not isinstance(table, dict):
        raise DataError(f"{path.name}: expected an object by session id")
    return table
