"""What the page can do, without a page: events in, views out.

A `Studio` is one open session with its model, shared by every tab that looks at it. Each function below takes one event
of the page, already read into a strict record, and changes the studio; `view` says all that the page shows, as plain
JSON. Answers are made on a thread of the studio's own, so that a page that is reloaded finds them going on; `watch`
gives a view after every change until nothing runs any more.

No Gradio and no HTTP here (`app.py`), no HTML (`page/`).
"""

from __future__ import annotations

import base64
import binascii
import io
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Annotated, Literal, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ace.conditions.images import OpenedImage, open_image, quiet_pillow
from ace.conditions.masks import read_mask
from ace.conditions.rules import ImageRules
from ace.conditions.units import DEFAULT_MAX_HISTORY, MAX_IMAGES
from ace.conversation.chat import (
    MAX_SIDE_RATIO,
    MAX_VARIANTS,
    ChatSession,
    Message,
    Picture,
    Progress,
    Replay,
    extend_canvas,
    hide_under,
    sketch_over,
)
from ace.conversation.edit import Settings
from ace.conversation.session import Node
from ace.errors import AceError, ConfigError, ImageError, InputError, MaskError, SessionError
from ace.web.gallery import EXAMPLES, Example, example

MAX_UPLOAD_BYTES = 40 * 2**20
MAX_UPLOADS = 32  # kept at a time; the oldest unsent ones go first
PREVIEW_PX = 320
THUMBNAIL_PX = 160

Share = Annotated[float, Field(ge=0, le=MAX_SIDE_RATIO)]
UploadId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
NodeName = Annotated[str, Field(pattern=r"^[0-9]{4,9}$")]


E = TypeVar("E", bound="_Event")


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Extension(_Event):
    """How far the canvas grows on each side, in shares of the picture."""

    left: Share = 0
    top: Share = 0
    right: Share = 0
    bottom: Share = 0


class Said(_Event):
    """A message as the page sends it.

    mask: strokes as a PNG data address, or None; mask_mode: "mark" = they say what may change, "hide" = and the model
    does not see what is under them, "draw" = their colours are part of the picture. Empty numbers = the model's own."""

    text: str = Field(max_length=10_000)
    start: NodeName | None = None
    uploads: tuple[UploadId, ...] = Field(default=(), max_length=MAX_IMAGES)
    mask: str | None = Field(default=None, max_length=16_000_000)
    mask_mode: Literal["mark", "hide", "draw"] = "mark"
    extend: Extension | None = None
    negative: str = Field(default="", max_length=10_000)
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    history: Annotated[int, Field(ge=0, le=MAX_IMAGES)] = DEFAULT_MAX_HISTORY
    count: Annotated[int, Field(ge=1, le=MAX_VARIANTS)] = 1


class Again(_Event):
    """The same request once more, with other seeds."""

    node: NodeName
    count: Annotated[int, Field(ge=1, le=MAX_VARIANTS)] = 1


class At(_Event):
    """A place in the tree; None = before a new conversation."""

    node: NodeName | None = None


@dataclass
class Running:
    """The answer in the making. text: what was asked; parent: the node that it follows; kind: "answer" or "replay"."""

    text: str
    parent: str | None
    kind: str = "answer"
    pictures: tuple[str, ...] = ()
    step: int = 0
    total: int = 0
    eta_s: float | None = None
    previews: tuple[str, ...] = ()


@dataclass
class Studio:
    """An open session, the model that answers in it, and what is going on.

    uploads: pictures that were sent and not used yet, by id; described, drifts: what
    `view` says of each node."""

    chat: ChatSession
    running: Running | None = None
    notice: dict[str, str] | None = None
    version: int = 0
    uploads: OrderedDict[str, Picture] = field(default_factory=OrderedDict)
    described: dict[str, dict] = field(default_factory=dict)
    drifts: dict[str, str] = field(default_factory=dict)
    changed: Condition = field(default_factory=Condition)
    stopping: Event = field(default_factory=Event)
    worker: Thread | None = None


# What the page shows


