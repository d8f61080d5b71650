"""The held-out report on the procedural world: every task, exact targets, no pretrained judge.

The list is fixed by hash: sample k of a task is held-out seed k of that task, rendered from the pack in this package,
so that every machine gets the same pictures. Nothing is selected. In multi-turn samples the earlier rounds are the true
ones; what happens when a system goes on from its own answers is measured apart (`turns.py`).

Not here: scores (`scores.py`), tables and pictures (`report.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from rich.console import Console
from rich.progress import track

from ace.conditions.images import prepare_image
from ace.data.sample import TASKS, family_of
from ace.data.world import SpriteLibrary, World
from ace.data.world.sprites import SHIPPED_PACK
from ace.errors import ConfigError, DataError, MissingDependencyError
from ace.evaluation.facts import Judges
from ace.evaluation.folder import RunFolder
from ace.evaluation.gates import as_json, gates, markdown
from ace.evaluation.lpips import HOW_TO_GET, find_lpips
from ace.evaluation.metrics import Interval, bootstrap, levels, psnr
from ace.evaluation.report import write_report
from ace.evaluation.run import Finished, run, system_of
from ace.evaluation.scores import sample_sha256
from ace.evaluation.styles import StyleClassifier
from ace.evaluation.summary import WorldReport, make_report
from ace.evaluation.systems import Contestant
from ace.evaluation.things import ThingJudge
from ace.evaluation.timing import Times, summary, time_requests
from ace.evaluation.turns import IDENTITY_TASK, REPEATED_TASK, Identity, Over, RepeatedEdit, follow_things, repeat_edits
from ace.extract.text import TextReader
from ace.extras import install_command
from ace.inference.latents import decode_latents, encode_pictures

# What is measured beside the list grows with the samples that are asked for, up to this:
NUM_PICTURES, PICTURES_PER_SAMPLE = 256, 8  # of the autoencoder's score
NUM_TALKS = 24  # conversations for the identity of things
NUM_CHAINS = 8  # of one edit ten times
NUM_TIMED, TIMED_FROM = 3, 4  # requests of each kind that are timed, from so many samples of a task
LIST_FILE = Path(__file__).with_name("ace_world.json")
LIST_COUNT = 48  # of each of the 42 tasks: 2,016 samples
LIST_SIZES_PX = (128,)


def evaluate_world(
    contestant: Contestant,
    output: Path,
    limit: int = 16,
    seed: int = 0,
    batch: int = 16,
    quiet: bool = False,
    *,
    results: Path | None = None,
    size_px: int | None = None,
    tasks: Sequence[str] = TASKS,
    num_pictures: int | None = None,
    num_talks: int | None = None,
) -> WorldReport:
    """Answer and score the first `limit` held-out samples of every task; run again on the same folder, it goes on.

    contestant: see `our_contestant`. output: folder; gets inputs/, answers/, rows.jsonl, cases.jsonl, report.json,
    report.md, report.html, grid.png, gates.md, gates.json, timings.json. seed: of all noise. batch: requests in one
    packed pass of a model of ours. results: finished pictures, for a contestant without an editor. size_px: of the
    pictures; None = the model's own size, 128 for any other system. tasks: of `TASKS`. num_pictures: for the
    autoencoder's PSNR; num_talks: conversations for the identity of things; None = as many as suit the limit. Raises
    ConfigError for an impossible setting, or a folder with another run; OutputError for one that cannot be used."""
    if limit < 1 or batch < 1:
        raise ConfigError(f"limit is {limit} and batch is {batch}: both must be at least 1")
    if not tasks:
        raise ConfigError("no task to evaluate: name at least one")
    for task in tasks:
        family_of(task)
    system = system_of(contestant, results)
    world = World(size_px or _size_px(contestant), "held_out", SpriteLibrary(SHIPPED_PACK))
    wanted = [task for task in TASKS if task in tasks]
    shown = [task for task in wanted if task in world.tasks]
    batch = batch if contestant.answer else 1
    settings = {"benchmark": "world", "size_px": world.size_px, **run_settings(contestant, seed, batch)}
    folder = RunFolder(output, settings)
    lpips, judges = find_lpips(), replace(find_judges(), things=ThingJudge(world.library))
    if num_pictures is None:
        num_pictures = min(NUM_PICTURES, PICTURES_PER_SAMPLE * limit)
    num_talks = min(NUM_TALKS, limit) if num_talks is None else num_talks
    num_chains = min(NUM_CHAINS, limit)
    chunks = make_chunks(shown, limit, batch)
    finished = run(chunks, lambda t, n: world.sample(n, t), system, folder, seed, lpips, judges, quiet, results=results)
    check_answered(finished, folder, results)
    report = make_report(
        finished.rows,
        model_name=contestant.name,
        settings=settings,
        absent_tasks=tuple(task for task in wanted if task not in shown),
        absent_metrics=absent_metrics(lpips is not None, judges),
        autoencoder_psnr=_kept_psnr(folder, contestant, world, num_pictures),
        repeated=(
            _kept_repeated(folder, contestant, world, seed, num_chains, quiet) if REPEATED_TASK in shown else None
        ),
        identity=(
            _kept_identity(folder, contestant, world, seed, num_talks, quiet) if IDENTITY_TASK in shown else None
        ),
        num_unlisted=_num_unlisted(finished, world.size_px),
        missing=finished.missing,
    )
    write_report(report, finished.rows, folder, lambda task, number: world.sample(number, task))
    times = _kept_times(folder, contestant, world, seed) if limit >= TIMED_FROM and shown == list(TASKS) else None
    found = gates(report, finished.rows, times)
    folder.write("gates.json", as_json(found).encode())
    folder.write("gates.md", markdown(found, report).encode())
    return report


def run_settings(contestant: Contestant, seed: int, batch: int) -> dict[str, object]:
    """What makes a contestant's answers what they are, for `run.json`."""
    return {"name": contestant.name, "seed": seed, "batch": batch, **contestant.settings}


