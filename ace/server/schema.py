"""What goes over the wire: OpenAI's image requests and replies, and ours for sessions.

The only place that knows their names. What the API of OpenAI has and this server cannot do is refused, what changes no
image (`user`, …) is accepted and does nothing, and an unknown name is an error. Extensions of ours:
`seed`, `steps`, `guidance_scale`, `guidance_rescale`, `negative_prompt`, `metadata`, how images go in and come out
(`mask_means`, `mask_threshold`, `focus`, `focus_margin`, `detail`, `feather`, `change_mask`), `adapters` and
options of ACE++ (`control`, `repainting_scale`, `max_seq_length`, `places`, `fits`) in requests,
`ace` in replies. A seed may be a number or a string of digits; in a session's replies it is a string, since
JavaScript's numbers are exact only up to 2^53.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, field_validator

from ace.conditions.rules import MAX_FEATHER_PX, Detail, ImageRules, MaskMeans
from ace.conditions.units import DEFAULT_MAX_HISTORY, MAX_IMAGES
from ace.conversation.job import Settings
from ace.conversation.sketch import MAX_SIDE_RATIO
from ace.errors import ConfigError

MAX_PROMPT = 4000
MIME = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

# share of the model's own number of steps
QUALITIES = {"low": 0.5, "medium": 1.0, "auto": 1.0, "standard": 1.0, "high": 2.0, "hd": 2.0, "xhigh": 3.0, "max": 4.0}
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")

MAX_PREVIEWS = 32  # of each image of a turn; OpenAI's streams have at most 3

Quality = Literal["low", "medium", "auto", "standard", "high", "hd", "xhigh", "max"]
Seed = StrictInt | Annotated[str, Field(max_length=20)] | None
Share = Annotated[float, Field(ge=0, le=MAX_SIDE_RATIO, allow_inf_nan=False)]
Parent = Annotated[str, Field(pattern=r"^([0-9]{4,9}|latest|head|none)$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class PictureBody(_Strict):
    """What `generations`, `edits` and a session's turns have in common."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
    model: Annotated[str, Field(max_length=1000)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    size: str | None = None
    quality: Quality | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    seed: Seed = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    guidance_rescale: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    moderation: Literal["low", "auto"] | None = None
    # how images and masks are read, worked on and given back, see `ImageRules`
    mask_means: MaskMeans = "auto"
    mask_threshold: Annotated[int, Field(ge=1, le=254)] | None = None
    focus: Annotated[float, Field(ge=0, le=1)] | Annotated[str, Field(max_length=20)] = "auto"
    focus_margin: Annotated[float, Field(ge=0, le=4)] = 0.5
    detail: Detail = "full"
    feather: Annotated[int, Field(ge=0, le=MAX_FEATHER_PX)] | None = None
    change_mask: bool = False
    adapters: Annotated[str, Field(max_length=1000)] | None = None
    # of some models only
    control: Annotated[str, Field(max_length=40)] | None = None
    repainting_scale: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_seq_length: Annotated[int, Field(ge=1, le=10**6)] | None = None
    places: Annotated[str, Field(max_length=200)] | None = None
    fits: Annotated[str, Field(max_length=200)] | None = None
    # accepted as OpenAI's clients send them; they change nothing here
    user: Annotated[str, Field(max_length=200_000)] | None = None
    safety_identifier: Annotated[str, Field(max_length=200_000)] | None = None
    background: Literal["opaque", "auto"] | None = None
    input_fidelity: Literal["high", "low"] | None = None
    output_compression: Literal[100] | None = None

    @field_validator("size")
    @classmethod
    def _size_can_be_read(cls, size: str | None) -> str | None:
        if size is not None and size != "auto" and not _SIZE.fullmatch(size):
            raise ValueError("write it as auto or WIDTHxHEIGHT, for example 64x64")
        return size

    @property
    def size_px(self) -> tuple[int, int] | None:
        """(width, height), None = the model's choice."""
        match = _SIZE.fullmatch(self.size or "auto")
        return None if match is None else (int(match[1]), int(match[2]))

    def settings(self, seed: int, default_steps: int | None, max_pixels: int) -> Settings:
        """How the images are made. default_steps: the model's own, None = not known; max_pixels: of one image.

        Raises ConfigError if both steps and quality are given."""
        if self.steps is not None and self.quality not in (None, "auto"):
            raise ConfigError("both steps and quality: give one of them")
        share = QUALITIES[self.quality or "auto"]
        if share != 1 and default_steps is None:
            raise ConfigError(f"quality {self.quality}: this model has no number of steps of its own, give steps")
        options = {
            "control": self.control,
            "repainting_scale": self.repainting_scale,
            "max_seq_length": self.max_seq_length,
            "places": self.places,
            "fits": self.fits,
        }
        return Settings(
            seed=seed,
            num_inference_steps=self.steps or (None if share == 1 else max(1, round((default_steps or 1) * share))),
            guidance_scale=self.guidance_scale,
            guidance_rescale=self.guidance_rescale,
            negative_instruction=self.negative_prompt,
            size=self.size_px,
            images=ImageRules(
                mask_means=self.mask_means,
                mask_threshold=self.mask_threshold,
                max_pixels=max_pixels,
                feather_px=self.feather,
                focus=self.focus,
                focus_margin=self.focus_margin,
                detail=self.detail,
            ),
            options={name: value for name, value in options.items() if value is not None},
        )


class ImagesBody(PictureBody):
    """`generations` and `edits`. metadata: false = the file holds the image only, no recipe."""

    metadata: bool = True
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None


class GenerationBody(ImagesBody):
    """`POST /v1/images/generations`."""


class ImageAddress(_Strict):
    """An image by address: a data: address, or a URL of a host that the operator allows."""

    image_url: str


class EditBody(ImagesBody):
    """`POST /v1/images/edits` as JSON; as a form the images are its files `image` (or `image[]`) and `mask`."""

    images: Annotated[list[ImageAddress], Field(min_length=1, max_length=9)]
    mask: ImageAddress | None = None


class EditForm(ImagesBody):
    """The fields of `POST /v1/images/edits` as a form, beside its files."""


def _of_text(value: object) -> object:
    """A form's field that holds JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("write it as JSON") from None


class Extension(_Strict):
    """How far a canvas grows on each side, in shares of the image's width or height."""

    left: Share = 0
    top: Share = 0
    right: Share = 0
    bottom: Share = 0


class Delivery(_Strict):
    """How a session's request is answered.

    stream: as server-sent events, with `partial_images` previews of each image. detached: at once, with its id; it
    goes on without its client, and the session's events and `/v1/requests/{id}` tell how it stands."""

    stream: bool | None = None
    detached: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_PREVIEWS)] | None = None


