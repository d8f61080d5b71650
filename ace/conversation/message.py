"""From a user's message to a job: `Message` and the one `open_message` for every door.

What is edited, by one rule for the command line, the studio, the server and agents: the message's `photo`; else the
answer that the message follows; else, in a new conversation, its first reference. That image is `{image}` in the words;
the other images follow as `{image1}`, `{image2}`, … in order. In words, `@3` means the answer of node 0003, and `@a`,
`@b`, … the images that came with the message, the photo first (unless it is the answer itself, drawn on).

Not here: reading uploads, running jobs (`run.py`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from ace.conditions.images import OpenedImage, open_image
from ace.conditions.masks import ReadMask, read_mask
from ace.conditions.rules import MAX_PIXELS, ImageRules, MaskMeans
from ace.conditions.units import DEFAULT_MAX_HISTORY, ConditionUnit, LongContextConditionUnit, Turn
from ace.conversation.credentials import Origin
from ace.conversation.family import Family, open_job
from ace.conversation.job import Job, Settings
from ace.conversation.recipe import FileRef, Round, encode, hash_latents
from ace.conversation.session import Node, Session
from ace.errors import ConditionError, ConfigError, MaskError

_MENTION = re.compile(r"(?<!\w)@([0-9]{1,9}|[a-i])\b")
_NAMED_PHOTO = "name the photo before the instruction, or send it along"


@dataclass(frozen=True)
class Picture:
    """An image of a message. opened: after intake; file: as recipes name it; node: whose answer it is, or None; data:
    its file, or the bytes that came, None = neither is known."""

    opened: OpenedImage
    file: FileRef
    node: str | None = None
    data: Path | bytes | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of_file(cls, path: Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
        """Open an image file. Raises ImageError."""
        if not os.path.isfile(path):
            open_image(path)  # says what is wrong
        return cls(open_image(path, max_pixels=max_pixels), FileRef.of(path), data=path)

    @classmethod
    def of_image(cls, opened: OpenedImage, name: str) -> Picture:
        """An image that is in no file yet: it goes by the hash of the PNG that the session will keep."""
        return cls(opened, ref_of(opened.image, f"{name}.png"))


@dataclass(frozen=True)
class Mask:
    """The mask of the image that is edited. image: "L" or as painted, or as it was read; file: as recipes name it, None
    = the hash of the plain mask that it stands for; undecided: what an ambiguous file means, None = it is refused."""

    image: Image.Image | Path | OpenedImage | ReadMask
    file: FileRef | None = None
    undecided: MaskMeans | None = None

    @classmethod
    def of_file(cls, path: Path) -> Mask:
        """A mask file, which is opened when the size of its image is known. Raises InputError if it cannot be read."""
        return cls(path, FileRef.of(path))

    def opened(self, photo: OpenedImage, rules: ImageRules | None = None) -> tuple[ReadMask, FileRef]:
        """The mask as it was read, and its file. photo: its image. Raises MaskError or ImageError."""
        mask = self.image
        if not isinstance(mask, ReadMask):
            mask = read_mask(mask, photo, rules, undecided=self.undecided)
        return mask, self.file or ref_of(mask.image, "mask0.png")


@dataclass(frozen=True)
class Message:
    """A user's message. photo: the image to edit; references: further ones, in order (see the top of this file);
    mask: of the image that is edited. max_history: how many rounds before it the model sees. change_mask: the mask of
    what changed is wanted, see `Delivered`."""

    text: str
    settings: Settings
    photo: Picture | None = None
    references: tuple[Picture, ...] = ()
    mask: Mask | None = None
    max_history: int = DEFAULT_MAX_HISTORY
    change_mask: bool = False

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All images that came with it."""
        return (*([self.photo] if self.photo is not None else []), *self.references)


def open_message(family: Family, message: Message, session: Session | None = None, start: str | None = None) -> Job:
    """Check a message that follows node `start` of a session (None = it begins a conversation).

    Raises ConditionError, MaskError, ImageError, ConfigError or SessionError, before anything is loaded."""
    traits, settings = family.traits, message.settings
    _check_rules(message)
    history: tuple[Turn, ...] = ()
    rounds: tuple[Round, ...] = ()
    answer: Picture | None = None
    num_rounds = 0
    if session is not None and start is not None:
        answer = answer_of(session, start)
        if traits.history and message.max_history > 0:
            history = session.history(start, model_sha256=family.sha256, most=message.max_history)
            rounds = rounds_of(session, start, history)
            num_rounds = len(session.chain(start))
    text, pictures = _resolve(message, session, answer)
    if answer is not None and not pictures and (message.mask is not None or not history):
        pictures = [answer]
    edited = pictures[0] if pictures else answer
    if edited is not None and traits.references_apart and message.photo is None and answer is None:
        edited = None
    if edited is None and settings.images.detail == "model":
        raise ConfigError("--detail model is for edits, and there is no image to edit: leave it out")
    masks: list[Image.Image | None] = [None] * len(pictures)
    mask_files: list[FileRef | None] = [None] * len(pictures)
    notes: tuple[str, ...] = ()
    if message.mask is not None:
        if edited is None or not pictures:
            raise MaskError(f"a mask needs the image that it belongs to: {_NAMED_PHOTO}")
        read, mask_files[0] = message.mask.opened(edited.opened, settings.images)
        masks[0], notes = read.image, (read.note,)
        if message.mask.file is None:  # what goes by the plain mask is read as that, whenever it is made again
            settings = replace(settings, images=settings.images.read())
    unit = ConditionUnit(text, tuple(picture.opened.image for picture in pictures), tuple(masks))
    whole = LongContextConditionUnit(unit, history, message.max_history, num_unopened=max(0, num_rounds - len(history)))
    kept = len(whole.kept_history)
    job = Job(
        unit=whole,
        settings=settings,
        source=None if edited is None else edited.opened,
        images=tuple(picture.file for picture in pictures),
        masks=tuple(mask_files) if message.mask is not None else (),
        rounds=rounds[len(rounds) - kept :] if kept else (),
        parents=() if start is None else (start,),
        notes=notes,
        origins=_origins_of(edited, pictures),
    )
    if message.change_mask and not job.delivers:
        raise ConfigError(
            "a change mask is of edits of a whole image at its own size: leave mask, size and --detail model out"
        )
    return open_job(family, job)


