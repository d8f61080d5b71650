"""What can be measured: anything that turns requests into pictures. A `Contestant` is one such thing with its name.

An `Editor` is a function from requests and seeds to pictures. Here are three: a pipeline of ours, any instruction
editing pipeline of diffusers, and an endpoint that speaks the OpenAI images API. A folder of finished pictures needs no
editor at all: the benchmarks read it as if it had been made a moment ago.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageChops

from ace.conditions.images import open_image
from ace.conditions.units import LongContextConditionUnit
from ace.diffusion import seeded_generator
from ace.errors import ConditionError, DataError, MissingDependencyError
from ace.evaluation.scores import EditAnswer
from ace.inference import ACEPipeline, Request

if TYPE_CHECKING:
    from openai import Omit, OpenAI

Editor = Callable[[Sequence[LongContextConditionUnit], Sequence[int]], list[Image.Image]]


Answerer = Callable[[Sequence[LongContextConditionUnit], Sequence[int]], list[EditAnswer]]


@dataclass(frozen=True)
class Contestant:
    """What is measured. edit: None = its finished pictures are there already. settings: what makes its answers what
    they are, kept in run.json. answer, pipeline: of a model of ours only; the first also gives a masked edit as it was
    before the input's pixels were put back."""

    name: str
    edit: Editor | None
    settings: dict[str, object]
    answer: Answerer | None = None
    pipeline: ACEPipeline | None = None


def our_contestant(
    pipeline: ACEPipeline,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    name: str = "",
) -> Contestant:
    """A pipeline of ours; None = the model's own setting."""
    config = pipeline.config
    settings: dict[str, object] = {
        "weights_sha256": pipeline_sha256(pipeline),
        "num_inference_steps": config.num_inference_steps if num_inference_steps is None else num_inference_steps,
        "guidance_scale": config.guidance_scale if guidance_scale is None else guidance_scale,
        "guidance_rescale": config.guidance_rescale,
        "scheduler": type(pipeline.scheduler).__name__,
    }
    pipeline.set_progress_bar_config(disable=True)  # runs have their own
    answer = _answer_with_ace(pipeline, num_inference_steps, guidance_scale)
    return Contestant(name, edit_with_ace(pipeline, num_inference_steps, guidance_scale), settings, answer, pipeline)


