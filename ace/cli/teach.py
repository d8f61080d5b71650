"""`ace teach`: an adapter from a folder of pictures before and one after."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.options import Json, Model, Quiet
from ace.cli.terminal import Output, complain, short, silence_libraries

if TYPE_CHECKING:
    from ace.training.pairs import TaughtPair
    from ace.training.teach import Lesson


def teach(
    before: Annotated[Path, typer.Argument(help="Folder of pictures as they are.", show_default=False)],
    after: Annotated[
        Path, typer.Argument(help="Folder of the same pictures, edited, under the same names.", show_default=False)
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What the edit is called.", show_default=False)],
    say: Annotated[
        str | None,
        typer.Option(
            "--say", metavar="TEXT", help="The instruction that asks for it. Default: the name.", show_default=False
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Adapter folder. Default: adapters/NAME.", show_default=False
        ),
    ] = None,
    model: Model = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            "--preview",
            metavar="PICTURE",
            help="Picture to look at on the way. Default: the last of six pairs or more, which is then not trained on.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, max=100_000, help="Training steps of four pairs.")] = 200,
    rank: Annotated[int, typer.Option("--rank", min=1, max=1024, help="Rank of the adapter.")] = 16,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, max=2**31 - 1, help="Random seed.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Teach a model one edit from pairs of pictures, about ten; the result is an adapter for --lora.

    Ctrl-C stops and keeps what was learnt so far; a killed lesson goes on when the same command is given again. Pairs
    that contradict each other, or are too few, are refused before anything is trained.

    \b
    ace teach before after --name sepia
    ace teach before after --name sepia --say "make it look old" --preview photo.png
    ace edit photo.png "sepia" --lora adapters/sepia
    """
    from ace.cli.serve import check_installed

    check_installed("accelerate", "peft", "tomli_w", extra="train")
    from ace.conditions.images import open_image
    from ace.lesson import check_name, instruction_of

    name = check_name(name)
    instruction = (say or "").strip() or instruction_of(name)
    folder = folder or Path("adapters") / name
    looked_at = None if preview is None else open_image(preview).image
    pairs = _checked_pairs(before, after, model)  # before torch is imported

    silence_libraries()
    from ace.training.teach import teach as run

    with _stop_on_signal() as stopped:
        lesson = run(
            pairs,
            name,
            instruction,
            folder,
            model=model,
            preview=looked_at,
            steps=steps,
            rank=rank,
            seed=seed,
            quiet=quiet or json,
            on_warning=complain,
            stopped=lambda: bool(stopped),
        )
    output = Output(json, quiet)
    output.data({**lesson.as_json(), "folder": str(folder)})
    for line in _words(lesson, folder, model):
        output.say(line)


def _checked_pairs(before: Path, after: Path, model: str | None) -> list[TaughtPair]:
    from ace.training.pairs import check_pairs, read_pairs
    from ace.weights.sources import find_model

    pairs = read_pairs(before, after, 4 * find_model(model).side_px)
    check_pairs(pairs)
    return pairs


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the lesson after its step, a second one at once. Gives the list of those that came."""
    came: list[int] = []

    def stop(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        complain("stopping after this step; what was learnt is kept")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _words(lesson: Lesson, folder: Path, model: str | None) -> list[str]:
    """What came out, and how to go on."""
    made = f"{short(folder)}  learnt from {lesson.pairs} pairs in {lesson.step} steps"
    lines = [made if lesson.status == "done" else f"{made} of {lesson.steps}, then stopped"]
    if (verdict := lesson.verdict()) is not None:
        lines.append(verdict)
    lines.append(f"the pairs and the preview: {short(folder / 'lesson.png')}")
    named = f" --model {model}" if model else ""
    lines.append(f'use it: ace edit photo.png "{lesson.instruction}" --lora {short(folder)}{named}')
    return lines
