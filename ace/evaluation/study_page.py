"""The page of the user study: one anonymised answer at a time, two questions, keyboard or mouse.

FastAPI, one HTML page without scripts from elsewhere. Pictures are served by the answer's key only, never by path.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import FastAPI, Form, HTTPException, Query
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from ace.errors import InputError
from ace.evaluation.study import MIN_RATERS, QUESTIONS, Answered, Rating, Study, StudyReport, agreement

_ASKED = {
    "prompt_following": ("Does it do what was asked?", "not at all", "exactly"),
    "image_quality": ("How good is the picture?", "broken", "flawless"),
}
_STYLE = """
:root{color-scheme:light dark;--paper:#fafaf8;--ink:#1c1e24;--soft:#747882;--card:#fff;--line:#e2e2de;--on:#2b6cb0}
@media(prefers-color-scheme:dark){:root{--paper:#17181c;--ink:#ececea;--soft:#9a9ea8;--card:#212329;--line:#33353c}}
body{font:17px/1.5 system-ui,sans-serif;margin:0 auto;max-width:960px;padding:1.2rem;background:var(--paper)}
body{color:var(--ink)}header{display:flex;justify-content:space-between;color:var(--soft);font-size:15px}
h1{font-size:1.3rem;font-weight:600;margin:1rem 0}.pictures{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;flex:1 1 260px;background:var(--card);border:1px solid var(--line);border-radius:14px;padding:.8rem}
figure img{width:100%;max-height:55vh;object-fit:contain;border-radius:8px;display:block}
figcaption{color:var(--soft);font-size:14px}
fieldset{border:0;margin:1.2rem 0 0;padding:0}legend{font-weight:600;margin-bottom:.4rem}
.scale{display:flex;gap:.5rem;align-items:center;color:var(--soft);font-size:14px;flex-wrap:wrap}
.scale label{cursor:pointer}.scale input{position:absolute;opacity:0}
.scale span.n{display:inline-grid;place-items:center;width:3rem;height:3rem;border-radius:50%;
border:1px solid var(--line);background:var(--card);color:var(--ink);font-size:17px}
.scale input:checked+span.n{background:var(--on);color:#fff;border-color:var(--on)}
.scale input:focus-visible+span.n{outline:3px solid var(--on);outline-offset:2px}
table{border-collapse:collapse;width:100%;margin:1.4rem 0;font-size:15px;font-variant-numeric:tabular-nums}
td,th{padding:.4rem .8rem .4rem 0;border-bottom:1px solid var(--line);text-align:left;font-weight:400}
th{color:var(--soft)}
button,.name{font:inherit;padding:.7rem 1.6rem;border-radius:10px;border:1px solid var(--line)}
button{background:var(--on);color:#fff;border:0;margin-top:1.4rem;cursor:pointer}
"""


def make_app(study: Study) -> FastAPI:
    """The page over a study. Whoever can reach it can rate: serve it on loopback, or behind a proxy that asks."""
    app = FastAPI(title="ace study", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/", response_class=HTMLResponse)
    def page(rater: Annotated[str, Query(max_length=60)] = "") -> str:
        if not rater.strip():
            return _frame(_WELCOME)
        answer = study.next_for(rater)
        done, total = study.progress_of(rater)
        if answer is None:
            return _frame(f"<h1>That was all of them. Thank you.</h1><p>{done} answers scored.</p>")
        return _frame(_question(answer, rater, done, total))

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
        return HTMLResponse(_frame(_report(study.report())))

    return app


def _file(answer: Answered | None, name: str) -> Path | None:
    if answer is None:
        return None
    if name == "answer":
        return answer.answer
    if name == "mask":
        return answer.mask
    return answer.inputs[int(name)] if name.isdecimal() and int(name) < len(answer.inputs) else None


def _question(answer: Answered, rater: str, done: int, total: int) -> str:
    shown = [(f"input {n + 1}" if len(answer.inputs) > 1 else "input", str(n)) for n in range(len(answer.inputs))]
    masks = [("only the white part may change", "mask")] if answer.mask else []
    figures = "".join(
        f"<figure><img alt='{label}' src='/picture/{answer.key}/{name}'><figcaption>{label}</figcaption></figure>"
        for label, name in [*shown, *masks, ("result", "answer")]
    )
    return (
        f"<header><span>{html.escape(rater)}</span><span>{done} of {total}</span></header>"
        f"<h1>“{html.escape(answer.instruction)}”</h1><div class='pictures'>{figures}</div>"
        f"<form method='post' action='/rate'><input type='hidden' name='key' value='{answer.key}'>"
        f"<input type='hidden' name='rater' value='{html.escape(rater, quote=True)}'>"
        f"{''.join(_scale(name) for name in QUESTIONS)}<button>Next</button></form>"
    )


def _scale(name: str) -> str:
    asked, low, high = _ASKED[name]
    radios = "".join(
        f"<label><input type='radio' name='{name}' value='{n}' required><span class='n'>{n}</span></label>"
        for n in range(1, 6)
    )
    return (
        f"<fieldset><legend>{asked}</legend><div class='scale'><span>{low}</span>{radios}<span>{high}</span></div>"
        "</fieldset>"
    )


def _report(report: StudyReport) -> str:
    titles = [name.replace("_", " ") for name in QUESTIONS]
    scores = [
        [s.system, *(str(s.means.get(q, "–")) for q in QUESTIONS), str(s.ratings), str(s.thin)] for s in report.systems
    ]
    wins = [[w.first, w.second, w.question.replace("_", " "), str(w.rate), str(w.rate.count)] for w in report.wins]
    return (
        f"<h1>User study</h1><p>{report.num_raters} raters. Scores 1 to 5, mean over answers with 95 % bootstrap "
        f"intervals. {agreement(report)}</p>"
        + _table(["system", *titles, "ratings", f"answers with fewer than {MIN_RATERS}"], scores)
        + (_table(["", "against", "question", "wins (ties half)", "items"], wins) if wins else "")
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table><tr>{''.join(f'<th>{title}</th>' for title in head)}</tr>{''.join(cells)}</table>"


def _frame(body: str) -> str:
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>Which edits are good?</title><style>{_STYLE}</style><main>{body}</main></html>"
    )


_WELCOME = (
    "<h1>Which edits are good?</h1><p>You will see pictures, what was asked, and one result at a time. "
    "Two questions each; nothing is timed, and you can stop whenever you like.</p>"
    "<form><input class='name' name='rater' placeholder='a name for yourself' required maxlength='60'> "
    "<button>Start</button></form>"
)
