"""From checked plans to written pictures: what `ace generate` and `ace edit` share.

One model load for all pictures, packed passes of a sensible size; with several pictures, one that fails does not stop
the rest. A picture is written whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import typer

from ace.cli.options import check_numbers, read_size
from ace.cli.terminal import FAILED, Output, Tell, complain, count_of, load, load_refiner, short
from ace.errors import ConfigError, InputError, OutputError, SessionError

if TYPE_CHECKING:
    from ace.conditions.units import ConditionUnit
    from ace.inference.adapters import AdapterChoice
    from ace.inference.edit import Job, Made
    from ace.inference.pipeline import ACEPipeline
    from ace.inference.plus_edit import PlusMade
    from ace.inference.session import Node, Session
    from ace.inference.sources import ModelFiles


J = TypeVar("J")  # an opened request
M = TypeVar("M")  # a picture that was made of it
Maker = Callable[[list[J], Callable[[int, int], None]], list[M]]  # told steps done, and in all


@dataclass(frozen=True)
class Plan(Generic[J]):
    """One picture to make: its name in messages, how its request is opened, where it goes (None: the session only)."""

    name: str
    open: Callable[[], J]
    out: Path | None


@dataclass(frozen=True)
class Run:
    """What all pictures of one call share."""

    model: ModelFiles
    output: Output
    device: str
    dtype: str
    metadata: bool
    session_folder: Path | None = None
    memory: str = "auto"
    adapters: tuple[AdapterChoice, ...] = ()
    refine: str | None = None
    refine_strength: float = 0.2
    fast: str | None = None
    compile_network: bool = False


def find_model_files(model: str | None, steps: int | None, guidance: float | None, size: str | None) -> ModelFiles:
    """The model's files, after checking the numbers against them. Raises ConfigError or ModelNotFoundError."""
    from ace.inference.sources import find_model

    check_numbers(steps, guidance)
    files = find_model(model)
    wanted = read_size(size)
    if wanted is not None:
        files.check_size(wanted)
    return files


def check_count(count: int, out: Path | None, out_dir: Path | None, session: Path | None) -> None:
    """Raise ConfigError for a number of pictures that does not fit where they should go."""
    if not 1 <= count <= 10_000:
        raise ConfigError(f"{count} pictures: use 1 to 10000")
    if out is not None and out_dir is not None:
        raise ConfigError("both --out and --out-dir: use --out for one picture, --out-dir for several")
    if count > 1 and out_dir is None:
        raise ConfigError(f"{count} pictures need a folder: use --out-dir")
    if out_dir is not None and session is not None:
        raise ConfigError("both --out-dir and --session: a session takes one picture at a time")


def check_session(folder: Path | None, start: str | None = None) -> Session | None:
    """The session, None if there is none yet; nothing is made. Raises SessionError or OutputError."""
    from ace.inference.session import Session

    if folder is None:
        if start is not None:
            raise SessionError(f"--from {start} needs a session: add --session FOLDER")
        return None
    if (folder / "session.json").exists():
        session = Session.open(folder)
        if start is not None:
            session.node(start)
        return session
    if start is not None:
        raise SessionError(f"there is no session {folder.name} yet: leave --from out to begin one")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SessionError(f"{folder.name} holds other files: name a new or empty folder for the session")
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"the folder of the session {folder.name} does not exist: create it first or choose another")
    return None


def output_of(out: Path | None, name: str, session: Path | None) -> Path | None:
    """Where one picture goes: as asked, else (without a session) the first free name in the current folder."""
    if out is not None or session is not None:
        return out
    path, number = Path(name), 2
    while path.exists():
        path = Path(f"{Path(name).stem}-{number}.png")
        number += 1
    return path


def name_in_folder(photo: Path) -> str:
    """What the result of editing a file is called in another folder: the same, in a format that can be written."""
    from ace.inference.recipe import FORMATS

    return photo.name if photo.suffix.lower() in FORMATS else f"{photo.stem}.png"


