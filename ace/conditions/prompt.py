"""Image names in instructions: `{image}` is the first image of a unit, `{image1}` the second, … (ACE, section 2.2).

Not here: text encoders and tokenizers.
"""

from __future__ import annotations

import re

from ace.errors import ConditionError

IMAGE_NAMES = ("{image}", *(f"{{image{i}}}" for i in range(1, 10)))
_NAME = re.compile(r"\{image(\d*)\}")


def referenced_images(instruction: str) -> tuple[int, ...]:
    """Indices of the images that an instruction names, in order of appearance, without repeats."""
    return tuple(dict.fromkeys(int(digits or 0) for digits in _NAME.findall(instruction)))


def in_words(instruction: str) -> str:
    """The instruction as a person says it: "the picture" for its only image, "picture 1", … where it names several."""
    several = any(referenced_images(instruction))
    return _NAME.sub(lambda found: f"picture {int(found[1] or 0) + 1}" if several else "the picture", instruction)


def check_references(instruction: str, num_images: int) -> None:
    """Raise ConditionError if the instruction names an image that the unit does not have."""
    for index in referenced_images(instruction):
        if index >= num_images:
            have = "no image" if num_images == 0 else f"only {num_images} image{'s' * (num_images > 1)}"
            raise ConditionError(
                f"the instruction names {{image{index or ''}}}, but there is {have}: "
                "{image} is the first, {image1} the second, and so on"
            )


def shift_references(instruction: str, offset: int) -> str:
    """Renumber every image name by `offset`: a unit's own names become names within the whole long-context unit.

    Raises ConditionError if a shifted name would exceed `{image9}`."""

    def shifted(match: re.Match[str]) -> str:
        index = int(match.group(1) or 0) + offset
        if index >= len(IMAGE_NAMES):
            raise ConditionError(
                f"{match.group(0)} would become {{image{index}}}: at most nine images fit in a conversation"
            )
        return IMAGE_NAMES[index]

    return _NAME.sub(shifted, instruction)
