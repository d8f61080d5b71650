"""`ace video`: clips from words, clips, masks and references.

Everything that is asked for is opened and checked before torch is imported.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.options import Json, Quiet, takes_options
from ace.cli.terminal import Output, Verbs, short
from ace.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from ace.video.request import ClipRequest, OpenedRequest


class _VideoVerbs(Verbs):
    """`ace video WORDS` is `ace video make WORDS`: what is no verb is an instruction."""

    def resolve_command(self, ctx, args):
        """The verb, else `make`."""
        if args and args[0] not in self.commands:
            args = ["make", *args]
        return super().resolve_command(ctx, args)


video = typer.Typer(
    cls=_VideoVerbs,
    help="Create and edit clips from instructions (VACE models). `ace video WORDS` is `ace video make WORDS`.",
    no_args_is_help=True,
)

Clip = Annotated[
    Path | None,
    typer.Option("--video", metavar="CLIP", help="Clip, animation or folder of frames to edit.", show_default=False),
]
Control = Annotated[
    str,
    typer.Option(
        "--control",
        metavar="NAME|CLIP",
        help="Follow the clip's depth, pose, gray, scribble, flow or (with --mask) layout; or a control drawn already.",
        show_default=False,
    ),
]
Mask = Annotated[
    str,
    typer.Option(
        "--mask",
        metavar="FILE|box:L,T,R,B",
        help="What may change: an image or clip, white there, or a box in px. Everything else stays as it is.",
        show_default=False,
    ),
]
Track = Annotated[bool, typer.Option("--track", help="The mask is of the first frame: follow what it selects.")]
Grow = Annotated[
    str,
    typer.Option(
        "--grow",
        metavar="SHAPE[:SHARE]",
        help="Make the mask coarser: original_expand, hull, hull_expand, bbox or bbox_expand; :0.3 = by 30 %.",
        show_default=False,
    ),
]
Extend = Annotated[
    str,
    typer.Option(
        "--extend",
        metavar="SIDE=SHARE,…",
        help="Make room around the clip, for example left=0.25,right=0.25 (also up, down).",
        show_default=False,
    ),
]
First = Annotated[
    Path | None, typer.Option("--first", metavar="FILE", help="Image or clip to start with.", show_default=False)
]
Last = Annotated[
    Path | None, typer.Option("--last", metavar="FILE", help="Image or clip to end with.", show_default=False)
]
Continue = Annotated[bool, typer.Option("--continue", help="Go on where the clip ends.")]
References = Annotated[
    list[Path] | None,
    typer.Option(
        "--reference", "-i", metavar="IMAGE", help="Image of a subject that appears; repeatable.", show_default=False
    ),
]
Layout = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="L,T,R,B:L,T,R,B",
        help="A box that moves from one place towards another, in px.",
        show_default=False,
    ),
]
Label = Annotated[
    str,
    typer.Option(
        "--label",
        metavar="LABEL@FILE",
        help="Colour of layouts: a label, and the published list of colours that it is in.",
        show_default=False,
    ),
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", help="Frames of the answer, 4n+1. Default: the clip's, else 81.", show_default=False),
]
Rate = Annotated[
    str | None,
    typer.Option("--fps", help="Frames per second. Default: the clip's, else 16.", show_default=False),
]
Area = Annotated[
    str | None,
    typer.Option("--size", metavar="480p|720p|WxH", help="Area the model works at. Default: 480p.", show_default=False),
]
Overlap = Annotated[int, typer.Option("--overlap", help="Frames shared by the windows of a long clip, 4n+1.")]


@dataclass(frozen=True)
class Source:
    """What every verb about a clip is told alike."""

    video: Clip = None
    control: Control = ""
    mask: Mask = ""
    track: Track = False
    grow: Grow = ""
    extend: Extend = ""
    first: First = None
    last: Last = None
    continues: Continue = False
    reference: References = None
    layout: Layout = ""
    label: Label = ""
    frames: Frames = None
    fps: Rate = None
    size: Area = None
    overlap: Overlap = 5

    def request(self) -> ClipRequest:
        """As a request. Raises ConfigError for words that mean nothing."""
        from ace.video.request import ClipRequest

        shape, _, ratio = self.grow.partition(":")
        return ClipRequest(
            video=self.video,
            control=self.control,
            mask=self.mask,
            track=self.track,
            grow=shape or "original",
            grow_ratio=0.3 if not ratio else _number(ratio, "--grow"),
            extend=_sides(self.extend),
            first=self.first,
            last=self.last,
            continues=self.continues,
            references=tuple(self.reference or ()),
            layout=self.layout,
            color=_color(self.label),
            frames=self.frames,
            fps=None if self.fps is None else _rate(self.fps),
            size=read_clip_size(self.size),
            overlap=self.overlap,
        )


def read_clip_size(text: str | None) -> tuple[int, int] | None:
    """ "480p", "720p" or "WxH". Raises ConfigError."""
    from ace.cli.options import read_size
    from ace.video.prepare import SIZES

    return SIZES[text] if text in SIZES else read_size(text)


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is no number") from None


def _rate(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"--fps: {text!r} is no rate: use for example 16, 23.976 or 30000/1001") from None


def _sides(text: str) -> tuple[tuple[str, float], ...]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    if len({side for side, _, _ in pairs}) < len(pairs) or any(not share for _, _, share in pairs):
        raise ConfigError("--extend names each side once, for example left=0.25,right=0.25")
    return tuple((side.strip(), _number(share, "--extend")) for side, _, share in pairs)


def _color(label: str) -> tuple[int, int, int]:
    from ace.video.prepare import read_label_colors

    if not label:
        return (0, 0, 0)
    name, separator, file = label.partition("@")
    try:
        colors = read_label_colors(Path(file).read_text(encoding="utf-8")) if separator else {}
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"the colours of labels cannot be read from {Path(file).name}: check the path") from None
    if name not in colors:
        raise ConfigError(
            f"no colour is known for {name!r}: name the published list, --label {name}@ram_tag_color_list.txt"
        )
    return colors[name]


@video.command("prepare")
@takes_options(Source)
def prepare(
    source: Source,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="New folder for what is made.", show_default=False)
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write source, mask and references as the model sees them: src_video.mkv, src_mask.mkv, src_ref_image_N.png.

    \b
    ace video prepare --video clip.mp4 --control depth -o prepared
    ace video prepare --video clip.mp4 --mask box:40,60,200,220 --track -o prepared
    ace video prepare --first a.png --last b.png --frames 81 -o prepared
    """
    from ace.video.prepare import SIZES
    from ace.video.request import open_request

    output = Output(json, quiet)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out.name} holds other files: name a new or empty folder")
    opened = open_request(source.request(), SIZES["480p"])
    with output.progress("preparing") as tell:
        report = write_prepared(opened, out, tell)
    output.data(report)
    for note in opened.notes:
        output.say(note)
    output.say(
        f"{short(out)}  {report['num_frames']} frames of {report['size_px'][0]}x{report['size_px'][1]} px at "
        f"{report['fps']:.4g} fps, {len(report['references'])} references, {report['num_windows']} window(s)"
    )


