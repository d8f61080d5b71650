"""`ace convert --fp8`: a FLUX checkpoint with 8-bit weights, and what that costs."""

from __future__ import annotations

import json as json_format
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ace.cli.terminal import Output, quiet_libraries, short
from ace.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from ace.plus.sources import PlusFiles

PICTURE_PX = 512  # side of the image that an 8-bit file's error is measured on


def convert_to_fp8(source: Path, target: Path | None, plain: bool, picture: str | None, output: Output) -> None:
    """Write a FLUX checkpoint with 8-bit weights and say what that costs: per layer, and with `picture` (the name of a
    model that the file belongs to) on a picture. Raises InputError."""
    from ace.plus.convert import convert_fp8
    from ace.plus.sources import find_plus
    from ace.plus.weights import check_transformer, read_weight_files

    if target is None:
        raise ConfigError("say where the 8-bit file goes with --output, for example model-fp8.safetensors")
    if target.suffix != ".safetensors":
        raise OutputError(f"{target.name}: an 8-bit checkpoint is a .safetensors file, name it so")
    if target.exists() and source.resolve() == target.resolve():
        raise OutputError(f"{target.name} is the input: write the result somewhere else")
    files = read_weight_files(source)
    check_transformer(files)
    found = find_plus(picture, transformer=str(source)) if picture is not None else None
    with output.progress(f"converting {source.name}") as tell:
        errors = convert_fp8(
            files,
            target,
            scaled=not plain,
            everything=plain,
            progress=lambda done, total: tell(done, total, "converting"),
        )
    worst = max(errors, key=lambda error: error.relative)
    used = [error.relative_unscaled if plain else error.relative for error in errors]
    report: dict = {
        "file": target.name,
        "scaled": not plain,
        "mean_relative_error": sum(used) / len(used),
        "mean_relative_error_of_the_published_cast": sum(e.relative_unscaled for e in errors) / len(errors),
        "layers": [vars(error) for error in sorted(errors, key=lambda error: -error.relative)],
    }
    if found is not None:
        report["picture"] = _picture_error(found, replace(found, transformer=target), output)
    where = target.with_suffix(".report.json")
    where.write_text(json_format.dumps(report, indent=1), encoding="utf-8")
    output.data(report)
    output.say(f"{short(target)}  {len(errors)} layers in 8 bits; report in {where.name}")
    output.say(
        f"  error of the weights: {100 * report['mean_relative_error']:.2f} % on average"
        f", {100 * worst.relative:.2f} % in {worst.layer}; the published cast: "
        f"{100 * report['mean_relative_error_of_the_published_cast']:.2f} %"
    )
    if "picture" in report:
        output.say(
            "  error of a picture: {mean_difference:.2f} mean, {max_difference} largest of 255".format(
                **report["picture"]
            )
        )


def _picture_error(before: PlusFiles, after: PlusFiles, output: Output) -> dict:
    """The same request with both files: how far the pictures are apart, in levels of 255."""
    import numpy as np
    from PIL import Image

    from ace.diffusion import seeded_generator
    from ace.plus.load import load_plus

    side = PICTURE_PX
    across = np.tile(np.linspace(0, 255, side, dtype=np.uint8), (side, 1))
    photo = Image.fromarray(np.stack([across, across.T, np.full_like(across, 96)], -1))
    pictures = []
    for files in (before, after):
        with output.progress(f"drawing with {files.transformer.name}") as tell:
            with quiet_libraries():
                pipeline = load_plus(files, progress=lambda done, total: tell(done, total, "loading weights"))
            pipeline.set_progress_bar_config(disable=True)
            made = pipeline("a red apple on a table", photo, generator=seeded_generator(0)).images[0]
        pictures.append(np.asarray(made, dtype=np.int16))
    difference = np.abs(pictures[0] - pictures[1])
    return {
        "mean_difference": float(difference.mean()),
        "max_difference": int(difference.max()),
        "size_px": [side, side],
        "seed": 0,
    }
