"""Two runs of `ace eval ace-world` side by side: tested family by family, and drawn.

Both must have answered the same samples of the frozen list; what only one of them has is left out and counted. Plots:
a radar by family, quality against time, and drift over turns. A difference that chance explains is not called one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace.data.sample import FAMILIES, family_of
from ace.errors import DataError, MissingDependencyError
from ace.evaluation.cases import run_name
from ace.evaluation.lines import read_lines
from ace.evaluation.statistics import Difference, paired_difference
from ace.inference.recipe import write_atomically

_COLORS = ("#2b6cb0", "#c05621")


@dataclass(frozen=True)
class Finished:
    """A run that was read back. errors: (task, number) → L1 where it should change; samples: the hash of each.

    repeated: L1 to the true answer, turn by turn; seconds: per picture, None = not known."""

    name: str
    errors: dict[tuple[str, int], float]
    samples: dict[tuple[str, int], str]
    repeated: tuple[float, ...]
    seconds: float | None


@dataclass(frozen=True)
class Comparison:
    """families: name → difference of the first and the second run; all samples under "all". num_left_out: samples that
    only one run has, or that are not the same picture in both."""

    first: Finished
    second: Finished
    families: dict[str, Difference]
    num_left_out: int


def read_run(folder: Path) -> Finished:
    """Read what `ace eval ace-world` wrote. Raises DataError."""
    try:
        rows = read_lines(folder / "rows.jsonl")
        report = json.loads((folder / "report.json").read_bytes())
        timings = json.loads((folder / "timings.json").read_bytes()) if (folder / "timings.json").is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder.name} is no finished run of `ace eval ace-world`: name its --output") from error
    keyed = {(row["task"], row["number"]): row for row in rows}
    return Finished(
        run_name(folder),
        {key: row["model"]["l1_changed"] for key, row in keyed.items() if row["model"]["l1_changed"] is not None},
        {key: row["sample_sha256"] for key, row in keyed.items()},
        tuple((report.get("repeated") or {}).get("target", ())),
        1 / timings["pictures_per_second"] if timings.get("pictures_per_second") else None,
    )


def compare_runs(first: Finished, second: Finished) -> Comparison:
    """Test the two on their common samples, every family and all together. Raises DataError if there are too few."""
    everything = first.errors.keys() | second.errors.keys()
    common = [
        key for key in sorted(first.errors.keys() & second.errors.keys()) if first.samples[key] == second.samples[key]
    ]
    if len(common) < 2:
        raise DataError(f"{first.name} and {second.name} have {len(common)} samples in common: compare the same list")
    groups = {"all": common, **{f: [key for key in common if family_of(key[0]) == f] for f in FAMILIES}}
    groups = {name: keys for name, keys in groups.items() if len(keys) >= 2}
    families = {
        name: paired_difference([first.errors[k] for k in keys], [second.errors[k] for k in keys], len(groups))
        for name, keys in groups.items()
    }
    return Comparison(first, second, families, len(everything) - len(common))


def as_markdown(comparison: Comparison) -> str:
    """The comparison as a page."""
    a, b = comparison.first.name, comparison.second.name
    lines = [
        f"# {a} against {b}",
        "",
        "Mean absolute error on the pixels that should change, sample by sample; smaller is better. Intervals: 95 % "
        "bootstrap; p: paired permutation test, two-sided, read against 0.05 divided by the number of lines.",
        "",
        f"| | samples | {a} | {b} | difference | p | |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for name, found in comparison.families.items():
        lines.append(
            f"| {name.replace('_', ' ')} | {found.gap.count} | {found.first} | {found.second} "
            f"| {found.gap} | {found.p:.4f} | {found.verdict(a, b, smaller_is_better=True)} |"
        )
    if comparison.num_left_out:
        lines += ["", f"PARTIAL: {comparison.num_left_out} samples are not in both runs, or not the same picture."]
    return "\n".join([*lines, "", "![plots](compare.png)", ""])


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write compare.md and compare.png."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "compare.png", draw_plots(comparison))
    write_atomically(folder / "compare.md", as_markdown(comparison).encode())


def draw_plots(comparison: Comparison) -> bytes:
    """Radar by family, quality against time, drift over turns, as PNG. Raises MissingDependencyError."""
    try:
        import matplotlib
        import numpy as np
    except ImportError as error:
        raise MissingDependencyError("plots need matplotlib: pip install 'ace-allround[eval]'") from error
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    runs = (comparison.first, comparison.second)
    names = [name for name in comparison.families if name != "all"]
    figure = Figure(figsize=(15, 5), layout="constrained")
    radar = figure.add_subplot(1, 3, 1, projection="polar")
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for run, color, pick in zip(runs, _COLORS, ("first", "second"), strict=True):
        values = [1 - getattr(comparison.families[name], pick).mean for name in names]
        radar.plot([*angles, angles[0]], [*values, values[0]], color=color, label=run.name)
        radar.fill([*angles, angles[0]], [*values, values[0]], color=color, alpha=0.12)
    radar.set_xticks(angles, [name.replace("_", "\n") for name in names], fontsize=8)
    radar.tick_params(axis="x", pad=14)
    radar.set_title("1 − error where it should change", pad=18)
    radar.legend(loc="upper left", bbox_to_anchor=(-0.25, 1.15), frameon=False)
    scatter = figure.add_subplot(1, 3, 2)
    for run, color, pick in zip(runs, _COLORS, ("first", "second"), strict=True):
        interval = getattr(comparison.families["all"], pick)
        if run.seconds is not None:
            bar = [[interval.mean - interval.low], [interval.high - interval.mean]]
            scatter.errorbar([run.seconds], [interval.mean], yerr=bar, fmt="o", color=color, label=run.name, capsize=4)
    scatter.set(xlabel="seconds per picture", ylabel="error where it should change", title="quality against time")
    scatter.set_xlim(left=0)
    if scatter.get_legend_handles_labels()[0]:
        scatter.legend(frameon=False)
    drift = figure.add_subplot(1, 3, 3)
    for run, color in zip(runs, _COLORS, strict=True):
        if run.repeated:
            drift.plot(range(1, len(run.repeated) + 1), run.repeated, "o-", color=color, label=run.name)
    drift.set(xlabel="turn", ylabel="L1 to the true answer", title="the same edit again and again")
    if drift.get_legend_handles_labels()[0]:
        drift.set_ylim(bottom=0)
        drift.legend(frameon=False)
    else:
        drift.text(0.5, 0.5, "not measured in these runs", ha="center", transform=drift.transAxes)
    for axes in (scatter, drift):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def verdicts(comparison: Comparison) -> Sequence[str]:
    """One line per family, for the terminal."""
    a, b = comparison.first.name, comparison.second.name
    return [
        f"{name.replace('_', ' ')}: {found.verdict(a, b, smaller_is_better=True)}"
        for name, found in comparison.families.items()
    ]
