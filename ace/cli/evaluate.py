"""`ace eval`: benchmark a model, or any other system that edits images."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.contestants import (
    AcceptNoncommercial,
    Clip,
    Diffusers,
    Dino,
    Dinov2,
    Endpoint,
    FaceWeights,
    GenInfo,
    IceModels,
    JudgeLanguage,
    JudgeModel,
    JudgeUrl,
    Limit,
    OnlyTasks,
    RawMetrics,
    Report,
    Results,
    RunSeed,
    allowed_faces,
    contestant,
    ice_scorers,
    noncommercial,
    scorers,
)
from ace.cli.options import Device, Guidance, Model, Quiet, Steps, check_numbers, tasks_named
from ace.cli.terminal import Output, Verbs, short
from ace.errors import MissingDependencyError
from ace.extras import install_command

if TYPE_CHECKING:
    from ace.evaluation import WorldReport

evaluate = typer.Typer(cls=Verbs, help="Benchmark a model.", no_args_is_help=True)


@evaluate.command("ace-world")
def world(
    folder: Report,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Number of samples per task.")] = 16,
    tasks: OnlyTasks = None,
    results: Results = None,
    endpoint: Endpoint = None,
    diffusers: Diffusers = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="PX",
            help="Side of the test images in px. Default: the model's own, else 128.",
            show_default=False,
        ),
    ] = None,
    seed: RunSeed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    model: Model = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Score a model's answers against the targets of the procedural world's held-out split.

    \b
    ace eval ace-world --output runs/report
    ace eval ace-world --task element_editing --limit 4 --output runs/quick
    ace eval ace-world --results finished --output runs/scored   # TASK/00000.png, ...
    """
    check_numbers(steps, guidance)
    wanted = tasks_named(tasks)
    measured = contestant(results, endpoint, diffusers, model, device, steps, guidance)
    from ace.evaluation import evaluate_world

    report = evaluate_world(measured, folder, limit, seed, quiet=quiet, results=results, size_px=size, tasks=wanted)
    yes = sum(group.beats_copying for group in report.families)
    Output(quiet=quiet).say(
        f"{short(folder / 'report.md')}  {report.count} samples{_lacking(report)}; better than copying the input: "
        f"{yes} of {len(report.families)} families"
    )
    Output(quiet=quiet).say((folder / "gates.md").read_text(encoding="utf-8"))


@evaluate.command("ace-bench")
def ace_bench(
    sets: Annotated[
        list[Path],
        typer.Argument(
            metavar="SET", help="Data sets of `ace data synthesize` or `ace data build`.", show_default=False
        ),
    ],
    folder: Report,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Number of samples per task and set.", show_default=False)
    ] = None,
    tasks: OnlyTasks = None,
    results: Results = None,
    endpoint: Endpoint = None,
    diffusers: Diffusers = None,
    seed: RunSeed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    model: Model = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Benchmark on your own data, as the paper does: any sets of edit samples, scored against their targets.

    \b
    ace data synthesize photos -o bench/real
    ace data synthesize renders -o bench/generated
    ace eval ace-bench bench/real bench/generated -o runs/bench   # a row for each set
    """
    check_numbers(steps, guidance)
    wanted = tasks_named(tasks)
    measured = contestant(results, endpoint, diffusers, model, device, steps, guidance)
    from ace.evaluation.benchmarks.ace_bench import evaluate_sets

    report = evaluate_sets(measured, sets, folder, limit, seed, quiet, results=results, tasks=wanted)
    Output(quiet=quiet).say(
        f"{short(folder / 'report.md')}  {report.count} samples of {len(report.tasks)} tasks{_lacking(report)}"
    )


def _lacking(report: WorldReport) -> str:
    return f" (PARTIAL: {len(report.missing)} without an answer)" if report.missing else ""


@evaluate.command("magicbrush")
def magicbrush(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Unpacked dev or test archive, or a data set in the hub's layout.", show_default=False
        ),
    ],
    folder: Report,
    split: Annotated[str, typer.Option("--split", help="Split to use of a data set in the hub's layout.")] = "dev",
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            metavar="FILE",
            help="Caption file. Default: the archive's local captions.",
            show_default=False,
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--setting",
            help="Only this setting: single-turn, multi-turn or 'multi-turn with long context'; may be repeated. "
            "Default: all three.",
            show_default=False,
        ),
    ] = None,
    limit: Limit = None,
    results: Results = None,
    endpoint: Endpoint = None,
    diffusers: Diffusers = None,
    clip: Clip = "openai/clip-vit-base-patch32",
    dino: Dino = "facebook/dino-vits16",
    seed: RunSeed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    model: Model = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """MagicBrush: single-turn, multi-turn, and multi-turn with long context; compared with the paper's table 1.

    \b
    ace eval magicbrush MagicBrush/test --model ace-0.6b-512 -o runs/magicbrush
    ace eval magicbrush osunlp/MagicBrush --split dev --limit 20 -o runs/quick
    ace eval magicbrush MagicBrush/test --results pictures --setting single-turn -o runs/scored
    """
    check_numbers(steps, guidance)
    measured = contestant(results, endpoint, diffusers, model, device, steps, guidance)
    from ace.evaluation.benchmarks.magicbrush import SETTINGS, unpack_hub_set
    from ace.evaluation.editing import evaluate_magicbrush

    encoders = scorers(clip, dino, device)
    is_archive = (Path(data) / "edit_sessions.json").is_file()
    evaluate_magicbrush(
        Path(data) if is_archive else unpack_hub_set(data, split, folder / "data"),
        measured,
        folder,
        encoders,
        results=results,
        captions=captions,
        settings=tuple(setting) if setting else SETTINGS,
        limit=limit,
        seed=seed,
        quiet=quiet,
    )
    Output(quiet=quiet).say(f"{short(folder / 'table.md')}  and table.tex, table.json, rows.parquet, gallery.html")


@evaluate.command("emu-edit")
def emu_edit(
    folder: Report,
    data: Annotated[
        str, typer.Argument(metavar="[DATA]", help="Hub name, or a folder of Parquet files with the same columns.")
    ] = "facebook/emu_edit_test_set",
    split: Annotated[str, typer.Option("--split", help="Dataset split; the paper reports `test`.")] = "test",
    limit: Limit = None,
    results: Results = None,
    endpoint: Endpoint = None,
    diffusers: Diffusers = None,
    clip: Clip = "openai/clip-vit-base-patch32",
    dino: Dino = "facebook/dino-vits16",
    seed: RunSeed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    model: Model = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Emu Edit's test set; compared with the paper's table 5.

    \b
    ace eval emu-edit --model ace-0.6b-512 -o runs/emu
    ace eval emu-edit sets/emu --split test --limit 50 --endpoint http://127.0.0.1:8000/v1 --model ace-tiny -o runs/emu
    """
    check_numbers(steps, guidance)
    measured = contestant(results, endpoint, diffusers, model, device, steps, guidance)
    from ace.evaluation.editing import evaluate_emu_edit

    encoders = scorers(clip, dino, device)
    evaluate_emu_edit(data, split, measured, folder, encoders, results=results, limit=limit, seed=seed, quiet=quiet)
    Output(quiet=quiet).say(f"{short(folder / 'table.md')}  and table.tex, table.json, rows.parquet, gallery.html")


