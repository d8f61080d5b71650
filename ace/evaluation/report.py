"""Rows → report: one JSON file, one Markdown page for a model card, one HTML gallery, one grid of unselected samples.

Every mean stands beside what two plain answers would score on the same samples: the input left as it is ("copy";
mid-grey where there is no input) and a constant picture of the target's mean colour, which no real system could know.
Intervals are 95 % bootstrap.

Not here: scores (`run.py`), drawing the grid (`pictures.py`).
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from PIL import Image

from ace.data.sample import FAMILIES, TASKS, EditSample
from ace.evaluation.metrics import Interval, bootstrap
from ace.evaluation.pictures import draw_grid
from ace.evaluation.run import Row, RunFolder, Score, edited_input
from ace.evaluation.tables import write_parquet

ROWS_PER_FAMILY = 4  # of the grid
CASES_PER_FAMILY = 4  # of the gallery, worst and best each
SEEN = "nothing unseen but words and scene"
BACKGROUND_WORDS = "another background"

SampleOf = Callable[[str, int], EditSample]


@dataclass(frozen=True)
class Comparison:
    """One metric over a group of samples: the model's answers, the copied input, the mean colour; smaller is better.

    gain: copy minus model, sample by sample. better_share: share of samples where the model is better than copying."""

    model: Interval
    copy: Interval
    mean_colour: Interval
    gain: Interval
    better_share: float


@dataclass(frozen=True)
class Group:
    """Samples of one family, task or kind. A metric without any value is None."""

    name: str
    count: int
    l1: Comparison | None
    l1_changed: Comparison | None
    l1_unchanged: Comparison | None
    lpips: Comparison | None

    @property
    def beats_copying(self) -> bool:
        """True if the model is nearer to the target than the input is, on the pixels that should change."""
        return self.l1_changed is not None and self.l1_changed.gain.mean > 0

    @property
    def verdict(self) -> str:
        """yes, no, or either with the warning that the interval includes zero."""
        if self.l1_changed is None:
            return "nothing should change"
        gain = self.l1_changed.gain
        word = "yes" if gain.mean > 0 else "no"
        return word if gain.low > 0 or gain.high < 0 else f"{word}, within chance"


@dataclass(frozen=True)
class DriftSummary:
    """Masked edits, outside the mask. violations: answers with any pixel changed there, which must be 0.

    unpreserved_levels, unpreserved_share: of the model's own pictures, mean difference in levels of 255 and share of
    pixels with any difference."""

    count: int
    violations: int
    unpreserved_levels: Interval | None
    unpreserved_share: Interval | None


# What a task asks, as its score reads in a table, and which way is better.
QUESTIONS: dict[str, tuple[str, bool]] = {
    "iou": ("segmentation: mean IoU of the classes", True),
    "depth_error": ("depth: mean error, 0 to 1", False),
    "limb_distance": ("pose: distance of limbs, in sides of the picture (missing = 1)", False),
    "object_success": ("the right thing is there, or gone (template match)", True),
    "text_read": ("the word can be read (OCR)", True),
    "text_similarity": ("the word, letter by letter (1 − edit distance)", True),
    "text_gone": ("no word can be read any more (OCR)", True),
}


@dataclass(frozen=True)
class FactSummary:
    """One score of a task's own over that task's samples. true: what the true answer scores, where that is not
    perfect by definition."""

    name: str
    task: str
    model: Interval
    true: Interval | None


@dataclass(frozen=True)
class RepeatedEdit:
    """The same instruction again and again, each turn on the answer before it: an ideal editor stops changing.

    unchanged: per turn, mean L1 to the first input where nothing should change; target: to the true answer, all pixels;
    copy: of the input left alone to the true answer. count: chains."""

    unchanged: tuple[float, ...]
    target: tuple[float, ...]
    copy: float
    count: int


@dataclass(frozen=True)
class WorldReport:
    """What was measured.

    list_sha256: of all samples, so that it shows whether two reports are of the same list. count: samples scored;
    num_resized: answers that were not of their target's size. held_out: samples with and without material that training
    never saw, by kind. facts: scores of single tasks; ssim: family, model, copied input; repeated: drift over turns.
    num_unlisted: samples that are not those of the frozen list. absent_metrics, absent_tasks: what could not be
    measured, and why."""

    model_name: str
    settings: dict[str, object]
    list_sha256: str
    count: int
    num_resized: int
    overall: Group
    families: tuple[Group, ...]
    tasks: tuple[Group, ...]
    held_out: tuple[Group, ...]
    drift: DriftSummary
    facts: tuple[FactSummary, ...]
    ssim: tuple[tuple[str, Interval, Interval], ...]
    repeated: RepeatedEdit | None
    num_unlisted: int
    autoencoder_psnr: Interval | None
    absent_metrics: tuple[str, ...]
    absent_tasks: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON, with the verdicts."""
        named = (("families", self.families), ("tasks", self.tasks), ("held_out", self.held_out))
        judged = {
            key: [{**asdict(g), "beats_copying": g.beats_copying, "verdict": g.verdict} for g in groups]
            for key, groups in named
        }
        return {**asdict(self), **judged}


