"""IMAGE → FACTS. Imports: conditions.

In: pictures as (H, W, 3) uint8 arrays, or exact facts (masks, depth, joints). Out: signal pictures, (H, W, 3) uint8,
in one drawing convention for every source. `draw_signal` makes any of the ten from a photograph, with models where the
signal needs one; they live in a file each and load when first used. The other doors are exact, numpy and Pillow only.
"""

from ace.extract.depth import draw_depth
from ace.extract.edges import draw_edges
from ace.extract.pose import draw_skeleton
from ace.extract.segments import draw_segments
from ace.extract.signal import SIGNALS, draw_signal

__all__ = ["SIGNALS", "draw_depth", "draw_edges", "draw_segments", "draw_signal", "draw_skeleton"]
