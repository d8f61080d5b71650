"""What a build says of itself: the funnel, survival by task, and contact sheets to look through.

HTML files stand alone: pictures are inside, nothing is loaded from anywhere. The funnel is drawn as SVG and written as
PNG too.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ace.data.engine import StageReport
from ace.data.shards import MANIFEST, Manifest, Shards, read_manifest, read_shards
from ace.errors import DataError
from ace.files import write_atomically
from ace.pages import image_url, render

_THUMBNAIL_PX = 180


def write_report(folder: Path, stages: Sequence[StageReport], manifest: Manifest, seconds: float) -> None:
    """`report.json`, `report.html`, `funnel.png` and `browse.html` of a finished build."""
    write_funnel(folder, stages, manifest.tasks, seconds)
    rejects = read_shards(folder / "rejected") if (folder / "rejected" / MANIFEST).is_file() else None
    page = contact_sheet(read_shards(folder), folder.name, per_task=12, rejects=rejects)
    write_atomically(folder / "browse.html", page.encode())


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
    stage_rows = [
        (
            *(s.stage, s.entered, s.kept, s.entered - s.kept, f"{s.seconds:.1f}"),
            f"{s.per_second:.1f}" if s.seconds else "–",
            [f"{reason}: {n}" for reason, n in _largest_first(s.rejected)],
        )
        for s in stages
    ]
    task_rows = []
    pictures = _pictures_behind(folder)
    for task, (kept, why) in _survival(folder).items():
        tried = kept + sum(why.values())
        because = ", ".join(f"{reason}: {n}" for reason, n in _largest_first(why))
        survived = f"{100 * kept / max(tried, 1):.0f} %"
        task_rows.append((task, tried, kept, survived, len(pictures.get(task, ())), because))
    page = render(
        "funnel",
        title=folder.name,
        num_samples=sum(told["tasks"].values()),
        num_tasks=len(told["tasks"]),
        funnel=picture,
        stages=stage_rows,
        tasks=task_rows,
        seconds=told["seconds"],
    )
    write_atomically(folder / "report.html", page.encode())
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
            f"<text x='112' y='{y + 16}' text-anchor='end'>{html.escape(stage.stage)}</text>"
            f"<rect x='120' y='{y}' width='{whole:.1f}' height='24' rx='3' fill='#f0d5d2' class='whole'/>"
            f"<rect x='120' y='{y}' width='{kept:.1f}' height='24' rx='3' fill='#3f7d58' class='kept'/>"
            f"<text x='{128 + whole:.1f}' y='{y + 16}'>{stage.kept} of {stage.entered} ({share:.0f} %)</text>"
        )
    height = 22 + 34 * len(stages)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 820 {height}' width='820' height='{height}' "
        "font-family='DejaVu Sans, Liberation Sans, Arial, sans-serif' font-size='13' fill='#1c1c1e'>"
        f"<rect width='820' height='{height}' fill='#fff' class='paper'/>{''.join(rows)}</svg>"
    )


def contact_sheet(
    samples: Shards, title: str, per_task: int = 0, limit: int = 600, rejects: Shards | None = None
) -> str:
    """A page with the samples of a data set, by task: pictures (masks beside them), words and answer.

    per_task: at most so many of each task, 0 = all; limit: of all. rejects: what was left out, shown below by reason,
    four of each."""
    sections, shown = _sections(samples, samples.column("task"), per_task, limit)
    left_out = _sections(rejects, rejects.column("reason"), 4, limit)[0] if rejects else []
    return render("samples", title=title, num_samples=len(samples), tasks=sections, num_shown=shown, rejects=left_out)


def _sections(samples: Shards, names: Sequence[str], each: int, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Samples under a name each, at most `each` of a name (0 = all) and `limit` of all; and how many those are."""
    by_task: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        chosen = by_task.setdefault(name or "–", [])
        if not each or len(chosen) < each:
            chosen.append(index)
    counts = Counter(name or "–" for name in names)
    shown, sections = 0, []
    for task in sorted(by_task):
        some = by_task[task][: limit - shown]
        shown += len(some)
        views = [sample_view(samples.row(index), index) for index in some]
        sections.append({"name": task, "count": counts[task], "samples": views})
    return sections, shown


def sample_view(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """One sample as templates show it: every round's words, pictures and answer, in order."""
    rounds = []
    for unit in row["units"] or ():
        pictures = [("input", _thumbnail(row["images"][n]["bytes"])) for n in unit["images"]]
        pictures += [("mask", _thumbnail(row["masks"][n]["bytes"])) for n in unit["masks"] if n >= 0]
        answer = row["target"] if unit["answer"] < 0 else row["images"][unit["answer"]]
        rounds.append({"instruction": unit["instruction"], "pictures": pictures, "answer": _thumbnail(answer["bytes"])})
    reason = ": ".join(filter(None, (row.get("reason"), row.get("detail"))))
    name = row["id"] or row.get("what") or ""  # a picture that made no sample has a name only
    return {"rounds": rounds, "index": index, "task": row["task"], "id": name, "reason": reason}


def write_contact_sheet(source: Path, out: Path, limit: int = 600) -> int:
    """Write the contact sheet of a data set or shard; returns how many samples it has."""
    samples = read_shards(source)
    write_atomically(out, contact_sheet(samples, source.name, limit=limit).encode())
    return len(samples)


def _thumbnail(data: bytes) -> str:
    return image_url(data, _THUMBNAIL_PX, "WEBP")


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


def _pictures_behind(folder: Path) -> dict[str, set[str]]:
    """By task: the pictures that its kept samples were made of."""
    behind: dict[str, set[str]] = {}
    for place in (folder, folder / "held_out"):
        if (place / MANIFEST).is_file():
            samples = read_shards(place)
            for task, provenance in zip(samples.column("task"), samples.column("provenance"), strict=True):
                behind.setdefault(task, set()).add(str(json.loads(provenance).get("source", "")))
    return behind


def _largest_first(counts: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _as_png(svg: str) -> bytes | None:
    """The drawing as PNG, None without the renderer."""
    try:
        import resvg_py
    except ModuleNotFoundError:
        return None
    return bytes(resvg_py.svg_to_bytes(svg_string=svg))
