"""`ace generate` and `ace edit`: instructions and picture files in, pictures out.

Everything that is asked for is opened and checked before torch is imported (`making.py` does the work).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ace.cli.making import (
    Plan,
    Run,
    check_count,
    check_outputs,
    check_session,
    find_model_files,
    make_all,
    out_of,
    output_of,
)
from ace.cli.options import (
    Avoid,
    Compile,
    Device,
    Fast,
    Guidance,
    Json,
    Lora,
    Memory,
    Model,
    NoMetadata,
    NumberType,
    Out,
    OutDir,
    Quiet,
    Refine,
    RefineStrength,
    Seed,
    Size,
    Steps,
    check_fast,
    read_seed,
    read_size,
)
from ace.cli.plus import (
    Control,
    MaxSeqLength,
    PlusOptions,
    PlusRun,
    Quantize,
    References,
    Repaint,
    Transformer,
    edit_plus,
)
from ace.cli.terminal import Output
from ace.errors import ConditionError, ConfigError

Count = Annotated[
    int,
    typer.Option(
        "--count", "-n", help="How many (of each picture), with consecutive seeds; more than one needs --out-dir."
    ),
]
SessionFolder = Annotated[
    Path | None,
    typer.Option(
        "--session",
        metavar="FOLDER",
        help="Keep the conversation in this folder and continue it; made if missing.",
        show_default=False,
    ),
]


def generate(
    instruction: Annotated[str, typer.Argument(help="What to create.", show_default=False)],
    out: Out = None,
    out_dir: OutDir = None,
    count: Count = 1,
    session: SessionFolder = None,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    avoid: Avoid = "",
    size: Size = None,
    model: Model = None,
    lora: Lora = None,
    refine: Refine = None,
    refine_strength: RefineStrength = 0.2,
    device: Device = "auto",
    dtype: NumberType = "auto",
    memory: Memory = "auto",
    fast: Fast = None,
    compile_network: Compile = False,
    no_metadata: NoMetadata = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Create a picture from words.

    \b
    ace generate "a red apple on a green background" -o apple.png
    ace generate "a cat at night" --count 8 --out-dir cats
    """
    from ace.inference.adapters import AdapterChoice
    from ace.inference.edit import Settings, open_job

    check_fast(fast)
    files = find_model_files(model, steps, guidance, size)
    adapters = tuple(AdapterChoice.parse(text) for text in lora or ())
    first = read_seed(seed)
    check_count(count, out, out_dir, session)

    def plan(number: int) -> Plan:
        settings = Settings(first + number, steps, guidance, None, avoid, read_size(size))
        where = out_dir / f"{number + 1:03d}.png" if out_dir is not None else output_of(out, "generated.png", session)
        return Plan(f"picture {number + 1}", lambda: open_job(instruction, settings), where)

    plans = [plan(number) for number in range(count)]
    check_outputs(plans, (), out_dir)
    check_session(session)
    make_all(
        plans,
        Run(
            files,
            Output(json, quiet),
            device,
            dtype,
            not no_metadata,
            session,
            memory,
            adapters,
            refine,
            refine_strength,
            fast,
            compile_network,
        ),
    )


