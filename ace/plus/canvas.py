"""Canvas rules of ACE++ (arXiv 2501.02487): references and the picture to edit side by side in one picture.

A FLUX Fill model sees one canvas: the references with mask 0, the target (the edited picture, or an empty field) with
its mask. `arrange` is our geometry: any number of references, each with a place and a size rule, every panel in whole
cells, so that the target is cut out exactly where it lies. `prepare_published` is the original's, step by step, for its
weights and its ComfyUI nodes: one reference on the left, everything scaled at once, a 30 px margin cut off.

No torch here: arrays are numpy, channels first. Not here: latents, tokens, the packing of masks
(`ace/plus/inputs.py`), pasting back (`ace/inference/preserve.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from ace.conditions.images import MASK_THRESHOLD, PUBLISHED_MAX_ASPECT, fit_size, prepare_image, prepare_mask
from ace.conditions.prompt import check_references, referenced_images
from ace.errors import ConditionError, ConfigError, ImageError, MaskError

CELL_PX = 16
MARGIN_PX = 30  # the original drops so much beside the seam
MARGIN_CELLS = 2  # ours, of generated pictures only: an edited picture stays where it is
MIN_SEQ_LENGTH, MAX_SEQ_LENGTH = 1024, 5120  # cells of a canvas that the original offers; 4096 is its default
MAX_REFERENCES = 9
LEAST_TARGET_SHARE = 1 / 8  # of the budget: with less, the references are too wide

Place = Literal["left", "right", "above", "below"]
Fit = Literal["align", "keep"]
PLACES: tuple[Place, ...] = ("left", "right", "above", "below")
Box = tuple[int, int, int, int]  # left, top, right, bottom in px


@dataclass(frozen=True)
class Reference:
    """A picture to take something from.

    image: RGB. place: on which side of the target it stands; several on one side stand in the order given, seen from
    the left (from the top). fit: "align" gives it the target's height (above and below: its width), "keep" never
    enlarges it: at most `rate` of that, on grey. Raises ConfigError for anything else."""

    image: Image.Image
    place: Place = "left"
    fit: Fit = "align"
    rate: float = 0.8

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ConfigError(f"place {self.place!r} of a reference: use {', '.join(PLACES)}")
        if self.fit not in ("align", "keep") or not 0 < self.rate <= 1:
            raise ConfigError(f"fit {self.fit!r}, rate {self.rate:g} of a reference: use align, or keep and 0 to 1")


@dataclass(frozen=True)
class Canvas:
    """What a FLUX Fill model reads, and where its answer is.

    content: float32 (3, H, W) in [-1, 1], 0 = grey: the canvas to encode. mask: float32 (1, H, W), 1 = make anew.
    change: what the mask hides of the edited picture, for models with change channels, else None. target: the box of
    the answer. output_size: (width, height) of the answer. references: the boxes of the references, in order."""

    content: np.ndarray
    mask: np.ndarray
    change: np.ndarray | None
    target: Box
    output_size: tuple[int, int]
    references: tuple[Box, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in px."""
        return self.content.shape[2], self.content.shape[1]

    @property
    def num_cells(self) -> int:
        """Tokens of the canvas."""
        return self.content.shape[1] * self.content.shape[2] // CELL_PX**2

    def cut(self, picture: Image.Image) -> Image.Image:
        """The answer out of a generated canvas, at `output_size` (bicubic)."""
        answer = picture if self.target == (0, 0, *picture.size) else picture.crop(self.target)
        if answer.size == self.output_size:
            return answer
        return answer.resize(self.output_size, Image.Resampling.BICUBIC)


def check_seq_length(cells: int) -> None:
    """Raise ConfigError for a canvas budget that the models were not made for."""
    if not MIN_SEQ_LENGTH <= cells <= MAX_SEQ_LENGTH:
        raise ConfigError(
            f"max_seq_length {cells}: use {MIN_SEQ_LENGTH} (little memory, less detail) to {MAX_SEQ_LENGTH}"
        )


