"""Options that several verbs share, each said once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import secrets
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
        help="Model to use; `ace models` lists them. Default: $ACE_MODEL, else ace-tiny.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", "-s", help="Seed of the noise. Default: a random one, printed and recorded.", show_default=False
    ),
]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Denoising steps. Default: the model's own.", show_default=False)
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        help="How closely to follow the instruction; 1 = off. Default: the model's own.",
        show_default=False,
    ),
]
Avoid = Annotated[
    str,
    typer.Option(
        "--avoid", metavar="TEXT", help="What the picture should not be (negative instruction).", show_default=False
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="WxH", help="Size in px that the model works at, for example 128x128.", show_default=False
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Where to write; the extension (.png .jpg .webp) says the format. Default: a new name here.",
        show_default=False,
    ),
]
OutDir = Annotated[
    Path | None,
    typer.Option(
        "--out-dir", metavar="FOLDER", help="Folder for several results; made if missing.", show_default=False
    ),
]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Leave the recipe out of the file (`ace replay` needs it).")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Fast = Annotated[
    str | None,
    typer.Option(
        "--fast",
        metavar="NAME",
        help="Sample approximately: solver, guidance, cache or all. Says how far that is from exact, measured once per "
        "model.",
        show_default=False,
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the network first: pays for many pictures of one size (or on a GPU)."),
]
NumberType = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Memory = Annotated[
    str, typer.Option("--memory", help="auto (says what it takes), full, balanced, 8bit, offload (GPU) or lean.")
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:WEIGHT]",
        help="An adapter (LoRA) to add, with a weight if not 1; may be repeated.",
        show_default=False,
    ),
]
Refine = Annotated[
    str | None,
    typer.Option(
        "--refine",
        metavar="FOLDER|ID",
        help="Sharpen the result with a FLUX.1-dev model (folder, or hub id in the cache).",
        show_default=False,
    ),
]
RefineStrength = Annotated[float, typer.Option("--refine-strength", help="How much the refiner may change, 0 to 1.")]
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


def read_seed(seed: int | None) -> int:
    """The seed asked for, or a new random one of 32 bits. Raises ConfigError for one that is out of range."""
    if seed is None:
        return secrets.randbelow(2**32)
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed {seed}: use a whole number from 0 to {2**63 - 1}")
    return seed


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
