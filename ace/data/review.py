"""Review: a page where a person accepts, fixes or rejects samples; the curated set of section 3.2.

Every decision is a line of `corrections.jsonl`, added and never changed: the last one about a sample counts, all
earlier ones stay as its versions. `export_curated` writes the accepted samples, with their corrected words, as shards.

A small FastAPI app for one machine: no accounts, nothing loaded from elsewhere, decisions by POST with JSON only, so
that another site's page cannot send them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, get_args

from ace.conditions.prompt import check_references
from ace.data.report import sample_view
from ace.data.shards import Manifest, Shards, row_id, write_rows
from ace.errors import ConditionError, DataError, MissingDependencyError
from ace.extras import install_command
from ace.lists import lines_of
from ace.pages import render

Decision = Literal["accept", "fix", "reject"]


@dataclass(frozen=True)
class Correction:
    """One decision about a sample. id: of its row. version: how many there were about it before, plus one.

    instruction: the corrected words of a "fix". note: why, free text."""

    id: str
    decision: Decision
    version: int
    instruction: str = ""
    note: str = ""


class Corrections:
    """The decisions in a file, in the order in which they were made. Raises DataError for a file that is another's."""

    def __init__(self, file: Path):
        self.file = file
        self.all: list[Correction] = []
        self._lock = Lock()
        lines = lines_of(file.read_text(encoding="utf-8")) if file.is_file() else []
        for number, line in enumerate(lines, 1):
            try:
                self.all.append(Correction(**json.loads(line)))
            except (ValueError, TypeError):
                if number < len(lines):  # a last line that a kill cut short never counted
                    raise DataError(f"{file}, line {number} is no correction: mend or delete the line") from None
                file.write_text("".join(f"{kept}\n" for kept in lines[:-1]), encoding="utf-8")

    @property
    def latest(self) -> dict[str, Correction]:
        """The decision that counts, by sample."""
        return {correction.id: correction for correction in self.all}

    def add(self, row: dict[str, Any], decision: str, instruction: str = "", note: str = "") -> Correction:
        """Decide about a row and keep it. Raises ConditionError for an unknown decision or words that do not fit."""
        if decision not in get_args(Decision):
            raise ConditionError(f"{decision!r} is no decision: use {', '.join(get_args(Decision))}")
        text = " ".join(instruction.split()) if decision == "fix" else ""
        if decision == "fix":
            if not text:
                raise ConditionError("the instruction is empty: say what to create or change")
            if text == row["instruction"]:
                raise ConditionError("nothing was changed: accept it, or change the words")
            check_references(text, max(len(row["units"][-1]["images"]), len(row["units"]) > 1))
        with self._lock:
            version = 1 + sum(known.id == row["id"] for known in self.all)
            correction = Correction(row["id"], decision, version, text, " ".join(note.split()))  # type: ignore[arg-type]
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(correction), ensure_ascii=False) + "\n")
                out.flush()
                os.fsync(out.fileno())
            self.all.append(correction)
        return correction


def export_curated(samples: Shards, corrections: Corrections, folder: Path) -> Manifest:
    """Write what was accepted or fixed as a data set. Raises DataError if there is nothing, or the folder is taken."""
    latest = corrections.latest

    def chosen() -> Iterator[dict[str, Any]]:
        for row in samples.rows():
            found = latest.get(row["id"])
            if found is not None and found.decision != "reject":
                yield corrected(row, found)

    if not any(found.decision != "reject" for found in latest.values()):
        raise DataError("nothing was accepted yet: review some samples first")
    return write_rows(chosen(), folder)


def corrected(row: dict[str, Any], correction: Correction) -> dict[str, Any]:
    """A row with its correction in it; provenance says which version it is and what the words were."""
    units = [dict(unit) for unit in row["units"]]
    provenance = {**json.loads(row["provenance"]), "reviewed": correction.version}
    made = {name: value for name, value in row.items() if name not in ("stage", "what", "reason", "detail")}
    if correction.decision == "fix":
        units[-1]["instruction"] = correction.instruction
        provenance = {k: v for k, v in provenance.items() if not k.startswith("slot.")}
        provenance["before_review"] = row["instruction"]
        made |= {"instruction": correction.instruction, "units": units}
    made["provenance"] = json.dumps(provenance, sort_keys=True, ensure_ascii=False)
    return {**made, "id": row_id(made)}


def review_app(samples: Shards, corrections: Corrections) -> Any:
    """The app: `GET /?at=INDEX` shows a sample, `POST /decide` keeps a decision, `GET /status` counts them."""
    try:
        from fastapi import Body, FastAPI, HTTPException
        from fastapi.responses import HTMLResponse
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ModuleNotFoundError:
        raise MissingDependencyError(f"the review page needs fastapi: {install_command('data')}") from None

    app = FastAPI(title="ace data review", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.get("/", response_class=HTMLResponse)
    def page(at: int | None = None) -> str:
        index = _next(samples, corrections, 0) if at is None else at
        if not 0 <= index < len(samples):
            raise HTTPException(404, f"there are {len(samples)} samples, counted from 0")
        return _page(samples, corrections, index)

    @app.post("/decide")
    def decide(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008 (FastAPI's way)
        try:
            index = int(body["index"])
            if not 0 <= index < len(samples):
                raise ConditionError(f"there is no sample {index}")
            row = samples.row(index)
            made = corrections.add(
                row, str(body["decision"]), str(body.get("instruction", "")), str(body.get("note", ""))
            )
        except ConditionError as error:
            raise HTTPException(422, str(error)) from None
        except (KeyError, ValueError, TypeError):
            raise HTTPException(422, "send index and decision") from None
        return {**asdict(made), "next": _next(samples, corrections, index + 1)}

    @app.get("/status")
    def status() -> dict[str, int]:
        latest = corrections.latest.values()
        counts = {decision: sum(c.decision == decision for c in latest) for decision in get_args(Decision)}
        return {"samples": len(samples), "decided": len(latest), **counts}

    return app


def serve(samples: Shards, corrections: Corrections, port: int) -> None:
    """Serve the page on this machine until Ctrl-C."""
    import uvicorn

    uvicorn.run(review_app(samples, corrections), host="127.0.0.1", port=port, log_level="warning")


def _next(samples: Shards, corrections: Corrections, start: int) -> int:
    """The next sample without a decision, from `start` and round again; the last one if all are decided."""
    decided, ids = corrections.latest, samples.column("id")
    order = [*range(min(start, len(ids)), len(ids)), *range(min(start, len(ids)))]
    return next((index for index in order if ids[index] not in decided), max(len(ids) - 1, 0))


def _page(samples: Shards, corrections: Corrections, index: int) -> str:
    row, latest = samples.row(index), corrections.latest
    found = latest.get(row["id"])
    return render(
        "review",
        title=f"Review {index + 1} of {len(samples)}",
        index=index,
        count=len(samples),
        num_decided=len(latest),
        shown=sample_view(row, index),
        decision=found,
        words=found.instruction if found and found.instruction else row["instruction"] or "",
    )