def arrange(
    edit: Image.Image | None,
    mask: Image.Image | None,
    references: Sequence[Reference] = (),
    *,
    size: tuple[int, int] = (1024, 1024),
    repainting_scale: float = 1.0,
    use_change: bool = False,
    max_seq_length: int = 4096,
) -> Canvas:
    """Lay out a canvas of at most `max_seq_length` cells of 16 px; nothing is cropped, nothing enlarged.

    edit: RGB, or None to make a new picture of `size` (width, height). mask: "L" of the edited picture's size, above
    128 = change, or None for all of it. references: around the target, see `Reference`. repainting_scale: how much of
    the old picture the model does not see inside the mask: 1 all, 0 nothing. use_change: split off the masked part.
    Raises MaskError, ImageError (a side over 16 times the other, references that leave the target too little room) or
    ConfigError."""
    if len(references) > MAX_REFERENCES:
        raise ConditionError(f"{len(references)} references: at most {MAX_REFERENCES} fit on a canvas")
    if not 0 <= repainting_scale <= 1:
        raise ConfigError(f"repainting_scale {repainting_scale:g}: use 0 (show the old picture) to 1 (hide it)")
    if max_seq_length < 4:
        raise ConfigError(f"max_seq_length {max_seq_length}: use {MIN_SEQ_LENGTH} to {MAX_SEQ_LENGTH}")
    if mask is not None and edit is None:
        raise MaskError("a mask needs the picture that it belongs to: name the picture to edit")
    if mask is not None and edit is not None and mask.size != edit.size:
        raise MaskError(
            f"the mask is {mask.width}x{mask.height} px, the picture {edit.width}x{edit.height} px: "
            "make the mask the size of the picture"
        )
    wanted = size if edit is None else edit.size
    if min(wanted) < 1:
        raise ConfigError(f"size {wanted[0]}x{wanted[1]} px: give both sides in px, for example 1024x1024")

    plan = _Plan(wanted, references, margin=edit is None)
    scale = plan.scale_for(max_seq_length)
    while (grid := plan.grid(scale)).num_cells > max_seq_length:
        scale *= 0.99
        if grid.target_size == (CELL_PX, CELL_PX):
            raise ImageError(_too_wide(references, max_seq_length))
    target_cells = grid.target_size[0] * grid.target_size[1] / CELL_PX**2
    if references and scale < 1 and target_cells < max_seq_length * LEAST_TARGET_SHARE:
        raise ImageError(_too_wide(references, max_seq_length))

    content = np.zeros((3, grid.height, grid.width), dtype=np.float32)
    change_mask = np.zeros((1, grid.height, grid.width), dtype=np.float32)
    left, top, right, bottom = grid.target
    change_mask[:, top:bottom, left:right] = prepare_mask(mask, grid.target_size)
    if edit is not None:
        content[:, top:bottom, left:right] = prepare_image(edit, grid.target_size)
        content *= 1 - change_mask * np.float32(repainting_scale)
    for reference, box, (width, height) in zip(references, grid.references, grid.reference_sizes, strict=True):
        x = box[0] + (box[2] - box[0] - width) // 2
        y = box[1] + (box[3] - box[1] - height) // 2
        content[:, y : y + height, x : x + width] = prepare_image(reference.image, (width, height))
    change = None
    if use_change:
        change, content = content * change_mask, content * (1 - change_mask)
    return Canvas(content, change_mask, change, grid.answer, wanted, grid.references)


@dataclass(frozen=True)
class _Grid:
    """A layout in px, every panel of whole cells. target: with its margin; answer: without; reference_sizes: of the
    pictures within their boxes."""

    width: int
    height: int
    target: Box
    answer: Box
    references: tuple[Box, ...]
    reference_sizes: tuple[tuple[int, int], ...]

    @property
    def num_cells(self) -> int:
        return self.width * self.height // CELL_PX**2

    @property
    def target_size(self) -> tuple[int, int]:
        return self.target[2] - self.target[0], self.target[3] - self.target[1]


