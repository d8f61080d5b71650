"""Options that several verbs share, each said once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ace.errors import ConfigError

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|FOLDER",
        help="Model name or folder; `ace models` lists the names. Default: $ACE_MODEL, else ace-tiny.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", "-s", help="Random seed, 0 to 2^64 - 1. Default, and -1: a random one, printed.", show_default=False
    ),
]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Denoising steps. Default: the model's own.", show_default=False)
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        help="Guidance scale; 1 disables it. Default: the model's own.",
        show_default=False,
    ),
]
Avoid = Annotated[
    str,
    typer.Option("--avoid", metavar="TEXT", help="Negative instruction: what to avoid.", show_default=False),
]
Size = Annotated[
    str | None,
    typer.Option("--size", metavar="WxH", help="Working size in px, for example 128x128.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Output file; .png, .jpg, .webp or .tif sets the format. Default: a free name in this folder.",
        show_default=False,
    ),
]
OutDir = Annotated[
    Path | None,
    typer.Option(
        "--out-dir", metavar="FOLDER", help="Output folder for several results; created if missing.", show_default=False
    ),
]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Do not embed the recipe, which `ace replay` needs.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Fast = Annotated[
    str | None,
    typer.Option(
        "--fast",
        metavar="NAME",
        help="Approximate sampling: solver, guidance, cache or all. Prints its error, measured once per model.",
        show_default=False,
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the network first; pays off for many images of one size, or on a GPU."),
]
NumberType = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Memory = Annotated[
    str,
    typer.Option(
        "--memory", help="Memory mode: auto (prints its choice), full, balanced, 8bit, offload (GPU) or lean."
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:WEIGHT]",
        help="LoRA adapter and its strength (default 1); repeatable.",
        show_default=False,
    ),
]
Refine = Annotated[
    str | None,
    typer.Option(
        "--refine",
        metavar="FOLDER|ID",
        help="Refine the result with a FLUX.1-dev model: a folder, or a hub id in the cache.",
        show_default=False,
    ),
]
RefineStrength = Annotated[
    float | None,
    typer.Option("--refine-strength", help="Refiner strength, 0 to 1. Default: 0.2.", show_default=False),
]
Count = Annotated[
    int,
    typer.Option("--count", "-n", help="Images per input, with consecutive seeds; above 1 needs --out-dir."),
]
SessionFolder = Annotated[
    Path | None,
    typer.Option(
        "--session",
        metavar="FOLDER",
        help="Session folder: the result is kept in it and the next edit continues from it; created if missing.",
        show_default=False,
    ),
]
IMAGES_PANEL = "What goes in and what comes out"
MaskMeans = Annotated[
    str,
    typer.Option(
        "--mask-means",
        metavar="auto|opaque|transparent|white|black",
        help="What of the mask file may change; auto decides from the file.",
        rich_help_panel=IMAGES_PANEL,
    ),
]
MaskThreshold = Annotated[
    int | None,
    typer.Option(
        "--mask-threshold",
        metavar="LEVEL",
        help="Cut a soft mask here, 1 to 254: brighter may change. Default: its greys are weights of the blend.",
        show_default=False,
        rich_help_panel=IMAGES_PANEL,
    ),
]
MaxPixels = Annotated[
    str,
    typer.Option(
        "--max-pixels",
        metavar="N",
        help="Refuse images of more pixels, such as 100MP.",
        rich_help_panel=IMAGES_PANEL,
    ),
]
Focus = Annotated[
    str,
    typer.Option(
        "--focus",
        metavar="off|auto|SHARE",
        help="Work on the part around the mask at the model's full size where the mask covers less than this share of "
        "the image; auto: a quarter.",
        rich_help_panel=IMAGES_PANEL,
    ),
]
FocusMargin = Annotated[
    float,
    typer.Option(
        "--focus-margin",
        metavar="SHARE",
        help="Context around that part, in shares of the mask's longer side.",
        rich_help_panel=IMAGES_PANEL,
    ),
]
Detail = Annotated[
    str,
    typer.Option(
        "--detail",
        metavar="full|model",
        help="full: the answer has the image's size and keeps what the model did not change; model: the model's own "
        "picture at its size.",
        rich_help_panel=IMAGES_PANEL,
    ),
]
SaveChangeMask = Annotated[
    bool,
    typer.Option(
        "--save-change-mask",
        help="Also write which pixels changed, beside the result as NAME-change.png (white = changed).",
        rich_help_panel=IMAGES_PANEL,
    ),
]
Sign = Annotated[
    str | None,
    typer.Option(
        "--sign",
        metavar="local|CHAIN.pem,KEY.pem",
        help="Put signed content credentials (C2PA) into the result: by a certificate, or by this machine's own "
        "authority, which readers elsewhere do not trust.",
        show_default=False,
        rich_help_panel=IMAGES_PANEL,
    ),
]
Feather = Annotated[
    int | None,
    typer.Option(
        "--feather",
        metavar="PX",
        help="Width of a blend of old and new inside the mask's edge, 0 to 100. Default: none, the seam is matched.",
        show_default=False,
        rich_help_panel=IMAGES_PANEL,
    ),
]
Rescale = Annotated[
    float | None,
    typer.Option("--rescale", help="Guidance rescale, 0 to 1. Default: the model's own.", show_default=False),
]
PANEL = "Options of some models (ACE++)"
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        "--image",
        "-i",
        metavar="FILE[@PLACE]",
        help="Further image, {image1}, {image2}, … in the instruction; repeatable. For ACE++ models @left, "
        "@right, @above or @below sets its place, and ,keep=0.8 keeps its own size.",
        show_default=False,
    ),
]
Repaint = Annotated[
    float | None,
    typer.Option(
        "--repaint",
        help="Share of the original hidden inside the mask: 1 all, 0 nothing. Default: the model's own.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Control = Annotated[
    str | None,
    typer.Option(
        "--control",
        metavar="SIGNAL",
        help="Keep the structure: canny, mosaic, gray, contour, depth, doodle, scribble, pose or segmentation.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
MaxSeqLength = Annotated[
    int | None,
    typer.Option(
        "--max-seq-length",
        help="Tokens of the canvas, 1024 to 5120; fewer need less memory and show less detail.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="fp8|int8|4bit",
        help="Load the transformer's and T5's weights in fewer bits.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Transformer = Annotated[
    str | None,
    typer.Option(
        "--transformer",
        metavar="FILE",
        help="Use this file as the model's transformer: fp8, GGUF, or your own.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def takes_options(options: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a verb of a function one of whose parameters is a dataclass of options: each field is one of the verb's."""
    hints = get_type_hints(options, include_extras=True)
    shared = {
        field.name: inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(options)
    }

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        (whole,) = (parameter.name for parameter in parameters if parameter.annotation is options)
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters if p.name != whole]

        @functools.wraps(function)
        def verb(**given: Any) -> None:
            asked = options(**{name: given.pop(name) for name in shared})
            function(**given, **{whole: asked})

        verb.__signature__ = inspect.Signature([*own, *shared.values()])  # type: ignore[attr-defined]
        verb.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared.values())}
        return verb

    return decorate