def pipeline_sha256(pipeline: ACEPipeline) -> str:
    """A hash of all weights that take part and of the settings that decide how they are used."""
    digest = hashlib.sha256()
    for name in ("transformer", "vae", "text_encoder"):
        for key, value in sorted(getattr(pipeline, name).state_dict().items()):
            digest.update(f"{name}.{key}:{value.dtype}:{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    settings = {k: v for k, v in pipeline.config.items() if isinstance(v, int | float)}
    scheduler = {k: str(v) for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    digest.update(json.dumps([settings, scheduler], sort_keys=True).encode())
    return digest.hexdigest()


def edit_with_ace(
    pipeline: ACEPipeline, num_inference_steps: int | None = None, guidance_scale: float | None = None
) -> Editor:
    """A pipeline of ours; all requests of a call in one packed pass."""

    def edit(units: Sequence[LongContextConditionUnit], seeds: Sequence[int]) -> list[Image.Image]:
        return pipeline(requests=_requests(units, seeds, num_inference_steps, guidance_scale)).images

    return edit


def _answer_with_ace(pipeline: ACEPipeline, num_inference_steps: int | None, guidance_scale: float | None) -> Answerer:
    """As `edit_with_ace`, with masked edits also as they were before the input was put back."""

    def answer(units: Sequence[LongContextConditionUnit], seeds: Sequence[int]) -> list[EditAnswer]:
        states = pipeline.prepare(_requests(units, seeds, num_inference_steps, guidance_scale))
        while running := [state for state in states if not state.done]:
            pipeline.step(running)
        pictures = pipeline.decode(states)
        masked = [i for i, unit in enumerate(units) if _is_masked(unit)]
        whole = pipeline.decode([states[i] for i in masked], preserve=False) if masked else []
        unpreserved = dict(zip(masked, whole, strict=True))
        return [EditAnswer(picture, unpreserved.get(i)) for i, picture in enumerate(pictures)]

    return answer


def _requests(
    units: Sequence[LongContextConditionUnit], seeds: Sequence[int], steps: int | None, guidance_scale: float | None
) -> list[Request]:
    return [
        Request(unit, num_inference_steps=steps, guidance_scale=guidance_scale, generator=seeded_generator(seed))
        for unit, seed in zip(units, seeds, strict=True)
    ]


def _is_masked(unit: LongContextConditionUnit) -> bool:
    source = unit.source_index
    return source is not None and unit.frames()[source].mask is not None


def edit_with_diffusers(
    pipeline: DiffusionPipeline, num_inference_steps: int | None = None, guidance_scale: float | None = None
) -> Editor:
    """A diffusers pipeline called as `pipeline(prompt=, image=, generator=)`, such as InstructPix2Pix or Kontext: one
    picture, no history, so a request with more raises ConditionError."""
    given = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    settings = {name: value for name, value in given.items() if value is not None}

    def edit(units: Sequence[LongContextConditionUnit], seeds: Sequence[int]) -> list[Image.Image]:
        made = []
        for unit, seed in zip(units, seeds, strict=True):
            picture = _only_picture(unit, type(pipeline).__name__)
            result = pipeline(
                prompt=unit.current.instruction, image=picture, generator=seeded_generator(seed), **settings
            )
            made.append(result.images[0])
        return made

    return edit


def edit_over_http(base_url: str, model: str, api_key: str = "none", timeout_s: float = 600.0) -> Editor:
    """An endpoint with /images/edits and /images/generations of the OpenAI API, through the official client.

    A request's history is not sent (the API has none): ConditionError. The seed goes as an extra field. Raises
    MissingDependencyError without the client, DataError for an error or an answer without a picture."""
    try:
        from openai import OpenAI, OpenAIError
    except ImportError as error:
        raise MissingDependencyError("an endpoint needs the openai client: pip install openai") from error

    def edit(units: Sequence[LongContextConditionUnit], seeds: Sequence[int]) -> list[Image.Image]:
        try:
            with OpenAI(base_url=base_url, api_key=api_key, timeout=timeout_s) as client:
                return [_ask(client, model, unit, seed) for unit, seed in zip(units, seeds, strict=True)]
        except OpenAIError as error:
            raise DataError(f"{base_url}: {error}") from error

    return edit


def _ask(client: OpenAI, model: str, unit: LongContextConditionUnit, seed: int) -> Image.Image:
    """One request; the picture that came back."""
    if unit.history:
        raise ConditionError("an OpenAI endpoint takes no history: measure it without long context")
    extra, words = {"seed": seed % 2**32}, unit.current.instruction
    if unit.current.images:
        files = [(f"{number}.png", png_bytes(image)) for number, image in enumerate(unit.current.images)]
        mask = _mask_file(unit)
        reply = client.images.edit(model=model, prompt=words, image=files, mask=mask, n=1, extra_body=extra)
    else:
        reply = client.images.generate(model=model, prompt=words, n=1, response_format="b64_json", extra_body=extra)
    return _picture(reply.data[0].b64_json if reply.data else None, str(client.base_url))


def _mask_file(unit: LongContextConditionUnit) -> tuple[str, bytes] | Omit:
    """The mask as that API wants it: a picture of the first one's size, transparent where it may change."""
    from openai import omit

    first, *others = unit.current.masks or (None,)
    if any(mask is not None for mask in others):
        raise ConditionError("an OpenAI endpoint takes a mask for the first picture only")
    if first is None:
        return omit
    image = unit.current.images[0].convert("RGBA")
    image.putalpha(ImageChops.invert(first.convert("L")))
    return "mask.png", png_bytes(image)


def _only_picture(unit: LongContextConditionUnit, name: str) -> Image.Image:
    if unit.history or len(unit.current.images) != 1 or unit.current.masks[0] is not None:
        raise ConditionError(f"{name} takes one picture and no mask or history: choose another benchmark or setting")
    return unit.current.images[0]


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as PNG; the same picture gives the same bytes."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _picture(text: str | None, base_url: str) -> Image.Image:
    if not text:
        raise DataError(f"{base_url} answered without a picture in b64_json: its model cannot be measured like this")
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise DataError(f"{base_url} answered with something that is not base64") from error
    return open_image(io.BytesIO(data), name="answer").image