def write_prepared(opened: OpenedRequest, folder: Path, tell) -> dict:
    """What each window shows, as files; the frames that a window is given of the one before are the source's here."""
    from PIL import Image

    from ace.video.clips import write_clip

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder.name} cannot be made ({error.strerror}): choose another") from None
    made = []
    for number, (window, draft) in enumerate(zip(opened.windows, opened.drafts(), strict=True)):
        prepared = opened.prepared(dataclasses.replace(draft), dataclasses.replace(window, given=0))
        ending = "" if len(opened.windows) == 1 else f"_{number}"
        video, mask = folder / f"src_video{ending}.mkv", folder / f"src_mask{ending}.mkv"
        write_clip(video, prepared.frames, opened.fps)
        write_clip(mask, (one[..., None].repeat(3, axis=2) for one in prepared.masks), opened.fps)
        made.append({"video": str(video), "mask": str(mask), "start": window.start, "given": window.given})
        tell(number + 1, len(opened.windows), "preparing")
    references = []
    for number, reference in enumerate(opened.references):
        path = folder / f"src_ref_image_{number}.png"
        Image.fromarray(reference.round().astype("uint8")).save(path)
        references.append(str(path))
    return {
        "windows": made,
        "references": references,
        "num_frames": opened.num_frames,
        "num_windows": len(opened.windows),
        "size_px": list(opened.size),
        "fps": float(opened.fps),
        "notes": list(opened.notes),
    }
