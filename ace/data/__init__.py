"""IMAGES → SHARDS. Imports: conditions, extract, files, lists, pages, settings.

In: image collections, or the procedural world. Out: `EditSample` records and shards of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ace.data.sample import FAMILIES, EditSample, family_of

if TYPE_CHECKING:
    from ace.data.recipe import read_recipe
    from ace.data.run import build
    from ace.data.shards import read_shards, write_shards

# doors that need the `data` extra import their file on first use
_LATER = {
    "build": "ace.data.run",
    "read_recipe": "ace.data.recipe",
    "read_shards": "ace.data.shards",
    "write_shards": "ace.data.shards",
}
__all__ = ["FAMILIES", "EditSample", "build", "family_of", "read_recipe", "read_shards", "write_shards"]


def __getattr__(name: str):
    if name not in _LATER:
        raise AttributeError(f"module 'ace.data' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
