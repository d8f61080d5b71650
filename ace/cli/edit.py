"""`ace generate` and `ace edit`: instructions and image files in, images out.

Everything that is asked for is opened and checked before torch is imported (`making.py` does the work).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ace.cli.making import (
    Asked,
    Maker,
    Plan,
    check_change_masks,
    check_count,
    check_outputs,
    check_session,
    find_asked_family,
    out_of,
)
from ace.cli.options import References, takes_options
from ace.errors import ConditionError

if TYPE_CHECKING:
    from ace.conversation import Job, Message, Picture, Settings


@takes_options(Asked)
def generate(
    instruction: Annotated[str, typer.Argument(help="What to create.", show_default=False)],
    asked: Asked,
) -> None:
    """Create an image from words.

    \b
    ace generate "a red apple on a green background" -o apple.png
    ace generate "a cat at night" --count 8 --out-dir cats
    """
    from ace.conversation import Message, open_message

    family, loading = find_asked_family(asked)
    check_count(asked.count, asked.out, asked.out_dir, asked.session)
    session = check_session(asked.session)

    def plan(number: int, settings: Settings) -> Plan:
        where = out_of(asked, None, "generated.png", None)
        if asked.out_dir is not None:
            where = asked.out_dir / f"{number + 1:03d}.png"
        return Plan(
            f"image {number + 1}",
            lambda: open_message(family, Message(instruction, settings, change_mask=asked.save_change_mask)),
            where,
        )

    plans = [plan(number, settings) for number, settings in enumerate(asked.settings())]
    check_outputs(plans, (), asked.out_dir, family.traits.medium)
    check_change_masks(asked, plans, ())
    Maker(family, loading, asked, session).make(plans)


@takes_options(Asked)
def edit(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[PHOTO]... INSTRUCTION",
            help="The image (or several) to edit, then the instruction; without an image the session's last answer.",
            show_default=False,
        ),
    ],
    asked: Asked,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            metavar="FILE",
            help="What may change: white, or painted on transparency. Everything else stays exactly as it is.",
            show_default=False,
        ),
    ] = None,
    reference: References = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NODE",
            help="Continue from this edit of the session, for example 0002. Default: the newest.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Edit images as the instruction says.

    \b
    ace edit photo.png "make the background blue" -o out.png
    ace edit photo.png "make it a drawing" --lora drawing.safetensors:0.8
    ace edit photo.png "remove the cat" --mask cat.png -o out.png
    ace edit photo.png "make it night" --save-change-mask -o night.png
    ace edit photo.png "draw {image} in the style of {image1}" --reference style.png
    ace edit a.png b.png c.png "make it night" --out-dir night
    ace edit photo.png "add a hat" --session talk
    ace edit "now make it red" --session talk
    ace edit "make it green instead" --session talk --from 0001
    ace edit "the logo on a mug" --model ace-plus-subject --reference logo.png
    ace edit room.png "put {image1} on the table" --mask table.png --model ace-plus-fft --reference vase.png
    """
    photos, instruction = _read_words(words)
    family, loading = find_asked_family(asked)
    references = [_read_reference(text) for text in reference or ()]
    session = check_session(asked.session, start)
    latest = None if session is None or photos else session.latest()
    start = start or (None if latest is None else latest.id)
    if not photos and start is None and not references and family.traits.text_to_image:
        raise ConditionError("there is no image to edit: name one before the instruction, or use `ace generate`")
    check_count(max(1, len(photos)) * asked.count, asked.out, asked.out_dir, asked.session)

    def open_one(photo: Path | None, settings: Settings) -> Job:
        from ace.conversation import open_message

        message = _message(instruction, settings, photo, references, mask, asked.save_change_mask)
        return open_message(family, message, session, start)

    def plan(photo: Path | None, number: int, settings: Settings) -> Plan:
        name = photo.name if photo is not None else "the new image" if start is None else "the answer"
        new = "generated.png" if start is None else "edited.png"
        variant = number if asked.count > 1 else None
        return Plan(
            name if variant is None else f"{name} ({variant + 1})",
            lambda: open_one(photo, settings),
            out_of(asked, photo, new, variant),
        )

    wanted = list(enumerate(asked.settings()))
    plans = [plan(photo, number, settings) for photo in photos or [None] for number, settings in wanted]
    files = (*photos, *(path for path, _ in references), *([mask] if mask else ()))
    check_outputs(plans, files, asked.out_dir, family.traits.medium)
    check_change_masks(asked, plans, files)
    Maker(family, loading, asked, session).make(plans)


def _read_words(words: list[str]) -> tuple[tuple[Path, ...], str]:
    """The images and the instruction after them. Raises ConditionError if there is no instruction."""
    *photos, instruction = words
    if not instruction.strip():
        raise ConditionError("the instruction is empty: say what to change")
    if os.path.isfile(instruction):
        raise ConditionError(
            f"the instruction is missing: after the images say what to change, got the file {instruction!r}"
        )
    return tuple(Path(photo) for photo in photos), instruction


def _read_reference(text: str) -> tuple[Path, str]:
    """ "FILE" or "FILE@PLACE" → (file, place)."""
    name, separator, place = text.rpartition("@")
    if not separator or "/" in place or "\\" in place or Path(text).is_file():
        return Path(text), ""
    return Path(name), place


def _message(
    instruction: str,
    settings: Settings,
    photo: Path | None,
    references: list[tuple[Path, str]],
    mask: Path | None,
    change_mask: bool,
) -> Message:
    """The request as a message; files that appear twice are opened once. Raises InputError."""
    from ace.conversation import Mask, Message, Picture
    from ace.families.plus import read_placement

    opened: dict[Path, Picture] = {}

    def picture(path: Path) -> Picture:
        if path not in opened:
            opened[path] = Picture.of_file(path, max_pixels=settings.images.max_pixels)
        return opened[path]

    placed = [read_placement(place) for _, place in references]
    options = dict(settings.options)
    if any(place for _, place in references):
        options["places"] = ",".join(place for place, _ in placed)
        options["fits"] = ",".join(fit for _, fit in placed)
    return Message(
        instruction,
        replace(settings, options=options),
        photo=None if photo is None else picture(photo),
        references=tuple(picture(path) for path, _ in references),
        mask=None if mask is None else Mask.of_file(mask),
        change_mask=change_mask,
    )
