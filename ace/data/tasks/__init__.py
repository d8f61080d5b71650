"""Synthesis: edit pairs from any picture (appendix B of the paper), one file per kind of task.

`TASK_MAKERS[task](source, rng, tools)` gives an `EditSample` or `Rejected`; `rng` (a `random.Random`) decides
everything. `check(sample, tools)` says whether a sample keeps its promises.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from ace.data.sample import EditSample
from ace.data.tasks import (
    background,
    camera,
    chain,
    contour,
    decouple,
    degradation,
    depth,
    doodle,
    edge,
    face,
    face_reference,
    fusion,
    gray,
    inpainting,
    mosaic,
    multi_condition,
    object_add,
    object_remove,
    object_replace,
    outpainting,
    pose,
    posture,
    scribble,
    segmentation,
    series,
    style,
    style_reference,
    text_add,
    text_guided_inpainting,
    text_remove,
    text_to_image,
    things,
    time_of_day,
)
from ace.data.tasks.common import check_sample
from ace.data.tasks.source import SMALLEST_SIDE_PX, Rejected, Source
from ace.data.tasks.tools import Tools

__all__ = ["CHECKS", "TASK_MAKERS", "Rejected", "Source", "Tools", "check"]

Maker = Callable[[Source, Random, Tools], EditSample | Rejected]
Check = Callable[[EditSample, Tools], str | None]

# in the order of the paper (B.2)
SIGNALS = tuple(
    part.SIGNAL for part in (segmentation, depth, pose, mosaic, degradation, gray, edge, doodle, contour, scribble)
)

_MAKERS: dict[str, Maker] = {
    "text_guided_generation/text_to_image": text_to_image.make,
    **{f"low_level_analysis/{signal.name}": signal.analyse for signal in SIGNALS},
    **{f"controllable_generation/{signal.name}": signal.control for signal in SIGNALS},
    "semantic_editing/style": style.make,
    "semantic_editing/face": face.make,
    "semantic_editing/background": background.make,
    "semantic_editing/time_of_day": time_of_day.make,
    "semantic_editing/pose": posture.make,
    "semantic_editing/camera": camera.make,
    "element_editing/text_add": text_add.make,
    "element_editing/text_remove": text_remove.make,
    "element_editing/object_add": object_add.make,
    "element_editing/object_remove": object_remove.make,
    "element_editing/object_replace": object_replace.make,
    "repainting/inpainting": inpainting.make,
    "repainting/text_guided_inpainting": text_guided_inpainting.make,
    "repainting/outpainting": outpainting.make,
    "layer_editing/decouple": decouple.make,
    "layer_editing/fusion": fusion.make,
    "reference_generation/multi_condition": multi_condition.make,
    "reference_generation/series": series.make,
    "reference_generation/style_reference": style_reference.make,
    "reference_generation/face_reference": face_reference.make,
    "multi_turn/chain": chain.make,
}


def _make(maker: Maker, source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """What all makers share: nothing can be made of a picture that is too small."""
    if min(source.image.size) < SMALLEST_SIDE_PX:
        return Rejected("the picture is too small", f"{source.image.width}x{source.image.height} px")
    return maker(source, rng, tools)


TASK_MAKERS: dict[str, Maker] = {task: partial(_make, maker) for task, maker in _MAKERS.items()}

# what a task asks for beyond `check_sample`, which holds for all
CHECKS: dict[str, Check] = {
    "semantic_editing/face": face.check,
    "element_editing/object_add": things.check_visible,
    "element_editing/object_remove": things.check_visible,
    "element_editing/text_add": text_add.check,
    "element_editing/text_remove": text_remove.check,
    "reference_generation/multi_condition": multi_condition.check,
    "reference_generation/series": series.check,
    "reference_generation/face_reference": face_reference.check,
    "multi_turn/chain": chain.check,
}


def check(sample: EditSample, tools: Tools) -> str | None:
    """None if a sample passes its task's check, else the reason."""
    own = CHECKS.get(sample.task)
    return check_sample(sample) or (own(sample, tools) if own else None)
