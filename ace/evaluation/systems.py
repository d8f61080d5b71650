"""What can be measured: anything that turns requests into pictures. A `Contestant` is one such thing with its name.

An `Editor` is a function from requests and seeds to pictures. Here are two: a model of any family (`ace/families`), and
an endpoint that speaks the OpenAI images API. A folder of finished pictures needs no editor at all: the benchmarks read
it as if it had been made a moment ago.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageChops

from ace.conditions.images import normalise_image, open_image
from ace.conditions.rules import ImageRules
from ace.conditions.units import LongContextConditionUnit
from ace.conversation import Family, Job, Settings, make
from ace.conversation.family import open_job
from ace.errors import ConditionError, DataError, MissingDependencyError
from ace.evaluation.scores import EditAnswer
from ace.families.ace import AceFamily
from ace.inference import ACEPipeline

if TYPE_CHECKING:
    from openai import Omit, OpenAI

Editor = Callable[[Sequence[LongContextConditionUnit], Sequence[int]], list[Image.Image]]


Answerer = Callable[[Sequence[LongContextConditionUnit], Sequence[int]], list[EditAnswer]]


@dataclass(frozen=True)
class Contestant:
    """What is measured. edit: None = its finished pictures are there already. settings: what makes its answers what
    they are, kept in run.json. answer, pipeline: of an ACE model only, which answers everything in packed passes; the
    first also gives a masked edit as it was before the input's pixels were put back."""

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
    """An ACE pipeline in memory; None = the model's own setting."""
    return contestant_of(AceFamily.of(pipeline, pipeline_sha256(pipeline)), num_inference_steps, guidance_scale, name)


def contestant_of(
    family: Family, num_inference_steps: int | None = None, guidance_scale: float | None = None, name: str | None = None
) -> Contestant:
    """A loaded model of any family; None = its own setting. What it cannot take raises InputError when it is asked."""
    settings: dict[str, object] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    answer = partial(_answer, family, num_inference_steps, guidance_scale)
    name = family.name if name is None else name

    def edit(units: Sequence[LongContextConditionUnit], seeds: Sequence[int]) -> list[Image.Image]:
        return [one.picture for one in answer(units, seeds)]

    if not isinstance(family, AceFamily):
        return Contestant(name, edit, {"weights_sha256": family.sha256, **settings})
    pipeline = family.pipeline
    own = {key: getattr(pipeline.config, key) for key in settings}
    settings = {key: own[key] if value is None else value for key, value in settings.items()}
    settings["guidance_rescale"] = pipeline.config.guidance_rescale
    settings["scheduler"] = type(pipeline.scheduler).__name__
    return Contestant(name, edit, {"weights_sha256": pipeline_sha256(pipeline), **settings}, answer, pipeline)


# Benchmarks measure the model, not what is kept of its input.
_MODELS_OWN = ImageRules(detail="model", focus="off")


def _answer(
    family: Family,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    units: Sequence[LongContextConditionUnit],
    seeds: Sequence[int],
) -> list[EditAnswer]:
    """What a family makes of requests. Raises InputError for one that it cannot take, before anything is made."""
    jobs = []
    for unit, seed in zip(units, seeds, strict=True):
        settings = Settings(seed, num_inference_steps, guidance_scale, images=_MODELS_OWN)
        edited = unit.source_index
        source = None if edited is None else normalise_image(unit.frames()[edited].image)
        jobs.append(open_job(family, Job(unit, settings, source)))
    return [EditAnswer(made.image, made.unpasted) for made in make(family, jobs)]


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
