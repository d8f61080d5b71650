"""IMAGES → SHARDS. Imports: conditions, extract.

In: image collections, or the procedural world. Out: `EditSample` records and shards of them.
"""

from ace.data.sample import FAMILIES, EditSample, family_of

__all__ = ["FAMILIES", "EditSample", "family_of"]