def edit(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[PHOTO]... INSTRUCTION",
            help="The picture (or several) to edit, then what to do; no picture to go on in a session.",
            show_default=False,
        ),
    ],
    out: Out = None,
    out_dir: OutDir = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            metavar="FILE",
            help="What may change: white, or painted on a transparent ground. Everything else stays as it is, exactly.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            "-i",
            metavar="FILE",
            help="A further picture, {image1}, {image2}, … in the instruction; may be repeated.",
            show_default=False,
        ),
    ] = None,
    count: Count = 1,
    session: SessionFolder = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NODE",
            help="Continue from this edit of the session, for example 0002. Default: the newest.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    avoid: Avoid = "",
    size: Size = None,
    model: Model = None,
    lora: Lora = None,
    reference: References = None,
    repaint: Repaint = None,
    control: Control = None,
    max_seq_length: MaxSeqLength = None,
    quantize: Quantize = None,
    transformer: Transformer = None,
    refine: Refine = None,
    refine_strength: RefineStrength = 0.2,
    device: Device = "auto",
    dtype: NumberType = "auto",
    memory: Memory = "auto",
    fast: Fast = None,
    compile_network: Compile = False,
    no_metadata: NoMetadata = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Edit pictures as the instruction says.

    \b
    ace edit photo.png "make the background blue" -o out.png
    ace edit photo.png "make it a drawing" --lora drawing.safetensors:0.8
    ace edit photo.png "remove the cat" --mask cat.png -o out.png
    ace edit photo.png "draw {image} in the style of {image1}" --image style.png
    ace edit a.png b.png c.png "make it night" --out-dir night
    ace edit photo.png "add a hat" --session talk
    ace edit "now make it red" --session talk
    ace edit "make it green instead" --session talk --from 0001
    ace edit "the logo on a mug" --model ace-plus-subject --reference logo.png
    ace edit room.png "put {image1} on the table" --mask table.png --model ace-plus-fft --reference vase.png
    """
    from ace.conditions.prompt import check_references
    from ace.inference.adapters import AdapterChoice
    from ace.inference.edit import Settings, open_job
    from ace.inference.plus_models import is_plus

    check_fast(fast)
    *photos, instruction = words
    paths, references = [Path(photo) for photo in photos], tuple(image or ())
    if not instruction.strip():
        raise ConditionError("the instruction is empty: say what to change")
    if os.path.isfile(instruction):
        raise ConditionError(
            f"the instruction is missing: after the pictures say what to change, got the file {instruction!r}"
        )
    options = PlusOptions(tuple(reference or ()), repaint, control, max_seq_length, quantize, transformer)
    asked = model or os.environ.get("ACE_MODEL")
    if asked is not None and is_plus(asked):
        if fast is not None or compile_network:
            raise ConfigError("--fast and --compile are for ACE models, not for ACE++: leave them out")
        edit_plus(
            asked,
            paths,
            instruction,
            replace(options, references=(*options.references, *(str(path) for path in references))),
            PlusRun(Output(json, quiet), device, dtype, memory, quantize, not no_metadata, session),
            mask=mask,
            out=out,
            out_dir=out_dir,
            start=start,
            count=count,
            seed=seed,
            steps=steps,
            guidance=guidance,
            size=size,
            loras=lora or (),
        )
        return
    files = find_model_files(model, steps, guidance, size)
    options.check_unused(files.name)
    adapters = tuple(AdapterChoice.parse(text) for text in lora or ())
    opened = check_session(session, start)
    if not paths and (opened is None or opened.latest() is None):
        raise ConditionError("there is no picture to edit: name one before the instruction, or use `ace generate`")
    check_count(max(1, len(paths)) * count, out, out_dir, session)
    if opened is None:
        check_references(instruction, 1 + len(references))
    settings = Settings(read_seed(seed), steps, guidance, None, avoid, read_size(size))

    def plan(photo: Path | None, number: int) -> Plan:
        own = replace(settings, seed=settings.seed + number)
        return Plan(
            "the answer" if photo is None else photo.name,
            lambda: open_job(
                instruction, own, photo=photo, references=references, mask=mask, session=opened, start=start
            ),
            out_of(photo, "edited.png", number if count > 1 else None, out, out_dir, session),
        )

    plans = [plan(photo, number) for photo in paths or [None] for number in range(count)]
    check_outputs(plans, (*paths, *references, *([mask] if mask else ())), out_dir)
    make_all(
        plans,
        Run(
            files,
            Output(json, quiet),
            device,
            dtype,
            not no_metadata,
            session,
            memory,
            adapters,
            refine,
            refine_strength,
            fast,
            compile_network,
        ),
        opened,
    )
