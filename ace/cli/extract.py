"""`ace extract`: the edges, depth, pose, … of an image, as an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ace.cli.options import Quiet
from ace.cli.terminal import Output, short


def extract(
    photo: Annotated[Path, typer.Argument(help="The image to analyse.", show_default=False)],
    signal: Annotated[
        str,
        typer.Argument(
            help="What to extract: segmentation, depth, pose, mosaic, degradation, gray, edge, doodle, contour or "
            "scribble.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Default: PHOTO-SIGNAL.png beside the image."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Extract one of ten low-level signals of an image, to use as a control image in `ace edit`.

    \b
    ace extract photo.png edge
    ace extract photo.png depth -o depth.png
    """
    from ace.conversation.recipe import check_output, embed
    from ace.errors import ConfigError
    from ace.extract import SIGNALS, draw_signal

    if signal not in SIGNALS:
        raise ConfigError(f"no signal is called {signal!r}: use one of {', '.join(SIGNALS)}")
    target = out or photo.with_name(f"{photo.stem}-{signal}.png")
    check_output(target)
    import numpy as np
    from PIL import Image

    from ace.conditions.images import open_image

    drawn = draw_signal(signal, np.asarray(open_image(photo).image))
    embed(Image.fromarray(drawn), target)
    Output(quiet=quiet).say(short(target))