def view(studio: Studio) -> dict:
    """Everything that the page shows, as JSON."""
    session = studio.chat.session
    nodes, damaged = [], []
    for node_id in session.node_ids():
        try:
            nodes.append(_described(studio, node_id))
        except SessionError:
            damaged.append(node_id)
    readable = {node["id"] for node in nodes}
    try:
        head = session.head()
    except SessionError:
        head = None
    head = head if head in readable else nodes[-1]["id"] if nodes and head is not None else None
    running = studio.running
    return {
        "version": studio.version,
        "model": _model_of(studio),
        "folder": session.folder.name,
        "head": head,
        "nodes": nodes,
        "damaged": damaged,
        "drift": _drift_along(studio, head),
        "running": None if running is None else dict(vars(running)),
        "notice": studio.notice,
    }


def watch(studio: Studio) -> Iterator[dict]:
    """A view now and after every change, until nothing is running."""
    while True:
        with studio.changed:
            seen, done = studio.version, studio.running is None
        yield view(studio)
        if done:
            return
        with studio.changed:
            studio.changed.wait_for(lambda seen=seen: studio.version != seen, timeout=10)


def gallery() -> list[dict]:
    """The examples, by family of tasks, for the page."""
    return [{**vars(one), "pictures": list(one.pictures), "texts": list(one.texts)} for one in EXAMPLES]


# Events


def send(studio: Studio, said: Said) -> None:
    """Begin to answer a message. Raises InputError if it cannot be answered, or something else is being made."""
    message = _message(studio, said)
    studio.chat.open(message, said.start)  # what is wrong is said before anything starts
    events = studio.chat.ask(message, said.start, count=said.count, cancelled=studio.stopping.is_set)
    pictures = tuple(f"uploads/{upload}" for upload in said.uploads)
    _start(studio, events, Running(said.text, said.start, pictures=pictures))


def again(studio: Studio, asked: Again) -> None:
    """Begin the same request with other seeds. Raises as `send`."""
    node = studio.chat.session.node(asked.node)
    events = studio.chat.again(asked.node, count=asked.count, cancelled=studio.stopping.is_set)
    _start(studio, events, Running(node.instruction, node.parents[0] if node.parents else None))


def replay(studio: Studio, at: At) -> None:
    """Begin to make a node again, to compare. Raises as `send`."""
    if at.node is None:
        raise ConfigError("there is nothing to make again: choose a picture")
    node = studio.chat.session.node(at.node)
    events = studio.chat.replay(at.node, cancelled=studio.stopping.is_set)
    _start(studio, events, Running(node.instruction, at.node, "replay"))


def stop(studio: Studio) -> None:
    """Stop before the next step; nothing of the answer is kept."""
    studio.stopping.set()


def go(studio: Studio, at: At) -> None:
    """Move to a place in the tree. Raises SessionError."""
    studio.chat.session.set_head(at.node)
    _tell(studio, None)


def dismiss(studio: Studio) -> None:
    """Take the notice away."""
    _tell(studio, None)


def complain(studio: Studio, error: AceError) -> None:
    """Show what is wrong with a request."""
    _tell(studio, {"kind": "error", "text": str(error)})


def read_event(kind: type[E], data: object) -> E:
    """An event of the page as its record. Raises ConfigError for anything else."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the request"
        raise ConfigError(f"{place[:60]}: {first['msg'][:120].lower()}") from None


# Files


def add_upload(studio: Studio, path: Path, name: str) -> dict:
    """Open a file that was sent and keep it until it is used. Returns its id and size. Raises ImageError."""
    picture = Picture.of_file(path)
    plain = Path(name.replace("\\", "/")).name[:200] or "picture"
    picture = replace(picture, file=picture.file.model_copy(update={"name": plain}))
    return _keep(studio, replace(picture, opened=replace(picture.opened, name=plain)))


def open_example(studio: Studio, name: str) -> dict:
    """An example's pictures as uploads, its words and its mask, for the composer. Raises ConfigError."""
    one = example(name)
    pictures = [_keep(studio, Picture.of_file(path)) for path in one.picture_paths()]
    mask = None
    if one.mask is not None:
        mask = _data_address(_strokes_of(one))
    return {"uploads": pictures, "texts": list(one.texts), "mask": mask, "task": one.task}


def upload_picture(studio: Studio, upload: str) -> Image.Image:
    """What an upload looks like. Raises ImageError if it is gone."""
    return _upload(studio, upload).opened.image


