"""`EditSample`, the one record of training, data engine, evaluation and server, and the one list of tasks (ACE, 2.1.1,
B.1 to B.9)."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image

from ace.conditions import LongContextConditionUnit
from ace.errors import ConfigError

_SIGNALS = ("segmentation", "depth", "pose", "mosaic", "degradation", "gray", "edge", "doodle", "contour", "scribble")

# family -> subtasks; a task is written "family/subtask"
FAMILIES: dict[str, tuple[str, ...]] = {
    "text_guided_generation": ("text_to_image",),
    "low_level_analysis": _SIGNALS,
    "controllable_generation": _SIGNALS,
    "semantic_editing": ("style", "face", "background", "time_of_day", "pose", "camera"),
    "element_editing": ("text_add", "text_remove", "object_add", "object_remove", "object_replace"),
    "repainting": ("inpainting", "text_guided_inpainting", "outpainting"),
    "layer_editing": ("decouple", "fusion"),
    "reference_generation": ("multi_condition", "series", "style_reference", "face_reference"),
    "multi_turn": ("chain",),
}
TASKS: tuple[str, ...] = tuple(f"{family}/{subtask}" for family, subtasks in FAMILIES.items() for subtask in subtasks)


def family_of(task: str) -> str:
    """The family of "family/subtask". Raises ConfigError for a task that is not in `TASKS`."""
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}: one of {', '.join(TASKS)}")
    return task.split("/")[0]


@dataclass(frozen=True)
class EditSample:
    """What was asked and the picture that answers it.

    request: the long-context unit (current unit and history). target: RGB, the true answer.
    task: an entry of `TASKS`. provenance: where it comes from (strings and numbers only), enough to make it again."""

    request: LongContextConditionUnit
    target: Image.Image
    task: str
    provenance: dict[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        family_of(self.task)
