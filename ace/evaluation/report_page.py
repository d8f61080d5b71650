"""`WorldReport` → one HTML page with everything inside: the table, worst and best cases of every family, the grid."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence

from PIL import Image

from ace.data.sample import EditSample
from ace.evaluation.report_text import counted, drift_text, method_text, title, wording
from ace.evaluation.scores import Row, edited_input
from ace.evaluation.summary import GroupScores, WorldReport

CASES_PER_FAMILY = 4  # of the gallery, worst and best each

SampleOf = Callable[[str, int], EditSample]
AnswerOf = Callable[[Row], Image.Image]


def page(report: WorldReport, rows: Sequence[Row], answer_of: AnswerOf, sample_of: SampleOf, grid: bytes) -> str:
    """The HTML gallery, one file with all pictures inside it."""
    sections = [
        _section(group, [row for row in rows if row.family == group.name], answer_of, sample_of)
        for group in report.families
    ]
    heading, name = wording(report).title, html.escape(report.model_name or "model")
    links = " ".join(f"<a href='#{g.name}'>{html.escape(title(g.name))}</a>" for g in report.families)
    beating = sum(group.beats_copying for group in report.families)
    lead = (
        f"{counted(report)}, {beating} of {len(report.families)} families nearer to the target than the "
        f"input where it should change. {_decoded_text(report)}"
        f"{html.escape(drift_text(report.drift), quote=False)}"
    ).replace("**", "")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{heading}: {name}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{heading}: {name}</h1>"
        f"<p>{lead}</p><nav>{links} <a href='#grid'>unselected grid</a></nav>{_html_table(report)}{''.join(sections)}"
        "<section id='grid'><h2>The first samples of every family, unselected</h2>"
        f"<img class='grid' alt='inputs, instruction, output and target of unselected samples' src='{_data_url(grid)}'>"
        f"</section><section><h2>How it was measured</h2><ul>{_html_list(method_text(report))}</ul></section>"
        "</main></body></html>\n"
    )


def _section(group: GroupScores, rows: Sequence[Row], answer_of: AnswerOf, sample_of: SampleOf) -> str:
    """A family: its scores as bars, its worst and its best cases."""
    ranked = sorted(rows, key=_badness)
    worst = ranked[max(len(ranked) // 2, len(ranked) - CASES_PER_FAMILY) :][::-1]
    best = ranked[: min(len(ranked) // 2, CASES_PER_FAMILY)]
    galleries = "".join(
        f"<h3>{heading}</h3><div class='cases'>{_cases(cases, answer_of, sample_of)}</div>"
        for heading, cases in (("Worst", worst), ("Best", best))
        if cases
    )
    return (
        f"<section id='{group.name}'><h2>{html.escape(title(group.name))} {_badge(group)}</h2>"
        f"{_bars(group)}{galleries}</section>"
    )


_STYLE = (
    ":root{color-scheme:light dark;--line:#8884;--soft:#8882;--good:#2a9d5c;--bad:#d1495b}"
    "body{font:15px/1.5 system-ui,sans-serif;margin:0}main{max-width:1180px;margin:auto;padding:1.5rem}"
    "nav{display:flex;flex-wrap:wrap;gap:.4rem 1rem;margin:1rem 0}table{border-collapse:collapse;width:100%}"
    "td,th{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums}"
    "td:first-child,th:first-child{text-align:left}section{margin-top:2.5rem}h3{margin:1rem 0 .4rem}"
    ".cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(16.5rem,1fr));gap:.8rem}"
    ".case{background:var(--soft);border-radius:.5rem;padding:.6rem;margin:0}"
    ".case div{display:flex;gap:.35rem;flex-wrap:wrap}"
    ".case span{display:flex;flex-direction:column;font-size:.72rem;opacity:.85}"
    ".case img{width:66px;height:66px;image-rendering:pixelated;border-radius:.2rem}figcaption{font-size:.85rem}"
    ".case small{opacity:.7}.grid{width:100%}"
    ".badge{font-size:.75rem;padding:.1rem .5rem;border-radius:1rem;color:#fff;white-space:nowrap}"
    ".good{background:var(--good)}.bad{background:var(--bad)}.bar{display:grid;grid-template-columns:6.5rem 1fr 12rem;"
    "gap:.6rem;align-items:center;font-size:.85rem}"
    ".bar b{display:block;height:.7rem;border-radius:.2rem;background:#8886}"
    ".bar b.model{background:#3a7bd5}"
)


def _badness(row: Row) -> float:
    """The error where it should change, as a share of what copying would leave; plain error where nothing should."""
    if row.model.l1_changed is None or not row.copy.l1_changed:
        return row.model.l1
    return row.model.l1_changed / row.copy.l1_changed


def _cases(rows: Sequence[Row], answer_of: AnswerOf, sample_of: SampleOf) -> str:
    return "".join(_case(row, sample_of(*row.key), answer_of(row)) for row in rows)


def _case(row: Row, sample: EditSample, answer: Image.Image) -> str:
    pictures = [(f"image {i}", frame.image) for i, frame in enumerate(sample.request.frames())][-3:]
    mask = edited_input(sample)[1]
    pictures += [("mask", mask)] if mask is not None else []
    pictures += [("answer", answer), ("target", sample.target)]
    spans = "".join(f"<span><img alt='{name}' src='{_data_url(_bytes(p))}'>{name}</span>" for name, p in pictures)
    scores = f"L1 {row.model.l1:.3f} (copy {row.copy.l1:.3f})"
    if row.model.l1_changed is not None and row.copy.l1_changed is not None:
        scores = f"changed {row.model.l1_changed:.3f} (copy {row.copy.l1_changed:.3f})"
    if row.model.lpips is not None:
        scores += f" · LPIPS {row.model.lpips:.3f}"
    notes = "".join(f" · unseen {kind}" for kind in row.held_out)
    return (
        f"<figure class='case'><div>{spans}</div><figcaption>{html.escape(row.instruction)}<br>"
        f"<small>{row.task} #{row.number} · {scores}{notes}</small></figcaption></figure>"
    )


def _bars(group: GroupScores) -> str:
    found = group.l1_changed
    if found is None:
        return ""
    named = (("model", found.model), ("copy", found.copy), ("mean colour", found.mean_colour))
    largest = max(interval.mean for _, interval in named) or 1.0
    return "".join(
        f"<div class='bar'>{name}<b class='{name.split()[0]}' style='width:{100 * value.mean / largest:.1f}%'></b>"
        f"{value}</div>"
        for name, value in named
    )


def _decoded_text(report: WorldReport) -> str:
    return "" if report.autoencoder_psnr is None else f"Autoencoder {report.autoencoder_psnr.mean:.1f} dB. "


def _badge(group: GroupScores) -> str:
    return f"<span class='badge {'good' if group.beats_copying else 'bad'}'>beats copying: {group.verdict}</span>"


def _html_table(report: WorldReport) -> str:
    head = (
        "<tr><th>family</th><th>samples</th><th>changed pixels</th><th>copy</th><th>mean colour</th><th>unchanged</th>"
    )
    head += "<th>LPIPS</th><th>copy</th><th></th></tr>"
    lines = []
    for group in (*report.families, report.overall):
        changed, still, lpips = group.l1_changed, group.l1_unchanged, group.lpips
        cells = [
            title(group.name),
            str(group.count),
            *(
                [str(changed.model), f"{changed.copy.mean:.3f}", f"{changed.mean_colour.mean:.3f}"]
                if changed
                else "–––"
            ),
            f"{still.model.mean:.3f}" if still else "–",
            *([f"{lpips.model.mean:.3f}", f"{lpips.copy.mean:.3f}"] if lpips else "––"),
            _badge(group),
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{head}{''.join(lines)}</table>"


def _html_list(text: str) -> str:
    return "".join(f"<li>{html.escape(line.removeprefix('- '))}</li>" for line in text.splitlines())


def _bytes(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
