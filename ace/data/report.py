"""What a build says of itself: the funnel, survival by task, and contact sheets to look through.

HTML files stand alone: pictures are inside, nothing is loaded from anywhere. The funnel is drawn as SVG and written as
PNG too.
"""

from __future__ import annotations

import base64
import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ace.data.engine import StageReport
from ace.data.shards import MANIFEST, Manifest, Shards, read_manifest, read_shards, write_atomically
from ace.errors import DataError

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1c1c1e;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}
td,th{padding:.25rem .7rem;text-align:left;border-bottom:1px solid #e5e5ea;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
figure{display:inline-block;vertical-align:top;max-width:100%;box-sizing:border-box;margin:0 .6rem .8rem 0;
padding:.6rem;border:1px solid #e5e5ea;border-radius:8px}
figure div{display:flex;gap:.5rem;flex-wrap:wrap;align-items:center}
figcaption{margin-bottom:.4rem;max-width:36rem}small{color:#6e6e73}
img{max-width:180px;max-height:180px;border:1px solid #e5e5ea;border-radius:4px;display:block}
nav a{margin-right:.8rem}.why{color:#b3261e}
"""
_THUMBNAIL_PX = 180


def write_report(folder: Path, stages: Sequence[StageReport], manifest: Manifest, seconds: float) -> None:
    """`report.json`, `report.html`, `funnel.png` and `browse.html` of a finished build."""
    write_funnel(folder, stages, manifest.tasks, seconds)
    write_atomically(folder / "browse.html", contact_sheet(read_shards(folder), folder.name, per_task=12).encode())


def write_funnel(folder: Path, stages: Sequence[StageReport], tasks: Mapping[str, int], seconds: float) -> None:
    """`report.json`, `report.html` and `funnel.png`."""
    told = {
        "seconds": seconds,
        "stages": [{**asdict(stage), "per_second": stage.per_second} for stage in stages],
        "tasks": tasks,
    }
    write_atomically(folder / "report.json", (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    draw_report(folder)


def draw_report(folder: Path) -> Path:
    """Draw `report.html` and `funnel.png` from `report.json`. Raises DataError if the build is not finished."""
    file = folder / "report.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        stages = [StageReport(s["stage"], s["entered"], s["kept"], s["rejected"], s["seconds"]) for s in told["stages"]]
    except FileNotFoundError:
        raise DataError(f"{folder} has no report: finish the build first, `ace data build`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({error}): build again") from None
    picture = funnel_svg(stages)
    png = _as_png(picture)
    if png is not None:
        write_atomically(folder / "funnel.png", png)
    survival = _survival(folder)
    page = [
        f"<h1>{html.escape(folder.name)}: {sum(told['tasks'].values())} samples, {len(told['tasks'])} tasks</h1>",
        "<nav><a href='browse.html'>look through the samples</a></nav>",
        picture,
        "<h2>Stages</h2><table><tr><th>stage<th class=n>in<th class=n>kept<th class=n>rejected<th class=n>working s"
        "<th class=n>per s<th>rejected because</tr>",
        *(
            f"<tr><td>{s.stage}<td class=n>{s.entered}<td class=n>{s.kept}<td class=n>{s.entered - s.kept}"
            f"<td class=n>{s.seconds:.1f}<td class=n>{f'{s.per_second:.1f}' if s.seconds else '–'}"
            f"<td>{'<br>'.join(f'{html.escape(reason)}: {n}' for reason, n in _largest_first(s.rejected))}</tr>"
            for s in stages
        ),
        "</table><h2>Tasks</h2><table><tr><th>task<th class=n>tried<th class=n>kept<th class=n>survived"
        "<th>rejected because</tr>",
        *(
            f"<tr><td>{task}<td class=n>{kept + sum(why.values())}<td class=n>{kept}"
            f"<td class=n>{100 * kept / max(kept + sum(why.values()), 1):.0f} %"
            f"<td>{', '.join(f'{html.escape(reason)}: {n}' for reason, n in _largest_first(why))}</tr>"
            for task, (kept, why) in survival.items()
        ),
        f"</table><p><small>{told['seconds']:.1f} s for the last call.</small></p>",
    ]
    write_atomically(folder / "report.html", _page(folder.name, page).encode())
    return folder / "report.html"


def funnel_svg(stages: Sequence[StageReport]) -> str:
    """The funnel: for every stage how much went in and how much was kept, as bars."""
    widest = max([stage.entered for stage in stages] or [1]) or 1
    rows = []
    for number, stage in enumerate(stages):
        y = 14 + number * 34
        whole, kept = (520 * n / widest for n in (stage.entered, stage.kept))
        share = 100 * stage.kept / stage.entered if stage.entered else 0
        rows.append(
            f"<text x='112' y='{y + 16}' text-anchor='end'>{stage.stage}</text>"
            f"<rect x='120' y='{y}' width='{whole:.1f}' height='24' rx='3' fill='#f0d5d2'/>"
            f"<rect x='120' y='{y}' width='{kept:.1f}' height='24' rx='3' fill='#3f7d58'/>"
            f"<text x='{128 + whole:.1f}' y='{y + 16}'>{stage.kept} of {stage.entered} ({share:.0f} %)</text>"
        )
    height = 22 + 34 * len(stages)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 820 {height}' width='820' height='{height}' "
        "font-family='DejaVu Sans, Liberation Sans, Arial, sans-serif' font-size='13' fill='#1c1c1e'>"
        f"<rect width='820' height='{height}' fill='#fff'/>{''.join(rows)}</svg>"
    )


def contact_sheet(samples: Shards, title: str, per_task: int = 0, limit: int = 600) -> str:
    """A page with the samples of a data set, by task: pictures (masks beside them), words and answer.

    per_task: at most so many of each task, 0 = all; limit: of all."""
    tasks = samples.column("task")
    by_task: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        chosen = by_task.setdefault(task or "–", [])
        if not per_task or len(chosen) < per_task:
            chosen.append(index)
    counts = Counter(task or "–" for task in tasks)
    body = [f"<h1>{html.escape(title)}: {len(samples)} samples, {len(by_task)} tasks</h1><nav>"]
    body += [f"<a href='#{t}'>{t} {counts[t]}</a>" for t in sorted(by_task)]
    body.append("</nav>")
    shown = 0
    for task in sorted(by_task):
        body.append(f"<h2 id='{task}'>{task} <small>{counts[task]} samples</small></h2>")
        for index in by_task[task]:
            if shown == limit:
                break
            shown += 1
            body.append(figure(samples.row(index), index))
    if shown < len(samples):
        body.append(f"<p><small>{shown} of {len(samples)} shown.</small></p>")
    return _page(title, body)


def figure(row: Mapping[str, Any], index: int) -> str:
    """One sample as HTML: every round's words, pictures and answer, in order."""
    steps = []
    for unit in row["units"] or ():
        pictures = [_img(row["images"][n]["bytes"], "input") for n in unit["images"]]
        pictures += [_img(row["masks"][n]["bytes"], "mask") for n in unit["masks"] if n >= 0]
        answer = row["target"] if unit["answer"] < 0 else row["images"][unit["answer"]]
        steps.append(
            f"<figcaption>{html.escape(unit['instruction'])}</figcaption>"
            f"<div>{''.join(pictures)}<span>→</span>{_img(answer['bytes'], 'answer')}</div>"
        )
    why = f" <span class=why>{html.escape(str(row['reason']))}</span>" if row.get("reason") else ""
    return f"<figure>{''.join(steps)}<small>{index} · {row['task']} · {row['id']}</small>{why}</figure>"


def write_contact_sheet(source: Path, out: Path, limit: int = 600) -> int:
    """Write the contact sheet of a data set or shard; returns how many samples it has."""
    samples = read_shards(source)
    write_atomically(out, contact_sheet(samples, source.name, limit=limit).encode())
    return len(samples)


def _img(data: bytes, what: str) -> str:
    with Image.open(BytesIO(data)) as image:
        small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return (
        f"<img alt='{what}' title='{what}' src='data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
    )


def _survival(folder: Path) -> dict[str, tuple[int, dict[str, int]]]:
    """By task: how many were kept, for training or held out, and how many rejected for which reason, at any stage."""
    kept: Counter[str] = Counter()
    for place in (folder, folder / "held_out"):
        if (place / MANIFEST).is_file():
            kept.update(read_manifest(place).tasks)
    why: dict[str, Counter[str]] = {}
    if (folder / "rejected" / MANIFEST).is_file():
        dropped = read_shards(folder / "rejected")
        for task, reason in zip(dropped.column("task"), dropped.column("reason"), strict=True):
            if task:
                why.setdefault(task, Counter())[reason] += 1
    return {task: (kept[task], dict(why.get(task, {}))) for task in sorted({*kept, *why})}


def _largest_first(counts: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _as_png(svg: str) -> bytes | None:
    """The drawing as PNG, None without the renderer."""
    try:
        import resvg_py
    except ModuleNotFoundError:
        return None
    return bytes(resvg_py.svg_to_bytes(svg_string=svg))


def _page(title: str, body: Iterable[str]) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>\n" + "\n".join(body) + "\n</html>\n"
    )
