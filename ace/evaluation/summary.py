"""Rows → `WorldReport`: means by family, task and kind, each beside what two plain answers would score.

The plain answers: the input left as it is ("copy"; mid-grey where there is no input) and a constant picture of the
target's mean colour, which no real system could know. Intervals are 95 % bootstrap.

Not here: scores (`scores.py`), pages (`report.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from ace.data.sample import FAMILIES, TASKS
from ace.evaluation.metrics import Interval, bootstrap
from ace.evaluation.run import Entry
from ace.evaluation.scores import Row, Score
from ace.evaluation.turns import Identity, RepeatedEdit

SEEN = "nothing unseen but words and scene"
KindsOf = Callable[[Row], tuple[str, ...]]


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
class GroupScores:
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
    "thing_right": ("the thing asked for is there: nearest of all known things (template match)", True),
    "things_known": ("things known among sixteen (template match)", True),
    "all_known": ("each thing known among sixteen (template match)", True),
    "object_success": ("the right thing is there, or gone (template match)", True),
    "style_known": ("the style that was asked for (template match)", True),
    "style_right": ("the style that was asked for (classifier)", True),
    "text_read": ("the word can be read (OCR)", True),
    "text_similarity": ("the word, letter by letter (1 − edit distance)", True),
    "text_gone": ("no word can be read any more (OCR)", True),
}


@dataclass(frozen=True)
class FactSummary:
    """One score of a task's own over that task's samples. true: what the true answer scores, where that is not
    perfect by definition. seen, unseen: over the samples that ask for nothing, or for something, that training never
    drew."""

    name: str
    task: str
    model: Interval
    true: Interval | None
    seen: Interval | None = None
    unseen: Interval | None = None


@dataclass(frozen=True)
class SeenGroup:
    """A task's samples by whether something that training never drew has to be drawn from words. None: no such ones."""

    name: str
    seen: GroupScores | None
    unseen: GroupScores | None


@dataclass(frozen=True)
class WorldReport:
    """What was measured.

    list_sha256: of all samples, so that it shows whether two reports are of the same list. count: samples scored;
    num_resized: answers that were not of their target's size. kinds: samples by what a benchmark tells apart, such as
    material that training never saw; a sample may be of several. facts: scores of single tasks; ssim: family, model,
    copied input; repeated, identity: what many turns do; by_seen: tasks with unseen
    samples. num_unlisted: samples that are not those of the frozen list.
    missing: samples without an answer. absent_metrics, absent_tasks: what could not be measured, and why."""

    model_name: str
    settings: dict[str, object]
    list_sha256: str
    count: int
    num_resized: int
    overall: GroupScores
    families: tuple[GroupScores, ...]
    tasks: tuple[GroupScores, ...]
    kinds: tuple[GroupScores, ...]
    drift: DriftSummary
    facts: tuple[FactSummary, ...]
    ssim: tuple[tuple[str, Interval, Interval], ...]
    repeated: RepeatedEdit | None
    identity: Identity | None
    num_unlisted: int
    missing: tuple[str, ...]
    autoencoder_psnr: Interval | None
    absent_metrics: tuple[str, ...]
    absent_tasks: tuple[str, ...]
    by_seen: tuple[SeenGroup, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON, with the verdicts."""
        named = (("families", self.families), ("tasks", self.tasks), ("kinds", self.kinds))
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
    identity: Identity | None = None,
    num_unlisted: int = 0,
    missing: Sequence[Entry] = (),
    kinds_of: KindsOf = lambda row: tuple(f"unseen {kind}" for kind in row.held_out) or (SEEN,),
) -> WorldReport:
    """Summarise rows. They must be of at least one sample. kinds_of: the kinds of each."""
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
        kinds=_groups(sorted({kind for row in rows for kind in kinds_of(row)}), rows, kinds_of),
        drift=DriftSummary(
            count=len(masked),
            violations=sum(row.drift is not None and row.drift.max_levels > 0 for row in masked),
            unpreserved_levels=bootstrap([[drift.mean_levels for drift in free]]),
            unpreserved_share=bootstrap([[drift.changed_share for drift in free]]),
        ),
        facts=_facts(rows),
        ssim=_ssim(rows),
        repeated=repeated,
        identity=identity,
        num_unlisted=num_unlisted,
        missing=tuple(f"{task}/{number}" for task, number in missing),
        autoencoder_psnr=autoencoder_psnr,
        absent_metrics=absent_metrics,
        absent_tasks=absent_tasks,
        by_seen=_by_seen(rows),
    )


def _by_seen(rows: Sequence[Row]) -> tuple[SeenGroup, ...]:
    found = []
    for task in dict.fromkeys(row.task for row in rows if row.unseen):
        sides = [[row for row in rows if row.task == task and row.unseen is unseen] for unseen in (False, True)]
        found.append(SeenGroup(task, *(_group(task, own) if own else None for own in sides)))
    return tuple(found)


def _groups(names: Iterable[str], rows: Sequence[Row], names_of: KindsOf) -> tuple[GroupScores, ...]:
    members = {name: [row for row in rows if name in names_of(row)] for name in names}
    return tuple(_group(name, own) for name, own in members.items() if own)


def _facts(rows: Sequence[Row]) -> tuple[FactSummary, ...]:
    found = []
    for name in QUESTIONS:
        for task in dict.fromkeys(row.task for row in rows if name in row.facts):
            own = [row for row in rows if row.task == task and name in row.facts]
            model = bootstrap([[row.facts[name] for row in own]])
            true = bootstrap([[row.facts[f"{name}_true"] for row in own if f"{name}_true" in row.facts]])
            seen, unseen = (bootstrap([[r.facts[name] for r in own if r.unseen is side]]) for side in (False, True))
            if model is not None:
                found.append(FactSummary(name, task, model, true, seen, unseen))
    return tuple(found)


def _ssim(rows: Sequence[Row]) -> tuple[tuple[str, Interval, Interval], ...]:
    found = []
    for family in FAMILIES:
        own = [row.facts for row in rows if row.family == family and "ssim" in row.facts]
        model, copy = (bootstrap([[facts[name] for facts in own]]) for name in ("ssim", "ssim_copy"))
        if model is not None and copy is not None:
            found.append((family, model, copy))
    return tuple(found)


def _group(name: str, rows: Sequence[Row]) -> GroupScores:
    return GroupScores(
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
