"""ace: create and edit images from instructions with one diffusion transformer (ACE, arXiv 2410.00086).

Importing this package loads nothing heavy; the doors below import their room on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_DOORS = {
    "ACEPipeline": "ace.inference.pipeline",
    "ACEPlusPipeline": "ace.plus.pipeline",
    "ACETransformer": "ace.model.transformer",
    "ConditionUnit": "ace.conditions.units",
    "LongContextConditionUnit": "ace.conditions.units",
    "load_tiny": "ace.tiny",
}
__all__ = [*_DOORS, "__version__"]

if TYPE_CHECKING:
    from ace.conditions.units import ConditionUnit, LongContextConditionUnit
    from ace.inference.pipeline import ACEPipeline
    from ace.model.transformer import ACETransformer
    from ace.plus.pipeline import ACEPlusPipeline
    from ace.tiny import load_tiny


def __getattr__(name: str):
    if name not in _DOORS:
        raise AttributeError(f"module 'ace' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
