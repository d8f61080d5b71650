"""Mining: related pictures of a collection become sets and pairs (section 3.1 of the paper).

embed → cluster, join twice, pair, clean (`cluster.py`). The default encoder is the VGG-16 inside HED, whose weights are
free and fetched by `ace data setup`; it sees texture and layout more than meaning. SigLIP, the paper's, is named in the
recipe. The second turn compares content by the consistency of the main object, style by the correlations of VGG's
channels, faces by the user's ArcFace file, and series by the features again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ace.data import collect
from ace.data.cluster import REASONS, Score, load_faiss, mine, rows_of
from ace.data.engine import DataJob, Part, Record, Told, Where, run_stage
from ace.data.recipe import DataRecipe, Mining
from ace.data.sources import OF_ONE_PICTURE, PER_JOB, load_source
from ace.errors import MissingDependencyError, OutputError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ace.extract.safety import SafetyNet

_SIDE_PX = 224
_AT_ONCE = 8  # pictures in one pass of a network on a CPU, where more only take memory

Encode = Callable[[Sequence["Image.Image"]], np.ndarray]  # pictures → (N, D) float32 of length 1
# pictures → (N, D) float32 of length 1, and which of them it can be told of, (N,) bool
Second = Callable[[Sequence["Image.Image"]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Found:
    """Sources, those of a set with its name and relation, and what the two stages left."""

    sources: list[dict[str, Any]]
    embedded: list[Part]
    mined: list[Part]

    def each_pair(self) -> Iterator[dict[str, Any]]:
        """The pairs that were kept: first, second, cosine."""
        for part in self.mined:
            for record in part.records(samples=False):
                if record.task == "pair" and not record.reason:
                    yield record.facts

    def pairs(self, limit: int) -> list[dict[str, Any]]:
        """The first pairs that were kept."""
        return list(islice(self.each_pair(), limit))


def check_ready(settings: Mining) -> None:
    """Raise MissingDependencyError, saying how to get it, or CheckpointError, for a network that is not at hand."""
    load_faiss()
    load_encoder(settings)
    load_second(settings)
    load_safety(settings)


def mine_sources(recipe: DataRecipe, sources: Sequence[dict[str, Any]], work: Path, where: Where, told: Told) -> Found:
    """Embed the sources, find sets among them."""
    assert recipe.mine is not None
    slices = [sources[i : i + PER_JOB] for i in range(0, len(sources), PER_JOB)]
    jobs = [DataJob(f"{number:06d}", {"sources": list(part)}) for number, part in enumerate(slices)]
    embedded = run_stage("embed", jobs, partial(embed_pictures, recipe), work, where, told("embed"))
    job = DataJob("all", {"parts": [str(part.file.relative_to(work)) for part in embedded]})
    mined = run_stage("mine", [job], partial(find_sets, recipe, str(work)), work, Where(), told("mine"))
    sets: dict[str, str] = {}
    for record in mined[0].records(samples=False):
        if record.task == "set":
            sets |= dict.fromkeys(record.facts["members"], record.what)
    placed = [
        {**facts, "set": sets[facts["id"]], "relation": recipe.mine.relation} if facts["id"] in sets else facts
        for facts in sources
    ]
    return Found(placed, embedded, mined)


def embed_pictures(recipe: DataRecipe, job: DataJob) -> Iterator[Record]:
    """Features of a slice of pictures, as float16 in `blob`, the second turn's after the first's; what is blurred,
    unsafe or unfit is rejected."""
    assert recipe.mine is not None
    kept: list[tuple[str, Image.Image]] = []
    for facts in job.payload["sources"]:
        if facts["sharpness"] < recipe.mine.min_sharpness:
            yield Record(facts["id"], reason="blurred", detail=f"{facts['sharpness']:.1f}")
            continue
        try:
            kept.append((facts["id"], load_source(recipe, {**facts, "others": ()}).image))
        except OF_ONE_PICTURE as error:
            yield Record(facts["id"], reason="cannot be read", detail=str(error)[:200])
    if not kept:
        return
    images = [image for _, image in kept]
    features = load_encoder(recipe.mine)(images)
    further, fit = load_second(recipe.mine)(images)
    safety = load_safety(recipe.mine)
    unsafe = safety([np.asarray(image) for image in images]) if safety else np.zeros(len(images))
    table = np.concatenate([features, further], axis=1).astype(np.float16)
    for number, (name, _) in enumerate(kept):
        if unsafe[number] > recipe.mine.max_unsafe:
            yield Record(name, reason="unsafe", detail=f"{unsafe[number]:.2f}")
        elif not fit[number]:
            yield Record(name, reason="not exactly one face")
        else:
            yield Record(name, facts={"width": features.shape[1]}, blob=table[number].tobytes())


def find_sets(recipe: DataRecipe, work: str, job: DataJob) -> Iterator[Record]:
    """Sets and pairs of all embedded pictures; a record for each."""
    assert recipe.mine is not None
    parts = [Part(Path(work) / name) for name in job.payload["parts"]]
    file = Path(work) / "mine" / ".features.part"  # what a kill leaves of it, the next start removes
    try:
        names, table, width = _gathered(parts, file)
        if len(names) < 2:
            return
        score: Score | None = None
        if table.shape[1] > width:
            further = table[:, width:]
            score = lambda members: rows_of(further, members) @ rows_of(further, members).T  # noqa: E731
        found = mine(table[:, :width], recipe.mine, score, recipe.seed)
    except OSError as error:
        raise OutputError(f"{work} cannot be written ({error.strerror}): free space and run it again") from None
    finally:
        file.unlink(missing_ok=True)
    for members in found.sets:
        for start in range(0, len(members), recipe.mine.max_set):
            part = [names[index] for index in members[start : start + recipe.mine.max_set]]
            if len(part) > 1:
                yield Record(f"set-{part[0]}", task="set", facts={"members": part})
    for (first, second), cosine, fate in zip(found.pairs, found.cosines, found.fates, strict=True):
        facts = {"first": names[first], "second": names[second], "cosine": round(float(cosine), 4)}
        yield Record(f"{names[first]}~{names[second]}", task="pair", reason=REASONS[fate], facts=facts)


def _gathered(parts: Sequence[Part], file: Path) -> tuple[list[str], np.ndarray, int]:
    """The names of all embedded pictures, their features (N, D) float16, mapped from a file, and how many numbers of a
    row are the first turn's."""
    names: list[str] = []
    table, width = np.empty((0, 0), np.float16), 0
    for part in parts:
        found = part.columns("what", "reason", "facts", "blob")
        kept = [row for row, reason in enumerate(found["reason"]) if not reason]
        if not kept:
            continue
        if not width:
            width = json.loads(found["facts"][kept[0]])["width"]
            shape = (sum(other.count for other in parts), len(found["blob"][kept[0]]) // 2)
            table = np.lib.format.open_memmap(file, "w+", np.float16, shape)
        rows = np.frombuffer(b"".join(found["blob"][row] for row in kept), np.float16)
        table[len(names) : len(names) + len(kept)] = rows.reshape(len(kept), -1)
        names += [found["what"][row] for row in kept]
    return names, table[: len(names)], width


@lru_cache(maxsize=1)
def load_encoder(settings: Mining) -> Encode:
    """The encoder of a recipe. Raises MissingDependencyError, saying how to get it."""
    return _siglip(settings.model) if settings.encoder == "siglip" else _Vgg().features


@lru_cache(maxsize=1)
def load_second(settings: Mining) -> Second:
    """What the second turn compares, nothing where it is the features. Raises as `load_encoder`."""
    if settings.relation == "face":
        return _faces(settings.face_model)
    if settings.relation == "style":
        return _of_any(_Vgg().style)
    if settings.relation == "content":
        from ace.extract.consistency import ObjectFeatures

        find = ObjectFeatures()
        return _of_any(lambda pictures: find([np.asarray(picture.convert("RGB")) for picture in pictures]))
    return _of_any(lambda pictures: np.empty((len(pictures), 0), np.float32))


@lru_cache(maxsize=1)
def load_safety(settings: Mining) -> SafetyNet | None:
    """Who looks for unsafe pictures, None if nobody shall. Raises MissingDependencyError without its weights."""
    if settings.max_unsafe == 1:
        return None
    from ace.extract.safety import SafetyNet

    return SafetyNet()


def _of_any(encode: Encode) -> Second:
    """An encoder that can describe any image, for the second turn."""
    return lambda pictures: (encode(pictures), np.ones(len(pictures), bool))


class _Vgg:
    """The VGG-16 in HED: pooled features of its two deepest blocks, and channel correlations for style."""

    def __init__(self) -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net = _hed().to(self.device)

    def features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(N, 1024 · 2) float32 of length 1: means and maxima of the last two blocks, less what all pictures share."""
        found = []
        for blocks in self._passes(pictures):
            parts = [part for x in blocks[3:] for part in (x.mean((2, 3)), x.amax((2, 3)))]
            found.append(np.concatenate([part.cpu().numpy() for part in parts], axis=1))
        rows = np.concatenate(found)
        rows = np.sign(rows) * np.sqrt(np.abs(rows))
        return _of_length_1(rows - rows.mean(1, keepdims=True))

    def style(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """The channels' correlations (Gram matrix) of the second block, (N, 128 · 129 / 2) float32 of length 1."""
        found = []
        for blocks in self._passes(pictures):
            x = blocks[1].flatten(2)  # (N, 128, places)
            x = x - x.mean(2, keepdim=True)
            grams = (x @ x.transpose(1, 2)).cpu().numpy()
            upper = np.triu_indices(grams.shape[1])
            found.append(grams[:, upper[0], upper[1]])
        return _of_length_1(np.concatenate(found))

    def _passes(self, pictures: Sequence[Image.Image]) -> Iterator[list[Tensor]]:
        """The activations of the five blocks, for as many pictures at once as suits the device."""
        import torch
        import torch.nn.functional as F

        at_once = _AT_ONCE if self.device == "cpu" else len(pictures)
        for start in range(0, len(pictures), at_once):
            small = [_small(picture) for picture in pictures[start : start + at_once]]
            x = torch.from_numpy(np.stack(small)).to(self.device)
            found = []
            with torch.inference_mode():
                for number, block in enumerate(self.net.blocks):
                    x = F.max_pool2d(x, 2, ceil_mode=True) if number else x
                    for convolution in block:  # type: ignore[attr-defined]
                        x = F.relu(convolution(x))
                    found.append(x)
            yield found


def _small(picture: Image.Image) -> np.ndarray:
    """A picture as VGG saw them: (3, 224, 224) float32, blue first, less the mean colour."""
    small = np.asarray(picture.convert("RGB").resize((_SIDE_PX, _SIDE_PX)), np.float32)[..., ::-1]
    return (small - np.array((104.00699, 116.66877, 122.67892), np.float32)).transpose(2, 0, 1)


def _of_length_1(rows: np.ndarray) -> np.ndarray:
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


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
        return _of_length_1(found.float().cpu().numpy())

    return encode


def _faces(path: str) -> Second:
    """The face features of pictures; only one with exactly one face is told of."""
    from ace.extract.faces import FaceEmbedder, FaceFinder

    embedder, finder = FaceEmbedder(Path(path)), FaceFinder()

    def embed(pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        images = [np.asarray(picture.convert("RGB")) for picture in pictures]
        faces = [finder.find(image) for image in images]
        fit = np.array([len(found) == 1 for found in faces])
        rows = [embedder.embed(image, found[0]) for image, found in zip(images, faces, strict=True) if len(found) == 1]
        table = np.zeros((len(images), len(rows[0]) if rows else 0), np.float32)
        if rows:
            table[fit] = rows
        return table, fit

    return embed


def describe(facts: dict[str, Any]) -> dict[str, str]:
    """A source as a line of `metadata.jsonl`, which the engine reads as a caption file."""
    pointer = collect.Pointer(**facts["pointer"])
    line = {"file_name": pointer.name, "text": pointer.caption, "id": facts["id"]}
    return line | ({"set": facts["set"], "relation": facts["relation"]} if facts.get("set") else {})
