"""What is asked of a clip, checked and opened before any model is loaded.

`ClipRequest` is a plain record: files by path, all else as words and numbers; its options are what a recipe keeps.
`open_request` decodes every file once, decides frames, sizes and windows, and refuses what cannot be made.
`OpenedRequest.windows` then yields one `Draft` after the other, reading frame by frame: a clip longer than one pass of
the model is made in windows, each of which is given the last frames of the one before.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ace.conditions.images import open_image
from ace.conditions.masks import read_mask
from ace.errors import ConditionError, ConfigError, ImageError, InputError, MaskError
from ace.video import prepare
from ace.video.clips import DEFAULT_FPS, ClipFile, ClipLimits, is_moving, open_clip, resampled_ids
from ace.video.compose import compose, subject
from ace.video.controls import CONTROLS, draw_controls
from ace.video.prepare import Draft, PreparedClip
from ace.video.track import Tracker, default_tracker

DEFAULT_OVERLAP = 5  # frames that a window is given of the one before
DEFAULT_GIVEN = 17  # frames of a clip that `--continue` shows the model
MOST_FRAMES = 5000  # of an answer
SIDES = ("left", "right", "up", "down")
FILE_ROLES = ("video", "mask", "control", "first", "last", "references")


@dataclass(frozen=True)
class ClipRequest:
    """What is asked.

    video: a clip, an animation or a folder of frames; control: one of `CONTROLS`, "layout", or a clip that is drawn
    already; mask: "box:left,top,right,bottom" in px, or an image or clip that is white where something is made; track:
    it is of the first frame and follows; grow, grow_ratio: shape and share by which it becomes coarser; extend: shares
    of the sides; first, last: an image or a clip; continues: the video goes on; cuts: per reference a box that is its
    subject, or ""; layout: two boxes "l,t,r,b:l,t,r,b" between which an outline moves; color: of layouts. frames, fps:
    of the answer; size: (width, height) whose area the model works at; overlap: frames shared by windows."""

    video: Path | None = None
    control: str = ""
    mask: str = ""
    track: bool = False
    grow: str = "original"
    grow_ratio: float = 0.3
    extend: tuple[tuple[str, float], ...] = ()
    first: Path | None = None
    last: Path | None = None
    continues: bool = False
    references: tuple[Path, ...] = ()
    cuts: tuple[str, ...] = ()
    layout: str = ""
    color: tuple[int, int, int] = (0, 0, 0)
    frames: int | None = None
    fps: Fraction | None = None
    size: tuple[int, int] | None = None
    overlap: int = DEFAULT_OVERLAP

    def options(self) -> str:
        """Everything but the files, as one line of JSON for a recipe; the files' names stand for where they were."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.name in FILE_ROLES and self.file_of(field.name) is not None:
                value = True
            elif field.name == "references":
                value = len(value)
            values[field.name] = str(value) if isinstance(value, Fraction) else value
        return json.dumps(values, separators=(",", ":"))

    def file_of(self, role: str) -> Path | None:
        """The file of a role that may be a word as well."""
        value = getattr(self, role)
        if role == "references" or not value or (role == "mask" and str(value).startswith("box:")):
            return None
        if role == "control" and str(value) in (*CONTROLS, "layout", *_signals()):
            return None
        return Path(value)

    def files(self) -> tuple[Path, ...]:
        """Every file, in the order in which a recipe names them."""
        single = [path for role in FILE_ROLES[:-1] if (path := self.file_of(role)) is not None]
        return (*single, *self.references)

    @classmethod
    def of_options(cls, text: str, files: list[Path]) -> ClipRequest:
        """The request of `options` and of its files in order. Raises InputError for anything else."""
        try:
            values, rest = json.loads(text), iter(files)
            for role in FILE_ROLES[:-1]:
                if values.get(role) is True:
                    path = next(rest)
                    values[role] = path if role in ("video", "first", "last") else str(path)
            values["references"] = tuple(rest)
            if "fps" in values:
                values["fps"] = Fraction(values["fps"])
            values["extend"] = tuple((str(side), float(share)) for side, share in values.get("extend", ()))
            if "cuts" in values:
                values["cuts"] = tuple(str(cut) for cut in values["cuts"])
            for name in ("color", "size"):
                if values.get(name):
                    values[name] = tuple(int(one) for one in values[name])
            return cls(**values)
        except (ValueError, TypeError, KeyError, StopIteration, ZeroDivisionError, AttributeError):
            raise InputError("the recipe of the clip is damaged: use the original file") from None