@evaluate.command("compare")
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="RUN", help="Output folder of `ace eval ace-world`.", show_default=False)
    ],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="The run to compare with.", show_default=False)],
    folder: Report,
    quiet: Quiet = False,
) -> None:
    """Compare two runs on the same samples: significance tests and plots (radar, quality against time, drift).

    \b
    ace eval compare runs/before runs/after -o runs/compared
    """
    from ace.evaluation.compare import compare_runs, read_run, verdicts, write_comparison

    comparison = compare_runs(read_run(first), read_run(second))
    write_comparison(comparison, folder)
    output = Output(quiet=quiet)
    for line in verdicts(comparison):
        output.say(line)
    output.say(f"{short(folder / 'compare.md')}  and compare.png")


@evaluate.command("study")
def study(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Output folders of one `ace eval` benchmark, one per system.", show_default=False
        ),
    ],
    folder: Report,
    count: Annotated[int, typer.Option("--count", help="Number of items, spread over the tasks.")] = 84,
    port: Annotated[int, typer.Option("--port", help="Port of the page (127.0.0.1 only).")] = 7870,
    only_report: Annotated[
        bool, typer.Option("--report", help="Write study.md from the ratings so far, and stop.")
    ] = False,
) -> None:
    """The paper's user study: serve a page that shows anonymized results and collects two scores (1 to 5) for each.

    \b
    ace eval study runs/before runs/after -o runs/study
    ace eval study runs/before runs/after -o runs/study --report
    """
    from ace.evaluation.study import Study, answers_of_runs, as_markdown
    from ace.files import write_atomically

    asked = Study(answers_of_runs(runs, count), folder)
    if only_report:
        write_atomically(folder / "study.md", as_markdown(asked.report()).encode())
        Output().say(f"{short(folder / 'study.md')}  {len(asked.ratings)} ratings")
        return
    try:
        import uvicorn

        from ace.evaluation.study_page import make_app
    except ImportError as error:
        raise MissingDependencyError(f"the page needs FastAPI: {install_command('eval')}") from error
    Output().say(f"http://127.0.0.1:{port}/  {len(asked.answers)} answers; report at /report; stop with Ctrl-C")
    uvicorn.run(make_app(asked), host="127.0.0.1", port=port, log_level="warning")