@dataclass(frozen=True)
class _Plan:
    """The target's size in px and what stands around it; `grid` lays it out at a scale."""

    size: tuple[int, int]
    references: Sequence[Reference]
    margin: bool

    def scale_for(self, budget: int) -> float:
        """The scale at which everything fits into so many cells but for rounding, at most 1."""
        whole = self.grid(1.0)
        return min(1.0, math.sqrt(budget / whole.num_cells))

    def grid(self, scale: float) -> _Grid:
        cells = max(1, math.floor(self.size[0] * self.size[1] * scale * scale / CELL_PX**2 + 1e-9))
        width, height = fit_size(*self.size, max(cells, 1), CELL_PX)
        sides = {place: [n for n, r in enumerate(self.references) if r.place == place] for place in PLACES}
        edge = {place: MARGIN_CELLS * CELL_PX if self.margin and sides[place] else 0 for place in PLACES}
        panel = (width + edge["left"] + edge["right"], height + edge["above"] + edge["below"])

        sizes: dict[int, tuple[int, int]] = {}
        depths: dict[int, int] = {}
        for n in (*sides["left"], *sides["right"]):
            sizes[n] = _fitted(self.references[n], height=panel[1], scale=scale)
            depths[n] = _whole_cells(sizes[n][0], self.references[n].fit)
        row = panel[0] + sum(depths[n] for n in (*sides["left"], *sides["right"]))
        for n in (*sides["above"], *sides["below"]):
            sizes[n] = _fitted(self.references[n], width=row, scale=scale)
            depths[n] = _whole_cells(sizes[n][1], self.references[n].fit)
        boxes: dict[int, Box] = {}
        top = 0
        for n in sides["above"]:
            boxes[n] = (0, top, row, top + depths[n])
            top += depths[n]
        left = 0
        for n in sides["left"]:
            boxes[n] = (left, top, left + depths[n], top + panel[1])
            left += depths[n]
        target = (left, top, left + panel[0], top + panel[1])
        left += panel[0]
        for n in sides["right"]:
            boxes[n] = (left, top, left + depths[n], top + panel[1])
            left += depths[n]
        top += panel[1]
        for n in sides["below"]:
            boxes[n] = (0, top, row, top + depths[n])
            top += depths[n]
        for n, reference in enumerate(self.references):  # an aligned picture fills its cells
            if reference.fit == "align":
                left, upper, right, lower = boxes[n]
                sizes[n] = (right - left, lower - upper)
        answer = (target[0] + edge["left"], target[1] + edge["above"])
        order = range(len(self.references))
        return _Grid(
            row,
            top,
            target,
            (*answer, answer[0] + width, answer[1] + height),
            tuple(boxes[n] for n in order),
            tuple(sizes[n] for n in order),
        )


def _fitted(
    reference: Reference, *, scale: float, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """The size of a reference's picture beside a target of this height (or above one of this width)."""
    native = reference.image.size
    along = native[1] if height is not None else native[0]
    room = height if height is not None else width
    assert room is not None
    side = float(room) if reference.fit == "align" else min(room * reference.rate, along * scale)
    factor = side / along
    fitted = max(1, round(native[0] * factor)), max(1, round(native[1] * factor))
    return (fitted[0], min(fitted[1], room)) if height is not None else (min(fitted[0], room), fitted[1])


def _whole_cells(side: int, fit: Fit) -> int:
    cells = side / CELL_PX
    return max(1, math.ceil(cells) if fit == "keep" else round(cells)) * CELL_PX


def _too_wide(references: Sequence[Reference], budget: int) -> str:
    number, widest = max(enumerate(references, 1), key=lambda pair: _aspect(pair[1]))
    return (
        f"reference {number} ({widest.image.width}x{widest.image.height} px) leaves the picture too little of a canvas "
        f"of {budget} cells: crop it, place it {'above' if widest.place in ('left', 'right') else 'left'}, "
        "or raise max_seq_length"
    )


def _aspect(reference: Reference) -> float:
    width, height = reference.image.size
    return width / height if reference.place in ("left", "right") else height / width


# Names of pictures in the instruction

_NAME = re.compile(r"\{image(\d*)\}")
_COUNT = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_SIDE = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}