def _origins_of(edited: Picture | None, pictures: list[Picture]) -> tuple[Origin, ...]:
    """The files that an answer is made from; none where that of the edited image is not known."""
    used = pictures or ([] if edited is None else [edited])
    if used and used[0].data is None:
        return ()
    return tuple(Origin(one.file.name, one.data) for one in used if one.data is not None)


def _check_rules(message: Message) -> None:
    """Raise ConfigError for a rule of images that cannot be kept in this request."""
    rules, size = message.settings.images, message.settings.size
    given = rules.of_masks()
    if message.mask is None and given:
        raise ConfigError(f"{given[0]} is for edits with a mask, and there is none: leave it out, or name a mask")
    if message.mask is not None and rules.detail == "model":
        raise ConfigError("--detail model is for edits of the whole image: with a mask the answer has its size anyhow")
    focused = [option for option in given if option.startswith("--focus")]
    if size is not None and focused and rules.focus != "off":
        raise ConfigError(f"both a size and {focused[0]}: the size is that of the whole image, leave one of them out")


def answer_of(session: Session, node_id: str) -> Picture:
    """The answer of a node as an image of a message. Raises SessionError."""
    node = session.node(node_id)
    return Picture(session.answer(node_id), FileRef.of(node.answer_path), node_id, node.answer_path)


def rounds_of(session: Session, node_id: str, history: tuple[Turn, ...]) -> tuple[Round, ...]:
    """What a recipe says of the conversation that ends with a node. history: the same as turns, with the latents that
    will be used."""
    return tuple(
        Round(
            instruction=node.recipe.instruction,
            images=node.recipe.images,
            masks=_masks_of(node),
            answer=FileRef.of(node.answer_path),
            latents=None if turn.latents is None else hash_latents(turn.latents),
        )
        for node, turn in zip(session.chain(node_id, len(history)), history, strict=True)
    )


def _masks_of(node: Node) -> tuple[FileRef | None, ...]:
    """The masks of an earlier round; those that were read by a rule of their own as the plain ones that they were."""
    own = ImageRules.of_settings(node.recipe.settings)
    if own == own.read():
        return node.recipe.masks
    paths = [one.mask_path for one in node.inputs]
    return tuple(None if path is None else FileRef.of(path) for path in paths) if node.recipe.masks else ()


def ref_of(image: Image.Image, name: str) -> FileRef:
    """An image that is in no file as a recipe names it: by the hash of the PNG that a session keeps of it."""
    return FileRef(name=name, sha256=hashlib.sha256(encode(image, "PNG")).hexdigest())


def _resolve(message: Message, session: Session | None, answer: Picture | None) -> tuple[str, list[Picture]]:
    """The instruction with its mentions as `{image}` names, and the request's images in that order."""
    mentioned: list[str] = []
    for name in _MENTION.findall(message.text):
        if name.isdecimal():
            if session is None:
                raise ConditionError(f"@{name} names an answer of a session, and there is none: add --session FOLDER")
            node_id = f"{int(name):04d}"
            session.node(node_id)
            mentioned.append(node_id)
    pictures = list(message.pictures)
    own, first = message.pictures, 0  # what came with the message, and where it begins
    if message.photo is None and answer is not None and (pictures or mentioned):
        pictures.insert(0, answer)
        first = 1
    elif message.photo is not None and answer is not None and message.photo.node == answer.node:
        own, first = message.references, 1
    known = {picture.node for picture in pictures}
    for node_id in mentioned:
        if node_id not in known and session is not None:
            pictures.append(answer_of(session, node_id))
            known.add(node_id)
    names: dict[str, int] = {chr(ord("a") + number): first + number for number in range(len(own))}
    names.update({picture.node: number for number, picture in enumerate(pictures) if picture.node is not None})
    return _name_images(message.text, names), pictures


def _name_images(text: str, names: Mapping[str, int]) -> str:
    def name_of(match: re.Match[str]) -> str:
        key = f"{int(match[1]):04d}" if match[1].isdecimal() else match[1]
        if key not in names:
            return match[0]  # an @ of another meaning
        return "{image}" if names[key] == 0 else f"{{image{names[key]}}}"

    return _MENTION.sub(name_of, text)
