"""`ace convert`: published weights become a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ace.cli.options import Json, Quiet
from ace.cli.terminal import Output, short
from ace.errors import ConfigError, ModelNotFoundError


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="ace-0.6b-512, ace-0.6b-1024, a folder with published files, or (--fp8) a FLUX file.",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Default: where models are found by name. With --fp8: the file."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    fp8: Annotated[
        bool, typer.Option("--fp8", help="Write a FLUX or ACE++ checkpoint with 8-bit weights and report the error.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="With --fp8: the published cast, without scales, of everything.")
    ] = False,
    picture: Annotated[
        str | None,
        typer.Option(
            "--picture",
            metavar="MODEL",
            help="With --fp8: measure the error on a picture too, with the file as this model's transformer.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a published model into a model folder, once; fetches it from the hub if it is named by name.

    \b
    ace convert ace-0.6b-512
    ace convert downloads/ACE-0.6B-512px --output models/ace-512
    ace convert ace_plus_fft.safetensors --fp8 --output ace_plus_fft_fp8.safetensors
    """
    if fp8:
        from ace.cli.convert_fp8 import convert_to_fp8

        convert_to_fp8(Path(source).expanduser(), folder, plain, picture, Output(json, quiet))
        return
    if plain or picture is not None:
        raise ConfigError("--plain and --picture belong to --fp8: add it")
    from ace.weights.sources import PUBLISHED_MODELS, models_folder

    if source in PUBLISHED_MODELS:
        folder = folder or models_folder() / source
    elif not Path(source).expanduser().is_dir():
        raise ModelNotFoundError(f"{source!r} is no folder and not one of {', '.join(PUBLISHED_MODELS)}: check it")
    elif folder is None:
        raise ConfigError("a folder was given: say where the converted model goes with --output")
    output = Output(quiet=quiet)
    from ace.weights.convert import PUBLISHED, convert_folder

    where = PUBLISHED[source].hub_id if source in PUBLISHED else source
    output.say(f"{short(convert_folder(where, folder, dtype=dtype, progress=output.say))}  converted")
