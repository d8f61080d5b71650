"""`ace generate` and `ace edit`: instructions and picture files in, pictures out.

Everything that is asked for is opened and checked before torch is imported (`making.py` does the work).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    takes_options,
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

if TYPE_CHECKING:
    from ace.conversation.edit import Settings

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


@dataclass(frozen=True)
class Asked:
    """What `ace generate` and `ace edit` are asked for alike: each field is an option of both."""

    out: Out = None
    out_dir: OutDir = None
    count: Count = 1
    session: SessionFolder = None
    seed: Seed = None
    steps: Steps = None
    guidance: Guidance = None
    avoid: Avoid = ""
    size: Size = None
    model: Model = None
    lora: Lora = None
    refine: Refine = None
    refine_strength: RefineStrength = 0.2
    device: Device = "auto"
    dtype: NumberType = "auto"
    memory: Memory = "auto"
    fast: Fast = None
    compile_network: Compile = False
    no_metadata: NoMetadata = False
    json: Json = False
    quiet: Quiet = False

    def run(self) -> Run:
        """What all pictures share, with an ACE model. Raises InputError for what does not exist or fit."""
        from ace.weights.adapters import AdapterChoice

        return Run(
            find_model_files(self.model, self.steps, self.guidance, self.size),
            Output(self.json, self.quiet),
            self.device,
            self.dtype,
            not self.no_metadata,
            self.session,
            self.memory,
            tuple(AdapterChoice.parse(text) for text in self.lora or ()),
            self.refine,
            self.refine_strength,
            self.fast,
            self.compile_network,
        )

    def settings(self) -> list[Settings]:
        """How each of the `count` pictures is made, with consecutive seeds. Raises ConfigError."""
        from ace.conversation.edit import Settings

        first, size = read_seed(self.seed), read_size(self.size)
        return [
            Settings(first + number, self.steps, self.guidance, None, self.avoid, size) for number in range(self.count)
        ]


@takes_options(Asked)
def generate(
    instruction: Annotated[str, typer.Argument(help="What to create.", show_default=False)],
    asked: Asked,
) -> None:
    """Create a picture from words.

    \b
    ace generate "a red apple on a green background" -o apple.png
    ace generate "a cat at night" --count 8 --out-dir cats
    """
    from ace.conversation.edit import open_job

    check_fast(asked.fast)
    run = asked.run()
    check_count(asked.count, asked.out, asked.out_dir, asked.session)

    def plan(number: int, settings: Settings) -> Plan:
        if asked.out_dir is not None:
            where: Path | None = asked.out_dir / f"{number + 1:03d}.png"
        else:
            where = output_of(asked.out, "generated.png", asked.session)
        return Plan(f"picture {number + 1}", lambda: open_job(instruction, settings), where)

    plans = [plan(number, settings) for number, settings in enumerate(asked.settings())]
    check_outputs(plans, (), asked.out_dir)
    check_session(asked.session)
    make_all(plans, run)


@dataclass(frozen=True)
class Edit:
    """What is to be done to which pictures. start: the node of a session that is continued, None = the newest."""

    photos: tuple[Path, ...]
    instruction: str
    mask: Path | None
    references: tuple[Path, ...]
    start: str | None

    def files(self) -> tuple[Path, ...]:
        """Every file that it names."""
        return (*self.photos, *self.references, *([self.mask] if self.mask else ()))


@takes_options(Asked)
def edit(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[PHOTO]... INSTRUCTION",
            help="The picture (or several) to edit, then what to do; no picture to go on in a session.",
            show_default=False,
        ),
    ],
    asked: Asked,
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
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NODE",
            help="Continue from this edit of the session, for example 0002. Default: the newest.",
            show_default=False,
        ),
    ] = None,
    reference: References = None,
    repaint: Repaint = None,
    control: Control = None,
    max_seq_length: MaxSeqLength = None,
    quantize: Quantize = None,
    transformer: Transformer = None,
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
    from ace.plus.models import is_plus

    check_fast(asked.fast)
    photos, instruction = _read_words(words)
    wanted = Edit(photos, instruction, mask, tuple(image or ()), start)
    plus = PlusOptions(tuple(reference or ()), repaint, control, max_seq_length, quantize, transformer)
    name = asked.model or os.environ.get("ACE_MODEL")
    if name is not None and is_plus(name):
        _edit_with_plus(name, wanted, plus, asked)
    else:
        _edit_with_ace(wanted, plus, asked)


def _read_words(words: list[str]) -> tuple[tuple[Path, ...], str]:
    """The pictures and the instruction after them. Raises ConditionError if there is no instruction."""
    *photos, instruction = words
    if not instruction.strip():
        raise ConditionError("the instruction is empty: say what to change")
    if os.path.isfile(instruction):
        raise ConditionError(
            f"the instruction is missing: after the pictures say what to change, got the file {instruction!r}"
        )
    return tuple(Path(photo) for photo in photos), instruction


def _edit_with_ace(wanted: Edit, plus: PlusOptions, asked: Asked) -> None:
    from ace.conditions.prompt import check_references
    from ace.conversation.edit import open_job

    run = asked.run()
    plus.check_unused(run.model.name)
    session = check_session(asked.session, wanted.start)
    if not wanted.photos and (session is None or session.latest() is None):
        raise ConditionError("there is no picture to edit: name one before the instruction, or use `ace generate`")
    check_count(max(1, len(wanted.photos)) * asked.count, asked.out, asked.out_dir, asked.session)
    if session is None:
        check_references(wanted.instruction, 1 + len(wanted.references))

    def plan(photo: Path | None, number: int, settings: Settings) -> Plan:
        variant = number if asked.count > 1 else None
        return Plan(
            "the answer" if photo is None else photo.name,
            lambda: open_job(
                wanted.instruction,
                settings,
                photo=photo,
                references=wanted.references,
                mask=wanted.mask,
                session=session,
                start=wanted.start,
            ),
            out_of(photo, "edited.png", variant, asked.out, asked.out_dir, asked.session),
        )

    variants = list(enumerate(asked.settings()))
    plans = [plan(photo, number, settings) for photo in wanted.photos or [None] for number, settings in variants]
    check_outputs(plans, wanted.files(), asked.out_dir)
    make_all(plans, run, session)


def _edit_with_plus(name: str, wanted: Edit, plus: PlusOptions, asked: Asked) -> None:
    if asked.fast is not None or asked.compile_network:
        raise ConfigError("--fast and --compile are for ACE models, not for ACE++: leave them out")
    references = (*plus.references, *(str(path) for path in wanted.references))
    edit_plus(
        name,
        wanted.photos,
        wanted.instruction,
        replace(plus, references=references),
        PlusRun(
            Output(asked.json, asked.quiet),
            asked.device,
            asked.dtype,
            asked.memory,
            plus.quantize,
            not asked.no_metadata,
            asked.session,
        ),
        mask=wanted.mask,
        out=asked.out,
        out_dir=asked.out_dir,
        start=wanted.start,
        count=asked.count,
        seed=asked.seed,
        steps=asked.steps,
        guidance=asked.guidance,
        size=asked.size,
        loras=asked.lora or (),
    )
