"""The folder of a run on edit samples: answers, rows of scores, and what made them.

Pictures are written whole or not at all, rows are added at the end of `rows.jsonl` after their pictures; so a run that
was killed goes on where it stopped and ends with the same bytes. An answer counts as done only while its sample and its
pictures are still those that its row was computed from. `run.json` says what made the answers; a folder never mixes two
systems.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ace.conditions.images import open_image
from ace.data.sample import TASKS, EditSample
from ace.errors import ConfigError, InputError, OutputError
from ace.evaluation.cases import RunCase
from ace.evaluation.lines import append_lines, read_lines
from ace.evaluation.scores import Drift, EditAnswer, Row, Score, answer_sha256, sample_sha256
from ace.evaluation.systems import png_bytes
from ace.files import write_atomically

FORMAT_VERSION = 4
TIMINGS = "timings.json"


@dataclass(frozen=True)
class Timings:
    """How many pictures a run made, and the seconds that took, over all calls."""

    pictures: int = 0
    seconds: float = 0.0

    @property
    def speed(self) -> float | None:
        """Pictures per second; None if nothing was measured."""
        return round(self.pictures / self.seconds, 4) if self.pictures and self.seconds else None


class RunFolder:
    """The folder of one run: answers, rows, and what made them.

    settings: what makes the answers what they are (model hash, seed, steps, …). Raises OutputError if the folder cannot
    be used or its rows cannot be read, ConfigError if it holds answers of other settings."""

    def __init__(self, path: Path, settings: dict[str, object]) -> None:
        self.path = Path(path)
        try:
            (self.path / "answers").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to {self.path.name}: {error.strerror}; choose another folder") from error
        keep_settings(self.path, {"format_version": FORMAT_VERSION, **settings})
        self._rows_file = self.path / "rows.jsonl"
        self.rows: dict[tuple[str, int], Row] = {row.key: row for row in self._read_rows()}

    def answer(self, task: str, number: int) -> EditAnswer | None:
        """The answer on disk, or None."""
        path, unpreserved = self._files(task, number)
        if not path.is_file():
            return None
        try:
            whole = open_image(unpreserved).image if unpreserved.is_file() else None
            return EditAnswer(open_image(path).image, whole)
        except InputError:
            return None  # a damaged file counts as missing: it is made again

    def add(self, answers: Sequence[EditAnswer], rows: Sequence[Row]) -> None:
        """Keep a chunk: its pictures first, then its rows, so that a row never lacks its picture."""
        for answer, row in zip(answers, rows, strict=True):
            path, unpreserved = self._files(row.task, row.number)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, png_bytes(answer.picture))
            if answer.unpreserved is not None:
                write_atomically(unpreserved, png_bytes(answer.unpreserved))
        self.keep(rows)

    def keep(self, rows: Sequence[Row]) -> None:
        """Add rows; a row of the same sample counts instead of an earlier one."""
        self.rows.update({row.key: row for row in rows})
        append_lines(self._rows_file, (asdict(row) for row in rows))

    def drop(self, task: str, number: int) -> None:
        """Forget an answer and its row, if there are any."""
        self.rows.pop((task, number), None)
        for path in self._files(task, number):
            path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Put the rows in order, each sample once, whatever order they were made in."""
        ordered = sorted(self.rows.values(), key=lambda row: (TASKS.index(row.task), row.number))
        lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in ordered)
        self.write(self._rows_file.name, lines.encode())

    def put_inputs(self, sample: EditSample, number: int) -> None:
        """Keep what a sample shows, as files that any other system can be given."""
        for frame, (picture, mask) in zip(sample.request.frames(), self._input_files(sample, number), strict=True):
            picture.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(picture, png_bytes(frame.image))
            if frame.mask is not None:
                write_atomically(mask, png_bytes(frame.mask))

    def case(self, sample: EditSample, number: int) -> RunCase:
        """What was asked and where the answer is, for `cases.jsonl`."""
        answer, frames = self._files(sample.task, number)[0], sample.request.frames()
        files = self._input_files(sample, number)
        masks = [mask for frame, (_, mask) in zip(frames, files, strict=True) if frame.mask is not None]
        return RunCase(
            f"{sample.task}/{number}",
            sample.request.instruction,
            tuple(picture for picture, _ in files),
            masks[-1] if masks else None,
            answer if answer.is_file() else None,
        )

    def is_made(self, sample: EditSample, number: int) -> bool:
        """True if the answer on disk is the one that was scored, and was made for exactly this sample."""
        row, answer = self.rows.get((sample.task, number)), self.answer(sample.task, number)
        return (
            row is not None
            and answer is not None
            and row.sample_sha256 == sample_sha256(sample)
            and row.answer_sha256 == answer_sha256(answer)
        )

    def add_time(self, pictures: int, seconds: float) -> None:
        """Add what a chunk took to `timings.json`: the sum over every call that made pictures for this folder."""
        earlier = read_timings(self.path)
        total = Timings(earlier.pictures + pictures, round(earlier.seconds + seconds, 4))
        self.write(TIMINGS, (json.dumps({**asdict(total), "pictures_per_second": total.speed}) + "\n").encode())

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the report, whole or not at all."""
        write_atomically(self.path / name, data)

    def _files(self, task: str, number: int) -> tuple[Path, Path]:
        folder = self.path / "answers" / task
        return folder / f"{number:05d}.png", folder / f"{number:05d}-unpreserved.png"

    def _input_files(self, sample: EditSample, number: int) -> list[tuple[Path, Path]]:
        folder = self.path / "inputs" / sample.task
        return [
            (folder / f"{number:05d}-{place}.png", folder / f"{number:05d}-{place}-mask.png")
            for place in range(len(sample.request.frames()))
        ]

    def _read_rows(self) -> list[Row]:
        try:
            return [_row(table) for table in read_lines(self._rows_file)]
        except (OSError, ValueError, TypeError, KeyError) as error:
            name = self._rows_file.name
            raise OutputError(f"{name} cannot be read: delete it, and the answers are scored again") from error


def read_timings(folder: Path) -> Timings:
    """What a run took so far; nothing if that is not known."""
    try:
        table = json.loads((folder / TIMINGS).read_bytes())
        return Timings(int(table["pictures"]), float(table["seconds"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Timings()


def keep_settings(folder: Path, settings: dict[str, object]) -> None:
    """Write `run.json`, or check that the run in this folder is the same one.

    Raises ConfigError for another one, OutputError if it cannot be read."""
    path = folder / "run.json"
    if not path.is_file():
        write_atomically(path, (json.dumps(settings, indent=1) + "\n").encode())
        return
    try:
        earlier = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path.name} cannot be read: choose another folder, or delete this one") from error
    if earlier != settings:
        other = sorted(key for key in {*settings, *earlier} if settings.get(key) != earlier.get(key))
        raise ConfigError(
            f"{folder.name} holds a run with another {', '.join(other)}: choose another folder, or delete it"
        )


def _row(table: dict) -> Row:
    """A row from its JSON. Raises TypeError or KeyError for anything else."""
    scores = {name: Score(**table[name]) for name in ("model", "copy", "mean_colour")}
    drifts = {name: table[name] and Drift(**table[name]) for name in ("drift", "unpreserved_drift")}
    return Row(**{**table, **scores, **drifts, "held_out": tuple(table["held_out"])})
