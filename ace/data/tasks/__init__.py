"""Synthesis: edit pairs from any picture (appendix B of the paper), one file per kind of task.

`TASK_MAKERS[task](source, dice, tools)` gives an `EditSample` or `Rejected`; `dice` (a `random.Random`) decides
everything. `check_sample` says whether a sample keeps its promises.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ace.data.sample import EditSample
from ace.data.tasks import gray, inpainting
from ace.data.tasks.common import check_sample
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools

__all__ = ["CHECKS", "TASK_MAKERS", "Rejected", "Source", "Tools", "check"]

Maker = Callable[[Source, Random, Tools], EditSample | Rejected]
Check = Callable[[EditSample, Tools], str | None]

TASK_MAKERS: dict[str, Maker] = {
    "low_level_analysis/gray": gray.analyse,
    "controllable_generation/gray": gray.control,
    "repainting/inpainting": inpainting.make,
}

# what a task asks for beyond `check_sample`, which holds for all
CHECKS: dict[str, Check] = {}


def check(sample: EditSample, tools: Tools) -> str | None:
    """None if a sample passes its task's check, else the reason."""
    own = CHECKS.get(sample.task)
    return check_sample(sample) or (own(sample, tools) if own else None)
