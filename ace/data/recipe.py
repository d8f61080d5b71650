"""A data recipe: one TOML file, read into frozen dataclasses; unknown keys are refused before any work starts.

It says everything that decides the result, and nothing of where it runs: workers, devices and the cluster's address are
given beside it, so that the same recipe gives the same data set anywhere.

Light: nothing here imports an engine or a model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ace.data.sample import FAMILIES, TASKS
from ace.errors import ConfigError

Kind = Literal["auto", "folder", "parquet", "webdataset", "huggingface"]
Encoder = Literal["vgg", "siglip"]
By = Literal["grammar", "endpoint", "local"]
Relation = Literal["content", "face", "style", "series"]
GENERATORS = ("base", "ip_adapter", "editor", "portrait", "portrait_base", "writer")  # of `Models`
T = TypeVar("T")

# scores of the second turn, from and below: of faces and style the paper's (B.4.1, B.4.2), of objects measured
# (docs/data.md); a series asks for no more than the features
SCORE_BOUNDS: dict[str, tuple[float, float]] = {
    "content": (0.65, 1.01),
    "face": (0.8, 0.9),
    "style": (0.65, 1.01),
    "series": (-1.0, 1.01),
}


@dataclass(frozen=True)
class Collection:
    """The pictures, `[source]`.

    path: a folder of pictures, of Parquet or of tar files (WebDataset), one such file, a folder saved by `datasets`, or
    with kind "huggingface" the name of a data set. Pictures with a side below min_side_px or more than max_pixels are
    rejected; larger ones are worked on at max_side_px. limit: so many pictures, in order, 0 = all. relation: what the
    pictures of one folder share, "" = nothing: then only mining makes sets."""

    path: str
    kind: Kind = "auto"
    split: str = "train"
    min_side_px: int = 64
    max_side_px: int = 768
    max_pixels: int = 100_000_000
    limit: int = 0
    require_caption: bool = False
    relation: str = ""

    def __post_init__(self) -> None:
        _check_choice("source: kind", self.kind, Kind)
        if self.relation:
            _check_choice("source: relation", self.relation, Relation)
        if not 1 <= self.min_side_px <= self.max_side_px:
            raise ConfigError(f"source: min_side_px {self.min_side_px} and max_side_px {self.max_side_px} do not fit")
        if self.limit < 0 or self.max_pixels < 1:
            raise ConfigError("source: limit and max_pixels are counts")


@dataclass(frozen=True)
class Mining:
    """Sets of related pictures (section 3.1), `[mine]`; without it there are none.

    encoder: "vgg" (HED's backbone, fetched by `ace data setup`) or "siglip" with model, by name or folder.
    num_clusters: of K-means, 0 = one for about 500 pictures. neighbours: how many clusters, the nearest first, a
    picture is compared in; 1 is the paper's and misses pairs that a border divides. Two pictures are joined when their
    features' cosine lies in [feature_low, feature_high), and then, within a joined set, when the relation's score lies
    in [score_low, score_high): object consistency for content, similarity of faces (needs face_model, an ArcFace ONNX
    file) or of style, for series the features again; left out, the bounds are `SCORE_BOUNDS` of the relation. Sets
    keep at most max_set pictures. A pair with a cosine of feature_high or more is near-identical, one below
    min_relevance tells nothing: both are dropped, and so are pictures below min_sharpness, a variance of the
    Laplacian, and those that are unsafe (`ace.extract.safety`) with a probability above max_unsafe, 1 = nobody
    looks."""

    encoder: Encoder = "vgg"
    model: str = "google/siglip2-base-patch16-224"
    num_clusters: int = 0
    neighbours: int = 3
    relation: Relation = "content"
    feature_low: float = 0.75
    feature_high: float = 0.985
    score_low: float | None = None
    score_high: float | None = None
    face_model: str = ""
    min_relevance: float = 0.6
    min_sharpness: float = 0.0
    max_unsafe: float = 0.8
    max_set: int = 8

    def __post_init__(self) -> None:
        _check_choice("mine: encoder", self.encoder, Encoder)
        _check_choice("mine: relation", self.relation, Relation)
        for name, (low, high) in (
            ("feature", (self.feature_low, self.feature_high)),
            ("score", self.score_bounds),
        ):
            if not -1 <= low < high:
                raise ConfigError(f"mine: {name}_low {low} must be from -1 to below {name}_high {high}")
        if not 0 < self.max_unsafe <= 1:
            raise ConfigError(f"mine: max_unsafe is {self.max_unsafe}, use a probability above 0, 1 = nobody looks")
        if self.max_set < 2 or self.num_clusters < 0 or self.neighbours < 1:
            raise ConfigError("mine: max_set is 2 or more, num_clusters 0 or more, neighbours 1 or more")
        if self.relation == "face" and not self.face_model:
            raise ConfigError(
                "mine: faces are compared by face_model, an ArcFace ONNX file whose licence allows your use"
            )

    @property
    def score_bounds(self) -> tuple[float, float]:
        """Between which scores the second turn joins two pictures: as said, else as is usual for the relation."""
        low, high = SCORE_BOUNDS[self.relation]
        return (
            low if self.score_low is None else self.score_low,
            high if self.score_high is None else self.score_high,
        )


@dataclass(frozen=True)
class Synthesis:
    """Edit pairs made from every picture (appendix B), `[synthesize]`.

    tasks: families or "family/subtask"; empty = all that there is a maker for. samples_per_task: stop a task after so
    many accepted samples, 0 = try every picture. slice: pictures of one piece of work, the unit of resuming."""

    tasks: tuple[str, ...] = ()
    samples_per_task: int = 0
    slice: int = 8

    def __post_init__(self) -> None:
        unknown = [name for name in self.tasks if name not in TASKS and name not in FAMILIES]
        if unknown:
            raise ConfigError(f"synthesize: unknown task {', '.join(unknown)}: use a family or family/subtask")
        if self.samples_per_task < 0 or self.slice < 1:
            raise ConfigError("synthesize: samples_per_task is 0 or more, slice 1 or more")

    def wants(self, task: str) -> bool:
        """Whether a task is asked for."""
        return not self.tasks or task in self.tasks or task.split("/")[0] in self.tasks


@dataclass(frozen=True)
class Models:
    """Models of yours that synthesis uses, `[models]`; "" = the default, or for generators none.

    lama: LaMa as ONNX, for MI-GAN. depth: a depth model of transformers, hub id or folder, for FastDepth. line_art:
    weights of informative drawings, for contours out of HED. face: an ArcFace ONNX file; faces are compared. base and
    ip_adapter, editor, portrait and portrait_base, writer: folders of diffusers models, as `ace.data.tasks.generators`
    says, run on device in so many steps at about side_px a side. segment: whether tasks that only profit from objects
    may look for them, which takes seconds a picture; object_regions: whether signals may be regional by objects'
    outlines, too."""

    lama: str = ""
    depth: str = ""
    line_art: str = ""
    face: str = ""
    base: str = ""
    ip_adapter: str = ""
    editor: str = ""
    portrait: str = ""
    portrait_base: str = ""
    writer: str = ""
    device: str = "cuda"
    steps: int = 30
    side_px: int = 512
    segment: bool = True
    object_regions: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.side_px < 64:
            raise ConfigError("models: steps is 1 or more, side_px 64 or more")

    def placed(self, folder: Path) -> Models:
        """The same with relative paths counted from a folder."""
        names = ("lama", "line_art", "face", *GENERATORS)
        paths = {name: _path_from(folder, getattr(self, name)) for name in names if getattr(self, name)}
        return dataclasses.replace(self, **paths)


@dataclass(frozen=True)
class Labelling:
    """Who writes instructions, `[label]`; without it the templates' own words stay.

    by: "grammar" (phrase classes, offline), "endpoint" (an OpenAI-compatible server at `endpoint`, up to and with
    "/v1"; its key is in the environment variable key_variable) or "local" (model is a folder or name for transformers).
    rewrites: further wordings of each instruction, all distinct; each becomes a sample. A model's wording is rejected
    whose likeness (MiniLM's, `ace.extract.sentence`) with an earlier one is max_alike or more, or with the first below
    min_alike; 1 and -1: nobody looks. pairs: also write instructions for at most pair_limit mined pairs, which needs a
    model that sees. budget_tokens: stop asking after so many, 0 = no limit. parallel: questions at once."""

    by: By = "grammar"
    endpoint: str = ""
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    rewrites: int = 1
    max_alike: float = 0.95
    min_alike: float = 0.4
    pairs: bool = False
    pair_limit: int = 1000
    timeout_s: float = 60.0
    retries: int = 3
    parallel: int = 8
    budget_tokens: int = 0
    max_reply_tokens: int = 300
    temperature: float = 0.7

    def __post_init__(self) -> None:
        _check_choice("label: by", self.by, By)
        if self.by == "endpoint" and not (self.endpoint.startswith(("http://", "https://")) and self.model):
            raise ConfigError("label: needs endpoint (http://host:port/v1) and model")
        if self.by == "local" and not self.model:
            raise ConfigError("label: needs model, a folder or name for transformers")
        if self.by == "grammar" and self.pairs:
            raise ConfigError("label: pairs need a model that sees: set by to endpoint or local")
        if not 0 <= self.rewrites <= 20 or self.retries < 0 or self.parallel < 1 or self.timeout_s <= 0:
            raise ConfigError("label: rewrites 0 to 20, retries 0 or more, parallel 1 or more, timeout_s above 0")
        if not -1 <= self.min_alike < self.max_alike <= 1:
            raise ConfigError("label: likenesses are -1 to 1, min_alike below max_alike")
        if min(self.pair_limit, self.budget_tokens, self.temperature) < 0 or self.max_reply_tokens < 1:
            raise ConfigError(
                "label: pair_limit, budget_tokens and temperature are 0 or more, max_reply_tokens 1 or more"
            )

    @property
    def compares(self) -> bool:
        """Whether wordings are compared by their meaning."""
        return self.by != "grammar" and self.rewrites > 0 and (self.max_alike < 1 or self.min_alike > -1)


@dataclass(frozen=True)
class Filtering:
    """What is dropped after synthesis, with its reason, `[filter]`.

    duplicate_bits: samples of one task and instruction whose pictures' 64-bit perceptual hashes differ in at most so
    many bits are one (0 = equal hashes; -1 = never). benchmarks: data sets or folders of pictures that no sample may
    show (leak_bits as duplicate_bits). held_out: share of the sources whose samples go into a set of their own, whole
    mined sets together; training samples that show nearly one of its pictures are dropped. min_sharpness: variance of
    the Laplacian of the target, 0 to 255 scale. max_unsafe: how likely unsafe (`ace.extract.safety`) a target or input
    may be, 1 = nobody looks. words: an instruction may hold none of them."""

    duplicate_bits: int = 0
    benchmarks: tuple[str, ...] = ()
    leak_bits: int = 4
    held_out: float = 0.0
    min_sharpness: float = 0.0
    max_unsafe: float = 1.0
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not -1 <= self.duplicate_bits <= 16 or not 0 <= self.leak_bits <= 16:
            raise ConfigError("filter: duplicate_bits is -1 to 16, leak_bits 0 to 16")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"filter: held_out is {self.held_out}, use a share from 0 to below 1")
        if not 0 < self.max_unsafe <= 1:
            raise ConfigError(f"filter: max_unsafe is {self.max_unsafe}, use a probability above 0, 1 = nobody looks")
        if not all(word.strip() for word in self.words):
            raise ConfigError("filter: an empty word is in every instruction, leave it out")


@dataclass(frozen=True)
class Output:
    """The shards, `[output]`. quality: "lossless" PNG is 0, 1 to 100 is WebP."""

    rows_per_shard: int = 1000
    quality: int = 0

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1 or not 0 <= self.quality <= 100:
            raise ConfigError("output: rows_per_shard is 1 or more, quality 0 to 100")


@dataclass(frozen=True)
class DataRecipe:
    """Everything that decides a data set."""

    source: Collection
    seed: int = 0
    mine: Mining | None = None
    synthesize: Synthesis = field(default_factory=Synthesis)
    models: Models = field(default_factory=Models)
    label: Labelling | None = None
    filter: Filtering = field(default_factory=Filtering)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: use 0 or more")
        if self.label is not None and self.label.pairs and self.mine is None:
            raise ConfigError("label: pairs are found by mining: add [mine], or set pairs to false")

    def to_json(self) -> str:
        """Every setting, defaults included, without the place of the pictures."""
        settings = dataclasses.asdict(self)
        settings["source"].pop("path")
        return json.dumps(settings, sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `to_json`, shortened."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def read_recipe(file: Path) -> DataRecipe:
    """The recipe in a TOML file; relative paths in it count from the file's folder. Raises ConfigError, naming the
    key."""
    try:
        text = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"{file} cannot be read: check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    recipe = read_settings(DataRecipe, text, "")
    mine, rules = recipe.mine, recipe.filter
    if mine is not None and mine.face_model:
        mine = dataclasses.replace(mine, face_model=_path_from(file.parent, mine.face_model))
    rules = dataclasses.replace(rules, benchmarks=tuple(_path_from(file.parent, name) for name in rules.benchmarks))
    return dataclasses.replace(
        recipe,
        source=placed(recipe.source, file.parent),
        mine=mine,
        models=recipe.models.placed(file.parent),
        filter=rules,
    )


def placed(collection: Collection, folder: Path) -> Collection:
    """A collection whose relative path counts from a folder; a name of a data set stays."""
    if collection.kind == "huggingface" and not (folder / collection.path).exists():
        return collection
    return dataclasses.replace(collection, path=_path_from(folder, collection.path))


def _path_from(folder: Path, path: str) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def read_settings(kind: type[T], found: dict[str, Any], where: str) -> T:
    """A dataclass from a TOML table, its inner tables too. Raises ConfigError for an unknown key or a wrong type."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in found.items():
        name = f"{where}{key}"
        if key not in hints:
            raise ConfigError(f"unknown key {name!r}: use {', '.join(hints)}")
        values[key] = _read(hints[key], value, name)
    missing = [
        f.name
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in found
    ]
    if missing:
        raise ConfigError(f"{where}{missing[0]} is missing: say it in the recipe")
    return kind(**values)


def _read(hint: Any, value: Any, name: str) -> Any:
    if get_origin(hint) is UnionType or NoneType in get_args(hint):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} is {value!r}: write it as a table, [{name}]")
        return read_settings(hint, value, f"{name}.")  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise ConfigError(f"{name} is {value!r}: write a list of texts")
        return tuple(value)
    if get_origin(hint) is Literal:
        return value  # the dataclass checks it
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}: it must be a finite number")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} is {value!r}: it must be {_KINDS[hint]}")
    return value


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name} is {value!r}: use {', '.join(map(str, get_args(choices)))}")
