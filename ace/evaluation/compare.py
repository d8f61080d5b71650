"""Two runs of `ace eval ace-world` side by side: tested family by family, and drawn.

Both must have answered the same samples of the frozen list; what only one of them has is left out and counted. A
difference that chance explains is not called one.

Not here: the plots (`compare_plots.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace.data.sample import FAMILIES, family_of
from ace.errors import DataError
from ace.evaluation.cases import run_name
from ace.evaluation.folder import read_timings
from ace.evaluation.lines import read_lines
from ace.evaluation.statistics import Difference, paired_difference
from ace.files import write_atomically


@dataclass(frozen=True)
class ComparedRun:
    """A run that was read back. errors: (task, number) → L1 where it should change; samples: the hash of each.

    repeated: L1 to the true answer, and kept: L1 to the input where nothing should change, both turn by turn while one
    edit is given again; known: share of things taken for themselves, turn by turn of a conversation; () = not measured.
    seconds: per picture, None = not known."""

    name: str
    errors: dict[tuple[str, int], float]
    samples: dict[tuple[str, int], str]
    repeated: tuple[float, ...] = ()
    kept: tuple[float, ...] = ()
    known: tuple[float, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class RunComparison:
    """families: name → difference of the first and the second run; all samples under "all". num_left_out: samples that
    only one run has, or that are not the same picture in both."""

    first: ComparedRun
    second: ComparedRun
    families: dict[str, Difference]
    num_left_out: int


def read_run(folder: Path) -> ComparedRun:
    """Read what `ace eval ace-world` wrote. Raises DataError."""
    try:
        rows = read_lines(folder / "rows.jsonl")
        report = json.loads((folder / "report.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder.name} is no finished run of `ace eval ace-world`: name its --output") from error
    speed = read_timings(folder).speed
    keyed = {(row["task"], row["number"]): row for row in rows}
    repeated, identity = report.get("repeated") or {}, report.get("identity") or {}
    return ComparedRun(
        run_name(folder),
        {key: row["model"]["l1_changed"] for key, row in keyed.items() if row["model"]["l1_changed"] is not None},
        {key: row["sample_sha256"] for key, row in keyed.items()},
        tuple(repeated.get("target", ())),
        tuple(repeated.get("unchanged", ())),
        tuple(identity.get("known", ())),
        1 / speed if speed else None,
    )


def compare_runs(first: ComparedRun, second: ComparedRun) -> RunComparison:
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
    return RunComparison(first, second, families, len(everything) - len(common))


def as_markdown(comparison: RunComparison) -> str:
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


def write_comparison(comparison: RunComparison, folder: Path) -> None:
    """Write compare.md and compare.png. Raises MissingDependencyError without matplotlib."""
    from ace.evaluation.compare_plots import draw_plots

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "compare.png", draw_plots(comparison))
    write_atomically(folder / "compare.md", as_markdown(comparison).encode())


def verdicts(comparison: RunComparison) -> Sequence[str]:
    """One line per family, for the terminal."""
    a, b = comparison.first.name, comparison.second.name
    return [
        f"{name.replace('_', ' ')}: {found.verdict(a, b, smaller_is_better=True)}"
        for name, found in comparison.families.items()
    ]
