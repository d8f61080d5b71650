"""`ace eval`: measuring a model, or anything else that edits pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ace.cli.options import Device, Guidance, Model, Quiet, Steps, check_numbers, tasks_named
from ace.cli.terminal import Output, Verbs, load, short

evaluate = typer.Typer(cls=Verbs, help="Measure a model.", no_args_is_help=True)


@evaluate.command("ace-world")
def world(
    folder: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the report goes.", show_default=False)
    ],
    limit: Annotated[int, typer.Option("--limit", help="So many samples of each task.")] = 16,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="Only this task or family; may be repeated.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Seed of all noise.")] = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    model: Model = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare a model's answers with the true ones, on the held-out side of the procedural world.

    \b
    ace eval ace-world --output runs/report
    ace eval ace-world --task element_editing --limit 4 --output runs/quick
    """
    from ace.inference.sources import find_model

    check_numbers(steps, guidance)
    wanted = tasks_named(tasks)
    files = find_model(model)
    from ace.evaluation import evaluate_world

    report = evaluate_world(
        load(files, device),
        folder,
        limit,
        seed,
        quiet=quiet,
        num_inference_steps=steps,
        guidance_scale=guidance,
        tasks=wanted,
        model_name=files.name,
    )
    yes = sum(group.beats_copying for group in report.families)
    Output(quiet=quiet).say(
        f"{short(folder / 'report.md')}  {report.count} samples; better than copying the input: "
        f"{yes} of {len(report.families)} families"
    )
