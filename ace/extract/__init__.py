"""IMAGE → FACTS. Imports: conditions.

In: pictures as (H, W, 3) uint8 arrays, or exact facts (masks, depth, joints). Out: signal pictures, (H, W, 3) uint8,
in one drawing convention for every source. Everything here is numpy and Pillow and exact: no model.
"""

from ace.extract.depth import draw_depth
from ace.extract.edges import draw_edges
from ace.extract.pose import draw_skeleton
from ace.extract.segments import draw_segments

__all__ = ["draw_depth", "draw_edges", "draw_segments", "draw_skeleton"]