def out_of(
    photo: Path | None, new: str, number: int | None, out: Path | None, out_dir: Path | None, session: Path | None
) -> Path | None:
    """Where what becomes of a photo goes. new: its name without a photo; number: which of several variants, from 0."""
    if out_dir is None:
        return output_of(out, new if photo is None else f"{photo.stem}-edited.png", session)
    name = Path(new if photo is None else name_in_folder(photo))
    return out_dir / (name if number is None else f"{name.stem}-{number + 1:03d}{name.suffix}")


def check_outputs(plans: Sequence[Plan], inputs: Sequence[Path], out_dir: Path | None) -> None:
    """Raise OutputError for an output that cannot be written, is an input, or is there twice."""
    from ace.inference.recipe import check_output

    outputs = [plan.out for plan in plans if plan.out is not None]
    if out_dir is not None:
        parent = out_dir.absolute()
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {out_dir.name} cannot be made or written to: choose another")
    else:
        for path in outputs:
            check_output(path)
    seen: set[str] = set()
    for path in outputs:
        if path.name in seen:
            raise OutputError(f"two results would be called {path.name}: edit them in separate runs")
        seen.add(path.name)
    refuse_inputs(outputs, inputs)


def refuse_inputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise OutputError for an output that would replace an input."""
    originals = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        if os.path.realpath(path) in originals:
            raise OutputError(f"{path.name} is one of the inputs: write the result somewhere else")


def make_all(plans: Sequence[Plan[Job]], run: Run, session: Session | None = None) -> None:
    """Open, make and write every picture with an ACE model; see `make_plans`."""
    from ace.inference.edit import in_batches, make
    from ace.inference.sources import choose_memory

    def start(tell: Tell) -> Maker[Job, Made]:
        refiner = load_refiner(run.refine, run.device, run.refine_strength) if run.refine else None
        memory = choose_memory(run.model, device=run.device, dtype=run.dtype, memory=run.memory)
        if not memory.plain:
            run.output.say(f"memory: {memory}")
        pipeline = load(run.model, run.device, run.dtype, memory, run.adapters)
        _speed_up(pipeline, run)
        return lambda jobs, progress: make(pipeline, run.model, jobs, progress, refiner)

    def write(plan: Plan[Job], made: Made) -> dict:
        return _write(plan, made, run, session)

    make_plans(plans, in_batches(len(plans), run.model), start, write, run.output, f"loading {run.model.name}")


def make_plans(
    plans: Sequence[Plan[J]],
    batches: Iterable[range],
    start: Callable[[Tell], Maker[J, M]],
    write: Callable[[Plan[J], M], dict],
    output: Output,
    title: str,
) -> None:
    """Open, make and write every picture, in batches of plans; with several, one that fails does not stop the rest.

    start: loads the model, once the first request is open, and returns what makes pictures of opened requests. write:
    stores one and returns what `--json` says of it. Raises InputError for the only picture."""
    make: Maker[J, M] | None = None
    results: list[dict] = []
    failures: list[dict] = []

    def failed(plan: Plan[J], error: InputError) -> None:
        if len(plans) == 1:
            raise error
        failures.append({"input": plan.name, "error": str(error)})
        complain(str(error) if plan.name in str(error) else f"{plan.name}: {error}")

    with output.progress(title) as tell:
        for numbers in batches:
            ready: list[tuple[Plan[J], J]] = []
            for plan in (plans[number] for number in numbers):
                try:
                    ready.append((plan, plan.open()))
                except InputError as error:
                    failed(plan, error)
            if not ready:
                continue
            make = make or start(tell)

            def steps(done: int, total: int, first: int = numbers.start, here: int = len(numbers)) -> None:
                tell(first * total + here * done, total * len(plans), "denoising")

            for plan, made in _make_each(make, ready, steps, failed):
                try:
                    results.append(write(plan, made))
                except InputError as error:
                    failed(plan, error)
    output.data({"pictures": results, "failures": failures})
    if failures:
        complain(f"{len(results)} of {len(plans)} pictures made, {len(failures)} failed")
        raise typer.Exit(FAILED)


def _speed_up(pipeline: ACEPipeline, run: Run) -> None:
    """Set what `--fast` and `--compile` ask for, and say what the first costs in exactness."""
    from ace.inference.accelerate import compile_blocks, fast_by_name
    from ace.inference.fast_error import known_error
    from ace.inference.sources import cache_folder

    if run.compile_network:
        compile_blocks(pipeline.transformer)
    if run.fast is not None:
        pipeline.fast = fast_by_name(run.fast)
        error = known_error(pipeline, run.model.sha256, cache_folder() / "fast")
        run.output.say(f"--fast {run.fast} is approximate: {error.line()}")


def _make_each(
    make: Maker[J, M],
    ready: list[tuple[Plan[J], J]],
    progress: Callable[[int, int], None],
    failed: Callable[[Plan[J], InputError], None],
) -> list[tuple[Plan[J], M]]:
    """All together; if a request is refused, each by itself, so that only the wrong one fails."""
    try:
        made = make([job for _, job in ready], progress)
        return [(plan, one) for (plan, _), one in zip(ready, made, strict=True)]
    except InputError as error:
        if len(ready) == 1:
            failed(ready[0][0], error)
            return []
    return [pair for one in ready for pair in _make_each(make, [one], progress, failed)]


def _write(plan: Plan[Job], made: Made, run: Run, session: Session | None) -> dict:
    """Write a finished picture to its file and its session; returns what `--json` says of it."""
    job = made.job
    node = keep(plan, made, lambda: job.unit.current, run.metadata, run.session_folder, session)
    return report(plan, made, node, run.output) | {
        "num_dropped_rounds": job.unit.num_dropped_rounds,
        "converted": None if job.source is None else job.source.converted,
    }


def keep(
    plan: Plan,
    made: Made | PlusMade,
    unit: Callable[[], ConditionUnit],
    metadata: bool,
    folder: Path | None,
    session: Session | None,
) -> Node | None:
    """Write a picture to its file, if the plan has one, with its recipe or without, and to the session in `folder`, if
    there is one (None as `session`: it is to be made), as the answer to what `unit` gives; returns its node there."""
    from ace.inference.recipe import embed
    from ace.inference.session import Session

    if plan.out is not None:
        try:
            plan.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            raise OutputError(f"the folder of {plan.out.name} cannot be made: choose another") from None
        embed(made.image, plan.out, made.recipe if metadata else None)
    if folder is None:
        return None
    session = session or Session.open_or_create(folder)
    return session.add_node(unit(), made.image, made.recipe, parents=made.job.parents, source=made.job.source)


def report(plan: Plan, made: Made | PlusMade, node: Node | None, output: Output) -> dict:
    """Say where a picture is and what came of it; returns what `--json` says of every picture."""
    recipe = made.recipe
    size = f"{made.image.width}x{made.image.height} px"
    where = short(node.image_path if plan.out is None and node is not None else plan.out or Path())
    output.say(f"{where}  {size}, seed {recipe.seed}, {count_of(recipe.num_inference_steps, 'step')}, {recipe.model}")
    if node is not None:
        output.say(f"  session {short(node.folder.parent.parent)}, node {node.id}")
    for note in (*made.notes, *([str(made.drift)] if made.drift is not None else [])):
        output.say(f"  {note}")
    return {
        "input": plan.name,
        "file": None if plan.out is None else str(plan.out),
        "size_px": list(made.image.size),
        "seed": recipe.seed,
        "num_inference_steps": recipe.num_inference_steps,
        "guidance_scale": recipe.guidance_scale,
        "model": recipe.model,
        "model_sha256": recipe.model_sha256,
        "session": None if node is None else str(node.folder.parent.parent),
        "node": None if node is None else node.id,
        "drift": None if made.drift is None else made.drift.as_dict(),
        "notes": list(made.notes),
    }
