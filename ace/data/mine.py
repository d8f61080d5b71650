"""Mining: related pictures of a collection become sets and pairs (section 3.1 of the paper).

embed → cluster, join twice, pair, clean (`cluster.py`). The default encoder is the VGG-16 inside HED, whose weights are
free and fetched by `ace data setup`; it sees texture and layout more than meaning. SigLIP, the paper's, is named in the
recipe. The second turn's score for content and series is the features' cosine again; style is compared by the
correlations of VGG's channels, faces by the user's ArcFace file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ace.data import collect
from ace.data.cluster import REASONS, mine
from ace.data.engine import Job, Part, Record, StageReport, Where, report_stage, run_stage
from ace.data.recipe import DataRecipe, Mining
from ace.errors import AceError, MissingDependencyError

if TYPE_CHECKING:
    from PIL import Image

_PER_JOB = 32
_SIDE_PX = 224

Encode = Callable[[Sequence["Image.Image"]], np.ndarray]  # pictures → (N, D) float32 of length 1


@dataclass(frozen=True)
class Found:
    """Sources, those of a set with its name and relation; the pairs that were kept; what the stages did."""

    sources: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    stages: list[StageReport]
    rejected: list[tuple[str, Sequence[Part]]]


def mine_sources(
    recipe: DataRecipe,
    sources: Sequence[dict[str, Any]],
    work: Path,
    where: Where,
    told: Callable[[str], Callable[[int, int], None] | None],
) -> Found:
    """Embed the sources, find sets among them. Raises MissingDependencyError if the encoder is not at hand."""
    assert recipe.mine is not None
    load_encoder(recipe.mine)
    slices = [sources[i : i + _PER_JOB] for i in range(0, len(sources), _PER_JOB)]
    jobs = [Job(f"{number:06d}", {"sources": list(part)}) for number, part in enumerate(slices)]
    embedded = run_stage("embed", jobs, partial(embed_pictures, recipe), work, where, told("embed"))
    job = Job("all", {"parts": [str(part.file.relative_to(work)) for part in embedded]})
    mined = run_stage("mine", [job], partial(find_sets, recipe, str(work)), work, Where(), told("mine"))
    sets: dict[str, str] = {}
    pairs = []
    for record in mined[0].records(samples=False):
        if record.task == "set":
            sets |= dict.fromkeys(record.facts["members"], record.what)
        elif not record.reason:
            pairs.append(record.facts)
    placed = [
        {**facts, "set": sets[facts["id"]], "relation": recipe.mine.relation} if facts["id"] in sets else facts
        for facts in sources
    ]
    stages = [report_stage("embed", embedded), report_stage("mine", mined)]
    return Found(placed, pairs, stages, [("embed", embedded), ("mine", mined)])


def embed_pictures(recipe: DataRecipe, job: Job) -> Iterator[Record]:
    """Features of a slice of pictures, as float16 in `blob`; for style and faces the second turn's after them."""
    from ace.data.run import load_source

    assert recipe.mine is not None
    encode, second = load_encoder(recipe.mine), load_second(recipe.mine)
    kept = []
    for facts in job.payload["sources"]:
        if facts["sharpness"] < recipe.mine.min_sharpness:
            yield Record(facts["id"], reason="blurred", detail=f"{facts['sharpness']:.1f}")
            continue
        try:
            kept.append((facts["id"], load_source(recipe, {**facts, "others": ()}).image))
        except (AceError, OSError, ValueError, LookupError) as error:
            yield Record(facts["id"], reason="cannot be read", detail=str(error)[:200])
    if not kept:
        return
    images = [image for _, image in kept]
    features = encode(images)
    for number, (name, image) in enumerate(kept):
        more = second(image) if second is not None else np.empty(0, np.float32)
        if more is None:
            yield Record(name, reason="not exactly one face")
            continue
        blob = np.concatenate([features[number], more]).astype(np.float16).tobytes()
        yield Record(name, facts={"width": features.shape[1]}, blob=blob)


def find_sets(recipe: DataRecipe, work: str, job: Job) -> Iterator[Record]:
    """Sets and pairs of all embedded pictures; a record for each."""
    assert recipe.mine is not None
    names, rows, width = [], [], 0
    for name in job.payload["parts"]:
        for record in Part(Path(work) / name).records():
            if not record.reason and record.blob is not None:
                names.append(record.what)
                rows.append(np.frombuffer(record.blob, np.float16))
                width = record.facts["width"]
    if len(rows) < 2:
        return
    table = np.stack(rows)
    score = None
    if table.shape[1] > width:
        further = table[:, width:].astype(np.float32)
        score = lambda members: further[members] @ further[members].T  # noqa: E731
    found = mine(table[:, :width], recipe.mine, score, recipe.seed)
    for members in found.sets:
        for start in range(0, len(members), recipe.mine.max_set):
            part = [names[index] for index in members[start : start + recipe.mine.max_set]]
            if len(part) > 1:
                yield Record(f"set-{part[0]}", task="set", facts={"members": part})
    for (first, second), cosine, fate in zip(found.pairs, found.cosines, found.fates, strict=True):
        facts = {"first": names[first], "second": names[second], "cosine": round(float(cosine), 4)}
        yield Record(f"{names[first]}~{names[second]}", task="pair", reason=REASONS[fate], facts=facts)


