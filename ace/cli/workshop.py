"""`ace convert`, `ace train`, `ace data`: making a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ace.cli.options import Quiet, tasks_named
from ace.cli.terminal import Output, Verbs, short
from ace.errors import ConfigError, ModelNotFoundError

data = typer.Typer(cls=Verbs, help="Training data: the procedural world.", no_args_is_help=True)


def convert(
    source: Annotated[
        str, typer.Argument(help="ace-0.6b-512, ace-0.6b-1024, or a folder with published files.", show_default=False)
    ],
    folder: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Default: where models are found by name."),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    quiet: Quiet = False,
) -> None:
    """Turn a published model into a model folder, once; fetches it from the hub if it is named by name.

    \b
    ace convert ace-0.6b-512
    ace convert downloads/ACE-0.6B-512px --output models/ace-512
    """
    from ace.inference.sources import PUBLISHED_MODELS, models_folder

    if source in PUBLISHED_MODELS:
        folder = folder or models_folder() / source
    elif not Path(source).expanduser().is_dir():
        raise ModelNotFoundError(f"{source!r} is no folder and not one of {', '.join(PUBLISHED_MODELS)}: check it")
    elif folder is None:
        raise ConfigError("a folder was given: say where the converted model goes with --output")
    output = Output(quiet=quiet)
    from ace.inference.convert import PUBLISHED, convert_folder

    where = PUBLISHED[source].hub_id if source in PUBLISHED else source
    output.say(f"{short(convert_folder(where, folder, dtype=dtype, progress=output.say))}  converted")


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML), see recipes/.", show_default=False)],
    folder: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Run folder; a run that was stopped goes on from its last checkpoint.",
            show_default=False,
        ),
    ],
    quiet: Quiet = False,
) -> None:
    """Train what a recipe describes, from its last checkpoint if there is one.

    \b
    ace train recipes/tiny-autoencoder.toml --output runs/autoencoder
    ace train recipes/tiny.toml --output runs/tiny
    """
    from ace.training.config import AutoencoderRecipe, read_recipe

    wanted = read_recipe(recipe)
    if isinstance(wanted, AutoencoderRecipe):
        from ace.training.autoencoder import train_autoencoder

        train_autoencoder(wanted, folder, quiet)
    else:
        from ace.training.denoiser import train_model

        train_model(wanted, folder, quiet)


@data.command()
def assets(
    pack: Annotated[
        Path | None,
        typer.Option(
            "--pack",
            metavar="FOLDER",
            help="Where to build it. Default: the cache folder, where it is found again.",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Fetch and build the full sprite pack, for training: pinned npm packages, checked by hash.

    \b
    ace data assets
    """
    from ace.data.world.assets import build_assets, show_progress

    if quiet:
        build_assets(pack)
        return
    with show_progress() as report:
        folder = build_assets(pack, report)
    typer.echo(f"{folder}")


@data.command()
def show(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the picture goes.")] = Path(
        "out/world.png"
    ),
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task", "-t", metavar="TASK", help="Only this task or family; may be repeated.", show_default=False
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Samples of each task.")] = 3,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Seed of the first sample.")] = 0,
    size_px: Annotated[int, typer.Option("--size", help="Side of the pictures in px.")] = 64,
    held_out: Annotated[bool, typer.Option("--held-out", help="Take the held-out side of the split.")] = False,
) -> None:
    """Draw samples of the procedural world with their true answers, one row per task.

    \b
    ace data show
    ace data show --task element_editing --count 5 -o elements.png
    """
    from ace.errors import OutputError
    from ace.inference.recipe import check_output, embed

    wanted = tasks_named(tasks)
    if not 1 <= count <= 50:
        raise ConfigError(f"{count} samples of each task: use 1 to 50")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise OutputError(f"the folder {out.parent} cannot be made: choose another place with --out") from None
    check_output(out)
    from ace.evaluation.demo import draw_samples

    embed(draw_samples(wanted, count, seed, size_px, "held_out" if held_out else "train"), out)
    typer.echo(f"{short(out)}  {len(wanted)} tasks, {count} samples each, the true answers")
