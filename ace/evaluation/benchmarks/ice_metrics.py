"""ICE-Bench's raw metrics of one finished picture, by the names of its result file.

SSIM is that of pyiqa's defaults: over rounded luma, structure not below zero. DINO is DINOv2 with the mean of all
tokens, class token included. Faces are found by MTCNN instead of InsightFace's detector; poses are BlazePose's instead
of OpenPose's, so l1_pose is on another scale than the benchmark's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ace.conditions.images import open_image
from ace.conditions.masks import read_mask
from ace.errors import DataError, MissingDependencyError
from ace.evaluation.benchmarks.ice_bench import AESTHETIC, IMAGING, RESIZED, IceItem, raw_metrics
from ace.evaluation.encoders import ClipEncoder, DinoEncoder
from ace.evaluation.facts import ssim_terms
from ace.evaluation.metrics import levels
from ace.evaluation.networks.aesthetic import HEAD, TOWER, load_aesthetic
from ace.evaluation.networks.controls import DEPTH, Annotator, load_depth, load_pose
from ace.evaluation.networks.csd import CSD, StyleEncoder, load_csd
from ace.evaluation.networks.musiq import MUSIQ, load_musiq
from ace.evaluation.networks.weights import SUFFIXES, files_sha256
from ace.evaluation.pairs import cosines, pixel_errors
from ace.extract.faces import FaceEmbedder, FaceFinder
from ace.extras import install_command

MASK_LEVEL = 128  # above it a pixel belongs to the mask


class Scorer(Protocol):
    """Anything that gives a picture one number."""

    def score(self, picture: Image.Image) -> float: ...


@dataclass(frozen=True)
class Faces:
    """Who finds faces and who compares them."""

    finder: FaceFinder
    embedder: FaceEmbedder


@dataclass(frozen=True)
class IceNetworks:
    """The networks at hand; None = its metric is absent. dino: with the mean of all tokens (`load_dinov2`).

    files_sha256: of the weight files of those besides CLIP, DINO and the pose network, whose file is fixed by hash."""

    clip: ClipEncoder | None = None
    dino: DinoEncoder | None = None
    aesthetic: Scorer | None = None
    imaging: Scorer | None = None
    style: StyleEncoder | None = None
    faces: Faces | None = None
    depth: Annotator | None = None
    pose: Annotator | None = None
    files_sha256: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Which ones are there."""
        return tuple(f.name for f in fields(self) if f.name != "files_sha256" and getattr(self, f.name) is not None)

    @property
    def sha256(self) -> str:
        """A hash of all weights: other ones under the same names give another."""
        encoders = [encoder.sha256 if encoder else "" for encoder in (self.clip, self.dino)]
        return hashlib.sha256(" ".join([self.files_sha256, *encoders]).encode()).hexdigest()


def load_networks(folder: Path | None, face_weights: Path | None = None) -> tuple[IceNetworks, list[str]]:
    """The networks besides CLIP and DINO whose weights are in a folder of ICE-Bench's models, under the names there,
    and what is absent and why. face_weights: an ArcFace-class ONNX file. Raises CheckpointError for damaged ones."""
    makers: dict[str, Callable[[], object]] = {"pose": load_pose}
    if folder is not None:
        makers |= {
            "aesthetic": lambda: load_aesthetic(folder),
            "imaging": lambda: load_musiq(folder),
            "style": lambda: load_csd(folder),
            "depth": lambda: load_depth(folder),
        }
    if face_weights is not None:
        makers["faces"] = lambda: Faces(FaceFinder(), FaceEmbedder(face_weights))
    networks, absent = IceNetworks(), []
    for name in ("aesthetic", "imaging", "style", "depth", "faces", "pose"):
        try:
            if name in makers:
                networks = replace(networks, **{name: makers[name]()})
            else:
                absent.append(f"{name}: name its weights ({'--face-weights' if name == 'faces' else '--models'})")
        except MissingDependencyError as error:
            absent.append(f"{name}: {error}")
    files = [*weight_files(folder), *([] if face_weights is None else [face_weights])]
    return replace(networks, files_sha256=files_sha256(files)), absent


def weight_files(folder: Path | None) -> list[Path]:
    """The files in a folder of ICE-Bench's models that the networks are loaded from."""
    if folder is None:
        return []
    single = [folder / f"{stem}{suffix}" for stem in (HEAD, MUSIQ, CSD) for suffix in SUFFIXES]
    whole = [path for name in (TOWER, DEPTH) for path in sorted((folder / name).glob("*"))]
    return [path for path in (*single, *whole) if path.is_file()]


def pixel_metrics(item: IceItem, made: Image.Image) -> dict[str, float]:
    """The raw metrics of a finished picture that need no network, of those its task is scored with.

    `l1_raw` is a distance, the other L1 are 1 − distance; with a source, `resized` says whether the picture had to be
    brought to its size. Raises DataError for a mask of another size than the source,
    or one that covers everything."""
    wanted = raw_metrics(item.task)
    scores: dict[str, float] = {}
    if item.source is None:
        return scores
    source = open_image(item.source).stored
    shown = _fitted(made, source)
    scores[RESIZED] = float(made.size != source.size)
    if "l1_raw" in wanted:
        scores["l1_raw"] = _l1_raw(item, shown, source)
    if "ssim" in wanted:
        scores["ssim"] = luma_ssim(shown, source)
    if "colorfulness" in wanted:
        scores["colorfulness"] = colorfulness(shown)
    true = np.asarray(source.convert("L"), dtype=np.float64)
    if "l1_colorize" in wanted:
        scores["l1_colorize"] = 1 - float(np.abs(np.asarray(shown.convert("L"), np.float64) - true).mean()) / 255
    if "l1_canny" in wanted:
        try:
            import cv2
        except ImportError as error:
            raise MissingDependencyError(f"l1_canny needs OpenCV: {install_command('data')}") from error
        edges = cv2.Canny(np.asarray(shown), 100, 200).astype(np.float64)
        scores["l1_canny"] = 1 - float(np.abs(edges - true).mean()) / 255
    return scores