def make_report(
    rows: Sequence[Row],
    *,
    model_name: str,
    settings: dict[str, object],
    absent_tasks: tuple[str, ...],
    absent_metrics: tuple[str, ...],
    autoencoder_psnr: Interval | None,
    repeated: RepeatedEdit | None = None,
    num_unlisted: int = 0,
) -> WorldReport:
    """Summarise rows. They must be of at least one sample."""
    rows = sorted(rows, key=lambda row: (TASKS.index(row.task), row.number))
    digest = hashlib.sha256("".join(row.sample_sha256 for row in rows).encode()).hexdigest()
    masked = [row for row in rows if row.drift is not None]
    free = [row.unpreserved_drift for row in masked if row.unpreserved_drift is not None]
    return WorldReport(
        model_name=model_name,
        settings=dict(settings),
        list_sha256=digest,
        count=len(rows),
        num_resized=sum(row.resized for row in rows),
        overall=_group("all", rows),
        families=_groups(FAMILIES, rows, lambda row: (row.family,)),
        tasks=_groups(TASKS, rows, lambda row: (row.task,)),
        held_out=_groups(
            (SEEN, *(f"unseen {kind}" for kind in sorted({kind for row in rows for kind in row.held_out}))),
            rows,
            lambda row: tuple(f"unseen {kind}" for kind in row.held_out) or (SEEN,),
        ),
        drift=DriftSummary(
            count=len(masked),
            violations=sum(row.drift is not None and row.drift.max_levels > 0 for row in masked),
            unpreserved_levels=bootstrap([[drift.mean_levels for drift in free]]),
            unpreserved_share=bootstrap([[drift.changed_share for drift in free]]),
        ),
        facts=_facts(rows),
        ssim=_ssim(rows),
        repeated=repeated,
        num_unlisted=num_unlisted,
        autoencoder_psnr=autoencoder_psnr,
        absent_metrics=absent_metrics,
        absent_tasks=absent_tasks,
    )


def _groups(names: Iterable[str], rows: Sequence[Row], names_of: Callable[[Row], tuple[str, ...]]) -> tuple[Group, ...]:
    members = {name: [row for row in rows if name in names_of(row)] for name in names}
    return tuple(_group(name, own) for name, own in members.items() if own)


def _facts(rows: Sequence[Row]) -> tuple[FactSummary, ...]:
    found = []
    for name in QUESTIONS:
        for task in dict.fromkeys(row.task for row in rows if name in row.facts):
            own = [row.facts for row in rows if row.task == task and name in row.facts]
            model = bootstrap([[facts[name] for facts in own]])
            true = bootstrap([[facts[f"{name}_true"] for facts in own if f"{name}_true" in facts]])
            if model is not None:
                found.append(FactSummary(name, task, model, true))
    return tuple(found)


def _ssim(rows: Sequence[Row]) -> tuple[tuple[str, Interval, Interval], ...]:
    found = []
    for family in FAMILIES:
        own = [row.facts for row in rows if row.family == family and "ssim" in row.facts]
        model, copy = (bootstrap([[facts[name] for facts in own]]) for name in ("ssim", "ssim_copy"))
        if model is not None and copy is not None:
            found.append((family, model, copy))
    return tuple(found)


def _group(name: str, rows: Sequence[Row]) -> Group:
    return Group(
        name=name,
        count=len(rows),
        l1=_compare(rows, lambda score: score.l1),
        l1_changed=_compare(rows, lambda score: score.l1_changed),
        l1_unchanged=_compare(rows, lambda score: score.l1_unchanged),
        lpips=_compare(rows, lambda score: score.lpips),
    )