def check_answered(finished: Finished, folder: RunFolder, results: Path | None) -> None:
    """Raise DataError if there is no answer at all, saying where the first one should be."""
    if not finished.rows:
        task, number = finished.missing[0]
        where = f"the first would be {task}/{number:05d}.png in {results.name}" if results else "it can answer none"
        raise DataError(f"no sample has an answer: {where}; what is asked is in {folder.path.name}/cases.jsonl")


def absent_metrics(has_lpips: bool, judges: Judges) -> tuple[str, ...]:
    """What cannot be measured here, and how to change that."""
    return (
        *(() if has_lpips else (f"LPIPS: {HOW_TO_GET}",)),
        *(() if judges.reader else (f"reading text: {install_command('eval')}",)),
    )


def find_judges() -> Judges:
    """The networks that read answers: OCR, if it is installed, and the style classifier."""
    try:
        reader = TextReader()
    except MissingDependencyError:
        reader = None
    return Judges(reader, StyleClassifier())


def frozen_hashes(size_px: int) -> dict[tuple[str, int], str]:
    """The frozen list: the start of the hash of each of its samples at one of `LIST_SIZES_PX`, by task and number (none
    for another size). It says whether this machine draws the very pictures that published figures were measured on."""
    table = json.loads(LIST_FILE.read_text(encoding="utf-8")).get(str(size_px), {})
    return {(task, number): value for task, values in table.items() for number, value in enumerate(values.split())}


def list_hashes(size_px: int, count: int = LIST_COUNT) -> dict[str, list[str]]:
    """What the frozen list would hold at a size if it were made now: `count` hashes of every task."""
    world = World(size_px, "held_out", SpriteLibrary(SHIPPED_PACK))
    return {task: [sample_sha256(world.sample(n, task))[:12] for n in range(count)] for task in TASKS}


