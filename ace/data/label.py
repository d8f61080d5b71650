"""Labelling: instructions by models, over any OpenAI-compatible endpoint, a local model, or phrase grammars (3.2).

`Labeller` answers questions: many at once, with retries, under a budget, and each answer is kept on disk as soon as it
is there, so that a run that was stopped pays for nothing twice. A question that gets no answer is a `NoAnswer` with its
reason; it never stops a run.

What is asked is in `instruct.py`; the captioner that is trained on corrected rows in `label_captioner.py`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from random import Random
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from ace.conditions import ConditionUnit, LongContextConditionUnit
from ace.data.endpoint import check_client, connect
from ace.data.engine import DataJob, OnProgress, Part, Record, Where, run_stage
from ace.data.instruct import (
    Question,
    ask_difference,
    ask_instruction,
    ask_rewording,
    clean,
    paraphrase,
    read_instruction,
    why_not,
)
from ace.data.recipe import DataRecipe, Labelling
from ace.data.sample import EditSample
from ace.data.shards import row_id, to_row
from ace.data.sources import OF_ONE_PICTURE, load_source
from ace.data.tasks.source import Source
from ace.errors import ConditionError
from ace.lists import lines_of

if TYPE_CHECKING:
    from openai import OpenAI

    from ace.extract.sentence import SentenceFeatures

SILENT = "the endpoint does not answer"
SPENT = "the budget is used up"
FOREIGN = "the endpoint's reply is not a chat completion"
_PATIENCE = 3  # questions in a row that may stay without an answer before the rest is not asked
_PAIRS_PER_JOB = 16
_SHOWN_PX = 512


@dataclass(frozen=True)
class NoAnswer:
    """Why a question has no answer."""

    reason: str
    detail: str = ""


class Labeller(Protocol):
    """Whoever answers questions."""

    def ask(self, questions: Sequence[Question]) -> list[str | NoAnswer]:
        """The answers, in order."""
        ...


class Endpoint:
    """An OpenAI-compatible server, by its chat completions.

    replies: file where answers are kept, so that none is paid for twice. A lost connection, 408, 429 and 5xx are tried
    again, other refusals are final. After three questions in a row without an answer the rest is not asked."""

    def __init__(self, settings: Labelling, replies: Path):
        self.settings = settings
        self.replies = replies
        self._lock = Lock()
        self._known = _read_replies(replies)
        self._spent = sum(
            tokens for file in replies.parent.glob("*.jsonl") for _, tokens in _read_replies(file).values()
        )
        self._unanswered = 0

    def ask(self, questions: Sequence[Question]) -> list[str | NoAnswer]:
        """The answers, in order; known ones from disk."""
        key = os.environ.get(self.settings.key_variable, "")
        with (
            connect(self.settings.endpoint, key, self.settings.timeout_s, self.settings.retries) as client,
            ThreadPoolExecutor(self.settings.parallel) as pool,
        ):
            return list(pool.map(partial(self._answer, client), questions))

    def _answer(self, client: OpenAI, question: Question) -> str | NoAnswer:
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": _content(question)}],
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_reply_tokens,
            "seed": question.attempt,
        }
        name = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]
        if name in self._known:
            return self._known[name][0]
        if self._unanswered >= _PATIENCE:
            return NoAnswer(SILENT, f"{_PATIENCE} questions in a row had no answer")
        if self.settings.budget_tokens and self._spent >= self.settings.budget_tokens:
            return NoAnswer(SPENT, f"{self._spent} tokens")
        said = self._post(client, body)
        if isinstance(said, NoAnswer):
            return said
        try:
            told = json.loads(said)
            answer = str(told["choices"][0]["message"]["content"])
            tokens = int((told.get("usage") or {}).get("total_tokens", 0))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return NoAnswer(FOREIGN, said[:200])
        self._keep(name, answer, tokens)
        return answer

    def _post(self, client: OpenAI, body: dict[str, Any]) -> str | NoAnswer:
        """The server's reply as text."""
        from openai import APIConnectionError, APIStatusError

        try:
            return client.chat.completions.with_raw_response.create(**body).text
        except APIStatusError as error:
            detail = f"HTTP {error.status_code}"
            if error.status_code not in (408, 409, 429) and error.status_code < 500:
                return NoAnswer("the endpoint refused", f"{detail}: {error.response.text[:200]}")
        except APIConnectionError as error:
            detail = f"{type(error).__name__}: {error}"
        with self._lock:
            self._unanswered += 1
        return NoAnswer(SILENT, detail)

    def _keep(self, name: str, answer: str, tokens: int) -> None:
        with self._lock:
            self._unanswered = 0
            self._spent += tokens
            self._known[name] = answer, tokens
            self.replies.parent.mkdir(parents=True, exist_ok=True)
            with self.replies.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"question": name, "answer": answer, "tokens": tokens}, ensure_ascii=False) + "\n")


