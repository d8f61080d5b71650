"""The page of the user study: one anonymised answer at a time, two questions, keyboard or mouse.

FastAPI, one HTML page without scripts from elsewhere. Pictures are served by the answer's key only, never by path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Form, HTTPException, Query
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from ace.errors import InputError
from ace.evaluation.study import MIN_RATERS, QUESTIONS, Answered, Rating, Study, StudyReport, agreement
from ace.pages import render

_ASKED = {
    "prompt_following": ("Does it do what was asked?", "not at all", "exactly"),
    "image_quality": ("How good is the picture?", "broken", "flawless"),
}


def make_app(study: Study) -> FastAPI:
    """The page over a study. Whoever can reach it can rate: serve it on loopback, or behind a proxy that asks."""
    app = FastAPI(title="ace study", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/", response_class=HTMLResponse)
    def page(rater: Annotated[str, Query(max_length=60)] = "") -> str:
        if not rater.strip():
            return _page()
        answer = study.next_for(rater)
        done, total = study.progress_of(rater)
        return _page(rater=rater, answer=answer, pictures=_pictures(answer), done=done, total=total)

    @app.post("/rate")
    def rate(
        rater: Annotated[str, Form()],
        key: Annotated[str, Form()],
        prompt_following: Annotated[int, Form()],
        image_quality: Annotated[int, Form()],
    ) -> RedirectResponse:
        try:
            study.add(Rating(rater, key, prompt_following, image_quality))
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        return RedirectResponse(app.url_path_for("page") + f"?rater={quote(rater, safe='')}", status_code=303)

    @app.get("/picture/{key}/{name}")
    def picture(key: str, name: str) -> FileResponse:
        path = _file(study.answers.get(key), name)
        if path is None:
            raise HTTPException(404, "no such picture in this study")
        return FileResponse(path, headers={"Cache-Control": "no-store"})

    @app.get("/report")
    def report() -> HTMLResponse:
        return HTMLResponse(_page(report=_report(study.report())))

    return app


def _file(answer: Answered | None, name: str) -> Path | None:
    if answer is None:
        return None
    if name == "answer":
        return answer.answer
    if name == "mask":
        return answer.mask
    return answer.inputs[int(name)] if name.isdecimal() and int(name) < len(answer.inputs) else None


def _page(**values: Any) -> str:
    """The page: welcome, a question, thanks or the report, by what is given."""
    known = {"rater": "", "answer": None, "pictures": [], "done": 0, "total": 0, "report": None}
    questions = {name: _ASKED[name] for name in QUESTIONS}
    return render("study", title="Which edits are good?", questions=questions, **(known | values))


def _pictures(answer: Answered | None) -> list[tuple[str, str]]:
    """(label, name) of what is shown of an answer."""
    if answer is None:
        return []
    several = len(answer.inputs) > 1
    shown = [(f"input {n + 1}" if several else "input", str(n)) for n in range(len(answer.inputs))]
    masks = [("only the white part may change", "mask")] if answer.mask else []
    return [*shown, *masks, ("result", "answer")]


def _report(report: StudyReport) -> dict[str, Any]:
    titles = [name.replace("_", " ") for name in QUESTIONS]
    text = f"{report.num_raters} raters. Scores 1 to 5, mean over answers with 95 % bootstrap intervals. "
    return {
        "text": text + agreement(report),
        "head": ["system", *titles, "ratings", f"answers with fewer than {MIN_RATERS}"],
        "scores": [
            [s.system, *(str(s.means.get(q, "–")) for q in QUESTIONS), str(s.ratings), str(s.thin)]
            for s in report.systems
        ],
        "wins": [
            [w.first, w.second, w.question.replace("_", " "), str(w.rate), str(w.rate.count)] for w in report.wins
        ],
    }
