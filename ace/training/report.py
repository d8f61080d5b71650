"""What a run did, on one page: loss curves per task family, speed, what was left out, previews. `report.html` stands on
its own; `report.png` is its curves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ace.lists import lines_of
from ace.pages import file_url, render
from ace.training.config import TrainingRecipe
from ace.training.log import LOG, SKIPPED, SPEED


def write_report(folder: Path, recipe: TrainingRecipe) -> Path:
    """Write `report.html` and `report.png` of a run's folder; returns the page."""
    log, speed, skipped = (_read(folder / name) for name in (LOG, SPEED, SKIPPED))
    draw_curves(log, folder / "report.png")
    families = sorted({key for line in log for key in line if key.startswith("loss/")})
    reasons = Counter(line["reason"] for line in skipped).most_common(10)
    title = f"Training of {folder.name}"
    page = folder / "report.html"
    text = render(
        "training",
        title=title,
        stages=[
            (stage.name, f"{stage.steps:,}", _stage_batch(stage), f"{stage.lr:g}", _loss_at_end(log, stage.name))
            for stage in recipe.stages
        ],
        speed=_speed_text(speed),
        curves=_url(folder / "report.png"),
        families=[(_words(family), *_ends(log, family)) for family in families],
        num_skipped=len(skipped),
        reasons=reasons,
        previews=[(f"{int(path.stem):,}", _url(path)) for path in _some(sorted((folder / "previews").glob("*.png")))],
    )
    page.write_text(text, encoding="utf-8")
    return page


def _speed_text(speed: list[dict[str, Any]]) -> str:
    if not speed:
        return ""
    mean = {key: sum(line[key] for line in speed) / len(speed) for key in ("tokens_per_s", "mfu", "waiting")}
    return (
        f"{mean['tokens_per_s']:,.0f} tokens/s, {100 * mean['mfu']:.1f} % of the machine's peak (MFU), "
        f"{100 * mean['waiting']:.1f} % of the time spent waiting for data."
    )


def _some(paths: list[Path]) -> list[Path]:
    """The first, the middle and the last."""
    return list(dict.fromkeys((paths[0], paths[len(paths) // 2], paths[-1]))) if paths else []


def _url(path: Path) -> str:
    return file_url(path.read_bytes())


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