class Local:
    """A model of transformers in this process: image-text-to-text, by folder or name, on a GPU if there is one."""

    def __init__(self, settings: Labelling):
        from ace.data.label_captioner import load_captioner

        self.captioner = load_captioner(settings.model, max_new_tokens=settings.max_reply_tokens)

    def ask(self, questions: Sequence[Question]) -> list[str | NoAnswer]:
        """The answers, in order."""
        return list(self.captioner.answer_all(questions))


def check_ready(settings: Labelling) -> None:
    """Raise MissingDependencyError for a library, a local model or weights that are not here."""
    if settings.by == "endpoint":
        check_client()
    if settings.by == "local":
        _local(settings)
    if settings.compares:
        _sentences()


def labeller(settings: Labelling, replies: Path) -> Labeller:
    """Who answers by a recipe. Raises MissingDependencyError for a local model that is not there."""
    return _local(settings) if settings.by == "local" else Endpoint(settings, replies)


def label_parts(
    recipe: DataRecipe,
    made: Sequence[Part],
    pairs: Sequence[dict[str, Any]],
    sources: Sequence[dict[str, Any]],
    work: Path,
    where: Where,
    on_progress: OnProgress | None,
) -> list[Part]:
    """Parts with further wordings of every sample and, where asked for, samples of mined pairs."""
    assert recipe.label is not None
    jobs = [DataJob(part.file.stem, {"part": str(part.file.relative_to(work))}) for part in made]
    if recipe.label.pairs:
        by_id = {facts["id"]: facts for facts in sources}
        chosen = [
            {"first": by_id[pair["first"]], "second": by_id[pair["second"]], "cosine": pair["cosine"]}
            for pair in pairs[: recipe.label.pair_limit]
        ]
        slices = [chosen[i : i + _PAIRS_PER_JOB] for i in range(0, len(chosen), _PAIRS_PER_JOB)]
        jobs += [DataJob(f"pairs-{number:06d}", {"pairs": part}) for number, part in enumerate(slices)]
    return run_stage("label", jobs, partial(label_job, recipe, str(work)), work, where, on_progress)


def label_job(recipe: DataRecipe, work: str, job: DataJob) -> Iterator[Record]:
    """The samples of one part with their further wordings, or those of some pairs."""
    assert recipe.label is not None
    replies = Path(work) / "replies" / f"{job.name}.jsonl"
    if "pairs" in job.payload:
        yield from label_pairs(recipe, job.payload["pairs"], labeller(recipe.label, replies))
        return
    kept = [r for r in Part(Path(work) / job.payload["part"]).records() if not r.reason and r.sample is not None]
    if recipe.label.by == "grammar":
        yield from _reworded_by_grammar(recipe, kept)
        return
    yield from reword(kept, recipe.label, labeller(recipe.label, replies))


def reword(records: Sequence[Record], settings: Labelling, who: Labeller) -> Iterator[Record]:
    """Each record, then its further wordings by a model; wordings that repeat or lose something are rejected."""
    yield from records
    texts: list[list[str]] = [[] for _ in records]
    for number in range(settings.rewrites):
        rows = [record.sample or {} for record in records]
        questions = [
            replace(ask_rewording(row["instruction"], known), attempt=number)
            for row, known in zip(rows, texts, strict=True)
        ]
        for record, known, answer in zip(records, texts, who.ask(questions), strict=True):
            row = record.sample or {}
            if isinstance(answer, NoAnswer):
                yield replace(record, reason=answer.reason, detail=answer.detail)
                continue
            text = clean(answer)
            reason = why_not(text, row["instruction"], known) or _why_not_by_meaning(
                text, row["instruction"], known, settings
            )
            if reason is None:
                known.append(text)
            yield replace(
                record, reason=reason or "", detail="", sample=with_words(row, text, settings.model, number + 1)
            )


def _why_not_by_meaning(text: str, original: str, earlier: Sequence[str], settings: Labelling) -> str | None:
    """None if a wording means the same as the original and differs from all that there are, else the reason."""
    if not settings.compares:
        return None
    rows = _sentences()([text, original, *earlier])
    alike = rows[1:] @ rows[0]
    if alike[0] < settings.min_alike:
        return "the wording means something else"
    return "the wording is too much like an earlier one" if alike.max() >= settings.max_alike else None


