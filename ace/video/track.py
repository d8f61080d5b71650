"""Following what a mask selects through a clip.

`track` moves the mask from frame to frame: as a whole while the thing keeps its shape, registered against its first
look, and along dense optical flow (OpenCV's DIS) where it does not. A refiner may draw it anew in each frame: by
default SAM 2's image model (`ace data setup`), asked about the box and some points of the moved mask; it is believed
only where it agrees with the movement, so that one bad frame does not lose the object. `HubTracker` puts transformers'
`Sam2VideoModel` in its place, for whoever has its weights.

A generator over frames: memory does not grow with length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from ace.errors import MaskError, MissingDependencyError
from ace.video.controls import dense_flow

Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (frame, moved mask bool) -> mask bool
_DIFFERENT = 30.0  # levels: a thing that differs by more is lost, or has changed its shape
_TURNS = (-9.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0)  # degrees from one frame to the next that are tried
_HIDDEN = 60  # levels: a part that differs by more is behind something
_REACH = 0.12  # of the longer side: how far a thing is looked for in the next frame
_AGREES = 0.6  # overlap with the moved mask above which a refiner is believed


class Tracker(Protocol):
    """Anything that follows a mask: (frames, first mask (H, W) uint8) -> masks (H, W) uint8 of 0 and 255."""

    def __call__(self, frames: Iterable[np.ndarray], first: np.ndarray) -> Iterator[np.ndarray]:
        """One mask per frame, the first one included."""
        ...


def track(frames: Iterable[np.ndarray], first: np.ndarray, refine: Refine | None = None) -> Iterator[np.ndarray]:
    """The mask of every frame (H, W, 3) uint8. first: (H, W), > 0 = selected in the first frame; it is kept as it is.

    refine: None = no model's help. Raises MaskError if nothing is selected."""
    selected = first > 0
    if not selected.any():
        raise MaskError("the mask selects nothing in the first frame: paint what to follow")
    before: np.ndarray | None = None
    rigid: _Rigid | None = None
    for frame in frames:
        if before is None:
            rigid = _Rigid(frame, selected)
        elif selected.any():
            found = None if rigid is None else rigid.follow(before, frame)
            if found is None:
                found = move(selected, before, frame)
            selected = found
            if refine is not None and selected.any():
                seen = refine(frame, selected)
                if overlap(seen, selected) >= _AGREES:
                    selected = seen
            if rigid is not None and rigid.lost:
                rigid = _Rigid(frame, selected) if selected.any() else None
        before = frame
        yield selected.astype(np.uint8) * 255


