"""How much of the world is shown: the steps of a curriculum, each a `Level` by name.

A recipe's stage names one (`level = "two"`); without a name it is "all", which is also what is held out for evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_STYLE = "fluent-3d"  # what a picture is drawn in unless its words or its neighbours say otherwise

# how often each family is drawn when no task is asked for; subtasks of a family evenly
MIXTURE: dict[str, float] = {
    "element_editing": 0.30,
    "semantic_editing": 0.20,
    "repainting": 0.12,
    "text_guided_generation": 0.08,
    "low_level_analysis": 0.08,
    "controllable_generation": 0.07,
    "layer_editing": 0.06,
    "reference_generation": 0.05,
    "multi_turn": 0.04,
}
_TEXT_TO_IMAGE = "text_guided_generation/text_to_image"


@dataclass(frozen=True)
class Level:
    """What a step of the curriculum shows.

    tasks: weights by task or family. max_things: in a picture. styled: things come in every colour style, not only the
    default one. plain: grounds of one colour only. other_kinds: text to image may also show persons, words and empty
    grounds. free_share: of the samples in which the things that a picture or a mask places stand off the grid."""

    tasks: dict[str, float]
    max_things: int = 3
    styled: bool = False
    plain: bool = False
    other_kinds: bool = True
    free_share: float = 0.0


LEVELS: dict[str, Level] = {
    "one": Level({_TEXT_TO_IMAGE: 1.0}, max_things=1, plain=True, other_kinds=False),
    "two": Level({_TEXT_TO_IMAGE: 1.0}, max_things=2, plain=True, other_kinds=False),
    "edits": Level(
        {
            _TEXT_TO_IMAGE: 0.25,
            "element_editing/object_add": 0.25,
            "element_editing/object_replace": 0.2,
            "element_editing/object_remove": 0.1,
            "element_editing/text_add": 0.15,
            "element_editing/text_remove": 0.05,
        }
    ),
    "tasks": Level(MIXTURE),
    "all": Level(MIXTURE, styled=True, free_share=0.2),
}