def _signals() -> tuple[str, ...]:
    from ace.extract import SIGNALS

    return SIGNALS


@dataclass(frozen=True)
class Window:
    """Frames [start, stop) of the answer that one pass makes; the first `given` are the last of the window before."""

    start: int
    stop: int
    given: int

    @property
    def num_frames(self) -> int:
        """Of one pass."""
        return self.stop - self.start


def plan_windows(num_frames: int, most: int, overlap: int) -> tuple[Window, ...]:
    """Windows of 4n+1 frames that cover so many (4n+1); the last begins earlier rather than being shorter."""
    if num_frames <= most:
        return (Window(0, num_frames, 0),)
    if not 1 <= overlap < most or (overlap - 1) % prepare.STEP_FRAMES:
        raise ConfigError(f"windows that overlap by {overlap} frames: use 4n+1, 1 to {most - prepare.STEP_FRAMES}")
    windows, stop = [Window(0, most, 0)], most
    while stop < num_frames:
        end = min(stop - overlap + most, num_frames)
        start = min(stop - overlap, end - most) if end - most >= 0 else 0
        windows.append(Window(start, end, stop - start))
        stop = end
    return tuple(windows)


@dataclass(frozen=True)
class OpenedRequest:
    """A request whose files were read. source: the clip that is edited; ids: which of its frames; size: (width, height)
    the model works at; base_size: of the frames that are given; keeps: whether anything of them is (else the answer has
    the model's size); num_frames, fps: of the answer; before: frames of the source that go before the answer as they
    are."""

    request: ClipRequest
    source: ClipFile | None
    ids: tuple[int, ...]
    size: tuple[int, int]
    base_size: tuple[int, int]
    keeps: bool
    num_frames: int
    fps: Fraction
    windows: tuple[Window, ...]
    references: np.ndarray
    first: np.ndarray | None = None
    last: np.ndarray | None = None
    mask: np.ndarray | ClipFile | None = None
    control: ClipFile | None = None
    before: int = 0
    notes: tuple[str, ...] = ()

    @property
    def sound(self) -> Path | None:
        """The file whose sound goes with the answer, which is as long as the source."""
        kept = self.source is not None and self.source.sound and abs(self.seconds - self.source.seconds) < 0.06
        return self.source.path if kept and self.source is not None else None

    @property
    def seconds(self) -> float:
        """Length of the answer, with what goes before it."""
        return float((self.num_frames + self.before) / self.fps)

    @property
    def makes_nothing(self) -> bool:
        """Whether no mask selects anything, so that the answer is the source."""
        return self.mask is not None and not self.request.extend and self._mask_is_empty()

    def _mask_is_empty(self) -> bool:
        if isinstance(self.mask, np.ndarray):
            return not self.mask.any()
        return self.mask is not None and not any((frame > 127).any() for frame in self.mask.take(self.ids))

    def drafts(self, tracker: Callable[[], Tracker] = default_tracker) -> Iterator[Draft]:
        """What each window shows, at the base size, read as it is asked for."""
        rows: list[tuple[Any, ...]] = []
        at = 0
        stream = self._stream(tracker)
        for window in self.windows:
            rows = rows[window.start - at :] if rows else []
            at = window.start
            rows += list(itertools.islice(stream, window.stop - at - len(rows)))
            yield self._draft(rows, window)

    def prepared(self, draft: Draft, window: Window, before: np.ndarray | None = None) -> PreparedClip:
        """What the model sees of a window. before: the answer's last frames (N, H, W, 3) uint8 that it goes on from."""
        made = replace(prepare.fit(draft, self.size), references=self.references, fps=self.fps)
        if not window.given:
            return made
        if before is None or len(before) < window.given:
            raise ConfigError("a window that goes on needs the frames before it")
        frames, masks, fill = made.frames.copy(), made.masks.copy(), made.fill.copy()
        frames[: window.given] = prepare.resize_cover(before[-window.given :], self.size)
        masks[: window.given], fill[: window.given] = 0, False
        return replace(made, frames=frames, masks=masks, fill=fill)

    def _stream(self, tracker: Callable[[], Tracker]) -> Iterator[tuple[Any, ...]]:
        """(frame, mask, control) of every frame of the answer; each may be None."""
        nothing = itertools.repeat(None, self.num_frames)
        if self.source is None or self.request.continues:
            return iter(zip(nothing, itertools.repeat(None), self._drawn(), strict=False))
        frames, for_masks, for_controls = itertools.tee(self.source.take(self.ids), 3)
        masks = self._masks(for_masks, tracker)
        controls: Iterator[Any] = self._drawn()
        name = self.request.control
        if name == "layout":
            masks, shapes = itertools.tee(masks)
            controls = (prepare.outlines(one[None], self.request.color)[0] for one in shapes)
        elif name and self.control is None:
            controls = draw_controls(name, for_controls)
        return iter(zip(frames, masks, controls, strict=False))

    def _drawn(self) -> Iterator[Any]:
        """Controls that come as files or as a moving box."""
        if self.control is not None:
            return iter(self.control.take(self.ids))
        if self.request.layout:
            start, end = (prepare.parse_box(part) for part in self.request.layout.split(":"))
            given = 0 if self.first is None else len(self.first)
            boxes = prepare.moving_box(start, end, self.base_size, self.num_frames - given, self.request.color)
            return iter([*np.full((given, *boxes.shape[1:]), prepare.GREY, np.uint8), *boxes])
        return itertools.repeat(None)

    def _masks(self, frames: Iterator[np.ndarray], tracker: Callable[[], Tracker]) -> Iterator[Any]:
        if self.mask is None:
            return itertools.repeat(None)
        if isinstance(self.mask, ClipFile):
            masks = ((frame.max(axis=2) > 127).astype(np.uint8) * 255 for frame in self.mask.take(self.ids))
        elif self.request.track:
            masks = tracker()(frames, self.mask)
        else:
            masks = itertools.repeat(self.mask)
        if self.request.grow == "original":
            return masks
        return (prepare.grow_mask(mask, self.request.grow, self.request.grow_ratio) for mask in masks)

    def _draft(self, rows: list[tuple[Any, ...]], window: Window) -> Draft:
        request, count = self.request, window.num_frames
        frames, masks, controls = (
            None if not rows or rows[0][column] is None else np.stack([row[column] for row in rows])
            for column in range(3)
        )
        drafts: list[tuple[Draft, str]] = []
        if masks is not None and frames is not None and request.control != "layout":
            drafts.append((prepare.repainted(frames, masks), "repaint"))
        if controls is not None:
            drafts.append((prepare.controlled(controls), "control"))
        if not drafts:
            whole = prepare.nothing(count, self.base_size)
            drafts.append((whole, "control"))
        if request.extend and self.first is not None:
            return self._first_extended(count)
        draft, kind = drafts[0]
        if len(drafts) > 1:
            draft = compose(draft, kind, *drafts[1])
        if request.extend and frames is not None:
            draft = self._extended(frames, draft if masks is not None else None)
        if self.first is not None or self.last is not None:
            given = sum(len(part) for part in (self.first, self.last) if part is not None)
            draft = compose(prepare.continued(self.first, self.last, count - given), "extension", draft, kind)
        return draft

    def _first_extended(self, count: int) -> Draft:
        """The first frame with room around it, and frames to invent after it."""
        assert self.first is not None
        wide = prepare.extended(self.first, **dict(self.request.extend))
        draft = prepare.continued(wide.frames, None, count - len(wide.frames))
        masks, fill = draft.masks.copy(), draft.fill.copy()
        masks[: len(wide.masks)], fill[: len(wide.fill)] = wide.masks, wide.fill
        return Draft(draft.frames, masks, fill)

    def _extended(self, frames: np.ndarray, repainted: Draft | None) -> Draft:
        shares = dict(self.request.extend)
        wide = prepare.extended(frames, **shares)
        if repainted is None:
            return wide
        top, left = int(shares.get("up", 0) * frames.shape[1]), int(shares.get("left", 0) * frames.shape[2])
        inner = (slice(None), slice(top, top + frames.shape[1]), slice(left, left + frames.shape[2]))
        shown, masks, fill = wide.frames.copy(), wide.masks.copy(), wide.fill.copy()
        shown[inner], masks[inner], fill[inner] = repainted.frames, repainted.masks, repainted.fill
        return Draft(shown, masks, fill)


