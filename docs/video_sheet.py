"""The contact sheet of docs/video.md: eight tasks on a clip of the world, with noise in place of a model's answer.

    python docs/video_sheet.py docs/images/video.png

What counts is the preparation, the mask and the untouched outside: the noise goes the way of an answer, pasted back
into the source. Each row shows the source, what the model is shown, the mask and the answer, in three frames each.
"""

from __future__ import annotations

import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ace.data.world.clips import world_clip
from ace.video.clips import write_clip
from ace.video.made import paste_frames
from ace.video.request import ClipRequest, open_request
from ace.video.track import track

SIDE, SHOWN = 96, (0, 4, 8)


def cell(frame: np.ndarray) -> Image.Image:
    """A frame as large as fits a cell, on white."""
    image = Image.fromarray(frame)
    image.thumbnail((SIDE, SIDE))
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    canvas.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return canvas


def tasks(folder: Path) -> dict[str, ClipRequest]:
    """Eight requests on one clip."""
    clip = world_clip(2, SIDE, 9)
    write_clip(folder / "clip.mkv", clip.frames, Fraction(16))
    for name, frame in (("first", clip.frames[0]), ("last", clip.frames[-1])):
        Image.fromarray(frame).save(folder / f"{name}.png")
    mask = clip.masks[-1, 0].astype(np.uint8) * 255
    Image.fromarray(mask).save(folder / "mask.png")
    video, first, last = folder / "clip.mkv", folder / "first.png", folder / "last.png"
    rows, columns = np.nonzero(mask)
    box = f"{columns.min()},{rows.min()},{columns.max() + 1},{rows.max() + 1}"
    return {
        "mask, tracked": ClipRequest(video=video, mask=str(folder / "mask.png"), track=True),
        "box, grown": ClipRequest(video=video, mask=f"box:{box}", grow="bbox_expand", grow_ratio=0.5),
        "extend": ClipRequest(video=video, extend=(("left", 0.25), ("right", 0.25))),
        "first and last": ClipRequest(first=first, last=last, frames=9),
        "gray": ClipRequest(video=video, control="gray"),
        "flow": ClipRequest(video=video, control="flow"),
        "layout": ClipRequest(video=video, mask=str(folder / "mask.png"), track=True, control="layout"),
        "reference + mask": ClipRequest(
            video=video, mask=str(folder / "mask.png"), track=True, references=(first,), cuts=(box,)
        ),
    }


def row(request: ClipRequest) -> list[Image.Image]:
    """Source, shown, mask and answer in three frames each, and the reference if there is one."""
    opened = open_request(request, (SIDE, SIDE))
    (draft,) = opened.drafts(lambda: track)
    prepared = opened.prepared(draft, opened.windows[0])
    source = list(opened.source.take(opened.ids)) if opened.source is not None else list(draft.frames)
    noise = np.random.default_rng(0).integers(0, 256, prepared.frames.shape, dtype=np.uint8)
    answer = list(paste_frames(draft, noise)) if opened.keeps else list(noise)
    masks = prepared.masks[..., None].repeat(3, axis=-1)
    cells = [cell(frames[n]) for frames in (source, prepared.frames, masks, answer) for n in SHOWN]
    blank = np.full((SIDE, SIDE, 3), 255, np.uint8)
    cells.append(cell(prepared.references[0].astype(np.uint8) if len(prepared.references) else blank))
    return cells


def main(out: Path) -> None:
    """Draw the sheet."""
    with tempfile.TemporaryDirectory() as name:
        found = {title: row(request) for title, request in tasks(Path(name)).items()}
    gap, left, top = 4, 120, 20
    width = left + 13 * (SIDE + gap) + 3 * 12
    sheet = Image.new("RGB", (width, top + len(found) * (SIDE + gap)), (246, 246, 246))
    draw = ImageDraw.Draw(sheet)
    for group, title in enumerate(("source", "what the model sees", "mask", "answer", "reference")):
        draw.text((left + group * (3 * (SIDE + gap) + 12), 4), title, fill="black")
    for number, (title, cells) in enumerate(found.items()):
        y = top + number * (SIDE + gap)
        draw.text((6, y + SIDE // 2 - 6), title, fill="black")
        for place, one in enumerate(cells):
            sheet.paste(one, (left + place * (SIDE + gap) + 12 * (place // 3), y))
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
