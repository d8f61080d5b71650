"""`ace quantize`: smaller weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ace.cli.options import Quiet
from ace.cli.terminal import Output, quiet_libraries, short


def quantize(
    model: Annotated[str, typer.Argument(help="A model's name or folder.", show_default=False)],
    folder: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where the new model goes.", show_default=False),
    ],
    kind: Annotated[str, typer.Option("--to", help="int8 or fp8.")] = "int8",
    quiet: Quiet = False,
) -> None:
    """Write a copy of a model whose transformer has 8-bit weights, and say how much its predictions differ.

    \b
    ace quantize ace-0.6b-512 --to int8 --output models/ace-512-int8
    ace edit photo.png "add a hat" --model models/ace-512-int8
    """
    from ace.weights.sources import find_model

    output = Output(quiet=quiet)
    found = find_model(model)
    with quiet_libraries():
        from ace.weights.quantize import quantize_folder

        report = quantize_folder(found, folder, kind, output.say)
    output.say(f"{short(folder)}  {report}")