def luma_ssim(first: Image.Image, second: Image.Image) -> float:
    """SSIM of two RGB pictures of one size as pyiqa's defaults compute it: over luma rounded to levels, with negative
    structure counted as 0."""
    luma = [np.round(levels(picture) @ np.array([299, 587, 114]) / 1000)[..., None] for picture in (first, second)]
    luminance, structure = ssim_terms(*luma)
    return float((luminance * structure.clip(min=0)).mean())


def colorfulness(picture: Image.Image) -> float:
    """Colourfulness with absolute opponents, pictures in [0, 1]."""
    r, g, b = np.moveaxis(levels(picture).astype(np.float64) / 255, 2, 0)
    red_green, yellow_blue = np.abs(r - g), np.abs((r + g) / 2 - b)
    spread = np.sqrt(red_green.std() ** 2 + yellow_blue.std() ** 2)
    return float(spread + 0.3 * np.sqrt(red_green.mean() ** 2 + yellow_blue.mean() ** 2))


def network_metrics(item: IceItem, made: Image.Image, networks: IceNetworks) -> dict[str, float]:
    """The raw metrics that need networks, of those its task is scored with, as far as networks and files allow."""
    wanted = raw_metrics(item.task)
    scores = _feature_metrics(item, made, networks)
    if networks.aesthetic is not None:
        scores[AESTHETIC] = networks.aesthetic.score(made)
    if networks.imaging is not None:
        scores[IMAGING] = networks.imaging.score(made)
    if networks.faces is not None and item.reference is not None and "face_ref" in wanted:
        scores["face_ref"] = _face_likeness(networks.faces, made, open_image(item.reference).stored)
    for name, annotate in (("l1_depth", networks.depth), ("l1_pose", networks.pose)):
        if annotate is not None and item.source is not None and name in wanted:
            true = open_image(item.source).stored
            found = annotate(_fitted(made, true))
            scores[name] = 1 - float(np.abs(found - np.asarray(true.convert("L"), np.float64)).mean()) / 255
    return scores


def _feature_metrics(item: IceItem, made: Image.Image, networks: IceNetworks) -> dict[str, float]:
    """clip_cap, clip_src, clip_ref, dino_ref and style_ref."""
    clip, dino, style = networks.clip, networks.dino, networks.style
    scores: dict[str, float] = {}
    if clip is not None:
        own = clip.images([made])
        scores["clip_cap"] = cosines(own, clip.texts([item.caption]))[0]
        for name, path in (("clip_src", item.source), ("clip_ref", item.reference)):
            if path is not None:
                scores[name] = cosines(own, clip.images([open_image(path).stored]))[0]
    if dino is not None and item.reference is not None and "dino_ref" in raw_metrics(item.task):
        scores["dino_ref"] = cosines(
            dino.images([_only_masked(item, made)]), dino.images([open_image(item.reference).stored])
        )[0]
    if style is not None and item.reference is not None and "style_ref" in raw_metrics(item.task):
        scores["style_ref"] = cosines(style.images([made]), style.images([open_image(item.reference).stored]))[0]
    return scores


def _face_likeness(faces: Faces, made: Image.Image, reference: Image.Image) -> float:
    """The largest cosine of any face of a picture with the reference's largest one; 0 if either shows none."""
    own, other = (np.asarray(picture.convert("RGB")) for picture in (made, reference))
    found, true = faces.finder.find(own), faces.finder.find(other)
    if not found or not true:
        return 0.0
    feature = faces.embedder.embed(other, true[0])
    return max(float(np.dot(faces.embedder.embed(own, face), feature)) for face in found)


def _fitted(made: Image.Image, source: Image.Image) -> Image.Image:
    """The picture, RGB, at the source's size."""
    shown = made.convert("RGB")
    return shown if shown.size == source.size else shown.resize(source.size, Image.Resampling.BICUBIC)


def _l1_raw(item: IceItem, shown: Image.Image, source: Image.Image) -> float:
    if item.mask is None:
        return pixel_errors(shown, source)[0]
    mask = _mask_of(item, item.mask)
    kept = np.asarray(mask) <= MASK_LEVEL
    if not kept.any():
        raise DataError(f"{item.id}: the mask covers everything, so l1_raw has nothing to compare")
    return float(np.abs(levels(shown)[kept] - levels(source)[kept]).mean()) / 255


def _only_masked(item: IceItem, made: Image.Image) -> Image.Image:
    if item.mask is None:
        return made
    mask = _mask_of(item, item.mask).resize(made.size)
    white = Image.new("RGB", made.size, "white")
    inside = Image.fromarray(np.where(np.asarray(mask) > MASK_LEVEL, np.uint8(255), np.uint8(0)))
    return Image.composite(made.convert("RGB"), white, inside)


def _mask_of(item: IceItem, file: Path) -> Image.Image:
    """An item's mask, read as everywhere. Raises MaskError for one that is not of its source's size."""
    photo = open_image(file).size if item.source is None else open_image(item.source)
    return read_mask(file, photo, whole=True).image