def read_size(text: str | None) -> tuple[int, int] | None:
    """ "512x384" or "512" → (width, height). Raises ConfigError."""
    if text is None:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) not in (1, 2) or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"size {text!r}: write width x height in px, for example 512x384")
    sides = [int(part) for part in parts]
    return sides[0], sides[-1]


def check_numbers(steps: int | None, guidance: float | None) -> None:
    """Raise ConfigError for steps or guidance that no model takes."""
    if steps is not None and not 1 <= steps <= 1000:
        raise ConfigError(f"{steps} steps: use 1 to 1000")
    if guidance is not None and not 0 <= guidance <= 100:
        raise ConfigError(f"guidance {guidance:g}: use 1 (off) to about 10")


def tasks_named(names: list[str] | None) -> list[str]:
    """The tasks that names of tasks or families stand for, all without any. Raises ConfigError."""
    from ace.data.sample import FAMILIES, TASKS

    unknown = [name for name in names or () if name not in TASKS and name not in FAMILIES]
    if unknown:
        raise ConfigError(f"unknown task {', '.join(unknown)}: use a family ({', '.join(FAMILIES)}) or family/subtask")
    return [task for task in TASKS if not names or task in names or task.split("/")[0] in names]


FAST_NAMES = ("solver", "guidance", "cache", "all")


def check_fast(name: str | None) -> None:
    """Raise ConfigError for an acceleration that does not exist."""
    if name is not None and name not in FAST_NAMES:
        raise ConfigError(f"unknown acceleration {name!r}: use one of {', '.join(FAST_NAMES)}")