class TurnFields(PictureBody, Delivery):
    """What a turn says beside its images.

    parent: the node to go on from; "latest" (default), "head", or "none" for a new conversation in the same session.
    max_history: how many earlier rounds the model sees. extend: the edited image on a larger canvas. hide: the model
    does not see what is under the mask."""

    parent: Parent = "latest"
    max_history: Annotated[int, Field(ge=0, le=MAX_IMAGES)] = DEFAULT_MAX_HISTORY
    extend: Annotated[Extension | None, BeforeValidator(_of_text)] = None
    hide: bool = False


class TurnBody(TurnFields):
    """`POST /v1/sessions/{id}/turns` as JSON; as a form the images are its files `photo`, `image` (or `image[]`),
    `mask` and `drawing`.

    photo: the image to edit, instead of the answer that the turn follows. images: further ones; in a new conversation
    without a photo the first of them is edited. mask: of the edited image. drawing: coloured strokes on a transparent
    ground, of its size: they become part of the image and are the mask."""

    images: Annotated[list[ImageAddress], Field(max_length=9)] = []
    photo: ImageAddress | None = None
    mask: ImageAddress | None = None
    drawing: ImageAddress | None = None


class TurnForm(TurnFields):
    """The fields of a turn as a form, beside its files."""


class AgainBody(Delivery):
    """`POST …/nodes/{id}/again`: the same request with other seeds. seed: of the first, random by default."""

    n: Annotated[int, Field(ge=1)] | None = None
    seed: Seed = None


class NameBody(_Strict):
    """`PATCH /v1/sessions/{id}`: what a session is called, "" = as before."""

    name: Annotated[str, Field(max_length=200)]


class TitleBody(_Strict):
    """`PATCH …/nodes/{id}`: what a node is called, "" = by its instruction."""

    title: Annotated[str, Field(max_length=200)]


class HeadBody(_Strict):
    """`PUT …/head`: the node where somebody is in the tree, null = before a new conversation."""

    node: Annotated[str, Field(pattern=r"^[0-9]{4,9}$")] | None


# Replies


class VideoReply(BaseModel):
    """A clip of `/v1/videos`. status: waiting, running, done, failed, cancelled or deleted; progress: 0 to 100."""

    id: str
    object: Literal["video"] = "video"
    created_at: int
    status: str
    progress: int = 0
    eta_s: float | None = None
    message: str | None = None
    model: str
    size: str | None = None
    frames: int | None = None
    fps: float | None = None
    seconds: float | None = None
    seed: str | None = None
    steps: int | None = None
    notes: list[str] = []


