"""What `ace edit` and `ace replay` do with an ACE++ model; and `ace convert --fp8`.

Everything that is asked for is opened and checked, weights by their headers, before any weight is loaded.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.making import check_count, output_of, refuse_inputs
from ace.cli.options import check_numbers, read_seed, read_size
from ace.cli.terminal import FAILED, Output, complain, count_of, quiet_libraries, short
from ace.errors import ConditionError, ConfigError, InputError, OutputError

if TYPE_CHECKING:
    from ace.inference.plus_edit import PlusJob, PlusMade
    from ace.inference.plus_sources import PlusFiles
    from ace.inference.recipe import Recipe

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
# --memory → (offload, tiles, weights) with a GPU; "auto" keeps everything on the device and tiles large canvases
_MEMORY: dict[str, tuple[str, bool, str | None]] = {
    "auto": ("none", True, None),
    "full": ("none", False, None),
    "balanced": ("group", True, None),
    "8bit": ("none", True, "fp8"),
    "offload": ("model", True, None),
    "lean": ("sequential", True, None),
}
# the same on a CPU, where weights can only wait on disk
_MEMORY_CPU = {name: _MEMORY[name] for name in ("auto", "full", "8bit")} | {"lean": ("disk", True, None)}


def _memory_of(memory: str, device: str) -> tuple[str, bool, str | None]:
    from ace.inference.sources import find_device

    if memory not in _MEMORY:
        raise ConfigError(f"memory {memory!r}: use {', '.join(_MEMORY)}")
    if find_device(device) != "cpu":
        return _MEMORY[memory]
    if memory not in _MEMORY_CPU:
        raise ConfigError(
            f"--memory {memory} moves weights off a GPU, and there is none here: use 8bit (fewer bits) or lean (disk)"
        )
    return _MEMORY_CPU[memory]


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


def edit_plus(
    model: str,
    photos: Sequence[Path],
    instruction: str,
    options: PlusOptions,
    *,
    mask: Path | None,
    out: Path | None,
    out_dir: Path | None,
    seed: int | None,
    steps: int | None,
    guidance: float | None,
    size: str | None,
    loras: Sequence[str],
    device: str,
    dtype: str,
    memory: str,
    metadata: bool,
    output: Output,
) -> None:
    """Edit pictures, or make one after references, with an ACE++ model. Raises InputError."""
    from ace.inference.plus_edit import PlusSettings, ReferenceFile, make_plus, open_plus_job
    from ace.inference.plus_sources import find_plus, read_adapter_option
    from ace.inference.recipe import check_output

    check_numbers(steps, guidance)
    check_count(len(photos), out, out_dir, None)
    wanted = read_size(size)
    if wanted is not None and photos:
        raise ConfigError("--size is for new pictures; an edited picture keeps its own size (see --max-seq-length)")
    references = [ReferenceFile.parse(text) for text in options.references]
    settings = PlusSettings(
        read_seed(seed), steps, guidance, options.repaint, options.control, wanted, options.max_seq_length
    )
    jobs: list[tuple[str, PlusJob, Path]] = []
    for photo in photos or [None]:
        job = open_plus_job(instruction, settings, photo=photo, mask=mask, references=references)
        name = "generated.png" if photo is None else f"{photo.stem}-edited.png"
        where = out_dir / (photo.name if photo else name) if out_dir else output_of(out, name, None)
        if where is None:
            raise OutputError("say where the picture goes with --out")
        if out_dir is None:
            check_output(where)
        jobs.append(("the new picture" if photo is None else photo.name, job, where))
    inputs: list[Path] = [*photos, *([mask] if mask else []), *(reference.path for reference in references)]
    refuse_inputs([where for _, _, where in jobs], inputs)
    files = find_plus(model, [read_adapter_option(text) for text in loras], options.transformer)

    results, failures = [], []
    with output.progress(f"loading {files.name}") as tell:
        pipeline = _load(
            files, device, dtype, memory, options, lambda done, total: tell(done, total, "loading weights")
        )
        for number, (name, job, where) in enumerate(jobs):

            def steps_done(done: int, total: int, before: int = number) -> None:
                tell(before * total + done, total * len(jobs), "denoising")

            try:
                results.append(_write(make_plus(pipeline, files, job, steps_done), name, where, metadata, output))
            except InputError as error:
                if len(jobs) == 1:
                    raise
                failures.append({"input": name, "error": str(error)})
                complain(f"{name}: {error}")
    output.data({"pictures": results, "failures": failures})
    if failures:
        raise typer.Exit(FAILED)


def _load(files: PlusFiles, device: str, dtype: str, memory: str, options: PlusOptions, progress):
    from ace.inference.plus_load import load_plus

    offload, tiling, quantization = _memory_of(memory, device)
    with quiet_libraries():
        pipeline = load_plus(
            files,
            device=device,
            dtype=dtype,
            quantization=options.quantize or quantization,
            text_quantization=options.quantize or quantization,
            offload=offload,
            tiling=tiling,
            progress=progress,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _write(made: PlusMade, name: str, where: Path, metadata: bool, output: Output) -> dict:
    from ace.inference.recipe import embed

    try:
        where.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise OutputError(f"the folder of {where.name} cannot be made: choose another") from None
    embed(made.image, where, made.recipe if metadata else None)
    recipe = made.recipe
    size = f"{made.image.width}x{made.image.height} px"
    output.say(
        f"{short(where)}  {size}, seed {recipe.seed}, {count_of(recipe.num_inference_steps, 'step')}, {recipe.model}"
    )
    for note in (*made.notes, *([str(made.drift)] if made.drift is not None else [])):
        output.say(f"  {note}")
    return {
        "input": name,
        "file": str(where),
        "size_px": list(made.image.size),
        "seed": recipe.seed,
        "num_inference_steps": recipe.num_inference_steps,
        "guidance_scale": recipe.guidance_scale,
        "canvas_cells": recipe.settings["canvas_cells"],
        "model": recipe.model,
        "model_sha256": recipe.model_sha256,
        "drift": None if made.drift is None else made.drift.as_dict(),
    }


def remake_plus(
    recipe: Recipe,
    files: dict[str, Path],
    model: str | None,
    loras: Sequence[str],
    device: str,
    dtype: str,
    output: Output,
) -> tuple[PlusFiles, PlusMade]:
    """(model, made) of a recipe made again. Raises InputError."""
    from ace.inference.plus_edit import make_plus, plus_job_of_recipe
    from ace.inference.plus_sources import find_plus, read_adapter_option

    job = plus_job_of_recipe(recipe, files)
    found = find_plus(model or recipe.model, [read_adapter_option(text) for text in loras])
    with output.progress(f"loading {found.name}") as tell:
        pipeline = _load(found, device, dtype, "auto", PlusOptions(), lambda done, total: tell(done, total, "loading"))
        made = make_plus(pipeline, found, job, lambda done, total: tell(done, total, "denoising"))
    return found, made


def convert_to_fp8(source: Path, target: Path | None, plain: bool, picture: str | None, output: Output) -> None:
    """Write a FLUX checkpoint with 8-bit weights and say what that costs: per layer, and with `picture` (the name of a
    model that the file belongs to) on a picture. Raises InputError."""
    from ace.inference.plus_convert import convert_fp8
    from ace.inference.plus_sources import find_plus
    from ace.inference.plus_weights import check_transformer, read_weight_files

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
        from dataclasses import replace

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
            pipeline = _load(
                files, "auto", "auto", "auto", PlusOptions(), lambda done, total: tell(done, total, "loading")
            )
            made = pipeline("a red apple on a table", photo, generator=seeded_generator(0)).images[0]
        pictures.append(np.asarray(made, dtype=np.int16))
    difference = np.abs(pictures[0] - pictures[1])
    return {
        "mean_difference": float(difference.mean()),
        "max_difference": int(difference.max()),
        "size_px": [side, side],
        "seed": 0,
    }


def no_session(session: Path | None, start: str | None) -> None:
    """Raise ConditionError for a conversation, which these models do not have."""
    if session is not None or start is not None:
        raise ConditionError("ACE++ models make single edits: leave --session and --from out, or use an ACE model")
