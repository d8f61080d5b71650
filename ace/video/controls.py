"""Control clips: depth, pose, grey, scribble, flow, … of every frame, with a memory of earlier frames where it helps.

Each is a generator over frames, so that memory does not grow with length. A folder of frames drawn elsewhere (HED,
depth, pose of any other tool) is plugged in as a clip of its own: `ace video --control FOLDER`.

Notable: the published grey weighs red as blue and blue as red, because the tool takes RGB for BGR; the models were
trained with it, so it is kept. Depth is scaled by the range of the whole clip so far, else a clip flickers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ace.errors import ConfigError, ImageError

CONTROLS = ("depth", "pose", "gray", "scribble", "flow")
_SMOOTH = 0.8  # how slowly a depth's range follows the frames


def draw_controls(name: str, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """A control of every frame (H, W, 3) uint8, of the same shape and number.

    name: one of `CONTROLS`, or of `ace.extract.SIGNALS`. Raises ConfigError for another one."""
    from ace.extract import SIGNALS, draw_signal

    if name == "flow":
        return draw_flow(frames)
    if name == "gray":
        return map(gray, frames)
    if name == "depth":
        return _depth(frames)
    if name == "pose":
        return _pose(frames)
    if name not in SIGNALS:
        raise ConfigError(f"no control is called {name!r}: use one of {', '.join((*CONTROLS, 'layout'))}, or a clip")
    return (draw_signal(name, frame) for frame in frames)


def gray(frame: np.ndarray) -> np.ndarray:
    """Luma of a frame whose red and blue are taken for each other, as published; (H, W, 3) uint8."""
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_BGR2GRAY)[..., None].repeat(3, axis=2)


def dense_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(H, W, 2) float32 px: where each pixel of the first frame (H, W, 3) uint8 is in the second (DIS optical flow)."""
    import cv2

    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    pair = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in (before, after)]
    side = 32  # below which its pyramid is empty
    height, width = pair[0].shape
    if min(height, width) < side:
        pair = [np.pad(one, ((0, max(0, side - height)), (0, max(0, side - width))), "edge") for one in pair]
    found = flow.calc(pair[0], pair[1], np.zeros((*pair[0].shape, 2), np.float32))
    return found[:height, :width]


def draw_flow(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The flow from each frame to the next as colours; the first one stands twice, so that the number is the same."""
    before = None
    count = 0
    drawn = None
    for frame in frames:
        if before is not None:
            drawn = flow_colours(dense_flow(before, frame))
            yield drawn
            if count == 1:
                yield drawn
        before, count = frame, count + 1
    if count == 1 and before is not None:  # a clip of one frame stands still
        yield np.full_like(before, 255)


def _wheel() -> np.ndarray:
    """(55, 3) float: the colour circle of Baker et al. 2007, in which directions that are told apart better get more
    room."""
    hues = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255))
    rooms = (15, 6, 4, 11, 13, 6)
    parts = [
        np.asarray(start)
        + np.floor(255 * np.arange(room) / room)[:, None] * np.sign(np.asarray(end) - np.asarray(start))
        for start, end, room in zip(hues, (*hues[1:], hues[0]), rooms, strict=True)
    ]
    return np.concatenate(parts)


_WHEEL = _wheel()


def flow_colours(flow: np.ndarray) -> np.ndarray:
    """Flow (H, W, 2) in px as colours: direction is hue, length against the longest is saturation, white is rest."""
    length = np.hypot(flow[..., 0], flow[..., 1])
    u, v = np.moveaxis(flow / (length.max() + 1e-5), -1, 0)
    radius = np.hypot(u, v)
    place = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(_WHEEL) - 1)
    below = np.floor(place).astype(int)
    share = (place - below)[..., None]
    hue = ((1 - share) * _WHEEL[below] + share * _WHEEL[(below + 1) % len(_WHEEL)]) / 255
    colour = np.where(radius[..., None] <= 1, 1 - radius[..., None] * (1 - hue), hue * 0.75)
    return np.floor(255 * colour).astype(np.uint8)


def _depth(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    from ace.extract.distance import FastDepth

    net, low, high = FastDepth(), 0.0, 0.0
    for number, frame in enumerate(frames):
        depth = net.near(frame)
        here = np.percentile(depth, (1, 99))
        keep = 0.0 if number == 0 else _SMOOTH
        low, high = keep * low + (1 - keep) * here[0], keep * high + (1 - keep) * here[1]
        levels = np.clip((depth - low) / max(high - low, 1e-6), 0, 1)
        yield np.round(255 * levels).astype(np.uint8)[..., None].repeat(3, axis=2)


def _pose(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """A frame without anybody is black; a clip without anybody is refused."""
    from ace.extract import draw_signal

    found = False
    empty: list[np.ndarray] = []
    for frame in frames:
        try:
            drawn = draw_signal("pose", frame)
        except ImageError:
            drawn = np.zeros_like(frame)
        else:
            found = True
        if found:
            yield from empty
            empty = []
            yield drawn
        else:
            empty.append(drawn)
    if not found:
        raise ImageError("no person was found in any frame: a pose needs one")
