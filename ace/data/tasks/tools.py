"""The extractors that tasks use, each loaded when first asked for and then kept.

Not here: what they do (`ace.extract`), where their weights come from (`ace.data.setup`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ace.errors import MissingDependencyError
from ace.extract.weights import is_there

if TYPE_CHECKING:
    from ace.data.tasks.generators import Generators
    from ace.extract.faces import Face, FaceEmbedder, FaceFinder, FaceMesh
    from ace.extract.naming import Namer
    from ace.extract.objects import Object, Segmenter
    from ace.extract.people import Person, PoseFinder
    from ace.extract.text import TextReader

T = TypeVar("T")
REMEMBERED = 16  # pictures whose objects, edges, depth, … are kept
PERSON, UNNAMED = "person", "object"  # words for what the namer does not know
NOSE = 0  # of a person's keypoints
FACE_SIMILARITY = (0.8, 0.9)  # between two pictures of one person (B.4.1): alike, but not the same picture
ALIGNED_SIMILARITY = 0.65  # between a face and the one that a generator made of it, at least (B.4.1)


class Tools:
    """A holder for one process. Every tool is deterministic; none is loaded before it is used, and what the last
    pictures showed is remembered, so make all samples of a picture soon after each other.

    lama: an ONNX file of LaMa, to be used instead of MI-GAN. depth_model: a depth model of transformers, hub id or
    folder, instead of FastDepth. line_art: weights of informative drawings for contours, instead of HED's edges.
    face_embedder: an ArcFace ONNX file, to compare faces. generators: the models behind the tasks that need one.
    segment: whether tasks that only profit from objects may look for them, which costs several seconds a picture;
    object_regions: whether the region of a signal may be the outline of an object, too.

    Asking for a tool whose weights or package are missing raises MissingDependencyError; `missing` tells before. A
    portrait generator without a face embedder, which InstantID is steered by, raises it at once."""

    def __init__(
        self,
        *,
        lama: Path | None = None,
        depth_model: str | None = None,
        line_art: Path | None = None,
        face_embedder: Path | None = None,
        generators: Generators | None = None,
        segment: bool = True,
        object_regions: bool = False,
    ) -> None:
        self._lama, self._depth_model, self._line_art, self._face_embedder = lama, depth_model, line_art, face_embedder
        self.generators = generators
        self._segment, self.object_regions = segment, object_regions
        if self.can_portray and face_embedder is None:
            raise MissingDependencyError("InstantID needs face features: name an ArcFace ONNX file as face_embedder")
        self._known: dict[str, OrderedDict[int, Any]] = {}

    def missing(self, task: str) -> tuple[str, ...]:
        """Names of the weights that a task needs and that have not been fetched."""
        return tuple(name for name in needed_weights(task) if not is_there(name))

    @property
    def can_portray(self) -> bool:
        """Whether a person's further pictures can be generated."""
        return self.generators is not None and self.generators.can_portray

    @cached_property
    def can_segment(self) -> bool:
        """Whether objects may be found; tasks that only profit from them do without if not."""
        return self._segment and all(is_there(name) for name in (*_SAM2, *_NAMES))

    def objects(self, image: np.ndarray) -> list[Object]:
        """The objects of a picture (H, W, 3) uint8, largest first."""
        return self.once("objects", (image,), lambda: self.segmenter.find_objects(image))

    def edges(self, image: np.ndarray) -> np.ndarray:
        """Soft edges (H, W) float32 0 … 1."""
        return self.once("edges", (image,), lambda: self._soft_edges(image))

    def contour(self, image: np.ndarray) -> np.ndarray:
        """Fine lines, dark on white, (H, W, 3) uint8."""
        if self._line_art is not None:
            return self._line_art_net.draw(image)
        from ace.extract.sketch import draw_contour

        return draw_contour(self.edges(image))

    def depth(self, image: np.ndarray) -> np.ndarray:
        """Nearness (H, W) float32 0 … 1."""
        return self.once("depth", (image,), lambda: self._depth(image))

    def person(self, image: np.ndarray) -> Person | None:
        """The person of a picture, whose face is seen: the pose net alone takes animals and towers for people."""
        return self.once("person", (image,), lambda: self._person_with_face(image))

    def faces(self, image: np.ndarray) -> list[Face]:
        """The faces of a picture, largest first."""
        return self.once("faces", (image,), lambda: self._face_finder.find(image))

    def word(self, image: np.ndarray, mask: np.ndarray, caption: str = "") -> str:
        """What is under a mask (H, W) bool: "person" where a face is, a thing's name, "object" if none is certain.
        caption: what the picture is said to show."""
        if any(mask[round(y), round(x)] for x, y in (_middle(face, mask.shape) for face in self.faces(image))):
            return PERSON
        return self.namer.name(image, mask, caption) or UNNAMED

    def face_mesh(self, image: np.ndarray, face: Face) -> np.ndarray | None:
        """468 points of a face, (468, 2) px."""
        return self._face_mesh.points(image, face)

    def text(self, image: np.ndarray) -> list:
        """The lines of text of a picture (`ace.extract.text.Line`)."""
        return self.once("text", (image,), lambda: self.reader.read(image))

    def fill(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The picture with what is under the mask (H, W) bool made up from its surroundings."""
        return self.filler.fill(image, mask)

    @cached_property
    def segmenter(self) -> Segmenter:
        """SAM 2."""
        from ace.extract.objects import Segmenter

        return Segmenter()

    @cached_property
    def namer(self) -> Namer:
        """EfficientNet-Lite2."""
        from ace.extract.naming import Namer

        return Namer()

    @cached_property
    def reader(self) -> TextReader:
        """PP-OCR."""
        from ace.extract.text import TextReader

        return TextReader()

    @cached_property
    def filler(self):
        """LaMa if its weights were named, else MI-GAN."""
        from ace.extract.fill import MIGAN, LaMa

        return MIGAN() if self._lama is None else LaMa(self._lama)

    @cached_property
    def embedder(self) -> FaceEmbedder | None:
        """ArcFace, if its weights were named."""
        from ace.extract.faces import FaceEmbedder

        return None if self._face_embedder is None else FaceEmbedder(self._face_embedder)

    @cached_property
    def _line_art_net(self):
        from ace.extract.sketch import load_line_art

        assert self._line_art is not None
        return load_line_art(self._line_art)

    @cached_property
    def _soft_edges(self):
        from ace.extract.hed import SoftEdges

        return SoftEdges()

    @cached_property
    def _depth(self):
        from ace.extract.distance import FastDepth, HubDepth

        return FastDepth() if self._depth_model is None else HubDepth(self._depth_model)

    @property
    def depth_name(self) -> str:
        """The depth model's name."""
        return "FastDepth" if self._depth_model is None else self._depth_model

    @cached_property
    def _pose(self) -> PoseFinder:
        from ace.extract.people import PoseFinder

        return PoseFinder()

    @cached_property
    def _face_finder(self) -> FaceFinder:
        from ace.extract.faces import FaceFinder

        return FaceFinder()

    @cached_property
    def _face_mesh(self) -> FaceMesh:
        from ace.extract.faces import FaceMesh

        return FaceMesh()

    def _person_with_face(self, image: np.ndarray) -> Person | None:
        person = self._pose.find(image)
        if person is None:
            return None
        x, y = person.keypoints[NOSE]
        boxes = (face.box for face in self.faces(image))
        return person if any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes) else None

    def once(self, what: str, arrays: tuple[np.ndarray, ...], find: Callable[[], T]) -> T:
        """What `find` gives for these arrays, found once and then remembered for a while under the name `what`."""
        key = hash(tuple((array.shape, array.tobytes()) for array in arrays))
        known = self._known.setdefault(what, OrderedDict())
        if key not in known:
            known[key] = find()
            if len(known) > REMEMBERED:
                known.popitem(last=False)
        known.move_to_end(key)
        return known[key]