def make_chunks(tasks: Sequence[str], limit: int, batch: int) -> list[list[tuple[str, int]]]:
    """Entries (task, number) in chunks of at most `batch` and about equal size.

    Number 0 of every task comes first, and no chunk holds two numbers: so a larger limit only adds chunks, and the
    answers to the first samples stay the same ones to the last bit."""
    count = -(-len(tasks) // batch)
    bounds = [len(tasks) * i // count for i in range(count + 1)]
    return [[(task, n) for task in tasks[bounds[i] : bounds[i + 1]]] for n in range(limit) for i in range(count)]


@torch.no_grad()
def autoencoder_psnr(
    vae: AutoencoderDC | AutoencoderKL, size_px: int, count: int = NUM_PICTURES, library: SpriteLibrary | None = None
) -> Interval:
    """Mean PSNR in dB of encoding and decoding the first `count` held-out pictures, in 8-bit levels.

    size_px: side of the pictures. library: None = the pack in this package."""
    world = World(size_px, "held_out", library or SpriteLibrary(SHIPPED_PACK))
    return _psnr(vae, world, count)


@torch.no_grad()
def _psnr(vae: AutoencoderDC | AutoencoderKL, world: World, count: int) -> Interval:
    values = []
    for start in range(0, count, 32):
        pictures = [world.picture(number) for number in range(start, min(start + 32, count))]
        tensors = [torch.from_numpy(prepare_image(picture, picture.size)) for picture in pictures]
        decoded = decode_latents(vae, encode_pictures(vae, tensors))
        for picture, output in zip(pictures, decoded, strict=True):
            made = (output.float().permute(1, 2, 0).cpu().numpy() * 127.5 + 127.5).round().clip(0, 255)
            values.append(psnr(made.astype("int16"), levels(picture)))
    interval = bootstrap([values])
    if interval is None:
        raise ConfigError("the autoencoder's score needs at least one picture")
    return interval


def _size_px(contestant: Contestant) -> int:
    """The side of the pictures that a contestant is measured at."""
    if contestant.pipeline is None:
        return LIST_SIZES_PX[-1]
    return contestant.pipeline.geometry.side_px


def _num_unlisted(finished: Finished, size_px: int) -> int:
    """How many samples are not drawn here as in the frozen list."""
    frozen = frozen_hashes(size_px)
    known = [(row, frozen[row.key]) for row in finished.rows if row.key in frozen]
    return sum(not row.sample_sha256.startswith(start) for row, start in known)


def _kept_psnr(folder: RunFolder, contestant: Contestant, world: World, count: int) -> Interval | None:
    """The autoencoder's score, computed once per folder and count; None for a system without one of ours."""
    if contestant.pipeline is None:
        return None
    vae, name = contestant.pipeline.vae, f"autoencoder-{count}.json"
    return Interval(**_kept(folder, name, lambda: asdict(_psnr(vae, world, count))))


def _kept_repeated(
    folder: RunFolder, contestant: Contestant, world: World, seed: int, count: int, quiet: bool
) -> RepeatedEdit | None:
    """Drift over turns, computed once per folder and count; None for a folder of finished pictures."""
    edit = contestant.edit
    if edit is None:
        return None
    bar = _bar("one edit, ten turns", quiet)
    kept = _kept(folder, f"repeated-{count}.json", lambda: asdict(repeat_edits(edit, world, seed, count, over=bar)))
    return RepeatedEdit(**_with_tuples(kept))


def _kept_identity(
    folder: RunFolder, contestant: Contestant, world: World, seed: int, count: int, quiet: bool
) -> Identity | None:
    """How things keep over turns, computed once per folder and count; None for a folder of finished pictures."""
    edit, ours = contestant.edit, contestant.pipeline is not None
    if edit is None:
        return None
    name = f"identity-{count}.json"
    bar = _bar(f"{count} conversations", quiet)
    kept = _kept(folder, name, lambda: asdict(follow_things(edit, world, seed, count, with_history=ours, over=bar)))
    return Identity(**_with_tuples(kept))


def _with_tuples(kept: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}


def _kept_times(folder: RunFolder, contestant: Contestant, world: World, seed: int) -> Times | None:
    """How long requests take, measured once per folder; None for a system that is not ours."""
    edit = contestant.edit
    if edit is None or contestant.pipeline is None:
        return None
    return summary(_kept(folder, "requests.json", lambda: time_requests(edit, world, seed, NUM_TIMED)))


def _bar(title: str, quiet: bool) -> Over:
    """Goes through turns with a progress bar on standard error."""
    return partial(track, description=title, console=Console(stderr=True), disable=quiet)


def _kept(folder: RunFolder, name: str, compute: Callable[[], dict]) -> dict:
    """What a file of the run's folder holds; computed and written if it is not there."""
    path = folder.path / name
    if not path.is_file():
        folder.write(name, json.dumps(compute()).encode())
    return json.loads(path.read_bytes())
