"""`ace train`: run a recipe, or say what it will cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.options import Quiet
from ace.cli.terminal import Output, complain, short, silence_libraries
from ace.errors import OutputError

if TYPE_CHECKING:
    from ace.training.config import Recipe


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML), see recipes/.", show_default=False)],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Run folder; a run that was stopped goes on from its last checkpoint. Default: runs/<recipe>.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will cost and stop: needs no weights, data or network.")
    ] = False,
    devices: Annotated[int, typer.Option("--devices", help="Of the plan: how many devices share the work.")] = 1,
    device_tflops: Annotated[
        float | None,
        typer.Option(
            "--device-tflops",
            help="Of the plan: Tflop/s that training gets out of a device (an A800: 125). Default: measured here.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train what a recipe describes, from its last checkpoint if there is one.

    On several devices: `accelerate launch -m ace train …`, with DDP, FSDP2 or DeepSpeed as accelerate is configured.

    \b
    ace train recipes/tiny.toml --output runs/tiny
    ace train recipes/tiny.toml --dry-run
    ace train recipes/ace-0.6b.toml --dry-run --devices 64 --device-tflops 125
    accelerate launch --num_processes 8 -m ace train recipes/lora.toml --output runs/mine
    """
    from ace.training.config import AutoencoderRecipe, PlusRecipe, keep_recipe, read_recipe

    wanted = read_recipe(recipe)
    output = Output(json=as_json, quiet=quiet)
    if dry_run:
        _say_plan(wanted, devices, device_tflops, output)
        return
    folder = folder or Path("runs") / recipe.stem
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the run folder {folder} cannot be made ({error.strerror}): choose another") from None
    if changed := keep_recipe(wanted, folder / "recipe.toml"):
        complain(f"{short(folder)} was begun with another recipe; changed: {', '.join(changed)}")
    silence_libraries()
    if isinstance(wanted, AutoencoderRecipe):
        from ace.training.autoencoder import train_autoencoder

        train_autoencoder(wanted, folder, quiet, complain)
    elif isinstance(wanted, PlusRecipe):
        from ace.training.plus import train_plus

        train_plus(wanted, folder, quiet, complain)
    else:
        from ace.training.model import train_model

        train_model(wanted, folder, quiet, complain)
    from accelerate import PartialState

    if PartialState().is_main_process:
        output.say(f"{short(folder)}  trained")


def _say_plan(recipe: Recipe, devices: int, device_tflops: float | None, output: Output) -> None:
    """What a recipe will cost, on devices like this machine's or as named."""
    from ace.training.plan import Device, plan
    from ace.training.speed import this_device

    measured = device_tflops is None
    device = this_device(recipe.mixed_precision) if measured else Device("a device as named", device_tflops)
    made = plan(recipe, device, devices)
    for line in made.lines():
        output.say(line)
    output.data(dataclasses.asdict(made))
