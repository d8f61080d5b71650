"""A conversation with a model: messages in, answers out, each a node of the session's tree (ACE, appendix F.2).

A_j = ChatBot(H_<j, Q_j): every answer is made by one model from the message and the rounds before it. A `Message` holds
words, pictures and settings as they were written; `ChatSession.open` turns it and its place in the tree into a job;
`ask` makes the answer step by step, with previews, and keeps it. The next round goes on from the kept latents.

In words, `@3` means the answer of node 0003, `@a`, `@b`, … the message's own pictures. The picture to edit is the
message's first one; without any it is the answer that the message follows.

Not here: several requests of several people at once (`ace/server`), drawing the page (`ace/web`).
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops

from ace.conditions.images import MASK_THRESHOLD, OpenedImage, normalise_image, normalise_mask
from ace.conditions.units import DEFAULT_MAX_HISTORY, ConditionUnit, LongContextConditionUnit, Turn
from ace.errors import ConfigError, MaskError
from ace.inference.edit import (
    Job,
    Made,
    Settings,
    drift_of,
    finish_jobs,
    in_batches,
    notes_on,
    open_picture,
    prepare_jobs,
)
from ace.inference.preserve import DriftReport
from ace.inference.recipe import FileRef, Round, compare, encode
from ace.inference.session import Node, Session
from ace.inference.sources import ModelFiles

if TYPE_CHECKING:
    from ace.inference.pipeline import ACEPipeline, RequestState

MAX_VARIANTS = 16
MAX_SIDE_RATIO = 2.0  # outpainting: at most twice the picture on each side
EXACT_PREVIEW_BUDGET = 256  # cells: previews of models up to this go through the decoder, a small part of a step there
EMPTY = (127, 127, 127)  # what lies where nothing is yet, as in training
_MENTION = re.compile(r"(?<!\w)@([0-9]{1,9}|[a-i])\b")


@dataclass(frozen=True)
class Picture:
    """A picture of a message. opened: after intake; file: as recipes name it; node: whose answer it is, or None."""

    opened: OpenedImage
    file: FileRef
    node: str | None = None

    @classmethod
    def of_file(cls, path: Path) -> Picture:
        """Open a picture file. Raises ImageError."""
        file, opened = open_picture(path)
        return cls(opened, file)

    @classmethod
    def of_image(cls, opened: OpenedImage, name: str) -> Picture:
        """A picture that is in no file yet: it goes by the hash of the PNG that the session will keep."""
        return cls(opened, _ref_of(opened.image, f"{name}.png"))


@dataclass(frozen=True)
class Message:
    """What somebody says. pictures: their own, in order; mask: of the picture that is edited, "L" or as painted; None =
    no mask. max_history: how many rounds before it the model sees."""

    text: str
    settings: Settings
    pictures: tuple[Picture, ...] = ()
    mask: Image.Image | None = None
    max_history: int = DEFAULT_MAX_HISTORY


@dataclass(frozen=True)
class Progress:
    """Where the answers are. step, total: denoising steps of all of them; eta_s: remaining seconds, None before the
    first step; previews: RGB, one per answer in the making, empty if they were not asked for."""

    step: int
    total: int
    eta_s: float | None
    previews: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Replay:
    """A node made again. largest_difference: of all values, in levels of 255; differences: between then and now, a line
    each."""

    node_id: str
    largest_difference: int
    differences: tuple[str, ...]

    @property
    def same_pixels(self) -> bool:
        """Whether every value is the same."""
        return self.largest_difference == 0


class ChatSession:
    """A session and the model that answers in it. One conversation step at a time: others wait."""

    def __init__(self, session: Session, pipeline: ACEPipeline, model: ModelFiles) -> None:
        self.session = session
        self.pipeline = pipeline
        self.model = model
        self._one_at_a_time = Lock()

    # Requests

    def open(self, message: Message, start: str | None = None) -> Job:
        """Check a message that follows node `start` (None = it begins a conversation).

        Raises ConditionError, MaskError, ImageError, ConfigError or SessionError."""
        if message.settings.size is not None:
            self.model.check_size(message.settings.size)
        history: tuple[Turn, ...] = ()
        rounds: tuple[Round, ...] = ()
        answer: Picture | None = None
        if start is not None:
            node = self.session.node(start)
            history = self.session.history(start, model_sha256=self.model.sha256)
            answer = self.answer(start)
            asked = node.recipe
            rounds = (
                *asked.history,
                Round(instruction=asked.instruction, images=asked.images, masks=asked.masks, answer=answer.file),
            )
        text, pictures = self._resolve(message, answer)
        if not pictures and answer is not None and (message.mask is not None or message.max_history == 0):
            pictures = [answer]
        source = pictures[0].opened if pictures else answer.opened if answer is not None else None
        masks: list[Image.Image | None] = [None] * len(pictures)
        mask_refs: list[FileRef | None] = [None] * len(pictures)
        if message.mask is not None:
            if source is None or not pictures:
                raise MaskError("a mask needs the picture that it belongs to: add one, or go on from an answer")
            mask = normalise_mask(message.mask, source.size)
            masks[0], mask_refs[0] = mask, _ref_of(mask, "mask0.png")
        unit = ConditionUnit(text, tuple(picture.opened.image for picture in pictures), tuple(masks))
        whole = LongContextConditionUnit(unit, history, message.max_history)
        kept = len(whole.kept_history)
        return Job(
            unit=whole,
            settings=message.settings,
            source=source,
            images=tuple(picture.file for picture in pictures),
            masks=tuple(mask_refs) if message.mask is not None else (),
            rounds=rounds[len(rounds) - kept :] if kept else (),
            parents=() if start is None else (start,),
        )

    def job_of(self, node_id: str, **changes: object) -> Job:
        """The job that made a node, opened from the session. changes: of its `Settings`, for example another seed.

        Raises SessionError."""
        node = self.session.node(node_id)
        asked = node.recipe
        *turns, last = self.session.history(node_id, model_sha256=self.model.sha256)
        if asked.settings.get("latents") != "kept":
            turns = [replace(turn, latents=None) for turn in turns]
        source = self.session.source(node_id)
        unit = last.unit
        if source is not None and unit.images and source.image is not unit.images[0]:
            unit = replace(unit, images=(source.image, *unit.images[1:]))  # one object, so that it stays the edited one
        return Job(
            unit=LongContextConditionUnit(unit, tuple(turns), len(asked.history)),
            settings=replace(Settings.of_recipe(asked), **changes),
            source=source,
            images=asked.images,
            masks=asked.masks,
            rounds=asked.history,
            parents=node.parents,
        )

    def answer(self, node_id: str) -> Picture:
        """The answer of a node as a picture of a message. Raises SessionError."""
        node = self.session.node(node_id)
        return Picture(self.session.answer(node_id), FileRef.of(node.image_path), node_id)

    # Answers

    def ask(
        self,
        message: Message,
        start: str | None = None,
        *,
        count: int = 1,
        previews: bool = True,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Progress | Node]:
        """Answer a message: progress after every step, then the new nodes, siblings with consecutive seeds.

        cancelled: asked before every step; once it is true nothing more is made and no node is added. Raises as
        `open`."""
        _check_count(count)
        job = self.open(message, start)
        yield from self.run(_variants(job, count, job.settings.seed), previews=previews, cancelled=cancelled)

    def again(
        self,
        node_id: str,
        *,
        seed: int | None = None,
        count: int = 1,
        previews: bool = True,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Progress | Node]:
        """The same request with another seed (None = a random one), as siblings of the node. Otherwise as `ask`."""
        _check_count(count)
        first = secrets.randbelow(2**32) if seed is None else seed
        jobs = _variants(self.job_of(node_id), count, first)
        yield from self.run(jobs, previews=previews, cancelled=cancelled)

    def run(
        self, jobs: Sequence[Job], *, previews: bool = True, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Progress | Node]:
        """Make jobs and keep the answers as nodes; otherwise as `ask`."""
        for made in self._make(jobs, previews, cancelled):
            if isinstance(made, Progress):
                yield made
            else:
                yield self.session.add_node(
                    made.job.unit.current,
                    made.image,
                    made.recipe,
                    parents=made.job.parents,
                    latents=made.latents,
                    source=made.job.source,
                )

    def replay(self, node_id: str, *, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Progress | Replay]:
        """Make a node again from what the session keeps, and compare. Adds nothing. Raises SessionError."""
        written = self.session.node(node_id).recipe
        for made in self._make([self.job_of(node_id)], False, cancelled):
            if isinstance(made, Progress):
                yield made
                continue
            before = _rgba(self.session.answer(node_id))
            after = made.image.convert("RGBA")
            largest = 255
            if before.size == after.size:
                largest = int(np.asarray(ImageChops.difference(before, after)).max())
            differences = compare(written, made.recipe.environment, model_sha256=self.model.sha256)
            yield Replay(node_id, largest, differences)

    def drift(self, node_id: str) -> DriftReport | None:
        """How far a node's answer moved from what it edited, as `Made.drift`; None if it edited nothing."""
        job = self.job_of(node_id)
        return drift_of(job, self.session.answer(node_id).stored)

    def notes(self, node_id: str) -> tuple[str, ...]:
        """What the user should know of a node's request, as `Made.notes`."""
        return notes_on(self.model, self.job_of(node_id))

    def _make(self, jobs: Sequence[Job], previews: bool, cancelled: Callable[[], bool]) -> Iterator[Progress | Made]:
        with self._one_at_a_time:
            started, done, total = time.monotonic(), 0, 0
            for numbers in in_batches(len(jobs), self.model):
                batch = [jobs[number] for number in numbers]
                if cancelled():
                    return
                states = prepare_jobs(self.pipeline, batch)
                here = max(state.num_steps for state in states)
                total = total or here * -(-len(jobs) // len(batch))
                yield Progress(done, total, None)
                while running := [state for state in states if not state.done]:
                    if cancelled():
                        return
                    self.pipeline.step(running)
                    done += 1
                    pictures = self._previews(states) if previews and done < total else ()
                    each = (time.monotonic() - started) / done
                    yield Progress(done, total, each * (total - done), pictures)
                yield from finish_jobs(self.pipeline, self.model, batch, states)

    def _previews(self, states: Sequence[RequestState]) -> tuple[Image.Image, ...]:
        exact = self.model.budget <= EXACT_PREVIEW_BUDGET
        return tuple(self.pipeline.preview(state, exact) for state in states)

    def _resolve(self, message: Message, answer: Picture | None) -> tuple[str, list[Picture]]:
        """The instruction with its mentions as `{image}` names, and the pictures in that order."""
        pictures = list(message.pictures)
        nodes: list[str] = []
        for name in _MENTION.findall(message.text):
            if name.isdecimal():
                node_id = f"{int(name):04d}"
                self.session.node(node_id)
                nodes.append(node_id)
        if not pictures and nodes and answer is not None:
            pictures.append(answer)
        known = {picture.node for picture in pictures}
        for node_id in nodes:
            if node_id not in known:
                pictures.append(self.answer(node_id))
                known.add(node_id)
        names: dict[str, int] = {chr(ord("a") + number): number for number in range(len(message.pictures))}
        names.update({picture.node: number for number, picture in enumerate(pictures) if picture.node is not None})
        return _name_images(message.text, names), pictures


def _name_images(text: str, names: Mapping[str, int]) -> str:
    def name_of(match: re.Match[str]) -> str:
        key = f"{int(match[1]):04d}" if match[1].isdecimal() else match[1]
        if key not in names:
            return match[0]  # an @ of another meaning
        return "{image}" if names[key] == 0 else f"{{image{names[key]}}}"

    return _MENTION.sub(name_of, text)


def extend_canvas(
    picture: OpenedImage, *, left: float = 0, top: float = 0, right: float = 0, bottom: float = 0
) -> tuple[OpenedImage, Image.Image]:
    """A larger canvas for outpainting.

    left, top, right, bottom: how much to add on each side, in shares of the picture's width or height, 0 to 2.
    Returns the picture on its canvas, grey where nothing is yet, and the mask of what is new ("L", white = new): paste
    with `feather_px=0`, for there is nothing to blend with. Alpha is composited over white first. Raises ConfigError
    for an impossible share or if nothing is added."""
    shares = (left, top, right, bottom)
    if not all(0 <= share <= MAX_SIDE_RATIO for share in shares):
        raise ConfigError(f"each side can grow by 0 to {MAX_SIDE_RATIO:g} times the picture")
    width, height = picture.size
    added = [round(share * side) for share, side in zip(shares, (width, height, width, height), strict=True)]
    if not any(added):
        raise ConfigError("no side grows: say how much to add to at least one")
    size = (width + added[0] + added[2], height + added[1] + added[3])
    canvas = Image.new("RGB", size, EMPTY)
    canvas.paste(picture.image, (added[0], added[1]))
    mask = Image.new("L", size, 255)
    mask.paste(0, (added[0], added[1], added[0] + width, added[1] + height))
    return replace(normalise_image(canvas, name=picture.name), icc_profile=picture.icc_profile), mask


def sketch_over(picture: OpenedImage, strokes: Image.Image) -> tuple[OpenedImage, Image.Image]:
    """Coloured strokes as part of the picture, for the model to see ("composite"), and their mask.

    strokes: RGBA of the picture's size; what is at least half opaque counts. Raises MaskError for another size or if
    nothing is drawn."""
    if strokes.size != picture.size:
        raise MaskError(
            f"the strokes are {strokes.width}x{strokes.height} px, the picture {picture.size[0]}x{picture.size[1]} px: "
            "draw them on the picture"
        )
    mask = Image.fromarray((np.asarray(strokes.getchannel("A")) >= MASK_THRESHOLD).astype(np.uint8) * 255)
    if mask.getbbox() is None:
        raise MaskError("nothing is drawn: paint what should change")
    drawn = picture.stored.copy()
    drawn.paste(strokes.convert("RGB"), (0, 0), mask)
    if picture.alpha is not None:
        drawn.putalpha(ImageChops.lighter(picture.alpha, mask))
    return replace(normalise_image(drawn, name=picture.name), icc_profile=picture.icc_profile), mask


def hide_under(picture: OpenedImage, mask: Image.Image) -> OpenedImage:
    """The picture, grey under the mask ("L", white = hidden), so that the model does not see what was there."""
    hidden = picture.stored.copy()
    hidden.paste(EMPTY, (0, 0), mask)
    if picture.alpha is not None:
        hidden.putalpha(picture.alpha)
    return replace(normalise_image(hidden, name=picture.name), icc_profile=picture.icc_profile)


def _variants(job: Job, count: int, first: int) -> list[Job]:
    return [replace(job, settings=replace(job.settings, seed=first + number)) for number in range(count)]


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_VARIANTS:
        raise ConfigError(f"{count} variants: use 1 to {MAX_VARIANTS}")


def _ref_of(image: Image.Image, name: str) -> FileRef:
    return FileRef(name=name, sha256=hashlib.sha256(encode(image, "PNG")).hexdigest())


def _rgba(picture: OpenedImage) -> Image.Image:
    whole = picture.stored.convert("RGBA")
    if picture.alpha is not None:
        whole.putalpha(picture.alpha)
    return whole