@evaluate.command("ice-bench")
def ice_bench(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="The benchmark's data.jsonl, with its images beside it.", show_default=False
        ),
    ],
    folder: Report,
    results: GenInfo = None,
    endpoint: Endpoint = None,
    diffusers: Diffusers = None,
    limit: Limit = None,
    raw: RawMetrics = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = "Qwen2.5-VL-72B-Instruct",
    judge_language: JudgeLanguage = "en",
    models: IceModels = None,
    face_weights: FaceWeights = None,
    accept: AcceptNoncommercial = False,
    clip: Clip = "openai/clip-vit-large-patch14-336",
    dinov2: Dinov2 = "facebook/dinov2-giant",
    seed: RunSeed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    model: Model = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """ICE-Bench: run and score its 31 tasks, or score finished images.

    \b
    ace eval ice-bench ICE-Bench/data.jsonl --model ace-0.6b-512 --models ICE-Bench/models -o runs/ice
    ace eval ice-bench ICE-Bench/data.jsonl --results mine/gen_info.json --raw mine/eval_result.txt -o runs/ice
    """
    check_numbers(steps, guidance)
    measured = contestant(results, endpoint, diffusers, model, device, steps, guidance)
    from ace.evaluation.ice import evaluate_ice_bench
    from ace.evaluation.judge import Judge

    weights = None if face_weights is None else allowed_faces(face_weights, accept)
    with ExitStack() as stack:
        asked = None
        if judge is not None:
            key = os.environ.get("OPENAI_API_KEY", "")
            asked = stack.enter_context(Judge(judge, judge_model, key, language=judge_language))
        table = evaluate_ice_bench(
            data,
            measured,
            folder,
            ice_scorers(models, weights, clip, dinov2, asked, raw),
            results=results,
            limit=limit,
            seed=seed,
            quiet=quiet,
        )
    Output(quiet=quiet).say(f"{short(folder / 'table.md')}  {table.rows[-1].source}; and eval_result.txt")


@evaluate.command("text")
def text(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="LINES",
            help='JSON lines, one per image: {"id", "image", "lines": [{"text", "corners"}]}.',
            show_default=False,
        ),
    ],
    folder: Report,
    name: Annotated[str, typer.Option("--name", help="Name of the system in the table.")] = "measured",
    quiet: Quiet = False,
) -> None:
    """Text rendering: OCR every line where it should be; compared with the paper's table 7.

    \b
    ace eval text pictures/lines.jsonl --name ace-0.6b-512 -o runs/text
    """
    from ace.evaluation.benchmarks.text_rendering import make_table, read_text_lines, score_lines
    from ace.evaluation.tables import write_parquet, write_tables
    from ace.extract.text import TextReader

    lines, missing = read_text_lines(data)
    output = Output(quiet=quiet)
    with output.progress("reading") as tell:
        done = iter(range(1, len(lines) + 1))
        scores = score_lines(lines, TextReader(), lambda count: tell(next(done), len(lines)))
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(folder, [make_table(name, scores, missing)])
    columns = ("read", "similarity", "exact")
    rows = [{"id": line.id, "text": line.text, **dict(zip(columns, scores[line.id], strict=True))} for line in lines]
    write_parquet(folder / "rows.parquet", rows)
    output.say(f"{short(folder / 'table.md')}  {len(lines)} lines{f', {len(missing)} missing' if missing else ''}")


@evaluate.command("faces")
def faces(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS",
            help='JSON lines, one per pair: {"id", "original", "made", "met" (optional)}.',
            show_default=False,
        ),
    ],
    folder: Report,
    face_weights: FaceWeights = None,
    accept: AcceptNoncommercial = False,
    name: Annotated[str, typer.Option("--name", help="Name of the system in the table.")] = "measured",
    quiet: Quiet = False,
) -> None:
    """Facial editing: Face Similarity and Effective Score; compared with the paper's table 6.

    \b
    ace eval faces pictures/faces.jsonl --face-weights arcface.onnx -o runs/faces
    """
    weights = None if face_weights is None else allowed_faces(face_weights, accept)
    from ace.evaluation.benchmarks.faces import make_absent_table, make_table, read_pairs, similarities
    from ace.evaluation.tables import write_parquet, write_tables

    pairs, missing = read_pairs(data)
    output = Output(quiet=quiet)
    folder.mkdir(parents=True, exist_ok=True)
    if weights is None:
        write_tables(folder, [make_absent_table(name, len(pairs) + len(missing))])
        output.say(f"{short(folder / 'table.md')}  Face Similarity is absent: name an ArcFace file (--face-weights)")
        return
    from ace.extract.faces import FaceEmbedder, FaceFinder

    finder, embedder = FaceFinder(), FaceEmbedder(weights)
    with output.progress("comparing faces") as tell:
        done = iter(range(1, len(pairs) + 1))
        cosines = similarities(pairs, finder, embedder, lambda count: tell(next(done), len(pairs)))
    write_tables(folder, [make_table(name, pairs, cosines, noncommercial(weights) or weights.name, missing)])
    write_parquet(folder / "rows.parquet", [{"id": p.id, "cosine": cosines[p.id], "met": p.is_met} for p in pairs])
    output.say(f"{short(folder / 'table.md')}  {len(pairs)} pairs{f', {len(missing)} missing' if missing else ''}")