def label_pairs(recipe: DataRecipe, pairs: Sequence[dict[str, Any]], who: Labeller) -> Iterator[Record]:
    """Samples of mined pairs: a model sees what differs, then writes the instruction."""
    loaded = []
    for pair in pairs:
        what = f"{pair['first']['id']}~{pair['second']['id']}"
        try:
            first, second = (load_source(recipe, {**pair[side], "others": ()}) for side in ("first", "second"))
            loaded.append((what, pair, first, second))
        except OF_ONE_PICTURE as error:
            yield Record(what, reason="cannot be read", detail=str(error)[:200])
    found = who.ask([ask_difference(a.image, b.image, (a.caption, b.caption)) for _, _, a, b in loaded])
    seen = []
    for item, answer in zip(loaded, found, strict=True):
        if isinstance(answer, NoAnswer):
            yield Record(item[0], reason=answer.reason, detail=answer.detail)
        else:
            seen.append((item, answer))
    written = who.ask([ask_instruction(analysis) for _, analysis in seen])
    for ((what, pair, first, second), _), answer in zip(seen, written, strict=True):
        if isinstance(answer, NoAnswer):
            yield Record(what, reason=answer.reason, detail=answer.detail)
            continue
        try:
            sample = _pair_sample(recipe, first, second, pair["cosine"], answer)
        except ConditionError as error:
            yield Record(what, reason=str(error), detail=answer[:200])
            continue
        yield Record(what, task=sample.task, sample=to_row(sample, recipe.output.quality or None))


def _pair_sample(recipe: DataRecipe, first: Source, second: Source, cosine: float, answer: str) -> EditSample:
    """The sample from one picture to the other by a model's answer. Raises ConditionError, saying what is wrong."""
    assert recipe.label is not None
    text, caption, kind = read_instruction(answer)
    request = LongContextConditionUnit(ConditionUnit(text, (first.image,)))
    provenance: dict[str, str | int | float] = {
        "source": first.id,
        "target": second.id,
        "cosine": cosine,
        "caption": caption,
        "written_by": recipe.label.model,
        "seed": recipe.seed,
    }
    return EditSample(request, second.image, f"semantic_editing/{kind}", provenance)


def with_words(row: dict[str, Any], text: str, by: str, number: int) -> dict[str, Any]:
    """A row whose current instruction is another wording; provenance keeps the first one and who wrote this."""
    units = [dict(unit) for unit in row["units"]]
    units[-1]["instruction"] = text
    provenance = json.loads(row["provenance"])
    provenance = {k: v for k, v in provenance.items() if not k.startswith("slot.")}
    provenance |= {"wording": number, "written_by": by, "first_wording": row["instruction"]}
    made = {**row, "instruction": text, "units": units}
    made["provenance"] = json.dumps(provenance, sort_keys=True, ensure_ascii=False)
    return {**made, "id": row_id(made)}


def _reworded_by_grammar(recipe: DataRecipe, records: Sequence[Record]) -> Iterator[Record]:
    assert recipe.label is not None
    for record in records:
        yield record
        row = record.sample or {}
        rng = Random(f"{recipe.seed}:words:{row['id']}")
        known: list[str] = []
        for number in range(recipe.label.rewrites):
            text = paraphrase(row["instruction"], known, rng)
            if text is None:
                yield replace(record, reason="no further wording was found", sample=None)
                break
            known.append(text)
            yield replace(record, sample=with_words(row, text, "grammar", number + 1))


@lru_cache(maxsize=1)
def _local(settings: Labelling) -> Local:
    return Local(settings)


@lru_cache(maxsize=1)
def _sentences() -> SentenceFeatures:
    from ace.extract.sentence import SentenceFeatures

    return SentenceFeatures()


def _content(question: Question) -> Any:
    """A question as the content of a chat message."""
    if not question.pictures:
        return question.text
    shown = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in question.pictures]
    return [*shown, {"type": "text", "text": question.text}]


def data_url(picture: Image.Image) -> str:
    """A picture, at most 512 px, as a data URL."""
    small = picture.convert("RGB")
    small.thumbnail((_SHOWN_PX, _SHOWN_PX))
    buffer = BytesIO()
    small.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _read_replies(file: Path) -> dict[str, tuple[str, int]]:
    """Answers kept on disk; a line that a kill cut short is left out."""
    known: dict[str, tuple[str, int]] = {}
    if file.is_file():
        for line in lines_of(file.read_text(encoding="utf-8")):
            try:
                told = json.loads(line)
                known[told["question"]] = told["answer"], told["tokens"]
            except (ValueError, KeyError, RecursionError):
                continue
    return known