def name_places(instruction: str, references: Sequence[Reference], has_edit: bool) -> str:
    """The instruction with the names of its pictures in words of place, for a model that sees one canvas.

    `{image}`, `{image1}`, … are, as everywhere, the pictures in order: the edited one first, if there is one, then the
    references. An instruction that names `{image}` only stays as it is: the published models know that word.
    Raises ConditionError for a name without a picture."""
    check_references(instruction, max(1, len(references) + has_edit))
    if not any(referenced_images(instruction)):
        return instruction

    def words(match: re.Match[str]) -> str:
        number = int(match.group(1) or 0) - has_edit
        if number < 0:
            return "the picture to edit"
        place = references[number].place
        same = [n for n, reference in enumerate(references) if reference.place == place]
        count = "" if len(same) == 1 else f"{_COUNT[same.index(number)]} "
        return f"the {count}picture {_SIDE[place]}"

    return _NAME.sub(words, instruction)


# The original's geometry


def prepare_published(
    reference: Image.Image | None,
    edit: Image.Image | None,
    mask: Image.Image | None,
    *,
    size: tuple[int, int] = (1024, 1024),
    repainting_scale: float = 1.0,
    keep_pixels: bool = False,
    keep_pixels_rate: float = 0.8,
    use_change: bool = False,
    max_seq_length: int = 4096,
) -> Canvas:
    """The original's canvas, step by step: centre crop over 4 to 1, reference on the left at the edited picture's
    height (keep_pixels: at most `keep_pixels_rate` of it, on grey), everything scaled to the budget by nearest
    neighbour, and 30 px beside the seam left out of the answer.

    reference, edit: RGB; mask: "L" of the edited picture's size. Raises MaskError or ImageError, also where the
    original stops with an error of its own (a mask beside a picture of over 4 to 1, a side under one cell)."""
    mask_array = None
    if edit is not None and mask is not None:
        mask_array = (np.asarray(mask.convert("L")) > MASK_THRESHOLD).astype(np.float32)[None]
    canvas, seam = published_canvas(
        None if reference is None else _to_array(reference),
        None if edit is None else _to_array(edit),
        mask_array,
        size=size,
        repainting_scale=repainting_scale,
        keep_pixels=keep_pixels,
        keep_pixels_rate=keep_pixels_rate,
        use_change=use_change,
        max_seq_length=max_seq_length,
    )
    if seam == 0:  # returned as it comes, of whole cells
        return canvas
    width, height = canvas.size
    if seam + MARGIN_PX >= width:
        raise ImageError("the reference leaves no room for the picture: crop the reference")
    return Canvas(
        canvas.content,
        canvas.mask,
        canvas.change,
        (seam + MARGIN_PX, 0, width, height),
        canvas.output_size,
        canvas.references,
    )


