"""Following what a mask selects through a clip.

`track` moves the mask from frame to frame along dense optical flow (OpenCV's DIS), and lets a refiner draw it anew in
each frame: by default SAM 2's image model (`ace data setup`), asked about the box and some points of the moved mask; it
is believed only where it agrees with the movement, so that one bad frame does not lose the object. `HubTracker` puts
transformers' `Sam2VideoModel` in its place, for whoever has its weights.

A generator over frames: memory does not grow with length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from ace.errors import MaskError, MissingDependencyError
from ace.video.controls import dense_flow

Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (frame, moved mask bool) -> mask bool
_AGREES = 0.6  # overlap with the moved mask above which a refiner is believed


class Tracker(Protocol):
    """Anything that follows a mask: (frames, first mask (H, W) uint8) -> masks (H, W) uint8 of 0 and 255."""

    def __call__(self, frames: Iterable[np.ndarray], first: np.ndarray) -> Iterator[np.ndarray]:
        """One mask per frame, the first one included."""
        ...


def track(frames: Iterable[np.ndarray], first: np.ndarray, refine: Refine | None = None) -> Iterator[np.ndarray]:
    """The mask of every frame (H, W, 3) uint8. first: (H, W), > 0 = selected in the first frame; it is kept as it is.

    refine: None = along the flow alone. Raises MaskError if nothing is selected."""
    selected = first > 0
    if not selected.any():
        raise MaskError("the mask selects nothing in the first frame: paint what to follow")
    before = None
    for frame in frames:
        if before is not None:
            selected = move(selected, before, frame)
            if refine is not None and selected.any():
                found = refine(frame, selected)
                if overlap(found, selected) >= _AGREES:
                    selected = found
        before = frame
        yield selected.astype(np.uint8) * 255


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