def _middle(face: Face, shape: tuple[int, ...]) -> tuple[float, float]:
    """The middle of a face, x and y in px, inside a picture of this shape."""
    left, top, right, bottom = face.box
    return min(max((left + right) / 2, 0), shape[1] - 1), min(max((top + bottom) / 2, 0), shape[0] - 1)


_SAM2 = ("sam2-encoder", "sam2-decoder")
_MTCNN = ("mtcnn-p", "mtcnn-r", "mtcnn-o")
_POSE = ("pose-detector", "pose-landmarks", *_MTCNN)
_NAMES = (*_MTCNN, "efficientnet-lite2")
_OBJECTS = (*_SAM2, *_NAMES, "migan")
_NEEDED: dict[str, tuple[str, ...]] = {
    "low_level_analysis/segmentation": _SAM2,
    "low_level_analysis/depth": ("fastdepth",),
    "low_level_analysis/pose": _POSE,
    "low_level_analysis/doodle": ("hed",),
    "low_level_analysis/contour": ("hed",),
    "low_level_analysis/scribble": ("hed",),
    "semantic_editing/face": (*_MTCNN, "face-mesh"),
    "semantic_editing/background": _POSE,
    "semantic_editing/pose": (*_POSE, "migan"),
    "element_editing/text_remove": ("migan",),
    "element_editing/object_add": _OBJECTS,
    "element_editing/object_remove": _OBJECTS,
    "element_editing/object_replace": _OBJECTS,
    "layer_editing/decouple": _OBJECTS,
    "layer_editing/fusion": _OBJECTS,
    "reference_generation/multi_condition": (*_SAM2, "hed", "fastdepth", *_POSE),
    "reference_generation/face_reference": (*_MTCNN, "face-mesh"),
}


def needed_weights(task: str) -> tuple[str, ...]:
    """Names of the weights that a task needs by default; none for most."""
    return _NEEDED.get(task.replace("controllable_generation/", "low_level_analysis/"), ())
