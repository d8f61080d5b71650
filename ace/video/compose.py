"""Several preparations in one: which of two drafts shows where, as the published tool composes them.

What is given (extension) lies over what is to be repainted, and both over a control. `subject` is what makes a
reference of a photograph: what its mask selects, on white, cut to its box.
"""

from __future__ import annotations

import numpy as np

from ace.errors import MaskError
from ace.video.prepare import Draft

KINDS = ("repaint", "extension", "control")


def compose(first: Draft, first_kind: str, second: Draft, second_kind: str) -> Draft:
    """Two drafts of one size as one; the longer is cut. The kinds say what each is: one of `KINDS`."""
    count = min(len(first.frames), len(second.frames))
    if first.frames.shape[1:3] != second.frames.shape[1:3]:
        raise MaskError("two preparations of different sizes cannot be composed: bring them to one size")
    if (first_kind, second_kind) == ("control", "repaint"):
        first, second, first_kind, second_kind = second, first, "repaint", "control"
    over = first.masks[:count] > 0  # where the second shows
    made = second.masks[:count] > 0
    if first_kind == "extension":
        mask = over & made
    elif (first_kind, second_kind) == ("repaint", "control"):
        mask = over
    else:
        over, mask = made, over | made  # the second keeps what it gives, unless the first makes it
    frames = np.where(over[..., None], second.frames[:count], first.frames[:count])
    fill = np.where(over, second.fill[:count], first.fill[:count])
    return Draft(frames, mask.astype(np.uint8) * 255, fill)


def subject(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What a mask (H, W), > 0, selects of an image (H, W, 3), on white, cut to its box. An empty mask keeps all."""
    cut = image.copy()
    cut[mask == 0] = 255
    rows, columns = np.flatnonzero((mask > 1).any(1)), np.flatnonzero((mask > 1).any(0))
    if not len(rows):
        return cut
    return cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
