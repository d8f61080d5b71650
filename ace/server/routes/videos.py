"""Clips: create, poll, fetch, delete. Of models that make clips only."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from ace.conversation.family import open_job
from ace.conversation.job import Job, Settings, clip_job
from ace.conversation.media import CLIP
from ace.conversation.seeds import read_seed
from ace.errors import ConfigError, InputError
from ace.server.front import Front, TheFront
from ace.server.images import Upload
from ace.server.schema import ListReply, VideoReply
from ace.server.service import NotFoundError
from ace.server.videos import MIME, StoredVideo
from ace.video.prepare import SIZES
from ace.video.request import ClipRequest

router = APIRouter(prefix="/v1/videos", tags=["videos"])

_ROLES = ("video", "mask", "control", "first", "last", "reference")
_MAX_FIELD_BYTES = 64 * 1024


class VideoForm(BaseModel):
    """The fields of `POST /v1/videos`, beside its files `video`, `mask`, `control`, `first`, `last` and `reference[]`.

    mask: a box "box:left,top,right,bottom" where no file is sent; control: a name (depth, pose, gray, scribble, flow,
    layout); extend: "left=0.25,right=0.25"; layout: two boxes; size: 480p, 720p or WIDTHxHEIGHT."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    model: str | None = None
    size: Annotated[str, Field(max_length=20)] | None = None
    frames: Annotated[int, Field(ge=1, le=5000)] | None = None
    fps: Annotated[str, Field(max_length=20)] | None = None
    seed: str | int | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    negative_prompt: Annotated[str, Field(max_length=4000)] = ""
    mask: Annotated[str, Field(pattern=r"^box:[0-9.,]{7,60}$")] | None = None
    control: Annotated[str, Field(pattern=r"^[a-z]{1,20}$")] | None = None
    track: bool = False
    grow: Annotated[str, Field(pattern=r"^[a-z_]{1,20}$")] | None = None
    grow_ratio: Annotated[float, Field(ge=0, le=1)] = 0.3
    extend: Annotated[str, Field(max_length=80)] = ""
    layout: Annotated[str, Field(max_length=120)] = ""
    go_on: bool = False

    @field_validator("seed")
    @classmethod
    def _seed_of_text(cls, seed: str | int | None) -> str | int | None:
        return int(seed) if isinstance(seed, str) and seed.lstrip("-").isdigit() else seed


@router.post("", status_code=202, openapi_extra={
    "requestBody": {"content": {"multipart/form-data": {"schema": VideoForm.model_json_schema()}}}
})  # fmt: skip
async def create_video(front: TheFront, request: Request) -> VideoReply:
    """Begin a clip. Answers at once with its id; a form, with files or without."""
    _check_family(front)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise HTTPException(415, "send multipart/form-data")
    async with request.form(max_files=14, max_fields=64, max_part_size=_MAX_FIELD_BYTES) as parts:
        fields, uploads = await _read(parts.multi_items())
    if fields.model is not None:
        front.check_model(fields.model)
    video = await front.in_worker(front.videos.create, request.state.client, uploads)
    try:
        job = await front.in_worker(_open, front, fields, video)
        video.accepted = await front.accept(
            front.service.accept, request, [job], "video", keep=video.keep, on_end=video.ended
        )
    except BaseException:
        front.videos.delete(video)
        raise
    return _reply(front, video)


@router.get("")
async def list_videos(front: TheFront, request: Request) -> ListReply:
    """Your clips, the newest first."""
    return ListReply(data=[_reply(front, video).model_dump() for video in front.videos.of(request.state.client)])


@router.get("/{video_id}")
async def video_status(front: TheFront, request: Request, video_id: str) -> VideoReply:
    """How a clip stands."""
    return _reply(front, front.videos.find(request.state.client, video_id))


@router.get("/{video_id}/content")
async def video_content(
    front: TheFront,
    request: Request,
    video_id: str,
    output_format: Annotated[Literal["mp4", "mkv"], Query(alias="format")] = "mp4",
) -> FileResponse:
    """The finished clip with its recipe inside: H.264 (mp4), or without loss (mkv)."""
    video = front.videos.find(request.state.client, video_id)
    if video.status != "done":
        raise NotFoundError(f"this video is {video.status}: ask again when it is done")
    headers = {"cache-control": "private, no-store"}
    return FileResponse(video.path(output_format), media_type=MIME[output_format], headers=headers)


