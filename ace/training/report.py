"""What a run did, on one page: loss curves per task family, speed, what was left out, previews. `report.html` stands on
its own; `report.png` is its curves."""

from __future__ import annotations

import base64
import html
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ace.lists import lines_of
from ace.training.config import Run
from ace.training.log import LOG, SKIPPED, SPEED

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
body { background: #fff } img { max-width: 100% } table { border-collapse: collapse }
td, th { padding: .2rem .8rem; text-align: left; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }
"""


def write_report(folder: Path, recipe: Run) -> Path:
    """Write `report.html` and `report.png` of a run's folder; returns the page."""
    log, speed, skipped = (_read(folder / name) for name in (LOG, SPEED, SKIPPED))
    draw_curves(log, folder / "report.png")
    parts = [f"<h1>Training of {html.escape(folder.name)}</h1>"]
    rows = [
        (stage.name, f"{stage.steps:,}", _stage_batch(stage), f"{stage.lr:g}", _loss_at_end(log, stage.name))
        for stage in recipe.stages
    ]
    parts.append(_table(("stage", "steps", "batch", "learning rate", "loss at its end"), rows))
    if speed:
        mean = {key: sum(line[key] for line in speed) / len(speed) for key in ("tokens_per_s", "mfu", "waiting")}
        parts.append(
            f"<p>{mean['tokens_per_s']:,.0f} tokens/s, {100 * mean['mfu']:.1f} % of the machine's peak (MFU), "
            f"{100 * mean['waiting']:.1f} % of the time spent waiting for data.</p>"
        )
    parts.append(f"<h2>Loss</h2>{_image(folder / 'report.png', 'loss over the steps, of every family')}")
    families = sorted({key for line in log for key in line if key.startswith("loss/")})
    ends = [(_words(family), *_ends(log, family)) for family in families]
    parts.append(_table(("family", "loss of its first samples", "of its last"), ends))
    if skipped:
        reasons = Counter(line["reason"] for line in skipped).most_common(10)
        parts.append(f"<h2>Left out: {len(skipped)}</h2>")
        parts.append(_table(("reason", "how often"), [(html.escape(r), str(n)) for r, n in reasons]))
    previews = sorted((folder / "previews").glob("*.png"))
    if previews:
        parts.append("<h2>Previews</h2><p>Rows: the image edited, the answer, the truth.</p>")
        for path in dict.fromkeys((previews[0], previews[len(previews) // 2], previews[-1])):
            parts.append(f"<h3>Step {int(path.stem):,}</h3>{_image(path, 'pictures drawn after this step')}")
    page = folder / "report.html"
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
    head += f"<title>Training of {html.escape(folder.name)}</title>"
    page.write_text(f"<!doctype html><html lang=en>{head}<body>{''.join(parts)}</body></html>", encoding="utf-8")
    return page


def draw_curves(log: list[dict[str, Any]], path: Path) -> None:
    """The loss over the steps, all samples in black and every family in its colour, smoothed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(10, 5.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    families = sorted({key for line in log for key in line if key.startswith("loss/")})
    for number, key in enumerate((*families, "loss")):
        points = [(line["step"], line[key]) for line in log if line.get(key) is not None]
        if not points:
            continue
        steps, values = np.array(points).T
        width = min(max(1, len(values) // 8), max(5, len(values) // 60))  # of the moving mean
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        whole = key == "loss"
        label = "all samples" if whole else _words(key)
        colour = "black" if whole else f"C{number % 10}"
        marker = "o" if len(smooth) < 5 else None  # a line of one point cannot be seen
        style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 2.2 if whole else 1.1}
        axes.plot(steps[width - 1 :], smooth, label=label, **style)
        if whole:
            axes.plot(steps, values, color="0.7", linewidth=0.5, zorder=0)
    seen = ""
    for line in log:
        if line["stage"] != seen:
            seen = line["stage"]
            axes.axvline(line["step"], color="0.85", zorder=0)
            axes.annotate(seen, (line["step"], 1), xycoords=("data", "axes fraction"), va="bottom", color="0.4")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    figure.savefig(path)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(path.read_text(encoding="utf-8"))] if path.exists() else []


def _loss_at_end(log: list[dict[str, Any]], stage: str) -> str:
    values = [line["loss"] for line in log if line["stage"] == stage and line["loss"] is not None]
    last = values[-max(1, len(values) // 20) :]
    return f"{sum(last) / len(last):.4f}" if last else "–"


def _ends(log: list[dict[str, Any]], key: str) -> tuple[str, str]:
    values = [line[key] for line in log if line.get(key) is not None]
    some = max(1, len(values) // 20)
    return tuple(f"{sum(part) / len(part):.4f}" for part in (values[:some], values[-some:]))  # type: ignore[return-value]


def _words(key: str) -> str:
    """A family's name out of its key in the log."""
    return key.removeprefix("loss/").replace("_", " ")


def _stage_batch(stage: Any) -> str:
    return f"{stage.batch_tokens:,} tokens" if stage.batch_tokens else f"{stage.batch_size} samples"


def _image(path: Path, words: str) -> str:
    return f"<img alt='{words}' src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'>"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"