def import_archive(studio: Studio, path: Path, name: str) -> None:
    """Add the nodes of an exported session and go to the last of them. Raises SessionError."""
    with open(path, "rb") as stream:
        numbers = studio.chat.session.add_archive(stream, name=Path(name).name[:80] or "the file")
    if numbers:
        studio.chat.session.set_head(list(numbers.values())[-1])
    count = "1 picture" if len(numbers) == 1 else f"{len(numbers)} pictures"
    _tell(studio, {"kind": "info", "text": f"{count} added from {Path(name).name[:80]}"})


def thumbnail(image: Image.Image, side_px: int = THUMBNAIL_PX) -> bytes:
    """A small WebP of a picture, for the tree and the previews."""
    small = image.convert("RGBA" if image.mode == "RGBA" else "RGB")
    small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=85, method=2)
    return stream.getvalue()


# The work


def _start(studio: Studio, events: Iterator[Progress | Node | Replay], running: Running) -> None:
    with studio.changed:
        if studio.running is not None:
            raise ConfigError("an answer is being made: wait for it, or stop it first")
        studio.running = running
        studio.stopping.clear()
        studio.notice = None
        studio.version += 1
        studio.changed.notify_all()
    studio.worker = Thread(target=_work, args=(studio, events, running), name="ace-studio", daemon=True)
    studio.worker.start()


def _work(studio: Studio, events: Iterator[Progress | Node | Replay], running: Running) -> None:
    """Follow an answer to its end; whatever happens, the studio is free again afterwards."""
    first = None
    notice: dict[str, str] | None = {"kind": "error", "text": "the answer failed: the terminal of ace chat says why"}
    try:
        replayed = None
        for event in events:
            if isinstance(event, Progress):
                running.step, running.total, running.eta_s = event.step, event.total, event.eta_s
                if event.previews:
                    running.previews = tuple(
                        f"data:image/webp;base64,{base64.b64encode(thumbnail(p, PREVIEW_PX)).decode()}"
                        for p in event.previews
                    )
            elif isinstance(event, Node):
                if first is None:
                    first = event.id
                    studio.chat.session.set_head(first)
            else:
                replayed = _say_replay(event)
            _tell(studio, studio.notice)
        stopped = studio.stopping.is_set() and first is None
        notice = {"kind": "info", "text": "Stopped. Nothing was kept."} if stopped and replayed is None else replayed
    except AceError as error:
        notice = {"kind": "error", "text": str(error)}
    except (RuntimeError, MemoryError, OSError) as error:  # torch says so when memory runs out
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        notice = {"kind": "error", "text": f"the model failed ({reason}): try fewer variants or a smaller size"}
    finally:
        studio.running = None
        _tell(studio, notice)


def _say_replay(replay: Replay) -> dict[str, str]:
    name = f"@{int(replay.node_id)}"
    if replay.same_pixels:
        return {"kind": "info", "text": f"{name} made again: every pixel is the same."}
    why = "; ".join(replay.differences) or "nothing that the recipe knows of differs"
    return {
        "kind": "info",
        "text": f"{name} made again: pixels differ by up to {replay.largest_difference} of 255 levels ({why}).",
    }


def _tell(studio: Studio, notice: dict[str, str] | None) -> None:
    with studio.changed:
        studio.notice = notice
        studio.version += 1
        studio.changed.notify_all()


def _message(studio: Studio, said: Said) -> Message:
    """The message that the page's event describes, pictures opened and canvases made. Raises InputError."""
    settings = Settings(
        seed=secrets.randbelow(2**32) if said.seed is None else said.seed,
        num_inference_steps=said.steps,
        guidance_scale=said.guidance,
        negative_instruction=said.negative,
        size=said.size,
    )
    pictures = [_upload(studio, upload) for upload in said.uploads]
    mask = None
    if said.mask is not None or said.extend is not None:
        if not pictures and said.start is not None:
            pictures = [studio.chat.answer(said.start)]
        if not pictures:
            raise MaskError("there is no picture to paint on: add one first")
        first = pictures[0]
        if said.extend is not None:
            canvas, mask = extend_canvas(first.opened, **dict(said.extend))
            pictures[0] = Picture.of_image(canvas, "canvas")
            settings = replace(settings, feather_px=0)
        elif said.mask is not None:
            strokes = _read_strokes(said.mask, first.opened)
            if said.mask_mode == "draw":
                drawn, mask = sketch_over(first.opened, strokes)
                pictures[0] = Picture.of_image(drawn, "drawing")
            else:
                mask = read_mask(strokes, first.opened, ImageRules(mask_means="opaque"), name="the painted mask").image
            if said.mask_mode == "hide":
                pictures[0] = Picture.of_image(hide_under(first.opened, mask), "hidden")
                settings = replace(settings, feather_px=0)
    return Message(said.text, settings, tuple(pictures), mask, said.history)


