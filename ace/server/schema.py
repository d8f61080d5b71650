"""What goes over the wire: OpenAI's image requests and replies, and ours for sessions.

The only place that knows their names. What the API of OpenAI has and this server cannot do is refused, what changes no
picture (`user`, `moderation`, …) is accepted and does nothing, and an unknown name is an error. Extensions of ours:
`seed`, `steps`, `guidance_scale`, `guidance_rescale`, `negative_prompt`, `metadata` in requests, `ace` in replies.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ace.conversation.edit import Settings
from ace.errors import ConfigError

MAX_PROMPT = 4000
MIME = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

# share of the model's own number of steps
QUALITIES = {"low": 0.5, "medium": 1.0, "auto": 1.0, "standard": 1.0, "high": 2.0, "hd": 2.0, "xhigh": 3.0, "max": 4.0}
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")

Quality = Literal["low", "medium", "auto", "standard", "high", "hd", "xhigh", "max"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class PictureBody(_Strict):
    """What `generations`, `edits` and a session's turns have in common."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
    model: str | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    size: str | None = None
    quality: Quality | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    guidance_rescale: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    # accepted as OpenAI's clients send them; they change nothing here
    user: str | None = None
    safety_identifier: str | None = None
    moderation: Literal["low", "auto"] | None = None
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

    def settings(self, seed: int, default_steps: int) -> Settings:
        """How the pictures are made. Raises ConfigError if both steps and quality are given."""
        if self.steps is not None and self.quality not in (None, "auto"):
            raise ConfigError("both steps and quality: give one of them")
        share = QUALITIES[self.quality or "auto"]
        return Settings(
            seed=seed,
            num_inference_steps=self.steps or (None if share == 1 else max(1, round(default_steps * share))),
            guidance_scale=self.guidance_scale,
            guidance_rescale=self.guidance_rescale,
            negative_instruction=self.negative_prompt,
            size=self.size_px,
        )


class ImagesBody(PictureBody):
    """`generations` and `edits`. metadata: false = the file holds the picture only, no recipe."""

    metadata: bool = True
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None


class GenerationBody(ImagesBody):
    """`POST /v1/images/generations`."""


class ImageAddress(_Strict):
    """A picture by address: a data: address, or a URL of a host that the operator allows."""

    image_url: str


class EditBody(ImagesBody):
    """`POST /v1/images/edits` as JSON; as a form the pictures are its files `image` (or `image[]`) and `mask`."""

    images: Annotated[list[ImageAddress], Field(min_length=1, max_length=9)]
    mask: ImageAddress | None = None


class EditForm(ImagesBody):
    """The fields of `POST /v1/images/edits` as a form, beside its files."""


class TurnBody(PictureBody):
    """`POST /v1/sessions/{id}/turns`. parent: the node to go on from; "latest" (default), or "none" for a new
    conversation in the same session."""

    parent: Annotated[str, Field(pattern=r"^([0-9]{4,9}|latest|none)$")] = "latest"
    images: Annotated[list[ImageAddress], Field(max_length=9)] = []
    mask: ImageAddress | None = None


class TurnForm(PictureBody):
    """The fields of a turn as a form, beside its files."""

    parent: Annotated[str, Field(pattern=r"^([0-9]{4,9}|latest|none)$")] = "latest"


# Replies


class AceDetails(BaseModel):
    """Ours, beside OpenAI's: how a picture was made. drift: what changed where it should not have."""

    seed: int
    steps: int
    guidance_scale: float
    size: str
    model: str
    model_sha256: str
    seconds: float
    drift: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


class ImageData(BaseModel):
    """One picture."""

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
    """What became of a request. status: waiting, running, done, failed, cancelled or lost."""

    id: str
    object: Literal["ace.request"] = "ace.request"
    status: str
    message: str | None = None
    steps_done: int | None = None
    steps: int | None = None
    eta_s: float | None = None


class NodeReply(BaseModel):
    """One edit of a session; `image` is where its picture is, `b64_json` is there in the answer to a turn."""

    id: str
    parents: tuple[str, ...]
    instruction: str
    image: str
    seed: int
    steps: int
    size: str
    b64_json: str | None = None
    ace: AceDetails | None = None


class SessionReply(BaseModel):
    """A session with its tree of edits."""

    id: str
    object: Literal["ace.session"] = "ace.session"
    created: int
    nodes: list[NodeReply] = []


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
