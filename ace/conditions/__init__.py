"""WHAT IS ASKED. Imports: extras, errors.

In: an instruction, PIL images, masks, earlier rounds. Out: a checked `LongContextConditionUnit` and its frames.
"""

from ace.conditions.units import ConditionUnit, Frame, LongContextConditionUnit, Turn

__all__ = ["ConditionUnit", "Frame", "LongContextConditionUnit", "Turn"]
