"""`WorldReport` → Markdown: the page for a model card, and its tables.

Not here: the HTML page (`report_page.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ace.evaluation.metrics import Interval
from ace.evaluation.summary import (
    QUESTIONS,
    Comparison,
    DriftSummary,
    FactSummary,
    GroupScores,
    SeenGroup,
    WorldReport,
)
from ace.evaluation.turns import BACKGROUND_WORDS, NUM_OTHERS, Identity, RepeatedEdit


@dataclass(frozen=True)
class Wording:
    """What a page says of its benchmark. listed: of the samples, after their number; kinds, kinds_text: heading and
    lead of the table by kind; method: what else to know of the samples."""

    title: str
    name: str
    listed: str
    kinds: str
    kinds_text: str
    method: str


FEW = 5  # samples of a task, below which an interval says little

WORDINGS = {
    "world": Wording(
        "Held-out report",
        "ace-world",
        "that training never saw, the first of every task in a list fixed by hash, unselected",
        "What training never saw",
        "All instructions here are held-out paraphrases and all scenes are new. Some samples also show unseen "
        "concepts, an unseen style or unseen faces:",
        "Earlier rounds of conversations are the true ones, except over the turns of the two sections on turns.",
    ),
    "ace-bench": Wording(
        "Report",
        "ace-bench",
        "of a benchmark made from pictures, the first of every task in it, unselected",
        "By kind",
        "Local edits have a mask, global ones have none; multi-turn ones have a history. Then by set:",
        "Earlier rounds of conversations are those of the set. Targets are as good as the tools that made them.",
    ),
}


def wording(report: WorldReport) -> Wording:
    """How to speak of a report's benchmark."""
    return WORDINGS[str(report.settings["benchmark"])]


def markdown(report: WorldReport) -> str:
    """The report as a page: tables per family and task, breakdown, drift, autoencoder, how it was measured."""
    yes = [group.name for group in report.families if group.beats_copying]
    no = [group.name for group in report.families if not group.beats_copying]
    decoded, words = report.autoencoder_psnr, wording(report)
    parts = [
        f"# {words.title}{f': {report.model_name}' if report.model_name else ''}",
        f"{counted(report)} {words.listed}. "
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
        *(["## Seen and unseen", SEEN_TEXT, seen_table(report.by_seen)] if report.by_seen else []),
        "## What the task asks",
        fact_table(report.facts),
        *(["## The same edit ten times", repeated_text(report.repeated)] if report.repeated else []),
        *(["## The same thing over five turns", identity_text(report.identity)] if report.identity else []),
        "## Structural similarity (SSIM, 1 = equal)",
        ssim_table(report.ssim),
        f"## {words.kinds}",
        words.kinds_text,
        family_table(report.kinds),
        "## Outside the mask",
        drift_text(report.drift),
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
        method_text(report),
    ]
    return "\n\n".join(parts) + "\n"


def counted(report: WorldReport) -> str:
    """How many samples there are, and if some have no answer, of how many."""
    if not report.missing:
        return f"{report.count} samples"
    return f"PARTIAL: {report.count} of {report.count + len(report.missing)} samples"


def family_table(groups: Sequence[GroupScores]) -> str:
    """Markdown: the pixels that should change, the model beside copying and the mean colour, and the verdict."""
    lines = [
        "| | samples | model | copy the input | mean colour | better than copying | beats copying |",
        "|---|--:|--:|--:|--:|--:|:--|",
    ]
    for group in groups:
        found = group.l1_changed
        if found is None:
            lines.append(f"| {title(group.name)} | {group.count} | – | – | – | – | {group.verdict} |")
            continue
        lines.append(
            f"| {title(group.name)} | {group.count} | {found.model} | {found.copy.mean:.3f} "
            f"| {found.mean_colour.mean:.3f} | {found.better_share:.0%} of samples | {group.verdict} |"
        )
    return "\n".join(lines)


