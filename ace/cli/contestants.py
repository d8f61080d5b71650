"""Who is measured by `ace eval`, and with which encoders: the options that its verbs share, and what they stand for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ace.cli.terminal import complain, quiet_libraries
from ace.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from ace.evaluation.editing import Scorers
    from ace.evaluation.ice import IceScorers
    from ace.evaluation.judge import Judge
    from ace.evaluation.systems import Contestant

T = TypeVar("T")

Report = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write the report to.", show_default=False)
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N samples.", show_default=False)]
RunSeed = Annotated[int, typer.Option("--seed", "-s", help="Random seed of the noise.")]
OnlyTasks = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="Only this task or family; may be repeated.", show_default=False),
]
Results = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="FOLDER",
        help="Score these finished images instead of running a model.",
        show_default=False,
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="Evaluate a server with the OpenAI images API; --model names its model, $OPENAI_API_KEY is its key.",
        show_default=False,
    ),
]
Diffusers = Annotated[
    str | None,
    typer.Option(
        "--diffusers", metavar="NAME|FOLDER", help="Evaluate a diffusers image-editing pipeline.", show_default=False
    ),
]
Clip = Annotated[
    str,
    typer.Option("--clip", metavar="NAME|FOLDER", help="CLIP weights in transformers format; none skips its scores."),
]
Dino = Annotated[
    str,
    typer.Option("--dino", metavar="NAME|FOLDER", help="DINO weights in transformers format; none skips its scores."),
]
Dinov2 = Annotated[str, typer.Option("--dinov2", metavar="NAME|FOLDER", help="DINOv2 weights; none skips its scores.")]
FaceWeights = Annotated[
    Path | None,
    typer.Option(
        "--face-weights",
        metavar="FILE",
        help="ArcFace ONNX file for face similarity; without it that score is absent.",
        show_default=False,
    ),
]
AcceptNoncommercial = Annotated[
    bool, typer.Option("--accept-noncommercial", help="Accept weights licensed for non-commercial use only.")
]
GenInfo = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="FILE",
        help="gen_info.json with finished images by ItemID, scored instead of running a model.",
        show_default=False,
    ),
]
RawMetrics = Annotated[
    Path | None,
    typer.Option(
        "--raw", metavar="FILE", help="eval_result.txt with metrics from other tools, to merge in.", show_default=False
    ),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="URL",
        help="Chat endpoint of a vision-language model, for the vllmqa score.",
        show_default=False,
    ),
]
JudgeModel = Annotated[str, typer.Option("--judge-model", help="Model name at --judge.")]
JudgeLanguage = Annotated[str, typer.Option("--judge-language", help="Language of the judge prompt: en or zh.")]
IceModels = Annotated[
    Path | None,
    typer.Option(
        "--models",
        metavar="FOLDER",
        help="Folder with the benchmark's unpacked models (aesthetic, MUSIQ, CSD, depth); missing ones are skipped.",
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
        raise ConfigError(f"{known} is for non-commercial use: add --accept-noncommercial if your use is")
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
    """The system to evaluate: finished images, an endpoint, or a model of any family.

    Raises InputError for contradictory or missing ones, before anything heavy is imported."""
    from ace.families import find_family

    if sum(given is not None for given in (results, endpoint, diffusers)) > 1:
        raise ConfigError("--results, --endpoint and --diffusers each say what to evaluate: give only one")
    if results is not None and not results.exists():
        raise ConfigError(f"there is nothing at {results.name}: --results names finished images")
    if endpoint is not None and model is None:
        raise ConfigError("--endpoint needs --model: the model's name at that server")
    if diffusers is not None and model is not None:
        raise ConfigError("--diffusers and --model both name what is measured: give one")
    family = None
    if results is None and endpoint is None:
        is_address = diffusers is not None and "://" not in diffusers and not Path(diffusers).expanduser().is_dir()
        family = find_family(f"hf://{diffusers}" if is_address else diffusers or model)
    from ace.evaluation import systems

    if results is not None:
        return systems.Contestant(results.parent.name if results.is_file() else results.name, None, {})
    if endpoint is not None and model is not None:
        edit = systems.edit_over_http(endpoint, model, os.environ.get("OPENAI_API_KEY") or "none")
        return systems.Contestant(model, edit, {"endpoint": endpoint})
    from ace.conversation import Loading

    assert family is not None
    with quiet_libraries():
        family.load(Loading(device=device), complain)
    return systems.contestant_of(family, steps, guidance)


def scorers(clip: str, dino: str, device: str) -> Scorers:
    """The encoders asked for; a warning is printed for a missing one, and its scores are absent."""
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
    """An encoder; None if it was not asked for, or is missing, with a warning."""
    try:
        return None if weights == "none" else loader(weights, place)
    except MissingDependencyError as error:
        complain(f"{error}; its scores will be absent")
        return None
