"""Who is measured by `ace eval`, and with which encoders: the options that its verbs share, and what they stand for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ace.cli.terminal import complain, load
from ace.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from ace.evaluation.editing import Scorers
    from ace.evaluation.ice import IceScorers
    from ace.evaluation.judge import Judge
    from ace.evaluation.systems import Contestant

T = TypeVar("T")

Report = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the report goes.", show_default=False)
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many.", show_default=False)]
RunSeed = Annotated[int, typer.Option("--seed", "-s", help="Seed of all noise.")]
OnlyTasks = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="Only this task or family; may be repeated.", show_default=False),
]
Results = Annotated[
    Path | None,
    typer.Option(
        "--results", metavar="FOLDER", help="Score these finished pictures; nothing is made.", show_default=False
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="Measure a server that speaks the OpenAI images API; --model is its name there, $OPENAI_API_KEY its key.",
        show_default=False,
    ),
]
Diffusers = Annotated[
    str | None,
    typer.Option(
        "--diffusers", metavar="NAME|FOLDER", help="Measure an editing pipeline of diffusers.", show_default=False
    ),
]
Clip = Annotated[
    str, typer.Option("--clip", metavar="NAME|FOLDER", help="CLIP weights in transformers' format; none = leave out.")
]
Dino = Annotated[
    str, typer.Option("--dino", metavar="NAME|FOLDER", help="DINO weights in transformers' format; none = leave out.")
]
Dinov2 = Annotated[str, typer.Option("--dinov2", metavar="NAME|FOLDER", help="DINOv2 weights; none = leave out.")]
FaceWeights = Annotated[
    Path | None,
    typer.Option(
        "--face-weights", metavar="FILE", help="ArcFace-class ONNX file; there is no default.", show_default=False
    ),
]
AcceptNoncommercial = Annotated[
    bool, typer.Option("--accept-noncommercial", help="Use weights that allow non-commercial use only.")
]
GenInfo = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="FILE",
        help="gen_info.json: finished pictures by ItemID; nothing is made.",
        show_default=False,
    ),
]
RawMetrics = Annotated[
    Path | None,
    typer.Option(
        "--raw", metavar="FILE", help="eval_result.txt with metrics of other tools, to merge.", show_default=False
    ),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option(
        "--judge", metavar="URL", help="Chat endpoint of a vision-language model, for vllmqa.", show_default=False
    ),
]
JudgeModel = Annotated[str, typer.Option("--judge-model", help="Its name there.")]
JudgeLanguage = Annotated[str, typer.Option("--judge-language", help="Of its question: en or zh.")]
IceModels = Annotated[
    Path | None,
    typer.Option(
        "--models",
        metavar="FOLDER",
        help="The benchmark's unpacked models: aesthetic, MUSIQ, CSD, depth; those that are there.",
        show_default=False,
    ),
]
NONCOMMERCIAL_FACES = {  # SHA-256 of embeddings whose weights are for non-commercial research only
    "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f": "w600k_mbf (InsightFace buffalo_s)",
}


def allowed_faces(file: Path, accept: bool) -> Path:
    """The file of a face embedding. Raises ConfigError if it is not there, or is for non-commercial use and nobody said
    that this is."""
    if not file.is_file():
        raise ConfigError(f"no file {file}: name an ArcFace ONNX file with --face-weights")
    known = noncommercial(file)
    if known and not accept:
        raise ConfigError(f"{known} is for non-commercial use: add --accept-noncommercial if yours is")
    return file


def noncommercial(file: Path) -> str | None:
    """What a face embedding is called that is known to be for non-commercial use; None for any other."""
    return NONCOMMERCIAL_FACES.get(hashlib.sha256(file.read_bytes()).hexdigest())


def contestant(
    results: Path | None,
    endpoint: str | None,
    diffusers: str | None,
    model: str | None,
    device: str,
    steps: int | None,
    guidance: float | None,
) -> Contestant:
    """What is measured: finished pictures, an endpoint, a diffusers pipeline, or a model of ours.

    Raises ConfigError for what contradicts itself or is not there, before anything heavy is imported."""
    from ace.weights.sources import find_model

    if sum(given is not None for given in (results, endpoint, diffusers)) > 1:
        raise ConfigError("--results, --endpoint and --diffusers are three ways to say what is measured: give one")
    if results is not None and not results.exists():
        raise ConfigError(f"there is nothing at {results.name}: --results names finished pictures")
    if endpoint is not None and model is None:
        raise ConfigError("--endpoint needs --model: the model's name at that server")
    files = None if results or endpoint or diffusers else find_model(model)
    from ace.evaluation import systems

    if files is not None:
        return systems.our_contestant(load(files, device), steps, guidance, files.name)
    if results is not None:
        return systems.Contestant(results.parent.name if results.is_file() else results.name, None, {})
    if endpoint is not None and model is not None:
        edit = systems.edit_over_http(endpoint, model, os.environ.get("OPENAI_API_KEY") or "none")
        return systems.Contestant(model, edit, {"endpoint": endpoint})
    assert diffusers is not None
    from diffusers import DiffusionPipeline

    try:
        pipeline = DiffusionPipeline.from_pretrained(diffusers, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no diffusers pipeline {diffusers!r} with safetensors: {error}") from error
    settings = {"num_inference_steps": steps, "guidance_scale": guidance}
    return systems.Contestant(Path(diffusers).name, systems.edit_with_diffusers(pipeline, steps, guidance), settings)


def scorers(clip: str, dino: str, device: str) -> Scorers:
    """The encoders asked for; one that is missing is absent from the report, and said so."""
    from ace.evaluation.editing import Scorers
    from ace.evaluation.encoders import load_clip, load_dino

    place = "cpu" if device == "auto" else device
    images_and_words, images = encoder(load_clip, clip, place), encoder(load_dino, dino, place)
    names = [name for name, found in ((clip, images_and_words), (dino, images)) if found is not None]
    return Scorers(images_and_words, images, tuple(Path(n).name if Path(n).is_dir() else n for n in names))


def ice_scorers(
    models: Path | None, face_weights: Path | None, clip: str, dinov2: str, judge: Judge | None, raw: Path | None
) -> IceScorers:
    """ICE-Bench's networks as far as their weights are there, with what is absent and why."""
    from ace.evaluation.benchmarks.ice_bench import read_raw
    from ace.evaluation.benchmarks.ice_metrics import load_networks
    from ace.evaluation.encoders import load_clip, load_dinov2
    from ace.evaluation.ice import IceScorers

    networks, absent = load_networks(models, face_weights)
    names = list(networks.names)
    encoders = {"clip": encoder(load_clip, clip, "cpu"), "dino": encoder(load_dinov2, dinov2, "cpu")}
    for (name, found), weights in zip(encoders.items(), (clip, dinov2), strict=True):
        if found is None:
            absent.append(f"{name}: name its weights (--{'clip' if name == 'clip' else 'dinov2'})")
        else:
            names.append(f"{name} {Path(weights).name if Path(weights).is_dir() else weights}")
    more = {} if raw is None else read_raw(raw)
    return IceScorers(replace(networks, **encoders), tuple(names), tuple(absent), judge, more)


def encoder(loader: Callable[[str, str], T], weights: str, place: str) -> T | None:
    """An encoder; None if it was not asked for, or is not there, which is said."""
    try:
        return None if weights == "none" else loader(weights, place)
    except MissingDependencyError as error:
        complain(f"{error}; its scores will be absent")
        return None