def _compare(rows: Sequence[Row], metric: Callable[[Score], float | None]) -> Comparison | None:
    """One metric over the rows that have it; None if no row does."""
    by_task: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        model, copy, mean = metric(row.model), metric(row.copy), metric(row.mean_colour)
        if model is not None and copy is not None and mean is not None:
            by_task.setdefault(row.task, []).append((model, copy, mean))
    groups = list(by_task.values())
    model = bootstrap([[own for own, _, _ in group] for group in groups])
    copy = bootstrap([[own for _, own, _ in group] for group in groups])
    mean = bootstrap([[own for _, _, own in group] for group in groups])
    gain = bootstrap([[copied - made for made, copied, _ in group] for group in groups])
    if model is None or copy is None or mean is None or gain is None:
        return None
    better = sum(copied > made for group in groups for made, copied, _ in group) / gain.count
    return Comparison(model, copy, mean, gain, better)


# Files


def write_report(report: WorldReport, rows: Sequence[Row], folder: RunFolder, sample_of: SampleOf) -> None:
    """Write report.json, report.md, report.html and grid.png into the folder."""
    folder.write("report.json", (json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n").encode())
    folder.write("report.md", markdown(report).encode())
    write_parquet(folder.path / "rows.parquet", [flat_row(row) for row in rows])
    shown = [row for family in FAMILIES for row in first_of_family(rows, family)]
    grid = draw_grid([(row, sample_of(*row.key), _picture(folder, row)) for row in shown])
    stream = io.BytesIO()
    grid.save(stream, "PNG", optimize=True)
    folder.write("grid.png", stream.getvalue())
    folder.write("report.html", page(report, rows, folder, sample_of, stream.getvalue()).encode())


def flat_row(row: Row) -> dict[str, object]:
    """A row of scores as one flat table row, the same columns for every task; absent scores are None."""
    flat: dict[str, object] = {
        "task": row.task,
        "number": row.number,
        "instruction": row.instruction,
        "held_out": ",".join(row.held_out),
        "sample_sha256": row.sample_sha256,
        "answer_sha256": row.answer_sha256,
        "changed_share": row.changed_share,
    }
    for name, score in (("model", row.model), ("copy", row.copy), ("mean_colour", row.mean_colour)):
        flat |= {f"{name}_{key}": value for key, value in asdict(score).items()}
    flat |= {f"drift_{key}": value for key, value in _drift_values(row).items()}
    return flat | {name: row.facts.get(name) for name in ("ssim", "ssim_copy", *QUESTIONS)}


def _drift_values(row: Row) -> dict[str, float | None]:
    names = ("mean_levels", "max_levels", "changed_share")
    return {name: None if row.drift is None else float(getattr(row.drift, name)) for name in names}


def first_of_family(rows: Sequence[Row], family: str, count: int = ROWS_PER_FAMILY) -> list[Row]:
    """The first samples of a family in the order of the held-out list: number 0 of each task, then number 1."""
    own = [row for row in rows if row.family == family]
    return sorted(own, key=lambda row: (row.number, TASKS.index(row.task)))[:count]


def markdown(report: WorldReport) -> str:
    """The report as a page: tables per family and task, breakdown, drift, autoencoder, how it was measured."""
    yes = [group.name for group in report.families if group.beats_copying]
    no = [group.name for group in report.families if not group.beats_copying]
    decoded = report.autoencoder_psnr
    parts = [
        f"# Held-out report{f': {report.model_name}' if report.model_name else ''}",
        f"{report.count} samples that training never saw, the first of every task in a list fixed by hash, unselected. "
        "Errors are mean absolute differences to the true target (0 equal, 1 black against white), "
        "with 95 % bootstrap intervals; smaller is better everywhere.",
        f"**Beats copying the input where it should change: {len(yes)} of {len(report.families)} families**"
        + (f"; not: {', '.join(no)}." if no else "."),
        "## By family",
        family_table(report.families),
        "## Whole pictures",
        whole_table(report.families),
        "## By task",
        family_table(report.tasks),
        "## What the task asks",
        fact_table(report.facts),
        *(["## The same edit ten times", repeated_text(report.repeated)] if report.repeated else []),
        "## Structural similarity (SSIM, 1 = equal)",
        ssim_table(report.ssim),
        "## What training never saw",
        "All instructions here are held-out paraphrases and all scenes are new. Some samples also show unseen "
        "concepts, an unseen style or unseen faces:",
        family_table(report.held_out),
        "## Outside the mask",
        _drift_text(report.drift),
        *(
            []
            if decoded is None
            else [
                "## Autoencoder",
                f"PSNR of encoding and decoding {decoded.count} held-out pictures: {decoded.mean:.2f} dB "
                f"[{decoded.low:.2f}, {decoded.high:.2f}].",
            ]
        ),
        "## How it was measured",
        _method_text(report),
    ]
    return "\n\n".join(parts) + "\n"


def family_table(groups: Sequence[Group]) -> str:
    """Markdown: the pixels that should change, the model beside copying and the mean colour, and the verdict."""
    lines = [
        "| | samples | model | copy the input | mean colour | better than copying | beats copying |",
        "|---|--:|--:|--:|--:|--:|:--|",
    ]
    for group in groups:
        found = group.l1_changed
        if found is None:
            lines.append(f"| {_title(group.name)} | {group.count} | – | – | – | – | {group.verdict} |")
            continue
        lines.append(
            f"| {_title(group.name)} | {group.count} | {found.model} | {found.copy.mean:.3f} "
            f"| {found.mean_colour.mean:.3f} | {found.better_share:.0%} of samples | {group.verdict} |"
        )
    return "\n".join(lines)


def whole_table(groups: Sequence[Group]) -> str:
    """Markdown: L1 over the whole picture and where nothing should change, and LPIPS."""
    lines = [
        "| | L1 model | copy | mean colour | L1 where it should not change | LPIPS model | copy | mean colour |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for group in groups:
        still = "–" if group.l1_unchanged is None else f"{group.l1_unchanged.model.mean:.3f}"
        lines.append(f"| {_title(group.name)} | {_three(group.l1)} | {still} | {_three(group.lpips)} |")
    return "\n".join(lines)


def fact_table(facts: Sequence[FactSummary]) -> str:
    """Markdown: the scores of single tasks."""
    lines = ["| | task | samples | model | true answer |", "|---|---|--:|--:|--:|"]
    for fact in facts:
        words, larger = QUESTIONS[fact.name]
        true = "" if fact.true is None else f"{fact.true.mean:.3f}"
        arrow = "↑" if larger else "↓"
        lines.append(f"| {words} {arrow} | {_title(fact.task)} | {fact.model.count} | {fact.model} | {true} |")
    return "\n".join(lines)


def ssim_table(rows: Sequence[tuple[str, Interval, Interval]]) -> str:
    """Markdown: SSIM to the true answer by family."""
    lines = ["| | model | copy the input |", "|---|--:|--:|"]
    return "\n".join([*lines, *(f"| {_title(name)} | {model} | {copy.mean:.3f} |" for name, model, copy in rows)])


def repeated_text(repeated: RepeatedEdit) -> str:
    """Markdown: drift over turns."""
    turns = range(1, len(repeated.target) + 1)
    lines = [
        f"{repeated.count} pictures; one instruction ({BACKGROUND_WORDS}), given again on every answer, without masks "
        "or history. An ideal editor changes nothing after the first turn. The input left alone is "
        f"{repeated.copy:.3f} from the true answer.",
        "",
        "| turn | " + " | ".join(str(turn) for turn in turns) + " |",
        "|---|" + "--:|" * len(repeated.target),
        "| L1 to the true answer | " + " | ".join(f"{value:.3f}" for value in repeated.target) + " |",
        "| L1 to the input where nothing should change | "
        + " | ".join(f"{value:.3f}" for value in repeated.unchanged)
        + " |",
    ]
    return "\n".join(lines)


def _three(found: Comparison | None) -> str:
    if found is None:
        return "– | – | –"
    return f"{found.model.mean:.3f} | {found.copy.mean:.3f} | {found.mean_colour.mean:.3f}"


def _title(name: str) -> str:
    return name.replace("_", " ")


def _drift_text(drift: DriftSummary) -> str:
    if drift.count == 0:
        return "No masked edits among these samples."
    text = f"{drift.count} masked edits. Answers with any pixel changed outside the mask: **{drift.violations}**" + (
        " (preservation is exact)." if drift.violations == 0 else ", which must not happen."
    )
    if drift.unpreserved_levels is not None and drift.unpreserved_share is not None:
        levels, share = drift.unpreserved_levels, drift.unpreserved_share
        text += (
            " Before the input's pixels are put back, the model's own pictures differ there by "
            f"{levels.mean:.2f} of 255 levels [{levels.low:.2f}, {levels.high:.2f}] on average, "
            f"in {share.mean:.0%} of the pixels."
        )
    return text


def _method_text(report: WorldReport) -> str:
    shown = {key: value for key, value in report.settings.items() if key != "model_sha256"}
    lines = [
        "- Pixels that should change: the true target differs from the edited input by more than 8 of 255 levels in "
        "some channel (and, with a mask, they lie inside it).",
        "- Copy the input: the picture that is edited, as it was; mid-grey where a request has no picture. "
        "Mean colour: a constant picture of the target's own mean colour.",
        "- The model's answers are those a user gets: with a mask, the pixels outside it are the input's. "
        "Earlier rounds of conversations are the true ones.",
        "- LPIPS: AlexNet, version 0.1, at the pictures' own size (smaller than 64 px: enlarged to 64 px).",
        "- “Within chance”: the interval of the difference includes zero.",
        f"- Settings: {', '.join(f'{key} {value}' for key, value in shown.items())}.",
        f"- Model `{str(report.settings.get('model_sha256', ''))[:16]}`, list of samples `{report.list_sha256[:16]}`.",
    ]
    if report.num_unlisted:
        lines.append(
            f"- PARTIAL: {report.num_unlisted} samples are not drawn here as in the frozen list (another Pillow "
            "or FreeType?): compare their scores with others' only in that knowledge."
        )
    if report.num_resized:
        lines.append(f"- {report.num_resized} answers had another size than the target and were resized.")
    lines += [f"- Absent metric: {text}" for text in report.absent_metrics]
    lines += [f"- Absent task (nothing for it in the sprite pack): {task}" for task in report.absent_tasks]
    return "\n".join(lines)


# Gallery


def page(report: WorldReport, rows: Sequence[Row], folder: RunFolder, sample_of: SampleOf, grid: bytes) -> str:
    """The HTML gallery, one file with all pictures inside it."""
    sections = []
    for group in report.families:
        own = [row for row in rows if row.family == group.name]
        ranked = sorted(own, key=_badness)
        worst = ranked[max(len(ranked) // 2, len(ranked) - CASES_PER_FAMILY) :][::-1]
        best = ranked[: min(len(ranked) // 2, CASES_PER_FAMILY)]
        galleries = "".join(
            f"<h3>{title}</h3><div class='cases'>{_cases(cases, folder, sample_of)}</div>"
            for title, cases in (("Worst", worst), ("Best", best))
            if cases
        )
        sections.append(
            f"<section id='{group.name}'><h2>{html.escape(_title(group.name))} {_badge(group)}</h2>"
            f"{_bars(group)}{galleries}</section>"
        )
    name = html.escape(report.model_name or "model")
    links = " ".join(f"<a href='#{g.name}'>{html.escape(_title(g.name))}</a>" for g in report.families)
    beating = sum(group.beats_copying for group in report.families)
    lead = (
        f"{report.count} held-out samples, {beating} of {len(report.families)} families nearer to the target than the "
        f"input where it should change. {_decoded_text(report)}"
        f"{html.escape(_drift_text(report.drift), quote=False)}"
    ).replace("**", "")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>Held-out report: {name}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>Held-out report: {name}</h1>"
        f"<p>{lead}</p><nav>{links} <a href='#grid'>unselected grid</a></nav>{_html_table(report)}{''.join(sections)}"
        "<section id='grid'><h2>The first samples of every family, unselected</h2>"
        f"<img class='grid' alt='inputs, instruction, output and target of unselected samples' src='{_data_url(grid)}'>"
        f"</section><section><h2>How it was measured</h2><ul>{_html_list(_method_text(report))}</ul></section>"
        "</main></body></html>\n"
    )


_STYLE = (
    ":root{color-scheme:light dark;--line:#8884;--soft:#8882;--good:#2a9d5c;--bad:#d1495b}"
    "body{font:15px/1.5 system-ui,sans-serif;margin:0}main{max-width:1180px;margin:auto;padding:1.5rem}"
    "nav{display:flex;flex-wrap:wrap;gap:.4rem 1rem;margin:1rem 0}table{border-collapse:collapse;width:100%}"
    "td,th{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums}"
    "td:first-child,th:first-child{text-align:left}section{margin-top:2.5rem}h3{margin:1rem 0 .4rem}"
    ".cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(19.5rem,1fr));gap:.8rem}"
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


def _cases(rows: Sequence[Row], folder: RunFolder, sample_of: SampleOf) -> str:
    return "".join(_case(row, sample_of(*row.key), _picture(folder, row)) for row in rows)


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


def _bars(group: Group) -> str:
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


def _badge(group: Group) -> str:
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
            _title(group.name),
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


def _picture(folder: RunFolder, row: Row) -> Image.Image:
    answer = folder.answer(row.task, row.number)
    assert answer is not None, f"{row.key} was scored a moment ago"
    return answer.picture


def _bytes(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
