"""CLIP → CLIP. Imports: conditions, model, extract, diffusion, inference, files.

In: clips, masks, references and words. Out: what a VACE model is shown (`PreparedClip`), and the clip that it makes,
with everything outside the mask as it was. `read_clip` and `write_clip` are the only doors to video files.
"""

from ace.video.clips import Clip, ClipLimits, open_clip, read_clip, write_clip
from ace.video.prepare import PreparedClip

__all__ = ["Clip", "ClipLimits", "PreparedClip", "open_clip", "read_clip", "write_clip"]