def published_canvas(
    reference: np.ndarray | None,
    edit: np.ndarray | None,
    mask: np.ndarray | None,
    *,
    size: tuple[int, int],
    repainting_scale: float,
    keep_pixels: bool,
    keep_pixels_rate: float,
    use_change: bool,
    max_seq_length: int,
) -> tuple[Canvas, int]:
    """The same for arrays (3, h, w) in [-1, 1] and a mask (1, h, w) of 0 and 1: (canvas, seam in px, 0 = none).

    The seam is rounded down to a cell, as published; the reference's box ends where it really is. Without a reference
    the output size is the canvas's own."""
    reference = None if reference is None else _crop_aspect(reference)
    if edit is None:
        edit = np.zeros((3, size[1], size[0]), dtype=np.float32)
        mask = np.ones((1, size[1], size[0]), dtype=np.float32)
    else:
        edit = _crop_aspect(edit)
        if mask is None or not mask.any():
            mask = np.ones((1, *edit.shape[1:]), dtype=np.float32)
        if mask.shape[1:] != edit.shape[1:]:
            raise MaskError(
                f"the mask is {mask.shape[2]}x{mask.shape[1]} px, the picture (at most 4 to 1) "
                f"{edit.shape[2]}x{edit.shape[1]} px: crop both alike"
            )
    content = edit * (1 - mask * np.float32(repainting_scale))
    height, width = content.shape[1:]
    seam = 0
    if reference is not None:
        panel = _fit_published(reference, height, keep_pixels, keep_pixels_rate)
        content = np.concatenate([panel, content], axis=2)
        mask = np.concatenate([np.zeros((1, *panel.shape[1:]), dtype=np.float32), mask], axis=2)
        seam = panel.shape[2]
    rows, columns = content.shape[1:]
    scale = min(1.0, math.sqrt(max_seq_length / ((rows / CELL_PX) * (columns / CELL_PX))))
    new_rows, new_columns = (int(side * scale) // CELL_PX * CELL_PX for side in (rows, columns))
    seam = int(seam * scale) // CELL_PX * CELL_PX
    if new_rows == 0 or new_columns == 0:
        raise ImageError(f"the canvas of {columns}x{rows} px has a side under {CELL_PX} px at this budget: crop it")
    content, mask = (_nearest(array, new_rows, new_columns) for array in (content, mask))
    change = None
    if use_change:
        change, content = content * mask, content * (1 - mask)
    boxes = ((0, 0, round((columns - width) * new_columns / columns), new_rows),) if columns > width else ()
    output_size = (width, height) if seam else (new_columns, new_rows)
    return Canvas(content, mask, change, (seam, 0, new_columns, new_rows), output_size, boxes), seam


def _fit_published(reference: np.ndarray, height: int, keep_pixels: bool, rate: float) -> np.ndarray:
    rows, columns = reference.shape[1:]
    if not keep_pixels:
        return _bilinear(reference, height, int(columns * height / rows))
    if rows >= rate * height:
        new_rows = int(height * rate)
        reference = _bilinear(reference, new_rows, int(columns * new_rows / rows))
    missing = height - reference.shape[1]
    return np.pad(reference, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)))


def _crop_aspect(array: np.ndarray) -> np.ndarray:
    """The middle of a picture of over 4 to 1 (half pixels to the even side, as the original's library does)."""
    height, width = array.shape[1:]
    if height / width > PUBLISHED_MAX_ASPECT:
        rows = int(PUBLISHED_MAX_ASPECT * width)
        top = round((height - rows) / 2)
        return array[:, top : top + rows]
    if width / height > PUBLISHED_MAX_ASPECT:
        columns = int(PUBLISHED_MAX_ASPECT * height)
        left = round((width - columns) / 2)
        return array[:, :, left : left + columns]
    return array


def _bilinear(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear with antialias, without clamping; (C, H, W) float32."""
    channels = [Image.fromarray(np.ascontiguousarray(channel)) for channel in array]
    return np.stack([np.asarray(c.resize((columns, rows), Image.Resampling.BILINEAR)) for c in channels])


def _nearest(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Nearest neighbour by pixel centres ("nearest-exact"); (C, H, W)."""
    down, across = (
        np.minimum(((np.arange(new) + 0.5) * (old / new)).astype(np.int64), old - 1)
        for new, old in ((rows, array.shape[1]), (columns, array.shape[2]))
    )
    return np.ascontiguousarray(array[:, down][:, :, across])


def _to_array(image: Image.Image) -> np.ndarray:
    return prepare_image(image, image.size)
