"""`ace video`: clips from words, clips, masks and references.

Everything that is asked for is opened and checked before torch is imported.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.options import (
    Device,
    Guidance,
    Json,
    Lora,
    Memory,
    Model,
    NoMetadata,
    NumberType,
    Quantize,
    Quiet,
    Seed,
    Steps,
    check_numbers,
    takes_options,
)
from ace.cli.terminal import Output, Verbs, count_of, short
from ace.errors import ConditionError, ConfigError, OutputError

if TYPE_CHECKING:
    from ace.conversation import Job, Loading, Made, Settings
    from ace.families.video import VideoFamily
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

Instruction = Annotated[str, typer.Argument(help="What the clip shows, or what to change.", show_default=False)]
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
    list[str] | None,
    typer.Option(
        "--reference",
        "-i",
        metavar="IMAGE[@box:L,T,R,B]",
        help="Image of a subject that appears, or the part of it in a box, on white; repeatable.",
        show_default=False,
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
class ClipOptions:
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
        cuts = tuple(text.partition("@box:")[2] for text in self.reference or ())
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
            references=tuple(Path(text.partition("@box:")[0]) for text in self.reference or ()),
            cuts=cuts if any(cuts) else (),
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


Negative = Annotated[
    str, typer.Option("--negative", "--avoid", metavar="TEXT", help="What to avoid.", show_default=False)
]
ClipOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE|FOLDER",
        help="Output: .mp4 (H.264), .mkv (FFV1, lossless) or a folder for PNG files.",
        show_default=False,
    ),
]
Lossless = Annotated[bool, typer.Option("--lossless", help="Refuse an output format that loses anything.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say frames, tokens, memory and time; make nothing.")]
Shift = Annotated[
    float | None,
    typer.Option("--shift", help="Shift of the schedule. Default: the model folder's own.", show_default=False),
]
Strength = Annotated[
    float | None,
    typer.Option("--strength", help="Strength of clip, mask and references. Default: 1.", show_default=False),
]


@dataclass(frozen=True)
class MakingOptions:
    """How a clip is made."""

    out: ClipOut = None
    seed: Seed = None
    steps: Steps = None
    guidance: Guidance = None
    negative: Negative = ""
    shift: Shift = None
    strength: Strength = None
    model: Model = None
    lora: Lora = None
    quantize: Quantize = None
    device: Device = "auto"
    dtype: NumberType = "auto"
    memory: Memory = "auto"
    lossless: Lossless = False
    no_metadata: NoMetadata = False
    dry_run: DryRun = False
    json: Json = False
    quiet: Quiet = False

    def family(self) -> tuple[VideoFamily, Loading]:
        """The model asked for and how it is loaded. Raises InputError."""
        from ace.conversation import Loading
        from ace.families import find_family
        from ace.families.video import VideoFamily

        loading = Loading(
            device=self.device,
            dtype=self.dtype,
            memory=self.memory,
            adapters=tuple(self.lora or ()),
            quantize=self.quantize,
        )
        family = find_family(self.model, loading)
        if not isinstance(family, VideoFamily):
            raise ConfigError(
                f"{family.name} makes images: name a VACE model with --model (folder, hf:// or $ACE_MODEL)"
            )
        return family, loading

    def settings(self) -> Settings:
        """As settings of a job. Raises ConfigError."""
        from ace.conversation import Settings
        from ace.conversation.seeds import read_seed

        check_numbers(self.steps, self.guidance)
        own = {"shift": self.shift, "strength": self.strength}
        return Settings(
            seed=read_seed(self.seed),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            negative_instruction=self.negative,
            options={name: value for name, value in own.items() if value is not None},
        )


@video.command("make")
@takes_options(MakingOptions)
@takes_options(ClipOptions)
def make_clip(
    instruction: Instruction,
    clip: ClipOptions,
    asked: MakingOptions,
) -> None:
    """Create or edit a clip.

    \b
    ace video make "a cat walks through snow" -o cat.mp4    # or without `make`
    ace video "make it night" --video clip.mp4 --control depth -o night.mp4
    ace video "a dog instead" --video clip.mp4 --mask box:40,60,200,220 --track -o dog.mkv
    ace video "a wide beach" --video clip.mp4 --extend left=0.25,right=0.25
    ace video "it starts to rain" --video clip.mp4 --continue
    ace video "the logo on a mug" --reference logo.png --first mug.png
    """
    make(instruction, clip.request(), asked)


def make(instruction: str, request: ClipRequest, asked: MakingOptions) -> None:
    """Open, check, make and write one clip. Raises InputError before anything is loaded."""
    from ace.conversation import open_job
    from ace.conversation.job import clip_job
    from ace.video.clips import check_clip_output

    if not instruction.strip():
        raise ConditionError("the instruction is empty: say what the clip shows")
    output = Output(asked.json, asked.quiet)
    family, loading = asked.family()
    out = asked.out or _free_name("clip.mkv" if asked.lossless else "clip.mp4")
    check_clip_output(out, asked.lossless)
    if any(out.resolve() == path.resolve() for path in request.files()):
        raise OutputError(f"{out.name} is one of the inputs: write the result somewhere else")
    job = open_job(family, clip_job(instruction, asked.settings(), request))
    if asked.dry_run:
        _tell_cost(family, job, loading, output)
        return
    work = out.with_name(f".{out.name}.windows")
    family.work = work
    made = _run(family, loading, job, output)
    made = _write(made, out, not asked.no_metadata)
    _report(made, out, output)
    shutil.rmtree(work, ignore_errors=True)


def _run(family: VideoFamily, loading: Loading, job: Job, output: Output) -> Made:
    """Load the model and make the clip, with progress."""
    from ace.cli.making import load_family
    from ace.conversation import make as make_jobs

    with output.progress(f"loading {family.name}") as tell:
        load_family(family, loading, output, tell)
        (made,) = make_jobs(family, [job], lambda now: tell(now.step, now.total, "denoising"))
    return made


def _write(made: Made, out: Path, metadata: bool) -> Made:
    """Write the clip, whole or not at all, and its recipe beside it."""
    from ace.conversation.media import write
    from ace.files import write_atomically
    from ace.video.clips import check_clip_output, keeps_sound, write_folder

    file_format = check_clip_output(out)
    sound = made.content.sound
    if sound is not None and not keeps_sound(sound, file_format):
        note = f"the sound of {sound.name} is left out: {file_format} cannot hold it as it is, write .mkv"
        made = dataclasses.replace(made, notes=(*made.notes, note))
    if file_format == "PNG":
        write_folder(out, made.content.frames)
    else:
        made = write(made, out, metadata=metadata)
    if metadata:
        write_atomically(out.with_name(f"{out.name}.json"), made.recipe.to_json().encode())
    return made


def _report(made: Made, out: Path, output: Output) -> None:
    clip, recipe = made.content, made.recipe
    height, width = next(iter(clip.frames)).shape[:2]
    count = len(clip.frames)
    output.data(
        {
            "file": str(out),
            "size_px": [width, height],
            "num_frames": count,
            "fps": float(clip.fps),
            "seed": recipe.seed,
            "num_inference_steps": recipe.num_inference_steps,
            "guidance_scale": recipe.guidance_scale,
            "model": recipe.model,
            "model_sha256": recipe.model_sha256,
            "sound": clip.sound is not None,
            "notes": list(made.notes),
        }
    )
    output.say(
        f"{short(out)}  {count_of(count, 'frame')} of {width}x{height} px at {float(clip.fps):.4g} fps, seed "
        f"{recipe.seed}, {count_of(recipe.num_inference_steps, 'step')}, {recipe.model}"
    )
    for note in made.notes:
        output.say(f"  {note}")


def _tell_cost(family: VideoFamily, job: Job, loading: Loading, output: Output) -> None:
    """Frames, tokens, memory and time on this machine, before anything is loaded."""
    from ace.model.devices import find_device
    from ace.model.sizes import BYTES, GB, LIBRARIES, free_memory, weight_bytes
    from ace.video.request import OpenedRequest

    opened, cost, device = job.clip, family.cost(job), find_device(loading.device)
    assert isinstance(opened, OpenedRequest)
    dtype = ("float32" if device == "cpu" else "bfloat16") if loading.dtype == "auto" else loading.dtype
    weights = sum(weight_bytes(family.files.folder / part, BYTES[dtype]) for part in family.files.parts)
    needed = weights + LIBRARIES + cost.num_bytes
    rate = _operations_per_second(device, dtype)
    seconds = cost.operations / rate
    output.data(
        {
            "num_frames": opened.num_frames,
            "size_px": list(opened.size),
            "num_windows": len(opened.windows),
            "tokens": cost.image_tokens + cost.target_tokens,
            "num_bytes": int(needed),
            "free_bytes": int(free_memory()),
            "seconds": seconds,
            "notes": list(opened.notes),
        }
    )
    output.say(
        f"{opened.num_frames} frames of {opened.size[0]}x{opened.size[1]} px at {float(opened.fps):.4g} fps in "
        f"{count_of(len(opened.windows), 'window')}, {cost.image_tokens + cost.target_tokens} tokens each, "
        f"{count_of(cost.num_steps, 'step')}"
    )
    output.say(f"memory: about {needed / GB:.1f} GB, {free_memory() / GB:.1f} GB are free")
    output.say(
        f"time: about {_duration(seconds)} on this machine ({rate / 1e12:.2g} TFLOP/s measured), without decoding"
    )
    for note in opened.notes:
        output.say(note)


def _operations_per_second(device: str, dtype: str) -> float:
    """What a product of two matrices reaches here, in operations per second: an upper bound of what a model does."""
    import time

    import torch

    side = 512 if device == "cpu" else 8192
    matrix = torch.ones((side, side), device=device, dtype=getattr(torch, dtype))
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        (matrix @ matrix).sum().item()
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _free_name(name: str) -> Path:
    path, number = Path(name), 2
    while path.exists():
        path = Path(f"{Path(name).stem}-{number}{Path(name).suffix}")
        number += 1
    return path


compose = typer.Typer(cls=Verbs, help="The five compositions of the published guide.", no_args_is_help=True)
video.add_typer(compose, name="compose")

# What each needs, as options of `ace video make`, and what it fixes.
_COMPOSITIONS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "swap": (("video", "mask", "reference"), {}),
    "animate": (("video", "reference"), {"control": "pose"}),
    "move": (("first", "layout"), {}),
    "expand": (("first", "extend", "reference"), {}),
    "refer": (("reference",), {}),
}


def _composed(name: str, instruction: str, clip: ClipOptions, asked: MakingOptions) -> None:
    needed, fixed = _COMPOSITIONS[name]
    missing = [f"--{option}" for option in needed if not getattr(clip, option)]
    if missing:
        raise ConditionError(f"`compose {name}` needs {', '.join(missing)}")
    make(instruction, dataclasses.replace(clip, **fixed).request(), asked)


@compose.command()
@takes_options(MakingOptions)
@takes_options(ClipOptions)
def swap(instruction: Instruction, clip: ClipOptions, asked: MakingOptions) -> None:
    """Put a reference in the place of what a mask selects, in every frame.

    \b
    ace video compose swap "a dog runs" --video clip.mp4 --mask box:40,60,200,220 --track --reference dog.png
    """
    _composed("swap", instruction, clip, asked)


@compose.command()
@takes_options(MakingOptions)
@takes_options(ClipOptions)
def animate(instruction: Instruction, clip: ClipOptions, asked: MakingOptions) -> None:
    """Let a reference move as the person in a clip does.

    \b
    ace video compose animate "a robot dances" --video dance.mp4 --reference robot.png
    """
    _composed("animate", instruction, clip, asked)


@compose.command()
@takes_options(MakingOptions)
@takes_options(ClipOptions)
def move(instruction: Instruction, clip: ClipOptions, asked: MakingOptions) -> None:
    """Move what a box holds in a first frame towards another box.

    \b
    ace video compose move "the ball rolls" --first ball.png --layout 10,40,40,70:90,40,120,70
    """
    _composed("move", instruction, clip, asked)


@compose.command()
@takes_options(MakingOptions)
@takes_options(ClipOptions)
def expand(instruction: Instruction, clip: ClipOptions, asked: MakingOptions) -> None:
    """Make room around a first frame, with references in it, and let it go on.

    \b
    ace video compose expand "a crowd waves" --first stage.png --extend left=0.25,right=0.25 --reference fan.png
    """
    _composed("expand", instruction, clip, asked)


@compose.command()
@takes_options(MakingOptions)
@takes_options(ClipOptions)
def refer(instruction: Instruction, clip: ClipOptions, asked: MakingOptions) -> None:
    """A clip of the subjects of several references.

    \b
    ace video compose refer "a cat with a hat" --reference cat.png --reference hat.png
    """
    _composed("refer", instruction, clip, asked)


@video.command("prepare")
@takes_options(ClipOptions)
def prepare(
    source: ClipOptions,
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
