"""`ace fuse`: adapters become part of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ace.cli.options import Lora, Quiet
from ace.cli.terminal import Output, quiet_libraries, short


def fuse(
    model: Annotated[str, typer.Argument(help="A model's name or folder.", show_default=False)],
    folder: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the new model goes.", show_default=False)
    ],
    lora: Lora = None,
    quiet: Quiet = False,
) -> None:
    """Write a copy of a model with LoRA adapters merged into its weights.

    \b
    ace fuse ace-tiny --lora adapters/sepia --output models/sepia
    ace fuse ace-0.6b-512 --lora drawing.safetensors:0.8 --lora light.safetensors --output models/drawing
    ace edit photo.png "sepia" --model models/sepia
    """
    from ace.weights.adapters import AdapterChoice
    from ace.weights.sources import find_model

    found = find_model(model)
    choices = [AdapterChoice.parse(text) for text in lora or ()]
    with quiet_libraries():
        from ace.weights.fuse import fuse as run

        run(found, choices, folder)
    Output(quiet=quiet).say(f"{short(folder)}  use it: ace edit photo.png … --model {short(folder)}")
