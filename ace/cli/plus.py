"""What `ace edit` and `ace replay` do with an ACE++ model; and `ace convert --fp8`.

Everything that is asked for is opened and checked, weights by their headers, before any weight is loaded.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.making import (
    Maker,
    Plan,
    check_count,
    check_outputs,
    check_session,
    keep,
    make_plans,
    out_of,
    report,
)
from ace.cli.options import check_numbers, read_seed, read_size
from ace.cli.terminal import Output, Tell, quiet_libraries, short
from ace.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from ace.conversation.recipe import Recipe
    from ace.families.plus_edit import PlusJob, PlusMade
    from ace.plus.pipeline import ACEPlusPipeline
    from ace.plus.sources import PlusFiles

PANEL = "ACE++ models"
PICTURE_PX = 512  # side of the picture that an 8-bit file's error is measured on
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="FILE[@PLACE]",
        help="A picture to take a person, thing or style from; @right, @above, @below, and ,keep=0.8 for its own size.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Repaint = Annotated[
    float | None,
    typer.Option(
        "--repaint",
        help="How much of the old picture is hidden inside the mask: 1 all, 0 nothing. Default: the model's own.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Control = Annotated[
    str | None,
    typer.Option(
        "--control",
        metavar="SIGNAL",
        help="Keep the structure: canny, mosaic, gray, contour, depth, doodle, scribble, pose, segmentation.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
MaxSeqLength = Annotated[
    int | None,
    typer.Option(
        "--max-seq-length",
        help="Tokens of the canvas, 1024 to 5120: less needs less memory and shows less detail.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="fp8|int8|4bit",
        help="Keep the weights of the transformer and of T5 in fewer bits.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Transformer = Annotated[
    str | None,
    typer.Option(
        "--transformer",
        metavar="FILE",
        help="Another file of the model's transformer: fp8, GGUF, or your own.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]


@dataclass(frozen=True)
class PlusOptions:
    """The options of `ace edit` that only ACE++ models have."""

    references: tuple[str, ...] = ()
    repaint: float | None = None
    control: str | None = None
    max_seq_length: int | None = None
    quantize: str | None = None
    transformer: str | None = None

    def check_unused(self, model: str) -> None:
        """Raise ConfigError if one of them is given to another model."""
        given = [
            name
            for name, value in (
                ("--reference", self.references),
                ("--repaint", self.repaint),
                ("--control", self.control),
                ("--max-seq-length", self.max_seq_length),
                ("--quantize", self.quantize),
                ("--transformer", self.transformer),
            )
            if value not in (None, ())
        ]
        if given:
            raise ConfigError(
                f"{', '.join(given)}: only for ACE++ models, this is {model}; use --model ace-plus-subject, -portrait, "
                "-local or -fft" + (", or --image for a further picture" if self.references else "")
            )


@dataclass(frozen=True)
class PlusRun:
    """What all pictures of one call share: how the model is loaded, where pictures go, what is said."""

    output: Output
    device: str
    dtype: str
    memory: str
    quantize: str | None
    metadata: bool = True
    session_folder: Path | None = None


def edit_plus(
    model: str,
    photos: Sequence[Path],
    instruction: str,
    options: PlusOptions,
    run: PlusRun,
    *,
    mask: Path | None,
    out: Path | None,
    out_dir: Path | None,
    start: str | None,
    count: int,
    seed: int | None,
    steps: int | None,
    guidance: float | None,
    size: str | None,
    loras: Sequence[str],
) -> None:
    """Edit pictures, or make some after references, with an ACE++ model. Raises InputError."""
    from ace.families.plus_edit import PlusSettings, ReferenceFile, in_plus_batches, make_plus, open_plus_job
    from ace.plus.sources import find_plus, read_adapter_option

    check_numbers(steps, guidance)
    check_count(max(1, len(photos)) * count, out, out_dir, run.session_folder)
    session = check_session(run.session_folder, start)
    goes_on = session is not None and bool(session.node_ids())
    if size is not None and (photos or goes_on):
        raise ConfigError("--size is for new pictures; an edited picture keeps its own size (see --max-seq-length)")
    references = [ReferenceFile.parse(text) for text in options.references]
    settings = PlusSettings(
        read_seed(seed), steps, guidance, options.repaint, options.control, read_size(size), options.max_seq_length
    )

    def plan(photo: Path | None, number: int) -> Plan[PlusJob]:
        own = replace(settings, seed=settings.seed + number)

        def open_job() -> PlusJob:
            job = open_plus_job(
                instruction, own, photo=photo, mask=mask, references=references, session=session, start=start
            )
            if run.session_folder is not None:
                job.unit()  # checks that a session can keep it
            return job

        return Plan(
            _name_of(photo, goes_on) + (f" ({number + 1})" if count > 1 else ""),
            open_job,
            out_of(photo, "generated.png", number if count > 1 else None, out, out_dir, run.session_folder),
        )

    plans = [plan(photo, number) for photo in photos or [None] for number in range(count)]
    check_outputs(plans, [*photos, *([mask] if mask else ()), *(one.path for one in references)], out_dir)

    def begin(tell: Tell) -> Maker[PlusJob, PlusMade]:
        files = find_plus(model, [read_adapter_option(text) for text in loras], options.transformer)
        pipeline = _load(files, run, tell, options.max_seq_length)
        return lambda jobs, progress: make_plus(pipeline, files, jobs, progress)

    def write(plan: Plan[PlusJob], made: PlusMade) -> dict:
        node = keep(plan, made, made.job.unit, run.metadata, run.session_folder, session)
        return report(plan, made, node, run.output) | {"canvas_cells": made.recipe.settings["canvas_cells"]}

    batches = in_plus_batches(len(plans), options.max_seq_length)
    make_plans(plans, batches, begin, write, run.output, f"loading {model}")


def _name_of(photo: Path | None, goes_on: bool) -> str:
    """What a picture is called in messages."""
    if photo is not None:
        return photo.name
    return "the answer" if goes_on else "the new picture"


def _load(
    files: PlusFiles, run: PlusRun, tell: Tell, max_seq_length: int | None = None, like: Recipe | None = None
) -> ACEPlusPipeline:
    """A pipeline, spread over what is free. like: a recipe whose bits and tiles it has as far as they fit."""
    from ace.families.plus_edit import DEFAULT_SEQ_LENGTH
    from ace.model.devices import find_device
    from ace.plus.load import find_plus_dtype, load_plus
    from ace.plus.memory import plan_plus
    from ace.plus.quantize import check_quantization

    check_quantization(run.quantize)
    device = find_device(run.device)
    dtype = find_plus_dtype(device, run.dtype)
    memory = plan_plus(
        files,
        run.memory,
        device=device,
        dtype=dtype,
        quantization=run.quantize,
        max_seq_length=max_seq_length or DEFAULT_SEQ_LENGTH,
    )
    if not memory.plain:
        run.output.say(f"memory: {memory}")
    text = memory.text_quantization
    if like is not None and text is not None:
        text = str(like.settings.get("quantize_text", "")) or None
    with quiet_libraries():
        pipeline = load_plus(
            files,
            device=device,
            dtype=dtype,
            quantization=memory.quantization,
            text_quantization=text,
            offload=memory.offload,
            tile_px=memory.tile_px if like is None else int(like.settings.get("tile_px", 0)),
            progress=lambda done, total: tell(done, total, "loading weights"),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def remake_plus(
    recipe: Recipe,
    files: dict[str, Path],
    model: str | None,
    loras: Sequence[Path],
    transformer: Path | None,
    device: str,
    dtype: str,
    output: Output,
) -> tuple[PlusFiles, PlusMade]:
    """(model, made) of a recipe made again, its weights in the same bits. Raises InputError."""
    from ace.families.plus_edit import make_plus, plus_job_of_recipe
    from ace.families.plus_recipe import plus_files_of_recipe
    from ace.weights.sources import NUMBER_TYPES

    job = plus_job_of_recipe(recipe, files)
    found = plus_files_of_recipe(recipe, model, loras, transformer)
    if dtype == "auto" and recipe.environment.dtype in NUMBER_TYPES:
        dtype = recipe.environment.dtype
    run = PlusRun(output, device, dtype, "auto", str(recipe.settings.get("quantize", "")) or None)
    with output.progress(f"loading {found.name}") as tell:
        pipeline = _load(found, run, tell, job.settings.max_seq_length, recipe)
        (made,) = make_plus(pipeline, found, [job], lambda done, total: tell(done, total, "denoising"))
    return found, made


def convert_to_fp8(source: Path, target: Path | None, plain: bool, picture: str | None, output: Output) -> None:
    """Write a FLUX checkpoint with 8-bit weights and say what that costs: per layer, and with `picture` (the name of a
    model that the file belongs to) on a picture. Raises InputError."""
    from ace.plus.convert import convert_fp8
    from ace.plus.sources import find_plus
    from ace.plus.weights import check_transformer, read_weight_files

    if target is None:
        raise ConfigError("say where the 8-bit file goes with --output, for example model-fp8.safetensors")
    if target.suffix != ".safetensors":
        raise OutputError(f"{target.name}: an 8-bit checkpoint is a .safetensors file, name it so")
    if target.exists() and source.resolve() == target.resolve():
        raise OutputError(f"{target.name} is the input: write the result somewhere else")
    files = read_weight_files(source)
    check_transformer(files)
    found = find_plus(picture, transformer=str(source)) if picture is not None else None
    with output.progress(f"converting {source.name}") as tell:
        errors = convert_fp8(
            files,
            target,
            scaled=not plain,
            everything=plain,
            progress=lambda done, total: tell(done, total, "converting"),
        )
    worst = max(errors, key=lambda error: error.relative)
    used = [error.relative_unscaled if plain else error.relative for error in errors]
    report: dict = {
        "file": target.name,
        "scaled": not plain,
        "mean_relative_error": sum(used) / len(used),
        "mean_relative_error_of_the_published_cast": sum(e.relative_unscaled for e in errors) / len(errors),
        "layers": [vars(error) for error in sorted(errors, key=lambda error: -error.relative)],
    }
    if found is not None:
        report["picture"] = _picture_error(found, replace(found, transformer=target), output)
    where = target.with_suffix(".report.json")
    where.write_text(json_format.dumps(report, indent=1), encoding="utf-8")
    output.data(report)
    output.say(f"{short(target)}  {len(errors)} layers in 8 bits; report in {where.name}")
    output.say(
        f"  error of the weights: {100 * report['mean_relative_error']:.2f} % on average"
        f", {100 * worst.relative:.2f} % in {worst.layer}; the published cast: "
        f"{100 * report['mean_relative_error_of_the_published_cast']:.2f} %"
    )
    if "picture" in report:
        output.say(
            "  error of a picture: {mean_difference:.2f} mean, {max_difference} largest of 255".format(
                **report["picture"]
            )
        )


def _picture_error(before: PlusFiles, after: PlusFiles, output: Output) -> dict:
    """The same request with both files: how far the pictures are apart, in levels of 255."""
    import numpy as np
    from PIL import Image

    from ace.diffusion import seeded_generator

    side = PICTURE_PX
    across = np.tile(np.linspace(0, 255, side, dtype=np.uint8), (side, 1))
    photo = Image.fromarray(np.stack([across, across.T, np.full_like(across, 96)], -1))
    pictures = []
    for files in (before, after):
        with output.progress(f"drawing with {files.transformer.name}") as tell:
            pipeline = _load(files, PlusRun(output, "auto", "auto", "auto", None), tell)
            made = pipeline("a red apple on a table", photo, generator=seeded_generator(0)).images[0]
        pictures.append(np.asarray(made, dtype=np.int16))
    difference = np.abs(pictures[0] - pictures[1])
    return {
        "mean_difference": float(difference.mean()),
        "max_difference": int(difference.max()),
        "size_px": [side, side],
        "seed": 0,
    }
