"""The held-out report on the procedural world: every task, exact targets, no pretrained judge.

The list is fixed by hash: sample k of a task is held-out seed k of that task, rendered from the pack in this package,
so that every machine gets the same pictures. Nothing is selected. In multi-turn samples the earlier rounds are the true
ones.

Not here: scores (`run.py`), tables and pictures (`report.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderDC, AutoencoderKL

from ace.conditions.images import prepare_image
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.data.sample import TASKS, EditSample, family_of
from ace.data.world import SpriteLibrary, World
from ace.data.world.sprites import SHIPPED_PACK
from ace.diffusion import seeded_generator
from ace.errors import ConfigError, MissingDependencyError
from ace.evaluation.lpips import HOW_TO_GET, load_lpips, weights_file
from ace.evaluation.metrics import Interval, bootstrap, changed_pixels, l1_error, l1_error_where, levels, psnr
from ace.evaluation.report import RepeatedEdit, WorldReport, make_report, write_report
from ace.evaluation.run import DIGITS, Answer, RunFolder, System, answer_seed, edited_input, run, sample_sha256
from ace.extract.text import TextReader
from ace.inference import ACEPipeline, Request
from ace.inference.latents import decode_latents, encode_pictures

NUM_PICTURES = 256  # of the autoencoder's score
REPEATED_TASK = "semantic_editing/background"
LIST_FILE = Path(__file__).with_name("ace_world.json")
LIST_COUNT = 48  # of each of the 42 tasks: 2,016 samples
LIST_SIZE_PX = 64


def evaluate_world(
    pipeline: ACEPipeline,
    output: Path,
    limit: int = 16,
    seed: int = 0,
    batch: int = 16,
    quiet: bool = False,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    tasks: Sequence[str] = TASKS,
    model_name: str = "",
    num_pictures: int = NUM_PICTURES,
) -> WorldReport:
    """Answer and score the first `limit` held-out samples of every task; run again on the same folder, it goes on.

    output: folder; gets answers/, rows.jsonl, report.json, report.md, report.html, grid.png, timings.json.
    seed: of all noise. batch: requests in one packed pass. num_inference_steps, guidance_scale: None = the model's own.
    tasks: of `TASKS`. model_name: for the pages. num_pictures: for the autoencoder's PSNR. Raises ConfigError for an
    impossible setting, or a folder with another run; OutputError for one that cannot be used."""
    if limit < 1 or batch < 1:
        raise ConfigError(f"limit is {limit} and batch is {batch}: both must be at least 1")
    if not tasks:
        raise ConfigError("no task to evaluate: name at least one")
    for task in tasks:
        family_of(task)
    geometry = pipeline.geometry
    world = World(int(geometry.budget**0.5) * geometry.cell_px, "held_out", SpriteLibrary(SHIPPED_PACK))
    wanted = [task for task in TASKS if task in tasks]
    shown = [task for task in wanted if task in world.tasks]
    steps, scale = num_inference_steps, guidance_scale
    settings = {"benchmark": "world", "size_px": world.size_px, **run_settings(pipeline, seed, batch, steps, scale)}
    folder = RunFolder(output, settings)
    lpips = load_lpips() if weights_file() is not None else None
    reader = find_reader()
    system = answers_of(pipeline, steps, scale)
    chunks = make_chunks(shown, limit, batch)
    rows = run(chunks, lambda t, n: world.sample(n, t), system, folder, seed, lpips, reader, quiet)
    frozen = frozen_hashes() if world.size_px == LIST_SIZE_PX else {}
    report = make_report(
        rows,
        model_name=model_name,
        settings=settings,
        absent_tasks=tuple(task for task in wanted if task not in shown),
        absent_metrics=absent_metrics(lpips is not None, reader is not None),
        autoencoder_psnr=_kept_psnr(folder, pipeline, world, num_pictures),
        repeated=_kept_repeated(folder, pipeline, world, seed, steps, scale) if REPEATED_TASK in shown else None,
        num_unlisted=sum(
            (known := frozen.get((row.task, row.number))) is not None and not row.sample_sha256.startswith(known)
            for row in rows
        ),
    )
    write_report(report, rows, folder, lambda task, number: world.sample(number, task))
    return report


def run_settings(
    pipeline: ACEPipeline, seed: int, batch: int, num_inference_steps: int | None, guidance_scale: float | None
) -> dict[str, object]:
    """What makes a pipeline's answers what they are, for `run.json`."""
    config = pipeline.config
    return {
        "model_sha256": pipeline_sha256(pipeline),
        "seed": seed,
        "batch": batch,
        "num_inference_steps": config.num_inference_steps if num_inference_steps is None else num_inference_steps,
        "guidance_scale": config.guidance_scale if guidance_scale is None else guidance_scale,
        "guidance_rescale": config.guidance_rescale,
        "scheduler": type(pipeline.scheduler).__name__,
    }