@lru_cache(maxsize=1)
def load_encoder(settings: Mining) -> Encode:
    """The encoder of a recipe. Raises MissingDependencyError, saying how to get it."""
    return _siglip(settings.model) if settings.encoder == "siglip" else _Vgg().features


def load_second(settings: Mining) -> Callable[[Image.Image], np.ndarray | None] | None:
    """What the second turn compares beside the features: None, or a function of a picture (None = unfit for it)."""
    if settings.relation == "style":
        return _Vgg().style
    if settings.relation == "face":
        return _faces(settings.face_model)
    return None


class _Vgg:
    """The VGG-16 in HED: pooled features of its two deepest blocks, and channel correlations for style."""

    def __init__(self) -> None:
        self.net = _hed()

    def features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(N, 1024 · 2) float32 of length 1: means and maxima of the last two blocks, less what all pictures share."""
        rows = []
        for picture in pictures:
            blocks = self._blocks(picture)[3:]
            values = np.concatenate([part for x in blocks for part in (x.mean((1, 2)), x.max((1, 2)))])
            values = np.sign(values) * np.sqrt(np.abs(values))
            rows.append(values - values.mean())
        table = np.stack(rows).astype(np.float32)
        return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)

    def style(self, picture: Image.Image) -> np.ndarray:
        """The channels' correlations (Gram matrix) of the second block, (128 · 129 / 2,) float32 of length 1."""
        x = self._blocks(picture)[1]
        flat = x.reshape(len(x), -1)
        flat = flat - flat.mean(1, keepdims=True)
        gram = (flat @ flat.T)[np.triu_indices(len(x))]
        return (gram / max(float(np.linalg.norm(gram)), 1e-9)).astype(np.float32)

    def _blocks(self, picture: Image.Image) -> list[np.ndarray]:
        import torch
        import torch.nn.functional as F

        small = np.asarray(picture.convert("RGB").resize((_SIDE_PX, _SIDE_PX)), np.float32)[..., ::-1]
        x = torch.from_numpy((small - (104.00699, 116.66877, 122.67892)).transpose(2, 0, 1)[None].astype(np.float32))
        found = []
        with torch.inference_mode():
            for number, block in enumerate(self.net.blocks):
                x = F.max_pool2d(x, 2, ceil_mode=True) if number else x
                for convolution in block:  # type: ignore[attr-defined]
                    x = F.relu(convolution(x))
                found.append(x[0].numpy())
        return found


@lru_cache(maxsize=1)
def _hed():
    from ace.extract.hed import load_hed
    from ace.extract.weights import find_weights

    return load_hed(find_weights("hed"))


def _siglip(name: str) -> Encode:
    """SigLIP's image tower through transformers, on a GPU if there is one."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModel.from_pretrained(name).to(device).eval()
        processor = AutoImageProcessor.from_pretrained(name)
    except OSError:
        raise MissingDependencyError(
            f"the encoder {name} is not here: name a folder with its files in mine.model, or go online once"
        ) from None

    def encode(pictures: Sequence[Image.Image]) -> np.ndarray:
        inputs = processor(images=list(pictures), return_tensors="pt").to(device)
        with torch.inference_mode():
            found = model.get_image_features(**inputs)
        found = found if isinstance(found, torch.Tensor) else found.pooler_output
        rows = found.float().cpu().numpy()
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    return encode


def _faces(path: str) -> Callable[[Image.Image], np.ndarray | None]:
    """The face feature of a picture with exactly one face."""
    from ace.extract.faces import FaceEmbedder, FaceFinder

    embedder, finder = FaceEmbedder(Path(path)), FaceFinder()

    def embed(picture: Image.Image) -> np.ndarray | None:
        image = np.asarray(picture.convert("RGB"))
        faces = finder.find(image)
        return embedder.embed(image, faces[0]).astype(np.float32) if len(faces) == 1 else None

    return embed


def describe(facts: dict[str, Any]) -> dict[str, str]:
    """A source as a line of `metadata.jsonl`, which the engine reads as a caption file."""
    pointer = collect.Pointer(**facts["pointer"])
    line = {"file_name": pointer.name, "text": pointer.caption, "id": facts["id"]}
    return line | ({"set": facts["set"], "relation": facts["relation"]} if facts.get("set") else {})
