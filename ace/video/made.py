"""From what the model made to the answer: pasted back outside the mask, frame by frame, and kept window by window.

`paste_frames` gives frames at the source's own size in which every value outside the mask is the source's. `Spool`
holds the answer: in memory for one window, in lossless files for several, so that memory does not grow with length and
a killed run goes on at its last window.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from ace.conditions.images import normalise_image
from ace.errors import InputError, OutputError
from ace.inference.preserve import paste_back
from ace.video.clips import encode_into, open_clip
from ace.video.prepare import Draft

_KEY = "request.json"


def paste_frames(draft: Draft, made: np.ndarray, feather_px: int | None = None) -> Iterator[np.ndarray]:
    """A draft's frames with what the model made, (T, h, w, 3) uint8 at its own size, where the masks select."""
    height, width = draft.masks.shape[1:]
    for given, mask, frame in zip(draft.frames, draft.masks, made, strict=True):
        if not mask.any():
            yield given
            continue
        fitted = uncover(frame, (width, height))
        if mask.all():
            yield fitted
            continue
        original = normalise_image(Image.fromarray(given))
        pasted = paste_back(original, Image.fromarray(fitted), Image.fromarray(mask), feather_px=feather_px)
        yield np.asarray(pasted.convert("RGB"))


def uncover(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The opposite of `resize_cover`: a frame back at a size (width, height); what was cut off repeats the border."""
    height, width = frame.shape[:2]
    scale = max(width / size[0], height / size[1])
    wide, high = max(width, round(scale * size[0])), max(height, round(scale * size[1]))
    top, left = (high - height) // 2, (wide - width) // 2
    padded = np.pad(frame, ((top, high - height - top), (left, wide - width - left), (0, 0)), "edge")
    if padded.shape[1::-1] == tuple(size):
        return padded
    return np.asarray(Image.fromarray(padded).resize(size, Image.Resampling.BICUBIC))


class FrameFiles:
    """Frames in lossless files, read as they are asked for; the length is known. folder: gone with this object if it
    is a temporary one."""

    def __init__(self, files: list[Path], counts: list[int], owner: object = None) -> None:
        self.files, self.counts, self._owner = files, counts, owner

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[np.ndarray]:
        return itertools.chain.from_iterable(open_clip(file).frames() for file in self.files)


class Spool:
    """The frames of an answer as they are finished. work: a folder for windows, made if missing; None = a temporary one
    if there are several. key: what the windows are of: a folder with windows of something else is refused."""

    def __init__(self, num_windows: int, fps: Fraction, work: Path | None, key: dict[str, str]) -> None:
        self._fps, self._several = fps, num_windows > 1
        self._memory: list[np.ndarray] = []
        self._files: list[Path] = []
        self._counts: list[int] = []
        self._folder: Path | None = None
        if not self._several:
            return
        if work is None:
            self._folder = Path(tempfile.mkdtemp(prefix="ace-clip-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            return
        self._folder = work
        try:
            work.mkdir(exist_ok=True)
            if (work / _KEY).is_file():
                if json.loads((work / _KEY).read_text(encoding="utf-8")) != key:
                    raise InputError(f"{work.name} holds windows of another request: remove it, or name another output")
            else:
                (work / _KEY).write_text(json.dumps(key), encoding="utf-8")
        except (OSError, ValueError) as error:
            raise OutputError(f"{work.name} cannot be written or read ({error}): remove it") from None
        while (file := self._name(len(self._files))).is_file():
            self._files.append(file)
            self._counts.append(open_clip(file).num_frames)

    @property
    def num_windows(self) -> int:
        """Windows that are finished."""
        return len(self._files) if self._several else int(bool(self._memory))

    def add(self, frames: Iterator[np.ndarray]) -> None:
        """The new frames of the next window."""
        if not self._several:
            self._memory = list(frames)
            return
        file = self._name(len(self._files))
        part = file.with_suffix(".part")
        kept = list(frames)
        encode_into(part, kept, self._fps, "MKV")
        os.replace(part, file)
        self._files.append(file)
        self._counts.append(len(kept))

    def tail(self, count: int) -> np.ndarray:
        """The last frames, (count, H, W, 3)."""
        found: list[np.ndarray] = []
        for file in reversed(self._files):
            found = [*open_clip(file).frames(), *found]
            if len(found) >= count:
                break
        return np.stack(found[-count:])

    def frames(self) -> np.ndarray | FrameFiles:
        """All of them."""
        return FrameFiles(list(self._files), list(self._counts), self) if self._several else np.stack(self._memory)

    def _name(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{number:04d}.mkv"