class _Rigid:
    """A thing that keeps its shape: where it was first seen, and the movement (shift, turn, scale) from there to now.

    The movement is searched from three guesses, the one before continued, the flow's, and where the thing looks the
    same, made exact against its first look (Evangelidis and Psarakis 2008), and believed if most of it looks the same
    there: so errors do not add up over a clip."""

    def __init__(self, frame: np.ndarray, selected: np.ndarray) -> None:
        self.look, self.selected, self.lost = frame, selected, False
        self.movement, self.step = np.eye(3), np.eye(3)

    def follow(self, before: np.ndarray, frame: np.ndarray) -> np.ndarray | None:
        """Its mask in the next frame, without what is hidden there; None if it was lost."""
        guesses = [self.step @ self.movement, *self._guesses(before, frame)]
        turned = [self._turned(guess, degrees) for guess in guesses for degrees in _TURNS]
        found = min(turned, key=lambda movement: self._error(frame, movement))
        exact = self._exact(frame, found)
        if exact is not None and self._error(frame, exact) < self._error(frame, found):
            found = exact
        if self._error(frame, found) > _DIFFERENT:
            self.lost = True
            return None
        self.step, self.movement = found @ np.linalg.inv(self.movement), found
        return self._seen(frame, found)

    def _guesses(self, before: np.ndarray, frame: np.ndarray) -> Iterator[np.ndarray]:
        import cv2

        height, width = self.selected.shape
        now = self._warped_mask(self.movement)
        rows, columns = np.nonzero(now)
        if len(rows) < 8:
            return
        flow = dense_flow(before, frame)[rows, columns]
        points = np.stack([columns, rows], axis=1).astype(np.float32)
        moved, _ = cv2.estimateAffinePartial2D(points, points + flow, ransacReprojThreshold=1.0)
        if moved is not None:
            yield _square(moved) @ self.movement
        reach = max(4, round(_REACH * max(height, width)))
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        patch, weights = before[top:bottom, left:right], now[top:bottom, left:right].astype(np.uint8)
        padded = cv2.copyMakeBorder(frame, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
        part = padded[top : bottom + 2 * reach, left : right + 2 * reach]
        likeness = cv2.matchTemplate(
            part, np.ascontiguousarray(patch), cv2.TM_SQDIFF, mask=weights[..., None].repeat(3, 2)
        )
        y, x = np.unravel_index(int(np.nan_to_num(likeness, nan=np.inf).argmin()), likeness.shape)
        shift = np.eye(3)
        shift[:2, 2] = x - reach, y - reach
        yield shift @ self.movement

    def _turned(self, movement: np.ndarray, degrees: float) -> np.ndarray:
        """A movement with a turn about the thing's middle after it."""
        import cv2

        rows, columns = np.nonzero(self.selected)
        middle = movement @ (columns.mean(), rows.mean(), 1.0)
        return _square(cv2.getRotationMatrix2D((float(middle[0]), float(middle[1])), degrees, 1.0)) @ movement

    def _exact(self, frame: np.ndarray, movement: np.ndarray) -> np.ndarray | None:
        import cv2

        channel = int(self.look[self.selected].std(axis=0).argmax())  # in which it has most structure
        levels = [np.ascontiguousarray(one[..., channel]) for one in (self.look, frame)]
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-4)
        inside = self.selected.astype(np.uint8) * 255
        try:
            _, found = cv2.findTransformECC(
                levels[0], levels[1], movement[:2].astype(np.float32), cv2.MOTION_AFFINE, stop, inside, 3
            )
        except cv2.error:  # it has no structure, or does not converge
            return None
        return _square(found)

    def _look_back(self, frame: np.ndarray, movement: np.ndarray) -> np.ndarray:
        """What lies under each of its pixels now, at the place where it was first seen."""
        import cv2

        size = (self.selected.shape[1], self.selected.shape[0])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(frame, movement[:2], size, flags=flags, borderMode=cv2.BORDER_REPLICATE)

    def _difference(self, frame: np.ndarray, movement: np.ndarray) -> np.ndarray:
        return np.abs(self._look_back(frame, movement).astype(np.int16) - self.look).max(axis=2)

    def _error(self, frame: np.ndarray, movement: np.ndarray) -> float:
        """Mean difference in levels; what is hidden counts as `_HIDDEN`."""
        if not np.isfinite(movement).all() or not 0.3 < np.linalg.det(movement[:2, :2]) < 3:
            return np.inf
        return float(np.minimum(self._difference(frame, movement)[self.selected], _HIDDEN).mean())

    def _warped_mask(self, movement: np.ndarray) -> np.ndarray:
        import cv2

        size = (self.selected.shape[1], self.selected.shape[0])
        return cv2.warpAffine(self.selected.astype(np.float32), movement[:2], size, flags=cv2.INTER_LINEAR) > 0.5

    def _seen(self, frame: np.ndarray, movement: np.ndarray) -> np.ndarray:
        """Its mask now, without larger parts that look otherwise, which something hides."""
        import cv2

        other = ((self._difference(frame, movement) > _HIDDEN) & self.selected).astype(np.uint8)
        other = cv2.morphologyEx(other, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        size = (self.selected.shape[1], self.selected.shape[0])
        shown = (self.selected & (other == 0)).astype(np.float32)
        return cv2.warpAffine(shown, movement[:2], size, flags=cv2.INTER_LINEAR) > 0.5


def _square(matrix: np.ndarray) -> np.ndarray:
    return np.vstack([np.asarray(matrix, np.float64), (0.0, 0.0, 1.0)])


def move(selected: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool of one frame in the next. Each pixel looks back along the flow to where it came from; where
    the colours there disagree and the flow forwards does not lead back, it came from nowhere and is not selected."""
    import cv2

    backward, forward = dense_flow(after, before), dense_flow(before, after)
    height, width = selected.shape
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = columns + backward[..., 0], rows + backward[..., 1]
    moved = cv2.remap(selected.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    there = cv2.remap(forward, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    error = np.hypot(*np.moveaxis(backward + there, -1, 0))
    colours = cv2.remap(before, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    difference = np.abs(colours.astype(np.int16) - after).max(axis=2)
    lost = (error > 1.0 + 0.2 * np.hypot(backward[..., 0], backward[..., 1])) & (difference > 40)
    return (moved > 0.5) & ~lost


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks (H, W); 1 if both are empty."""
    one, other = one > 0, other > 0
    union = int((one | other).sum())
    return 1.0 if union == 0 else float((one & other).sum() / union)


class SamRefiner:
    """SAM 2's image model as a refiner. Raises MissingDependencyError where its weights are missing."""

    def __init__(self, num_threads: int = 1) -> None:
        from ace.extract.objects import Segmenter

        self._model = Segmenter(num_threads)

    def __call__(self, frame: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Of the answers to a box, and to the box with the mask's middle, the one that overlaps the moved mask most."""
        rows, columns = np.flatnonzero(moved.any(1)), np.flatnonzero(moved.any(0))
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        points = _inner_points(moved)
        answers = [self._model.mask_at(frame, box=box).mask, self._model.mask_at(frame, points, box).mask]
        return max(answers, key=lambda mask: overlap(mask, moved))


def _inner_points(mask: np.ndarray, count: int = 3) -> list[tuple[float, float]]:
    """(x, y) of the places deepest inside a mask, apart from each other."""
    import cv2

    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    points: list[tuple[float, float]] = []
    reach = max(2, round(float(depth.max())))
    for _ in range(count):
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        if depth[y, x] <= 0:
            break
        points.append((float(x), float(y)))
        cv2.circle(depth, (int(x), int(y)), reach, 0.0, -1)
    return points


class HubTracker:
    """transformers' `Sam2VideoModel`. where: hub id or folder; only files on disk are used.

    Raises MissingDependencyError, naming the model, if they are not there."""

    def __init__(self, where: str = "facebook/sam2.1-hiera-tiny") -> None:
        from transformers import Sam2VideoModel, Sam2VideoProcessor

        try:
            self._processor: Any = Sam2VideoProcessor.from_pretrained(where, local_files_only=True)
            self._model: Any = Sam2VideoModel.from_pretrained(where, local_files_only=True).eval()
        except OSError as error:
            raise MissingDependencyError(
                f"the tracker {where.rsplit('/', 1)[-1]} is not on disk: fetch it with: hf download {where}"
            ) from error

    def __call__(self, frames: Iterable[np.ndarray], first: np.ndarray) -> Iterator[np.ndarray]:
        """One mask per frame, read as the frames come."""
        import torch

        session, inputs = self._processor.init_video_session(), None
        for number, frame in enumerate(frames):
            inputs = self._processor(images=frame, return_tensors="pt")
            if number == 0:
                self._processor.add_inputs_to_inference_session(
                    session,
                    frame_idx=0,
                    obj_ids=1,
                    input_masks=(first > 0)[None],
                    original_size=inputs.original_sizes[0],
                )
            with torch.inference_mode():
                answer = self._model(inference_session=session, frame=inputs.pixel_values[0])
            masks = self._processor.post_process_masks([answer.pred_masks], inputs.original_sizes, binarize=True)
            yield np.asarray(masks[0][0, 0]).astype(np.uint8) * 255


def default_tracker(num_threads: int = 1) -> Tracker:
    """Flow refined by SAM 2 where its weights are here, else flow alone."""
    try:
        refine: Refine | None = SamRefiner(num_threads)
    except MissingDependencyError:
        refine = None
    return lambda frames, first: track(frames, first, refine)