def absent_metrics(has_lpips: bool, has_reader: bool) -> tuple[str, ...]:
    """What cannot be measured here, and how to change that."""
    return (
        *(() if has_lpips else (f"LPIPS: {HOW_TO_GET}",)),
        *(() if has_reader else ("reading text: pip install 'ace-allround[eval]'",)),
    )


def frozen_hashes() -> dict[tuple[str, int], str]:
    """The frozen list: the start of the hash of each of its samples at 64 px, by task and number. It says whether this
    machine draws the very pictures that published figures were measured on."""
    table = json.loads(LIST_FILE.read_text(encoding="utf-8"))
    return {(task, number): value for task, values in table.items() for number, value in enumerate(values.split())}


def list_hashes(count: int = LIST_COUNT) -> dict[str, list[str]]:
    """What the frozen list would hold if it were made now: `count` hashes of every task."""
    world = World(LIST_SIZE_PX, "held_out", SpriteLibrary(SHIPPED_PACK))
    return {task: [sample_sha256(world.sample(n, task))[:12] for n in range(count)] for task in TASKS}


@torch.no_grad()
def repeat_edits(
    pipeline: ACEPipeline,
    world: World,
    seed: int,
    count: int = 8,
    turns: int = 10,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> RepeatedEdit:
    """Give the same edit `turns` times, each on the answer before it, for the first `count` samples of a task."""
    samples = [world.sample(number, REPEATED_TASK) for number in range(count)]
    first = [levels(edited_input(sample)[0]) for sample in samples]
    targets = [levels(sample.target) for sample in samples]
    still = [~changed_pixels(a, b) for a, b in zip(first, targets, strict=True)]
    shown = [sample.request.current.images[0] for sample in samples]
    unchanged, to_target = [], []
    for turn in range(turns):
        requests = [
            Request(
                LongContextConditionUnit(ConditionUnit(sample.request.current.instruction, (image,))),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=seeded_generator(answer_seed(seed, f"{REPEATED_TASK}:{turn}", number)),
            )
            for number, (sample, image) in enumerate(zip(samples, shown, strict=True))
        ]
        states = pipeline.prepare(requests)
        while running := [state for state in states if not state.done]:
            pipeline.step(running)
        answers = pipeline.decode(states)
        made = [levels(answer.resize(s.target.size)) for answer, s in zip(answers, samples, strict=True)]
        kept = [l1_error_where(m, f, where) for m, f, where in zip(made, first, still, strict=True)]
        unchanged.append(_mean([value for value in kept if value is not None]))
        to_target.append(_mean([l1_error(m, t) for m, t in zip(made, targets, strict=True)]))
        shown = answers
    copy = _mean([l1_error(f, t) for f, t in zip(first, targets, strict=True)])
    return RepeatedEdit(tuple(unchanged), tuple(to_target), copy, count)


def make_chunks(tasks: Sequence[str], limit: int, batch: int) -> list[list[tuple[str, int]]]:
    """Entries (task, number) in chunks of at most `batch` and about equal size.

    Number 0 of every task comes first, and no chunk holds two numbers: so a larger limit only adds chunks, and the
    answers to the first samples stay the same ones to the last bit."""
    count = -(-len(tasks) // batch)
    bounds = [len(tasks) * i // count for i in range(count + 1)]
    return [[(task, n) for task in tasks[bounds[i] : bounds[i + 1]]] for n in range(limit) for i in range(count)]


def answers_of(
    pipeline: ACEPipeline, num_inference_steps: int | None = None, guidance_scale: float | None = None
) -> System:
    """A pipeline as a system to score: all requests in one packed pass."""

    def answer(samples: Sequence[EditSample], seeds: Sequence[int]) -> list[Answer]:
        requests = [
            Request(
                sample.request,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=seeded_generator(seed),
            )
            for sample, seed in zip(samples, seeds, strict=True)
        ]
        states = pipeline.prepare(requests)
        while running := [state for state in states if not state.done]:
            pipeline.step(running)
        pictures = pipeline.decode(states)
        masked = [i for i, sample in enumerate(samples) if _is_masked(sample)]
        whole = pipeline.decode([states[i] for i in masked], preserve=False) if masked else []
        unpreserved = dict(zip(masked, whole, strict=True))
        return [Answer(picture, unpreserved.get(i)) for i, picture in enumerate(pictures)]

    return answer


@torch.no_grad()
def autoencoder_psnr(
    vae: AutoencoderDC | AutoencoderKL, size_px: int, count: int = NUM_PICTURES, library: SpriteLibrary | None = None
) -> Interval:
    """Mean PSNR in dB of encoding and decoding the first `count` held-out pictures, in 8-bit levels.

    size_px: side of the pictures. library: None = the pack in this package."""
    world = World(size_px, "held_out", library or SpriteLibrary(SHIPPED_PACK))
    return _psnr(vae, world, count)


def pipeline_sha256(pipeline: ACEPipeline) -> str:
    """A hash of all weights that take part and of the settings that decide how they are used."""
    digest = hashlib.sha256()
    for name in ("transformer", "vae", "text_encoder"):
        for key, value in sorted(getattr(pipeline, name).state_dict().items()):
            digest.update(f"{name}.{key}:{value.dtype}:{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    settings = {k: v for k, v in pipeline.config.items() if isinstance(v, int | float)}
    scheduler = {k: str(v) for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    digest.update(json.dumps([settings, scheduler], sort_keys=True).encode())
    return digest.hexdigest()


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


def _kept_psnr(folder: RunFolder, pipeline: ACEPipeline, world: World, count: int) -> Interval:
    """The autoencoder's score, computed once per folder and count."""
    path = folder.path / "autoencoder.json"
    if path.is_file() and (kept := Interval(**json.loads(path.read_bytes()))).count == count:
        return kept
    interval = _psnr(pipeline.vae, world, count)
    folder.write(path.name, json.dumps(interval.__dict__).encode())
    return interval


def _kept_repeated(
    folder: RunFolder, pipeline: ACEPipeline, world: World, seed: int, steps: int | None, scale: float | None
) -> RepeatedEdit:
    """Drift over turns, computed once per folder."""
    path = folder.path / "repeated.json"
    if path.is_file():
        kept = json.loads(path.read_bytes())
        return RepeatedEdit(tuple(kept["unchanged"]), tuple(kept["target"]), kept["copy"], kept["count"])
    repeated = repeat_edits(pipeline, world, seed, num_inference_steps=steps, guidance_scale=scale)
    folder.write(path.name, json.dumps(repeated.__dict__).encode())
    return repeated


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(1, len(values)), DIGITS)


def find_reader() -> TextReader | None:
    """OCR, if it is installed."""
    try:
        return TextReader()
    except MissingDependencyError:
        return None


def _is_masked(sample: EditSample) -> bool:
    source = sample.request.source_index
    return source is not None and sample.request.frames()[source].mask is not None
