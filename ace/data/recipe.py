"""A data recipe: one TOML file, read into frozen, strictly checked dataclasses before any work starts.

It holds everything that decides the result, and nothing about where it runs: workers, devices and the cluster's address
are given on the command line, so that the same recipe gives the same data set anywhere.

Light: nothing here imports an engine or a model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ace.data.sample import FAMILIES, TASKS
from ace.errors import ConfigError
from ace.settings import Count, Text, build, read_toml, settings, shown

Kind = Literal["auto", "folder", "parquet", "webdataset", "huggingface"]
Encoder = Literal["vgg", "siglip"]
By = Literal["grammar", "endpoint", "local"]
Relation = Literal["content", "face", "style", "series"]
GENERATORS = ("base", "ip_adapter", "editor", "portrait", "portrait_base", "writer")  # of `Models`
Bits = Annotated[int, Field(ge=0, le=16)]
Cosine = Annotated[float, Field(ge=-1, le=2)]  # bounds may lie above 1: then nothing is too alike
Unsafe = Annotated[float, Field(gt=0, le=1)]
Sharpness = Annotated[float, Field(ge=0, le=1e6)]

# scores of the second turn, from and below: of faces and style the paper's (B.4.1, B.4.2), of objects measured
# (docs/data.md); a series asks for no more than the features
SCORE_BOUNDS: dict[str, tuple[float, float]] = {
    "content": (0.65, 1.01),
    "face": (0.8, 0.9),
    "style": (0.65, 1.01),
    "series": (-1.0, 1.01),
}


@settings
class Collection:
    """The images to start from, `[source]`.

    path: a folder of images, of Parquet or of tar files (WebDataset), one such file, a folder saved by `datasets`, or
    with kind "huggingface" the name of a data set. Images with a side below min_side_px or more than max_pixels are
    rejected; larger ones are scaled down to max_side_px. limit: at most this many images, in order, 0 = all. relation:
    what the images of one folder have in common, "" = nothing: then only mining finds sets."""

    path: Text
    kind: Kind = "auto"
    split: Text = "train"
    min_side_px: Annotated[int, Field(ge=1, le=65536)] = 64
    max_side_px: Annotated[int, Field(ge=1, le=65536)] = 768
    max_pixels: Annotated[int, Field(ge=1, le=10**10)] = 100_000_000
    limit: Count = 0
    require_caption: bool = False
    relation: Literal["", "content", "face", "style", "series"] = ""

    @model_validator(mode="after")
    def _check(self) -> Collection:
        if self.min_side_px > self.max_side_px:
            raise ValueError(f"min_side_px {self.min_side_px} is above max_side_px {self.max_side_px}: swap them")
        return self


@settings
class Mining:
    """Sets of related images (section 3.1), `[mine]`; without it there are none.

    encoder: "vgg" (HED's backbone, fetched by `ace data setup`) or "siglip" with model, by name or folder.
    num_clusters: of K-means, 0 = one per about 500 images. neighbours: in how many clusters, the nearest first, an
    image is compared; 1 is the paper's and misses pairs that a border divides. Two images are joined if the cosine of
    their features lies in [feature_low, feature_high), and then, within a joined set, if the relation's score lies in
    [score_low, score_high): object consistency for content, similarity of faces (needs face_model, an ArcFace ONNX
    file) or of style, for series the features again; without a value, the bounds are those of the relation in
    `SCORE_BOUNDS`. Sets keep at most max_set images. A pair with a cosine of feature_high or more is near-identical,
    one below min_relevance has too little in common: both are dropped, and so are images below min_sharpness (variance
    of the Laplacian) and those that are unsafe (`ace.extract.safety`) with a probability above max_unsafe; 1 disables
    the check."""

    encoder: Encoder = "vgg"
    model: Text = "google/siglip2-base-patch16-224"
    num_clusters: Count = 0
    neighbours: Annotated[int, Field(ge=1, le=10_000)] = 3
    relation: Relation = "content"
    feature_low: Cosine = 0.75
    feature_high: Cosine = 0.985
    score_low: Cosine | None = None
    score_high: Cosine | None = None
    face_model: Text = ""
    min_relevance: Cosine = 0.6
    min_sharpness: Sharpness = 0.0
    max_unsafe: Unsafe = 0.8
    max_set: Annotated[int, Field(ge=2, le=10_000)] = 8

    @model_validator(mode="after")
    def _check(self) -> Mining:
        for name, (low, high) in (("feature", (self.feature_low, self.feature_high)), ("score", self.score_bounds)):
            if low >= high:
                raise ValueError(f"{name}_low {low} must be below {name}_high {high}")
        if self.relation == "face" and not self.face_model:
            raise ValueError(
                "faces are compared by face_model: name an ArcFace ONNX file whose licence allows your use"
            )
        return self

    @property
    def score_bounds(self) -> tuple[float, float]:
        """Between which scores two images of a set are joined: as given, else the relation's usual bounds."""
        low, high = SCORE_BOUNDS[self.relation]
        return (
            low if self.score_low is None else self.score_low,
            high if self.score_high is None else self.score_high,
        )


@settings
class Synthesis:
    """Edit pairs made from every image (appendix B), `[synthesize]`.

    tasks: families or "family/subtask"; empty = every task with a maker. samples_per_task: stop a task after this many
    accepted samples, 0 = try every image. slice: images of one job, the unit of resuming."""

    tasks: tuple[Text, ...] = ()
    samples_per_task: Count = 0
    slice: Annotated[int, Field(ge=1, le=10**6)] = 8

    @model_validator(mode="after")
    def _check(self) -> Synthesis:
        if unknown := [name for name in self.tasks if name not in TASKS and name not in FAMILIES]:
            raise ValueError(f"unknown task {', '.join(map(shown, unknown[:3]))}: use a family or family/subtask")
        return self

    def wants(self, task: str) -> bool:
        """Whether a task is asked for."""
        return not self.tasks or task in self.tasks or task.split("/")[0] in self.tasks


@settings
class Models:
    """Your own models for synthesis, `[models]`; "" = the default, or for generators none.

    lama: LaMa as ONNX, in place of MI-GAN. depth: a depth model of transformers, hub id or folder, in place of
    FastDepth. line_art: weights of informative drawings, for contours in place of HED. face: an ArcFace ONNX file;
    faces are compared. base and ip_adapter, editor, portrait and portrait_base, writer: folders of diffusers models, as
    `ace.data.tasks.generators` says, run on device in this many steps with sides of about side_px. segment: whether
    tasks that merely profit from objects may look for them, which takes seconds per image; object_regions: whether
    signals may also be limited to the outlines of objects."""

    lama: Text = ""
    depth: Text = ""
    line_art: Text = ""
    face: Text = ""
    base: Text = ""
    ip_adapter: Text = ""
    editor: Text = ""
    portrait: Text = ""
    portrait_base: Text = ""
    writer: Text = ""
    device: Text = "cuda"
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    side_px: Annotated[int, Field(ge=64, le=8192)] = 512
    segment: bool = True
    object_regions: bool = False

    def placed(self, folder: Path) -> Models:
        """The same with relative paths counted from a folder."""
        names = ("lama", "line_art", "face", *GENERATORS)
        paths = {name: _path_from(folder, getattr(self, name)) for name in names if getattr(self, name)}
        return dataclasses.replace(self, **paths)


@settings
class Labelling:
    """Who writes instructions, `[label]`; without it the templates' own words stay.

    by: "grammar" (phrase classes, offline), "endpoint" (an OpenAI-compatible server at `endpoint`, up to and including
    "/v1"; its key is in the environment variable key_variable) or "local" (model is a folder or name for transformers).
    rewrites: rewordings of each instruction, all distinct; each becomes a sample. A model's rewording is rejected if
    its similarity (MiniLM, `ace.extract.sentence`) to an earlier one is max_alike or more, or to the original below
    min_alike; 1 and -1 disable these checks. pairs: also write instructions for at most pair_limit mined pairs, which
    needs a model that sees images. budget_tokens: stop asking after this many tokens, 0 = no limit. parallel: questions
    at once."""

    by: By = "grammar"
    endpoint: Text = ""
    model: Text = ""
    key_variable: Text = "OPENAI_API_KEY"
    rewrites: Annotated[int, Field(ge=0, le=20)] = 1
    max_alike: Annotated[float, Field(ge=-1, le=1)] = 0.95
    min_alike: Annotated[float, Field(ge=-1, le=1)] = 0.4
    pairs: bool = False
    pair_limit: Count = 1000
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    parallel: Annotated[int, Field(ge=1, le=1000)] = 8
    budget_tokens: Count = 0
    max_reply_tokens: Annotated[int, Field(ge=1, le=10**6)] = 300
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.7

    @model_validator(mode="after")
    def _check(self) -> Labelling:
        if self.by == "endpoint" and not (self.endpoint.startswith(("http://", "https://")) and self.model):
            raise ValueError("needs endpoint (http://host:port/v1) and model")
        if self.by == "local" and not self.model:
            raise ValueError("needs model, a folder or name for transformers")
        if self.by == "grammar" and self.pairs:
            raise ValueError("pairs need a model that sees images: set by to endpoint or local")
        if self.min_alike >= self.max_alike:
            raise ValueError(f"min_alike {self.min_alike} must be below max_alike {self.max_alike}")
        return self

    @property
    def compares(self) -> bool:
        """Whether rewordings are compared by their meaning."""
        return self.by != "grammar" and self.rewrites > 0 and (self.max_alike < 1 or self.min_alike > -1)


@settings
class Filtering:
    """What is dropped after synthesis, with its reason, `[filter]`.

    duplicate_bits: samples of one task and instruction are duplicates if the 64-bit perceptual hashes of their images
    differ in at most this many bits (0 = equal hashes; -1 disables). benchmarks: data sets or folders of images that
    no sample may show (leak_bits as duplicate_bits). held_out: share of the sources whose samples go into a set of
    their own, whole mined sets together; training samples that show nearly one of its images are dropped.
    min_sharpness: variance of the Laplacian of the target, 0 to 255 scale. max_unsafe: drop a sample if a target or
    input is unsafe (`ace.extract.safety`) with a probability above this; 1 disables the check. words: an instruction
    may contain none of them."""

    duplicate_bits: Annotated[int, Field(ge=-1, le=16)] = 0
    benchmarks: tuple[Text, ...] = ()
    leak_bits: Bits = 4
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    min_sharpness: Sharpness = 0.0
    max_unsafe: Unsafe = 1.0
    words: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Filtering:
        if not all(word.strip() for word in self.words):
            raise ValueError("words has an empty word, which is in every instruction: leave it out")
        return self


@settings
class ShardSettings:
    """The shards, `[output]`. quality: 0 = lossless PNG, 1 to 100 = WebP."""

    rows_per_shard: Annotated[int, Field(ge=1, le=10**9)] = 1000
    quality: Annotated[int, Field(ge=0, le=100)] = 0


@settings
class DataRecipe:
    """Everything that decides a data set."""

    source: Collection
    seed: Count = 0
    mine: Mining | None = None
    synthesize: Synthesis = field(default_factory=Synthesis)
    models: Models = field(default_factory=Models)
    label: Labelling | None = None
    filter: Filtering = field(default_factory=Filtering)
    output: ShardSettings = field(default_factory=ShardSettings)

    @model_validator(mode="after")
    def _check(self) -> DataRecipe:
        if self.label is not None and self.label.pairs and self.mine is None:
            raise ValueError("label.pairs are found by mining: add [mine], or set pairs to false")
        return self

    def to_json(self) -> str:
        """Every setting, defaults included, except where the images are."""
        settings = dataclasses.asdict(self)
        settings["source"].pop("path")
        return json.dumps(settings, sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `to_json`, shortened."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def read_recipe(file: Path) -> DataRecipe:
    """The recipe in a TOML file; relative paths in it count from the file's folder.

    Raises ConfigError, naming the file, the key and what is allowed."""
    recipe = build(DataRecipe, read_toml(file), file.name)
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
    place = _path_from(folder, collection.path)
    if collection.kind == "huggingface" and not Path(place).exists():
        return collection
    return dataclasses.replace(collection, path=place)


def _path_from(folder: Path, path: str) -> str:
    try:
        place = (folder / Path(path).expanduser()).resolve()
        place.exists()
    except (OSError, RuntimeError):  # too long a name; the home of a user who does not exist
        raise ConfigError(f"{shown(path)} cannot be a path: use a shorter one, without ~user") from None
    return str(place)
