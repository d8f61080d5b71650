"""Synthesis: edit pairs from any picture (appendix B of the paper), one file per kind of task.

`TASK_MAKERS[task](source, dice, tools)` gives an `EditSample` or `Rejected`; `dice` (a `random.Random`) decides
everything. `check(sample, tools)` says whether a sample keeps its promises.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ace.data.sample import EditSample
from ace.data.tasks import (
    contour,
    degradation,
    depth,
    doodle,
    edge,
    gray,
    inpainting,
    mosaic,
    pose,
    scribble,
    segmentation,
)
from ace.data.tasks.common import check_sample
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools

__all__ = ["CHECKS", "TASK_MAKERS", "Rejected", "Source", "Tools", "check"]

Maker = Callable[[Source, Random, Tools], EditSample | Rejected]
Check = Callable[[EditSample, Tools], str | None]

TASK_MAKERS: dict[str, Maker] = {
    "low_level_analysis/segmentation": segmentation.analyse,
    "low_level_analysis/depth": depth.analyse,
    "low_level_analysis/pose": pose.analyse,
    "low_level_analysis/mosaic": mosaic.analyse,
    "low_level_analysis/degradation": degradation.analyse,
    "low_level_analysis/gray": gray.analyse,
    "low_level_analysis/edge": edge.analyse,
    "low_level_analysis/doodle": doodle.analyse,
    "low_level_analysis/contour": contour.analyse,
    "low_level_analysis/scribble": scribble.analyse,
    "controllable_generation/segmentation": segmentation.control,
    "controllable_generation/depth": depth.control,
    "controllable_generation/pose": pose.control,
    "controllable_generation/mosaic": mosaic.control,
    "controllable_generation/degradation": degradation.control,
    "controllable_generation/gray": gray.control,
    "controllable_generation/edge": edge.control,
    "controllable_generation/doodle": doodle.control,
    "controllable_generation/contour": contour.control,
    "controllable_generation/scribble": scribble.control,
    "repainting/inpainting": inpainting.make,
}

# what a task asks for beyond `check_sample`, which holds for all
CHECKS: dict[str, Check] = {}


def check(sample: EditSample, tools: Tools) -> str | None:
    """None if a sample passes its task's check, else the reason."""
    own = CHECKS.get(sample.task)
    return check_sample(sample) or (own(sample, tools) if own else None)