def open_request(
    request: ClipRequest,
    default_size: tuple[int, int],
    limits: ClipLimits | None = None,
    *,
    step_px: int = prepare.STEP_PX,
    most_frames: int = prepare.DEFAULT_FRAMES,
) -> OpenedRequest:
    """Read the files of a request and decide what is made. default_size: the area the model was made for; most_frames:
    of one pass. Raises InputError, one line, for what cannot be made."""
    _check(request)
    width, height = request.size or default_size
    if min(width, height) < step_px or width * height > 4 * default_size[0] * default_size[1]:
        raise ConfigError(f"size {width}x{height} px: the model was made for about {default_size[0]}x{default_size[1]}")
    source = None if request.video is None else open_clip(request.video, limits)
    first, last = (None if path is None else _frames_of(path, limits) for path in (request.first, request.last))
    control = _open_control(request, source, limits)
    base = source.size if source is not None else _size_of(first, last) or (width, height)
    if source is None and control is not None:
        base = control.size
    if request.layout and source is None and first is None:
        base = (width // step_px * step_px, height // step_px * step_px)
    first, last = (None if part is None else _fitted(part, base) for part in (first, last))
    notes = [*(source.notes if source is not None else ())]
    before = 0
    if request.continues and source is not None:
        given = min(source.num_frames, DEFAULT_GIVEN)
        given -= (given - 1) % prepare.STEP_FRAMES
        before = source.num_frames - given
        first = np.stack(list(source.take(range(before, source.num_frames))))
        fps = source.fps
        num_frames = prepare.check_frames(request.frames or most_frames)
        ids: list[int] = []
    else:
        num_frames, ids, fps = _times(request, source or control, most_frames)
    shape = _extended(base, dict(request.extend or ()))
    _, wide, high = prepare.working_size(shape, min(num_frames, most_frames), width * height, most_frames)
    given_frames = sum(len(part) for part in (first, last) if part is not None)
    if given_frames >= num_frames:
        raise ConfigError(f"{given_frames} frames are given and {num_frames} asked for: ask for more with --frames")
    if (first is not None or last is not None or request.layout) and num_frames > most_frames:
        raise ConfigError(f"{num_frames} frames between given ones: at most {most_frames} are made in one pass")
    if request.layout:
        for part in request.layout.split(":"):
            prepare.box_mask(prepare.parse_box(part), base)
    if source is not None and source.sound:
        length = float((num_frames + before) / fps)
        if abs(length - source.seconds) >= 0.06:
            notes.append(
                f"the sound of {source.path.name} is left out: the answer is {length:.2f} s, not {source.seconds:.2f}"
            )
    cuts = (*request.cuts, *[""] * (len(request.references) - len(request.cuts)))
    references = [
        prepare.letterbox(_reference(path, cut), (wide, high))
        for path, cut in zip(request.references, cuts, strict=True)
    ]
    keeps = bool(request.mask and request.control != "layout") or bool(request.extend) or given_frames > 0
    return OpenedRequest(
        request=request,
        source=source,
        ids=tuple(ids),
        size=(wide, high),
        base_size=base,
        keeps=keeps,
        num_frames=num_frames,
        fps=fps,
        windows=plan_windows(num_frames, most_frames, request.overlap),
        references=np.stack(references) if references else np.zeros((0, high, wide, 3), np.float32),
        first=first,
        last=last,
        mask=_open_mask(request, source, limits),
        control=control,
        before=before,
        notes=tuple(notes),
    )


def _extended(size: tuple[int, int], shares: dict[str, float]) -> tuple[int, int]:
    """A size with shares of itself added at its sides."""
    wide, high = size
    added = {side: int(share * (wide if side in ("left", "right") else high)) for side, share in shares.items()}
    return (
        wide + added.get("left", 0) + added.get("right", 0),
        high + added.get("up", 0) + added.get("down", 0),
    )


def _check(request: ClipRequest) -> None:
    """What contradicts itself, before a file is opened."""
    drawn = request.file_of("control") is not None
    if request.video is None:
        needing: dict[str, object] = {"mask": request.mask, "continue": request.continues, "track": request.track}
        needing["extend"] = request.extend and not request.first
        needing["control"] = request.control and not drawn
        for name, value in needing.items():
            if value:
                raise ConditionError(f"--{name} needs a clip: name it with --video")
    if drawn and not Path(request.control).exists() and not Path(request.control).suffix:
        raise ConfigError(
            f"no control is called {request.control!r}: use one of {', '.join((*CONTROLS, 'layout'))}, or name a clip"
        )
    if request.control == "layout" and not request.mask:
        raise ConditionError("--control layout draws the outline of a mask: give one with --mask")
    if request.track and (not request.mask or _is_clip(request)):
        raise MaskError("--track follows a mask of the first frame: give one image or box with --mask")
    if request.extend and (request.control or request.last or request.layout or (request.video and request.first)):
        raise ConfigError("--extend goes with --video, --mask and --reference, or with --first and --reference only")
    if request.continues and (request.control or request.mask or request.extend or request.first or request.layout):
        raise ConfigError("--continue goes with --video, --last and --reference only")
    if request.layout and (request.control or request.video):
        raise ConfigError("--layout goes with --first and --reference only: it is the control itself")
    if request.layout and request.layout.count(":") != 1:
        raise ConfigError("--layout takes two boxes, left,top,right,bottom:left,top,right,bottom")
    if request.grow not in prepare.SHAPES:
        raise ConfigError(f"no mask shape is called {request.grow!r}: use one of {', '.join(prepare.SHAPES)}")
    if not 0 <= request.grow_ratio <= 1:
        raise ConfigError(f"a mask cannot grow by {request.grow_ratio:g} of its box: use 0 to 1")
    if request.grow != "original" and not request.mask:
        raise MaskError("--grow needs a mask: give one with --mask")
    for side, _ in request.extend:
        if side not in SIDES:
            raise ConfigError(f"a clip has no side {side!r}: use {', '.join(SIDES)}")
    if len(request.references) > prepare.MAX_REFERENCES:
        raise ConditionError(f"{len(request.references)} references: at most {prepare.MAX_REFERENCES} are taken")
    if request.frames is not None and request.frames > MOST_FRAMES:
        raise ConfigError(f"{request.frames} frames: at most {MOST_FRAMES} are made")
    if request.fps is not None and not 1 <= request.fps <= 120:
        raise ConfigError(f"{float(request.fps):g} fps: use 1 to 120")
    if request.frames is not None:
        prepare.check_frames(request.frames)


def _is_clip(request: ClipRequest) -> bool:
    """Whether the mask is one for each frame."""
    path = request.file_of("mask")
    return path is not None and (path.is_dir() or is_moving(path))


def _times(request: ClipRequest, source: ClipFile | None, most: int) -> tuple[int, list[int], Fraction]:
    """(frames of the answer, which of the source's they are, their rate)."""
    if source is None:
        return prepare.check_frames(request.frames or most), [], request.fps or DEFAULT_FPS
    ids = list(range(source.num_frames))
    spans, fps = source.spans(), source.fps
    if request.fps is not None or source.variable:
        fps = request.fps or fps
        ids = resampled_ids(source, fps)
        starts = np.arange(len(ids)) / float(fps)
        spans = np.stack([starts, starts + 1 / float(fps)], axis=1)
    whole = (len(ids) - 1) // prepare.STEP_FRAMES * prepare.STEP_FRAMES + 1
    count = request.frames or min(whole, (MOST_FRAMES - 1) // 4 * 4 + 1)
    if count > len(ids):
        raise ConfigError(f"{count} frames of a clip of {len(ids)}: ask for {whole} or fewer, or go on with --continue")
    if count == len(ids):
        return count, ids, fps
    picked, rate = prepare.pick_frames(spans, count)
    return count, [ids[number] for number in picked], rate


def _frames_of(path: Path, limits: ClipLimits | None) -> np.ndarray:
    file = open_clip(path, limits)
    if file.num_frames > prepare.DEFAULT_FRAMES:
        raise ImageError(f"{path.name} has {file.num_frames} frames to start or end with: at most 81 are given")
    return np.stack(list(file.frames()))


def _size_of(first: np.ndarray | None, last: np.ndarray | None) -> tuple[int, int] | None:
    given = first if first is not None else last
    return None if given is None else (given.shape[2], given.shape[1])


def _fitted(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return prepare.resize_cover(frames, size)


def _reference(path: Path, cut: str) -> np.ndarray:
    image = np.asarray(open_image(path).image.convert("RGB"))
    if not cut:
        return image
    return subject(image, prepare.box_mask(prepare.parse_box(cut), (image.shape[1], image.shape[0])))


def _open_mask(
    request: ClipRequest, source: ClipFile | None, limits: ClipLimits | None
) -> np.ndarray | ClipFile | None:
    if not request.mask or source is None:
        return None
    if request.mask.startswith("box:"):
        return prepare.box_mask(prepare.parse_box(request.mask.removeprefix("box:")), source.size)
    path = Path(request.mask)
    if not _is_clip(request):
        mask = np.asarray(read_mask(path, source.size, whole=True).image)
        return np.where(mask > 0, 255, 0).astype(np.uint8)
    masks = open_clip(path, limits)
    if masks.size != source.size or masks.num_frames != source.num_frames:
        raise MaskError(
            f"{path.name} is {masks.num_frames} frames of {masks.size[0]}x{masks.size[1]} px, the clip "
            f"{source.num_frames} of {source.size[0]}x{source.size[1]}: make the mask the clip's size and length"
        )
    return masks


def _open_control(request: ClipRequest, source: ClipFile | None, limits: ClipLimits | None) -> ClipFile | None:
    path = request.file_of("control")
    if path is None:
        return None
    drawn = open_clip(path, limits)
    if source is not None and (drawn.size != source.size or drawn.num_frames != source.num_frames):
        raise ConfigError(
            f"{path.name} is {drawn.num_frames} frames of {drawn.size[0]}x{drawn.size[1]} px, the clip "
            f"{source.num_frames} of {source.size[0]}x{source.size[1]}: make the control the clip's size and length"
        )
    return drawn
