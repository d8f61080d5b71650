"""The procedural world: scenes with exact ground truth. Imports: conditions, extract, video, files, `ace.data.sample`.

In: a sprite library and a seed. Out: `EditSample` records of every task, and single pictures.
"""

from ace.data.world.sprites import SpriteLibrary
from ace.data.world.world import World

__all__ = ["SpriteLibrary", "World"]
