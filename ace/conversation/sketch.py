"""What is done to an image before it is a message's: a larger canvas, strokes drawn on it, a part hidden."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops

from ace.conditions.colour import from_srgb
from ace.conditions.images import MASK_THRESHOLD, OpenedImage, over_white, with_values
from ace.errors import ConfigError, MaskError

MAX_SIDE_RATIO = 2.0  # outpainting: at most twice the picture on each side
EMPTY = (127, 127, 127)  # what lies where nothing is yet, as in training


def extend_canvas(
    picture: OpenedImage, *, left: float = 0, top: float = 0, right: float = 0, bottom: float = 0
) -> tuple[OpenedImage, Image.Image]:
    """A larger canvas for outpainting.

    left, top, right, bottom: how much to add on each side, in shares of the picture's width or height, 0 to 2.
    Returns the picture on its canvas, grey where nothing is yet, and the mask of what is new ("L", white = new): paste
    with `feather_px=0`, for there is nothing to blend with. Alpha is composited over white first. Raises ConfigError
    for an impossible share or if nothing is added."""
    shares = (left, top, right, bottom)
    if not all(0 <= share <= MAX_SIDE_RATIO for share in shares):
        raise ConfigError(f"each side can grow by 0 to {MAX_SIDE_RATIO:g} times the picture")
    width, height = picture.size
    added = [round(share * side) for share, side in zip(shares, (width, height, width, height), strict=True)]
    if not any(added):
        raise ConfigError("no side grows: say how much to add to at least one")
    size = (width + added[0] + added[2], height + added[1] + added[3])
    canvas = Image.new("RGB", size, EMPTY)
    canvas.paste(over_white(picture), (added[0], added[1]))
    mask = Image.new("L", size, 255)
    mask.paste(0, (added[0], added[1], added[0] + width, added[1] + height))
    return with_values(picture, canvas), mask


def sketch_over(picture: OpenedImage, strokes: Image.Image) -> tuple[OpenedImage, Image.Image]:
    """Coloured strokes as part of the picture, for the model to see ("composite"), and their mask.

    strokes: RGBA of the picture's size; what is at least half opaque counts. Raises MaskError for another size or if
    nothing is drawn."""
    if strokes.size != picture.size:
        raise MaskError(
            f"the strokes are {strokes.width}x{strokes.height} px, the picture {picture.size[0]}x{picture.size[1]} px: "
            "draw them on the picture"
        )
    mask = Image.fromarray((np.asarray(strokes.getchannel("A")) >= MASK_THRESHOLD).astype(np.uint8) * 255)
    if mask.getbbox() is None:
        raise MaskError("nothing is drawn: paint what should change")
    drawn = picture.stored.copy()
    drawn.paste(from_srgb(strokes.convert("RGB"), picture.icc_profile), (0, 0), mask)
    if picture.alpha is not None:
        drawn.putalpha(ImageChops.lighter(picture.alpha, mask))
    return with_values(picture, drawn), mask


def hide_under(picture: OpenedImage, mask: Image.Image) -> OpenedImage:
    """The picture, grey under the mask ("L", white = hidden), so that the model does not see what was there."""
    hidden = picture.stored.copy()
    hidden.paste(EMPTY, (0, 0), mask)
    if picture.alpha is not None:
        hidden.putalpha(picture.alpha)
    return with_values(picture, hidden)
