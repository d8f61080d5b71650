"""`WorldReport` → one HTML page with everything inside: the table, worst and best cases of every family, the grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from ace.data.sample import EditSample
from ace.evaluation.report_text import counted, drift_text, method_text, title, wording
from ace.evaluation.scores import Row, edited_input
from ace.evaluation.summary import GroupScores, WorldReport
from ace.pages import file_url, image_url, render

CASES_PER_FAMILY = 4  # of the gallery, worst and best each

SampleOf = Callable[[str, int], EditSample]
AnswerOf = Callable[[Row], Image.Image]


def page(report: WorldReport, rows: Sequence[Row], answer_of: AnswerOf, sample_of: SampleOf, grid: bytes) -> str:
    """The HTML gallery, one file with all pictures inside it."""
    families = [
        _family(group, [row for row in rows if row.family == group.name], answer_of, sample_of)
        for group in report.families
    ]
    beating = sum(group.beats_copying for group in report.families)
    lead = (
        f"{counted(report)}, {beating} of {len(report.families)} families nearer to the target than the "
        f"input where it should change. {_decoded_text(report)}{drift_text(report.drift)}"
    ).replace("**", "")
    return render(
        "world",
        title=f"{wording(report).title}: {report.model_name or 'model'}",
        lead=lead,
        families=families,
        head=_HEAD,
        rows=[(group, _cells(group)) for group in (*report.families, report.overall)],
        grid=file_url(grid),
        method=[line.removeprefix("- ") for line in method_text(report).splitlines()],
    )


def _family(group: GroupScores, rows: Sequence[Row], answer_of: AnswerOf, sample_of: SampleOf) -> dict[str, Any]:
    """A family: its scores as bars, its worst and its best cases."""
    ranked = sorted(rows, key=_badness)
    worst = ranked[max(len(ranked) // 2, len(ranked) - CASES_PER_FAMILY) :][::-1]
    best = ranked[: min(len(ranked) // 2, CASES_PER_FAMILY)]
    galleries = [
        (heading, [_case(row, sample_of(*row.key), answer_of(row)) for row in cases])
        for heading, cases in (("Worst", worst), ("Best", best))
        if cases
    ]
    return {
        "id": group.name,
        "title": title(group.name),
        "group": group,
        "bars": _bars(group),
        "galleries": galleries,
    }


def _badness(row: Row) -> float:
    """The error where it should change, as a share of what copying would leave; plain error where nothing should."""
    if row.model.l1_changed is None or not row.copy.l1_changed:
        return row.model.l1
    return row.model.l1_changed / row.copy.l1_changed


def _case(row: Row, sample: EditSample, answer: Image.Image) -> dict[str, Any]:
    pictures = [(f"image {i}", frame.image) for i, frame in enumerate(sample.request.frames())][-3:]
    mask = edited_input(sample)[1]
    pictures += [("mask", mask)] if mask is not None else []
    pictures += [("answer", answer), ("target", sample.target)]
    scores = f"L1 {row.model.l1:.3f} (copy {row.copy.l1:.3f})"
    if row.model.l1_changed is not None and row.copy.l1_changed is not None:
        scores = f"changed {row.model.l1_changed:.3f} (copy {row.copy.l1_changed:.3f})"
    if row.model.lpips is not None:
        scores += f" · LPIPS {row.model.lpips:.3f}"
    notes = "".join(f" · unseen {kind}" for kind in row.held_out)
    return {
        "pictures": [(name, image_url(picture)) for name, picture in pictures],
        "words": row.instruction,
        "note": f"{row.task} #{row.number} · {scores}{notes}",
    }


def _bars(group: GroupScores) -> list[tuple[str, float, str]]:
    """(name, length in percent of the longest, figure) of what the model is compared with."""
    found = group.l1_changed
    if found is None:
        return []
    named = (("model", found.model), ("copy", found.copy), ("mean colour", found.mean_colour))
    largest = max(interval.mean for _, interval in named) or 1.0
    return [(name, 100 * value.mean / largest, str(value)) for name, value in named]


def _decoded_text(report: WorldReport) -> str:
    return "" if report.autoencoder_psnr is None else f"Autoencoder {report.autoencoder_psnr.mean:.1f} dB. "


_HEAD = ("family", "samples", "changed pixels", "copy", "mean colour", "unchanged", "LPIPS", "copy", "")


def _cells(group: GroupScores) -> list[str]:
    changed, still, lpips = group.l1_changed, group.l1_unchanged, group.lpips
    return [
        title(group.name),
        str(group.count),
        *([str(changed.model), f"{changed.copy.mean:.3f}", f"{changed.mean_colour.mean:.3f}"] if changed else "–––"),
        f"{still.model.mean:.3f}" if still else "–",
        *([f"{lpips.model.mean:.3f}", f"{lpips.copy.mean:.3f}"] if lpips else "––"),
    ]