class AceDetails(BaseModel):
    """Ours, beside OpenAI's: how an image was made. drift: what changed where it should not have. moderation: whether
    the network for unsafe content looked at it: "checked" or "not checked".

    changes: of an edit of a whole image, the shares of its pixels that were kept, recoloured and redrawn, by how many
    px the model had moved it, and the size it was made at. change_mask: which pixels changed (PNG, base64), where it
    was asked for."""

    seed: int
    steps: int
    guidance_scale: float
    size: str
    model: str
    model_sha256: str
    seconds: float
    drift: dict[str, Any] | None = None
    changes: dict[str, Any] | None = None
    change_mask: str | None = None
    notes: tuple[str, ...] = ()
    moderation: str = "not checked"


class ImageData(BaseModel):
    """One image."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    ace: AceDetails


class TokenDetails(BaseModel):
    """Tokens of a request by kind."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens as the model reads them: those of text as many as they can be at most."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class ImagesReply(BaseModel):
    """The answer to `generations` and `edits`."""

    created: int
    id: str
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    quality: str
    size: str
    usage: Usage


class RequestReply(BaseModel):
    """What became of a request. status: waiting, running, done, failed, cancelled or lost. kind: generation, edit,
    turn, again or replay; session, seed, n, steps: as it was asked; steps_done: of all its images together."""

    id: str
    object: Literal["ace.request"] = "ace.request"
    status: str
    created: int | None = None
    message: str | None = None
    kind: str | None = None
    session: str | None = None
    seed: str | None = None
    n: int | None = None
    steps_done: int | None = None
    steps: int | None = None
    eta_s: float | None = None


class ReplayReply(BaseModel):
    """A node made again. largest_difference: of all values, in levels of 255; differences: between then and now that
    may explain it."""

    node: str
    same_pixels: bool
    largest_difference: int
    differences: tuple[str, ...]


class NodeInputReply(BaseModel):
    """An image of a node's request. node: whose answer it is, or null; image, mask: where the files are."""

    node: str | None
    image: str
    mask: str | None


class NodeReply(BaseModel):
    """One edit of a session. image: where its image is; `b64_json` and `ace` are there in the answer to a turn.

    seed: a string, since JavaScript's numbers are exact only up to 2^53. size: that the model worked at; image_size:
    of the answer; history: how many earlier rounds the model saw; adapters: that it was made with, as "sepia:0.8";
    title: what somebody called it. Of deleted parents the nearest that is still there stands for them."""

    id: str
    parents: tuple[str, ...]
    instruction: str
    image: str
    medium: Literal["image", "clip"] = "image"
    image_size: str
    inputs: tuple[NodeInputReply, ...]
    seed: str
    steps: int
    guidance_scale: float
    negative_prompt: str
    size: str
    model: str
    model_sha256: str
    history: int
    adapters: tuple[str, ...] = ()
    title: str = ""
    b64_json: str | None = None
    ace: AceDetails | None = None


class DriftReply(BaseModel):
    """How far an answer moved from what it edited where it should not have; null if nothing was edited, no text where
    it tells nothing. notes: what should be known of the request."""

    node: str
    text: str | None
    drift: dict[str, Any] | None
    notes: tuple[str, ...] = ()


class SessionReply(BaseModel):
    """A session with its tree of edits. name: for people; head: where somebody is in it, null = before a new
    conversation; damaged: nodes that cannot be read; labels: another one whenever something is named or deleted."""

    id: str
    object: Literal["ace.session"] = "ace.session"
    created: int
    name: str
    head: str | None = None
    nodes: list[NodeReply] = []
    damaged: list[str] = []
    labels: str = ""


class ActiveRequestReply(BaseModel):
    """A request of a session that is on its way, or ended a moment ago.

    prompt: what was asked; parent: the node that it follows; previews: of its images, as data: addresses; nodes: its
    answers; replay: what a replay found."""

    id: str
    kind: Literal["turn", "again", "replay"]
    prompt: str
    parent: str | None
    n: int
    status: str
    steps_done: int
    steps: int
    eta_s: float | None
    previews: list[str]
    message: str | None = None
    nodes: list[str] = []
    replay: ReplayReply | None = None


class SessionEvent(BaseModel):
    """One event of `…/events`: how a session stands. num_nodes, head and labels tell when to read the tree again."""

    head: str | None
    num_nodes: int
    labels: str = ""
    requests: list[ActiveRequestReply]


class ArchiveReply(BaseModel):
    """What an archive added to a session: number of each node in the archive → its number here."""

    session: str
    nodes: dict[str, str]


class TurnReply(BaseModel):
    """The answer to a turn: its new nodes."""

    id: str
    session: str
    created: int
    nodes: list[NodeReply]


class ListReply(BaseModel):
    """A list."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
