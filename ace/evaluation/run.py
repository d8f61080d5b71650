"""Generate, score, resume: a list of edit samples in fixed chunks, one row of scores for each.

What is scored is a function from requests to answers: a pipeline of ours, any other editor, a folder of finished
pictures. A sample that a system cannot answer, or whose picture is missing, gets no row and is told by the report.
Times are in `timings.json`, apart from everything that must be repeatable.

Not here: which samples (`benchmarks/`), the folder (`folder.py`), scores (`scores.py`), tables and pictures
(`report.py`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ace.conditions.images import open_image
from ace.data.sample import EditSample
from ace.errors import ConditionError, DataError, InputError
from ace.evaluation.cases import write_cases
from ace.evaluation.facts import NO_JUDGES, Judges
from ace.evaluation.folder import RunFolder
from ace.evaluation.lpips import LPIPS
from ace.evaluation.scores import EditAnswer, Row, answer_sha256, score_chunk
from ace.evaluation.systems import Contestant

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of finished pictures


@dataclass(frozen=True)
class SampleRequest:
    """A sample as a system gets it. number: its place in the task; seed: of the answer's noise."""

    sample: EditSample
    number: int
    seed: int


System = Callable[
    [Sequence[SampleRequest]], Sequence[EditAnswer | None]
]  # None: the system has no answer to that sample
Entry = tuple[str, int]  # task, number


@dataclass(frozen=True)
class Finished:
    """What a run has measured, in the order of its list. missing: entries without an answer."""

    rows: list[Row]
    missing: list[Entry]


def answer_seed(seed: int, task: str, number: int) -> int:
    """The seed of one answer's noise: that of the run, the task and the number alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{task}:{number}".encode()).digest()[:7], "big")


def system_of(contestant: Contestant, results: Path | None = None) -> System:
    """A contestant on edit samples. results: folder of finished pictures, `TASK/NUMBER.png`, for one without an editor.

    A model of ours gets a whole chunk in one packed pass and answers everything. Any other editor gets one request at a
    time and leaves out what it has no form for (a history, a mask, several pictures)."""
    if contestant.edit is None:
        if results is None:
            raise DataError(f"{contestant.name} makes no pictures: name the folder of its finished ones")
        return lambda asked: [finished_answer(results, one.sample.task, one.number) for one in asked]
    whole, edit = contestant.answer, contestant.edit
    if whole is not None:
        return lambda asked: whole([one.sample.request for one in asked], [one.seed for one in asked])

    def alone(one: SampleRequest) -> EditAnswer | None:
        try:
            return EditAnswer(edit([one.sample.request], [one.seed])[0])
        except ConditionError:
            return None

    return lambda asked: [alone(one) for one in asked]


def finished_answer(results: Path, task: str, number: int) -> EditAnswer | None:
    """A finished picture, None if there is none or it cannot be read."""
    found = _finished_files(results, task, number)
    try:
        return EditAnswer(open_image(found[0]).image) if found else None
    except InputError:
        return None


def check_results(results: Path, entries: Sequence[Entry]) -> None:
    """Raises DataError that counts and names the samples with two finished pictures."""
    twice = [f"{task}/{number:05d}" for task, number in entries if len(_finished_files(results, task, number)) > 1]
    if twice:
        shown = ", ".join(twice[:5])
        raise DataError(f"{results.name}: {len(twice)} samples have two pictures, such as {shown}; keep one of each")


def _finished_files(results: Path, task: str, number: int) -> list[Path]:
    places = [results / task / f"{number:05d}{suffix}" for suffix in SUFFIXES]
    return [path for path in places if path.is_file()]


def run(
    chunks: Sequence[Sequence[Entry]],
    sample_of: Callable[[str, int], EditSample],
    system: System,
    folder: RunFolder,
    seed: int,
    lpips: LPIPS | None,
    judges: Judges = NO_JUDGES,
    quiet: bool = False,
    *,
    results: Path | None = None,
) -> Finished:
    """Answer and score every entry that is not done yet. results: where the system's finished pictures come from, if
    they do; one that was exchanged or taken away since the last call is noticed. Raises DataError for two of a sample.

    A chunk is answered as a whole: the last bits of a batch's numbers may depend on its members."""
    entries, cases = [entry for chunk in chunks for entry in chunk], []
    if results is not None:
        check_results(results, entries)
    with progress("evaluating", len(entries), quiet) as advance:
        for chunk in chunks:
            asked = [SampleRequest(sample_of(task, n), n, answer_seed(seed, task, n)) for task, n in chunk]
            if all(folder.is_made(one.sample, one.number) and _is_current(one, folder, results) for one in asked):
                if any(_lacks(folder.rows[entry], lpips, judges) for entry in chunk):
                    _score(asked, [folder.answer(*entry) for entry in chunk], folder, lpips, judges)
            else:
                start = time.perf_counter()
                answers = system(asked)
                seconds, made = time.perf_counter() - start, sum(answer is not None for answer in answers)
                if results is None and made:  # finished pictures are only read
                    folder.add_time(made, seconds)
                for one, answer in zip(asked, answers, strict=True):
                    folder.put_inputs(one.sample, one.number)
                    if answer is None:
                        folder.drop(one.sample.task, one.number)
                _score(asked, answers, folder, lpips, judges)
            cases += [folder.case(one.sample, one.number) for one in asked]
            advance(len(chunk))
    folder.finish()
    write_cases(folder.path, cases)
    rows = [folder.rows[entry] for entry in entries if entry in folder.rows]
    return Finished(rows, [entry for entry in entries if entry not in folder.rows])


def _is_current(one: SampleRequest, folder: RunFolder, results: Path | None) -> bool:
    if results is None:
        return True
    answer = finished_answer(results, one.sample.task, one.number)
    return answer is not None and answer_sha256(answer) == folder.rows[one.sample.task, one.number].answer_sha256


def _score(
    asked: Sequence[SampleRequest],
    answers: Sequence[EditAnswer | None],
    folder: RunFolder,
    lpips: LPIPS | None,
    judges: Judges,
) -> None:
    """Score the samples that have an answer, and keep both."""
    both = [(one, answer) for one, answer in zip(asked, answers, strict=True) if answer is not None]
    if not both:
        return
    kept = [answer for _, answer in both]
    rows = score_chunk([one.sample for one, _ in both], [one.number for one, _ in both], kept, lpips, judges)
    folder.add(kept, rows)


def _lacks(row: Row, lpips: LPIPS | None, judges: Judges) -> bool:
    """True if a row has no score that could be had now, such as after LPIPS or OCR was installed."""
    is_text = row.task in ("element_editing/text_add", "element_editing/text_remove") and row.changed_share > 0
    unread = judges.reader is not None and is_text and not {"text_read", "text_gone"} & row.facts.keys()
    return unread or (lpips is not None and row.model.lpips is None)


@contextmanager
def progress(what: str, total: int, quiet: bool) -> Iterator[Callable[[int], object]]:
    """A bar on standard error; what it gives is called with every count that is done."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        job = bar.add_task("", total=total)
        yield lambda count: bar.advance(job, count)
