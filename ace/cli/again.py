"""`ace replay`: making a picture again."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.making import refuse_inputs
from ace.cli.options import Device, Json, Model, NumberType, Quiet
from ace.cli.plus import remake_plus
from ace.cli.terminal import FAILED, Output, load
from ace.errors import ModelNotFoundError

if TYPE_CHECKING:
    from ace.conversation.edit import Made
    from ace.conversation.recipe import Recipe
    from ace.weights.sources import ModelFiles

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".avif")


def replay(
    picture: Annotated[Path, typer.Argument(help="A picture that ace made, with its recipe inside.")],
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            "-i",
            metavar="FILE|FOLDER",
            help="Where its inputs are now, by any name; may be repeated. Its own folder is searched too.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write the new picture as well.", show_default=False),
    ] = None,
    model: Model = None,
    lora: Annotated[
        list[Path] | None,
        typer.Option(
            "--lora",
            metavar="FILE",
            help="Where the adapters are now that it was made with; may be repeated.",
            show_default=False,
        ),
    ] = None,
    transformer: Annotated[
        Path | None,
        typer.Option(
            "--transformer",
            metavar="FILE",
            help="Where the weights are now that it was made with instead of the model's own (ACE++).",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    dtype: NumberType = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a picture again from its recipe, and say whether it is the same to the byte.

    Exit code 0: the same bytes. 1: another picture; what differs between then and now is listed.

    \b
    ace replay out.png
    ace replay out.png --image photo.png --image mask.png
    """
    from ace.conversation import recipe as recipes
    from ace.families.plus_recipe import is_plus_recipe

    output = Output(json, quiet)
    written = recipes.read(picture)
    files = recipes.match_files(written, _candidates(written, picture, image or []))
    if out is not None:
        recipes.check_output(out)
        refuse_inputs([out], [picture, *files.values()])
    if is_plus_recipe(written):
        found, made = remake_plus(written, files, model, lora or [], transformer, device, dtype, output)
    else:
        found, made = _remake(written, files, model, lora or [], device, dtype, output)
    same = _compare(picture, recipes.encode(made.image, _format_of(picture), written))
    differences = _differences(written, made.recipe, found.sha256)
    if out is not None:
        recipes.embed(made.image, out, made.recipe)
    output.data(
        {
            "same_bytes": same.bytes,
            "same_pixels": same.largest == 0,
            "largest_difference": same.largest,
            "differences": differences,
            "file": None if out is None else str(out),
        }
    )
    output.say(f"{picture.name}: made again, {same}")
    if same.bytes:
        return
    for line in differences or ["nothing that the recipe knows of differs: the file was changed since"]:
        output.say(f"  {line}")
    raise typer.Exit(FAILED)


def _remake(
    written: Recipe,
    files: Mapping[str, Path],
    model: str | None,
    loras: Sequence[Path],
    device: str,
    dtype: str,
    output: Output,
) -> tuple[ModelFiles, Made]:
    """The picture of an ACE model's recipe again, with the weights held as they were, and the model that made it."""
    from ace.conversation.edit import job_of_recipe, make
    from ace.weights.adapters import match_adapters

    job = job_of_recipe(written, files)
    found = _model_of(written, model)
    adapters = match_adapters(str(written.settings.get("adapters", "")), loras)
    with output.progress(f"loading {found.name}") as tell:
        pipeline = load(found, device, dtype, _memory_of(written), adapters)
        from ace.inference.accelerate import fast_again

        pipeline.fast = fast_again(str(written.settings.get("fast", "")))
        (made,) = make(pipeline, found, [job], lambda done, total: tell(done, total, "denoising"))
    return found, made


@dataclass(frozen=True)
class Sameness:
    """Whether a picture file and its remake are equal: to the byte, and else by how many of 255 levels at most."""

    bytes: bool
    largest: int

    def __str__(self) -> str:
        if self.bytes:
            return "the same to the byte"
        if self.largest == 0:
            return "every pixel is the same; the file was written differently"
        return f"pixels differ by up to {self.largest} of 255 levels"


def _compare(picture: Path, remade: bytes) -> Sameness:
    """The file as it is, against the bytes that a remake would be."""
    import numpy as np
    from PIL import Image, ImageChops

    if remade == picture.read_bytes():
        return Sameness(True, 0)
    with Image.open(picture) as before, Image.open(io.BytesIO(remade)) as after:
        if before.size != after.size:
            return Sameness(False, 255)
        difference = ImageChops.difference(before.convert("RGBA"), after.convert("RGBA"))
        return Sameness(False, int(np.asarray(difference).max()))


def _format_of(picture: Path) -> str:
    from PIL import Image

    with Image.open(picture) as opened:
        return opened.format or "PNG"


def _differences(then: Recipe, now: Recipe, model_sha256: str) -> list[str]:
    """What was otherwise when a picture was made than when it was made again, a line each."""
    from ace.conversation import recipe as recipes
    from ace.families.plus_recipe import changed_settings

    found = [*recipes.compare(then, now.environment, model_sha256=model_sha256), *changed_settings(then, now)]
    batch = then.settings.get("batch_size", 1)
    if batch != 1:
        found.append(f"made together with {int(batch) - 1} others then, alone now")
    if then.settings.get("latents") == "kept":
        found.append("went on from latents that its session keeps then, from the answers' files now")
    if then.settings.get("refine"):
        found.append(f"refined then ({_refiner_of(then)}), not now")
    return found


def _refiner_of(recipe: Recipe) -> str:
    """The name of the model that refined a picture."""
    import json

    try:
        return str(json.loads(str(recipe.settings["refine"]))["model"])
    except (ValueError, KeyError, TypeError):
        return "by an unknown model"


def _memory_of(recipe: Recipe) -> str:
    """The memory mode that holds the weights as a recipe says: the modes that are exact are alike."""
    if recipe.settings.get("quantize_text"):
        return "8bit"
    return "lean" if recipe.settings.get("tile_px") else "auto"


def _model_of(recipe: Recipe, asked: str | None) -> ModelFiles:
    """The model asked for, else the one that the recipe names, which may be the folder in $ACE_MODEL.

    Raises ModelNotFoundError."""
    from ace.weights.sources import find_model

    if asked is not None:
        return find_model(asked)
    try:
        return find_model(recipe.model)
    except ModelNotFoundError as error:
        if os.environ.get("ACE_MODEL"):
            default = find_model()
            if default.name == recipe.model:
                return default
        raise ModelNotFoundError(f"the picture was made by {recipe.model}; {error}, and name it with --model") from None


def _candidates(recipe: Recipe, picture: Path, given: Sequence[Path]) -> list[Path]:
    """The files that may be the recipe's inputs, if anything is needed: those given, pictures beside the output, and
    the answers of the session that it lies in."""
    if not recipe.files():
        return []
    found: list[Path] = []
    folder = picture.absolute().parent
    answers = sorted(folder.parent.glob("*/image.png")) if folder.parent.name == "nodes" else []
    for path in (*given, folder, *answers):
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in PICTURE_SUFFIXES)
        else:
            found.append(path)
    return found
