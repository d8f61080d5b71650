"""What can be measured: anything that turns requests into pictures.

An `Editor` is a function from requests and seeds to pictures. Here are three: a pipeline of ours, any instruction
editing pipeline of diffusers, and an endpoint that speaks the OpenAI images API. A folder of finished pictures needs no
editor at all: the benchmarks read it as if it had been made a moment ago.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from diffusers import DiffusionPipeline
from PIL import Image

from ace.conditions.images import open_image
from ace.conditions.units import LongContextConditionUnit
from ace.diffusion import seeded_generator
from ace.errors import ConditionError, DataError, MissingDependencyError
from ace.inference import ACEPipeline, Request

if TYPE_CHECKING:
    from openai import OpenAI

Editor = Callable[[Sequence[LongContextConditionUnit], Sequence[int]], list[Image.Image]]


def edit_with_ace(
    pipeline: ACEPipeline, num_inference_steps: int | None = None, guidance_scale: float | None = None
) -> Editor:
    """A pipeline of ours; all requests of a call in one packed pass."""

    def edit(units: Sequence[LongContextConditionUnit], seeds: Sequence[int]) -> list[Image.Image]:
        requests = [
            Request(
                unit,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=seeded_generator(seed),
            )
            for unit, seed in zip(units, seeds, strict=True)
        ]
        return pipeline(requests=requests).images

    return edit


def edit_with_diffusers(pipeline: DiffusionPipeline, num_inference_steps: int | None = None) -> Editor:
    """A diffusers pipeline called as `pipeline(prompt=, image=, generator=)`, such as InstructPix2Pix or Kontext: one
    picture, no history, so a request with more raises ConditionError."""
    steps = {} if num_inference_steps is None else {"num_inference_steps": num_inference_steps}

    def edit(units: Sequence[LongContextConditionUnit], seeds: Sequence[int]) -> list[Image.Image]:
        made = []
        for unit, seed in zip(units, seeds, strict=True):
            picture = _only_picture(unit, type(pipeline).__name__)
            result = pipeline(prompt=unit.current.instruction, image=picture, generator=seeded_generator(seed), **steps)
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
        reply = client.images.edit(model=model, prompt=words, image=files, n=1, extra_body=extra)
    else:
        reply = client.images.generate(model=model, prompt=words, n=1, response_format="b64_json", extra_body=extra)
    return _picture(reply.data[0].b64_json if reply.data else None, str(client.base_url))


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