@router.delete("/{video_id}")
async def delete_video(front: TheFront, request: Request, video_id: str) -> VideoReply:
    """Stop a clip if it is in the making, and delete its files."""
    video = front.videos.find(request.state.client, video_id)
    if video.accepted is not None and video.status == "running":
        front.service.cancel(video.accepted)
    reply = _reply(front, video)
    await front.in_worker(front.videos.delete, video)
    return reply.model_copy(update={"status": "deleted"})


def _check_family(front: Front) -> None:
    if front.family.traits.medium is not CLIP:
        raise InputError(f"{front.family.name} makes images: ask a server with a model for clips, or /v1/images")


async def _read(parts: list[tuple[str, Any]]) -> tuple[VideoForm, dict[str, Upload]]:
    texts: dict[str, str] = {}
    uploads: dict[str, Upload] = {}
    for name, value in parts:
        plain = name.removesuffix("[]")
        if isinstance(value, UploadFile):
            if plain not in _ROLES:
                raise InputError(f"unknown file {name[:40]!r}: send {', '.join(_ROLES)}")
            role = plain
            if plain == "reference":
                role = f"reference{sum(1 for one in uploads if one.startswith('reference'))}"
            if role in uploads:
                raise InputError(f"there are several files {plain!r}: send one")
            uploads[role] = Upload(await value.read(), value.filename or plain)
        elif name in texts:
            raise InputError(f"{name[:40]!r} is there twice")
        else:
            texts[name] = value
    return VideoForm.model_validate(texts), uploads


def _open(front: Front, fields: VideoForm, video: StoredVideo) -> Job:
    """The job of a request: its files read, everything checked. Raises InputError."""
    found = {role: path for role, (path, _) in video.files.items()}
    if fields.mask is not None and "mask" in found:
        raise InputError("there is a mask twice: send a file or a box")
    if fields.control is not None and "control" in found:
        raise InputError("there is a control twice: send a file or a name")
    references = [role for role in video.files if role.startswith("reference")]
    request = ClipRequest(
        video=found.get("video"),
        control=_word(found.get("control"), fields.control),
        mask=_word(found.get("mask"), fields.mask),
        track=fields.track,
        grow=fields.grow or "original",
        grow_ratio=fields.grow_ratio,
        extend=_sides(fields.extend),
        first=found.get("first"),
        last=found.get("last"),
        continues=fields.go_on,
        references=tuple(found[role] for role in references),
        layout=fields.layout,
        frames=fields.frames,
        fps=_rate(fields.fps),
        size=_size(fields.size),
    )
    files = tuple(video.files[role][1] for role in (*_ROLES[:-1], *references) if role in video.files)
    # as `ClipRequest.files` has them: video, mask, control, first, last, references
    settings = Settings(
        seed=read_seed(fields.seed),
        num_inference_steps=fields.steps,
        guidance_scale=fields.guidance_scale,
        negative_instruction=fields.negative_prompt,
    )
    return open_job(front.family, clip_job(fields.prompt, settings, request, files))


def _word(path: Path | None, word: str | None) -> str:
    return str(path) if path is not None else word or ""


def _sides(text: str) -> tuple[tuple[str, float], ...]:
    try:
        return tuple(
            (side.strip(), float(share)) for side, share in (part.split("=") for part in text.split(",") if part)
        )
    except ValueError:
        raise ConfigError("extend names sides and shares, for example left=0.25,right=0.25") from None


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None or text in SIZES:
        return None if text is None else SIZES[text]
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"size {text!r}: use 480p, 720p or WIDTHxHEIGHT")
    return int(width), int(height)


def _rate(text: str | None) -> Fraction | None:
    try:
        return None if text is None else Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"fps {text!r}: use a number of frames per second") from None


def _reply(front: Front, video: StoredVideo) -> VideoReply:
    status, progress = video.status, 100 if video.status == "done" else 0
    accepted = video.accepted
    eta = None
    if status == "running" and accepted is not None:
        status = accepted.status
        progress = min(100, int(100 * accepted.steps_done / max(1, accepted.steps)))
        eta = front.service.eta_s(accepted)
    return VideoReply(
        id=video.id,
        created_at=int(video.created),
        status=status,
        progress=progress,
        eta_s=eta,
        message=video.message,
        model=front.family.name,
        **video.details,  # type: ignore[arg-type]
    )
