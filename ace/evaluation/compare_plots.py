"""A `RunComparison` drawn: a radar by family, quality against time, one edit repeated, things over turns."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from ace.errors import MissingDependencyError
from ace.evaluation.compare import ComparedRun, RunComparison
from ace.evaluation.metrics import Interval
from ace.evaluation.turns import NUM_OTHERS
from ace.extras import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.projections.polar import PolarAxes

COLORS = ("#2b6cb0", "#c05621")
CHANCE = 1 / (NUM_OTHERS + 1)  # that a thing is taken for itself


def draw_plots(comparison: RunComparison) -> bytes:
    """All four as one PNG. Raises MissingDependencyError."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(f"plots need matplotlib: {install_command('eval')}") from error
    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.projections.polar import PolarAxes

    figure = Figure(figsize=(13, 11), layout="constrained")
    radar = figure.add_subplot(2, 2, 1, projection="polar")
    assert isinstance(radar, PolarAxes)
    _draw_radar(radar, comparison)
    _draw_scatter(figure.add_subplot(2, 2, 2), comparison)
    _draw_repeated(figure.add_subplot(2, 2, 3), comparison)
    _draw_known(figure.add_subplot(2, 2, 4), comparison)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _runs(comparison: RunComparison) -> tuple[tuple[ComparedRun, str, dict[str, Interval]], ...]:
    """Each run with its colour and its errors by family."""
    found = comparison.families
    return (
        (comparison.first, COLORS[0], {name: difference.first for name, difference in found.items()}),
        (comparison.second, COLORS[1], {name: difference.second for name, difference in found.items()}),
    )


def _draw_radar(axes: PolarAxes, comparison: RunComparison) -> None:
    names = [name for name in comparison.families if name != "all"]
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for run, color, errors in _runs(comparison):
        values = [1 - errors[name].mean for name in names]
        axes.plot([*angles, angles[0]], [*values, values[0]], color=color, label=run.name)
        axes.fill([*angles, angles[0]], [*values, values[0]], color=color, alpha=0.12)
    axes.set_xticks(angles, [name.replace("_", "\n") for name in names], fontsize=9)
    axes.tick_params(axis="x", pad=16)
    axes.set_rlabel_position(180 / max(1, len(names)))  # between two families, where no label of theirs is
    axes.set_title("1 − error where it should change (further out is better)", pad=24)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.3, -0.12), frameon=False)


def _draw_scatter(axes: Axes, comparison: RunComparison) -> None:
    untimed = []
    for run, color, errors in _runs(comparison):
        whole = errors["all"]
        if run.seconds is None:
            axes.axhline(whole.mean, color=color, linestyle=":", label=f"{run.name} (no time known)")
            untimed.append(run)
            continue
        bar = [[whole.mean - whole.low], [whole.high - whole.mean]]
        axes.errorbar([run.seconds], [whole.mean], yerr=bar, fmt="o", color=color, label=run.name, capsize=4)
    axes.set(xlabel="seconds per picture", ylabel="error where it should change", title="quality against time")
    if len(untimed) < 2:
        axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _finish(axes)


def _draw_repeated(axes: Axes, comparison: RunComparison) -> None:
    for run, color, _ in _runs(comparison):
        for values, style, what in ((run.repeated, "o-", "the true answer"), (run.kept, "o--", "what should stay")):
            if values:
                axes.plot(range(1, len(values) + 1), values, style, color=color, label=f"{run.name}, to {what}")
    axes.set(xlabel="turn", ylabel="L1", title="the same edit again and again")
    axes.set_ylim(bottom=0)
    _finish(axes)


def _draw_known(axes: Axes, comparison: RunComparison) -> None:
    for run, color, _ in _runs(comparison):
        if run.known:
            axes.plot(range(1, len(run.known) + 1), run.known, "o-", color=color, label=run.name)
    if axes.get_legend_handles_labels()[0]:
        axes.axhline(CHANCE, color="#747882", linestyle=":", label="by chance")
    axes.set(xlabel="turn", ylabel="share", title="a thing is still taken for itself, among sixteen", ylim=(0, 1.03))
    _finish(axes)


def _finish(axes: Axes) -> None:
    """What all but the radar share; without anything drawn, a plot says so."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
        if axes.get_xlabel() == "turn":
            axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        axes.text(0.5, 0.5, "not measured in these runs", ha="center", transform=axes.transAxes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
