"""`ace train`: run a recipe, or estimate what it will cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.options import Quiet
from ace.cli.terminal import Output, complain, short, silence_libraries
from ace.errors import AceError, ConfigError, OutputError

if TYPE_CHECKING:
    from ace.training.config import Recipe


LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Learning rate, in place of the recipe's.", show_default=False)
]
StageSteps = Annotated[
    int | None,
    typer.Option("--steps", help="Optimizer steps of each stage, in place of the recipe's.", show_default=False),
]
TrainingSeed = Annotated[
    int | None, typer.Option("--seed", "-s", help="Random seed, in place of the recipe's.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override any key of the recipe, for example lora.rank=8, stage.batch_size=4 (every stage) or "
        "stage.2.lr=1e-5 (the second); may be repeated.",
        show_default=False,
    ),
]
Devices = Annotated[int, typer.Option("--devices", help="Number of devices sharing the work, for --dry-run.")]
DeviceTflops = Annotated[
    float | None,
    typer.Option(
        "--device-tflops",
        help="Sustained TFLOP/s per device, for --dry-run (A800: about 125). Default: measured on this machine.",
        show_default=False,
    ),
]


def train(
    recipe: Annotated[
        Path, typer.Argument(help="Training recipe (TOML); the folder recipes/ has some.", show_default=False)
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Run folder; an interrupted run resumes from its last checkpoint. Default: runs/RECIPE.",
            show_default=False,
        ),
    ] = None,
    lr: LearningRate = None,
    steps: StageSteps = None,
    seed: TrainingSeed = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what it will need and take, then stop: from a few steps where weights and data are here, else "
            "from its operations.",
        ),
    ] = False,
    devices: Devices = 1,
    device_tflops: DeviceTflops = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the estimate of --dry-run as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train from a recipe, resuming from the last checkpoint if there is one.

    On several devices: `accelerate launch -m ace train …`, with DDP, FSDP2 or DeepSpeed as accelerate is configured.
    The recipe as run, with every override, is written to recipe.toml in the run folder.

    \b
    ace train recipes/tiny.toml --output runs/tiny
    ace train recipes/lora.toml --lr 5e-4 --steps 500 --set lora.rank=32 --output runs/mine
    ace train recipes/tiny.toml --dry-run
    ace train recipes/ace-0.6b.toml --dry-run --devices 64 --device-tflops 125
    accelerate launch --num_processes 8 -m ace train recipes/lora.toml --output runs/mine
    """
    from ace.training.config import read_recipe

    given = {"stage.lr": lr, "stage.steps": steps, "seed": seed}
    named = [f"{key}={value}" for key, value in given.items() if value is not None]
    wanted = read_recipe(recipe, [*named, *(overrides or ())])
    output = Output(json=as_json, quiet=quiet)
    if dry_run:
        _say_plan(wanted, devices, device_tflops, output)
        return
    _refuse_plan_options(devices, device_tflops, as_json)
    folder = folder or Path("runs") / recipe.stem
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the run folder {folder} cannot be made ({error.strerror}): choose another") from None
    from ace.training.lock import held

    with held(folder):  # before anything in it is touched: another run may be using it
        _train(wanted, folder, quiet)
    from accelerate import PartialState

    if PartialState().is_main_process:
        output.say(f"{short(folder)}  trained")
        if (how := _how_to_use(wanted, folder)) is not None:
            output.say(f"use it: {how}")


def _how_to_use(recipe: Recipe, folder: Path) -> str | None:
    """The command that uses a run's result; None for an autoencoder, which the next recipe names."""
    from ace.training.config import AutoencoderRecipe, PlusRecipe

    if isinstance(recipe, AutoencoderRecipe):
        return None
    if recipe.lora is None:
        return f'ace edit photo.png "…" --model {short(folder / "model")}'
    adapter = short(folder / "adapter")
    if isinstance(recipe, PlusRecipe):
        return f"--lora {adapter}, beside the --model of ACE++ that it is for"
    base = f" --model {recipe.init}" if recipe.init != "ace-tiny" else ""
    return f'ace edit photo.png "…" --lora {adapter}{base}'


def _refuse_plan_options(devices: int, device_tflops: float | None, as_json: bool) -> None:
    given = (("--devices", devices != 1), ("--device-tflops", device_tflops is not None), ("--json", as_json))
    if wrong := [name for name, is_given in given if is_given]:
        raise ConfigError(f"{', '.join(wrong)} describes an estimate: add --dry-run, or leave it out")


def _train(recipe: Recipe, folder: Path, quiet: bool) -> None:
    """Keep the recipe beside its run and do what it says."""
    from ace.training.config import AutoencoderRecipe, PlusRecipe, keep_recipe
    from ace.training.lock import is_main_process

    if is_main_process() and (changed := keep_recipe(recipe, folder / "recipe.toml")):
        complain(f"{short(folder)} was begun with another recipe; changed: {', '.join(changed)}")
    silence_libraries()
    if isinstance(recipe, AutoencoderRecipe):
        from ace.training.autoencoder import train_autoencoder

        train_autoencoder(recipe, folder, quiet, complain)
    elif isinstance(recipe, PlusRecipe):
        from ace.training.plus import train_plus

        train_plus(recipe, folder, quiet, complain)
    else:
        from ace.training.model import train_model

        train_model(recipe, folder, quiet, complain)


def _say_plan(recipe: Recipe, devices: int, device_tflops: float | None, output: Output) -> None:
    """What a recipe will cost, on devices like this machine's or as given."""
    from ace.training.config import ModelRecipe
    from ace.training.plan import Device, plan, with_steps
    from ace.training.speed import this_device

    here = device_tflops is None
    device = this_device(recipe.mixed_precision) if here else Device("the given device", device_tflops)
    made = plan(recipe, device, devices)
    if here and devices == 1 and isinstance(recipe, ModelRecipe):
        silence_libraries()
        from ace.training.model import measure_model

        try:
            made = with_steps(made, measure_model(recipe))
        except AceError as error:  # its weights or its data are not here yet
            output.say(f"no step could be run ({error}); estimated from operations instead")
    for line in made.lines():
        output.say(line)
    output.data(dataclasses.asdict(made))