def whole_table(groups: Sequence[GroupScores]) -> str:
    """Markdown: L1 over the whole picture and where nothing should change, and LPIPS."""
    lines = [
        "| | L1 model | copy | mean colour | L1 where it should not change | LPIPS model | copy | mean colour |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for group in groups:
        still = "–" if group.l1_unchanged is None else f"{group.l1_unchanged.model.mean:.3f}"
        lines.append(f"| {title(group.name)} | {_three(group.l1)} | {still} | {_three(group.lpips)} |")
    return "\n".join(lines)


def fact_table(facts: Sequence[FactSummary]) -> str:
    """Markdown: the scores of single tasks."""
    lines = [
        "| | task | samples | model | of which seen | seen | unseen | true answer |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for fact in facts:
        words, larger = QUESTIONS[fact.name]
        true = "" if fact.true is None else f"{fact.true.mean:.3f}"
        arrow = "↑" if larger else "↓"
        seen, unseen = ("–" if part is None else str(part) for part in (fact.seen, fact.unseen))
        lines.append(
            f"| {words} {arrow} | {title(fact.task)} | {fact.model.count} | {fact.model} "
            f"| {0 if fact.seen is None else fact.seen.count} | {seen} | {unseen} | {true} |"
        )
    return "\n".join(lines)


SEEN_TEXT = (
    "Seen: all that has to be drawn from words is vocabulary that training drew, here in new scenes and new wordings. "
    "Unseen: some thing or style has to be drawn that training never drew. Error where it should change:"
)


def seen_table(groups: Sequence[SeenGroup]) -> str:
    """Markdown: the pixels that should change, seen beside unseen."""
    lines = ["| | seen | model | copy | unseen | model | copy |", "|---|--:|--:|--:|--:|--:|--:|"]
    for group in groups:
        cells = []
        for side in (group.seen, group.unseen):
            changed = None if side is None else side.l1_changed
            figures = ["–", "–"] if changed is None else [str(changed.model), f"{changed.copy.mean:.3f}"]
            cells += [str(0 if side is None else side.count), *figures]
        lines.append(f"| {title(group.name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ssim_table(rows: Sequence[tuple[str, Interval, Interval]]) -> str:
    """Markdown: SSIM to the true answer by family."""
    lines = ["| | model | copy the input |", "|---|--:|--:|"]
    return "\n".join([*lines, *(f"| {title(name)} | {model} | {copy.mean:.3f} |" for name, model, copy in rows)])


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


def identity_text(identity: Identity) -> str:
    """Markdown: how a thing keeps over turns that are not about it."""
    rows = (
        ("known again", [f"{value:.0%}" for value in identity.known]),
        ("L1 on the thing, to the true picture", [f"{value:.3f}" for value in identity.error]),
        ("L1 on the thing, to the first answer", [f"{value:.3f}" for value in identity.from_first]),
    )
    given = "the whole conversation" if identity.with_history else "its last answer only"
    lines = [
        f"{identity.count} conversations about everything but one thing, each turn on the system's own answers; it is "
        f"given {given}. Known again: in its place, the answer is nearer to the thing than to any of {NUM_OTHERS} "
        f"others drawn there (by chance {1 / (NUM_OTHERS + 1):.0%}).",
        "",
        "| turn | " + " | ".join(str(turn) for turn in range(1, len(identity.known) + 1)) + " |",
        "|---|" + "--:|" * len(identity.known),
        *(f"| {name} | {' | '.join(values)} |" for name, values in rows),
    ]
    return "\n".join(lines)


def _three(found: Comparison | None) -> str:
    if found is None:
        return "– | – | –"
    return f"{found.model.mean:.3f} | {found.copy.mean:.3f} | {found.mean_colour.mean:.3f}"


def title(name: str) -> str:
    """A family, task or kind in words."""
    return name.replace("_", " ")


def drift_text(drift: DriftSummary) -> str:
    """Markdown: what masked edits changed outside the mask."""
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


def method_text(report: WorldReport) -> str:
    """Markdown: definitions, settings, and everything that is absent or partial."""
    shown = {key: value for key, value in report.settings.items() if key != "weights_sha256"}
    lines = [
        "- Pixels that should change: the true target differs from the edited input by more than 8 of 255 levels in "
        "some channel (and, with a mask, they lie inside it).",
        "- Copy the input: the picture that is edited, as it was; mid-grey where a request has no picture. "
        "Mean colour: a constant picture of the target's own mean colour.",
        "- The model's answers are those a user gets: with a mask, the pixels outside it are the input's. "
        f"{wording(report).method}",
        "- Things: template match at their place, against every known thing in the same style (`things.py`).",
        "- Words: OCR; only letters and digits count, O as 0 and I as 1.",
        "- Style: a small classifier that ships with the package; its own reading of the true answers stands beside.",
        "- LPIPS: AlexNet, version 0.1, at the pictures' own size (smaller than 64 px: enlarged to 64 px).",
        "- “Within chance”: the interval of the difference includes zero.",
        f"- Settings: {', '.join(f'{key} {value}' for key, value in shown.items())}.",
        f"- Weights as loaded `{str(report.settings.get('weights_sha256', ''))[:16]}`, "
        f"list of samples `{report.list_sha256[:16]}`.",
    ]
    fewest = min((group.count for group in report.tasks), default=0)
    if 0 < fewest < FEW:
        lines.append(
            f"- FEW SAMPLES: {fewest} of a task. An interval of so few is too narrow, that of one has no width: take "
            "more (`--limit`) before you conclude anything."
        )
    if report.missing:
        listed = report.count + len(report.missing)
        lines.append(
            f"- PARTIAL: {len(report.missing)} of {listed} samples have no answer (the picture is missing or "
            f"damaged, or the system has no form for the request), such as {', '.join(report.missing[:5])}."
        )
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