def _read_strokes(address: str, picture: OpenedImage) -> Image.Image:
    """Strokes that the page painted, RGBA of the picture's size. Raises MaskError."""
    head, _, data = address.partition(",")
    if head != "data:image/png;base64":
        raise MaskError("the painted mask is no PNG: paint it again")
    try:
        with quiet_pillow(), Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=("PNG",)) as image:
            if image.size != picture.size:
                raise MaskError(
                    f"the painted mask is {image.width}x{image.height} px, its picture "
                    f"{picture.size[0]}x{picture.size[1]} px: paint it again"
                )
            return image.convert("RGBA")
    except (OSError, SyntaxError, ValueError, binascii.Error):
        raise MaskError("the painted mask is damaged: paint it again") from None


def _strokes_of(one: Example) -> Image.Image:
    """An example's mask as the page paints one: one colour on a transparent ground."""
    mask = open_image(one.mask_path()).image.convert("L")
    strokes = Image.new("RGBA", mask.size, (0, 0, 0, 0))
    strokes.paste((255, 255, 255, 255), (0, 0), mask)
    return strokes


def _data_address(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _keep(studio: Studio, picture: Picture) -> dict:
    upload = secrets.token_hex(8)
    studio.uploads[upload] = picture
    while len(studio.uploads) > MAX_UPLOADS:
        studio.uploads.popitem(last=False)
    width, height = picture.opened.size
    return {"id": upload, "width": width, "height": height, "name": picture.file.name}


def _upload(studio: Studio, upload: str) -> Picture:
    try:
        return studio.uploads[upload]
    except KeyError:
        raise ImageError("a picture of this message is no longer here: add it again") from None


def _model_of(studio: Studio) -> dict:
    model = studio.chat.model
    return {
        "name": model.name,
        "steps": model.num_inference_steps,
        "guidance": model.guidance_scale,
        "cell_px": model.cell_px,
        "side_px": model.side_px,
        "max_images": MAX_IMAGES,
        "history": DEFAULT_MAX_HISTORY,
        "max_variants": MAX_VARIANTS,
    }


def _described(studio: Studio, node_id: str) -> dict:
    """A node as the page shows it; nodes never change, so each is read once."""
    if node_id not in studio.described:
        node = studio.chat.session.node(node_id)
        recipe = node.recipe
        with Image.open(node.image_path) as image:
            width, height = image.size
        studio.described[node_id] = {
            "id": node.id,
            "parents": list(node.parents),
            "text": node.instruction,
            "width": width,
            "height": height,
            "inputs": [
                {
                    "node": one.node,
                    "picture": f"nodes/{one.node}/image.png" if one.node else f"nodes/{node.id}/{one.path.name}",
                    "mask": None if one.mask_path is None else f"nodes/{node.id}/{one.mask_path.name}",
                }
                for one in node.inputs
            ],
            "seed": recipe.seed,
            "steps": recipe.num_inference_steps,
            "guidance": recipe.guidance_scale,
            "negative": recipe.negative_instruction,
            "size": list(recipe.size_px),
            "model": recipe.model,
            "model_sha256": recipe.model_sha256,
            "rounds": len(recipe.history),
            "latents": node.has_latents,
        }
    return studio.described[node_id]


def _drift_along(studio: Studio, head: str | None) -> dict[str, str]:
    """The notes and drift reports of the conversation that ends at the head."""
    found: dict[str, str] = {}
    while head is not None and head in studio.described and head not in found:
        if head not in studio.drifts:
            try:
                report = studio.chat.drift(head)
                lines = (*([] if report is None or not report.telling else [str(report)]), *studio.chat.notes(head))
                studio.drifts[head] = " · ".join(lines)
            except InputError:  # a damaged node before it
                studio.drifts[head] = ""
        found[head] = studio.drifts[head]
        parents = studio.described[head]["parents"]
        head = parents[0] if parents else None
    return found
