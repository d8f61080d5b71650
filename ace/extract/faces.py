"""Faces: MTCNN (Zhang et al. 2016) finds them with five landmarks each, MediaPipe's face mesh gives 468 points of one.

MTCNN is three small networks in plain torch; the weights are those of facenet-pytorch (MIT). No face recognition here:
the ArcFace weights that can be had are for non-commercial use only. `FaceEmbedder` runs a file that the user names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ace.errors import CheckpointError, MissingDependencyError
from ace.extract.onnx import open_onnx, open_tflite
from ace.extract.weights import find_weights

SMALLEST_FACE_PX = 20
_PYRAMID = 0.709  # each level is half the area of the one before
_THRESHOLDS = (0.6, 0.7, 0.7)  # of the three networks
_CELL_PX, _STRIDE_PX = 12, 2  # what the first network sees at once, and how far apart
MESH_PX = 192

# points of MediaPipe's face mesh, each a closed line
LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150,
    136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
JAW = (234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454)
MOUTH_CORNERS = (61, 291)
UPPER_EYELIDS = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (263, 466, 388, 387, 386, 385, 384, 398, 362))
BROWS = ((46, 53, 52, 65, 55), (276, 283, 282, 295, 285))
NOSE_BASE = 2


@dataclass(frozen=True)
class Face:
    """box: left, top, right, bottom in px. points: (5, 2) x, y of left eye, right eye, nose, left, right mouth corner
    (left as in the picture). score: 0 … 1."""

    box: tuple[float, float, float, float]
    points: np.ndarray
    score: float


class _Proposals(nn.Module):
    """P-net: a score and a box for every 12 px window. (N, 3, H, W) to (N, 2, h, w), (N, 4, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 2, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_1(x).softmax(1), self.conv4_2(x)


class _Refinement(nn.Module):
    """R-net: crops (N, 3, 24, 24) to scores (N, 2) and boxes (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)  # the order the weights were trained in
        x = self.prelu4(self.dense4(x))
        return self.dense5_1(x).softmax(1), self.dense5_2(x)


class _Output(nn.Module):
    """O-net: crops (N, 3, 48, 48) to scores (N, 2), boxes (N, 4) and landmarks (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu4(self.conv4(x)).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu5(self.dense5(x))
        return self.dense6_1(x).softmax(1), self.dense6_2(x), self.dense6_3(x)


class FaceFinder:
    """MTCNN. Raises MissingDependencyError where its weights are missing."""

    name = "MTCNN"

    def __init__(self) -> None:
        self._nets = [
            _load(net, find_weights(name))
            for net, name in zip(
                (_Proposals(), _Refinement(), _Output()), ("mtcnn-p", "mtcnn-r", "mtcnn-o"), strict=True
            )
        ]

    @torch.inference_mode()
    def find(self, image: np.ndarray, min_score: float = 0.9) -> list[Face]:
        """Faces of image (H, W, 3) uint8, largest first."""
        height, width = image.shape[:2]
        boxes = self._propose(image)
        points = np.empty((0, 5, 2))
        for net, side, threshold in ((self._nets[1], 24, _THRESHOLDS[1]), (self._nets[2], 48, _THRESHOLDS[2])):
            if not len(boxes):
                return []
            squares = _squared(boxes)
            scores, shifts, *marks = (value.numpy() for value in net(_crops(image, squares, side)))
            good = scores[:, 1] > threshold
            squares, shifts = squares[good], shifts[good]
            sizes = squares[:, 2:4] - squares[:, :2]
            if marks:
                relative = np.stack((marks[0][good][:, :5], marks[0][good][:, 5:]), -1)
                points = squares[:, None, :2] + relative * sizes[:, None]
            shifted = squares[:, :4] + shifts * np.concatenate((sizes, sizes), 1)
            boxes = np.concatenate((shifted, scores[good][:, 1:]), 1)
            kept = _suppress(boxes, 0.7, by_smaller=bool(marks))
            boxes = boxes[kept]
            points = points[kept] if marks else points
        faces = [
            Face(
                (float(max(b[0], 0)), float(max(b[1], 0)), float(min(b[2], width)), float(min(b[3], height))),
                p,
                float(b[4]),
            )
            for b, p in zip(boxes, points, strict=True)
            if b[4] >= min_score
        ]
        return sorted(faces, key=lambda f: -(f.box[2] - f.box[0]) * (f.box[3] - f.box[1]))

    def _propose(self, image: np.ndarray) -> np.ndarray:
        """Windows that may hold a face: (N, 5) left, top, right, bottom, score."""
        height, width = image.shape[:2]
        found, scale = [], _CELL_PX / SMALLEST_FACE_PX
        while min(height, width) * scale >= _CELL_PX:
            small = cv2.resize(
                image, (math.ceil(width * scale), math.ceil(height * scale)), interpolation=cv2.INTER_AREA
            )
            scores, shifts = (value[0].numpy() for value in self._nets[0](_as_batch(small[None])))
            rows, columns = np.nonzero(scores[1] >= _THRESHOLDS[0])
            corner = np.stack((columns, rows), 1) * _STRIDE_PX
            window = np.concatenate(((corner + 1) / scale, (corner + _CELL_PX) / scale), 1)
            moved = window + shifts[:, rows, columns].T * np.tile(window[:, 2:] - window[:, :2], 2)
            level = np.concatenate((moved, scores[1, rows, columns][:, None]), 1)
            found.append(level[_suppress(level, 0.5)])
            scale *= _PYRAMID
        boxes = np.concatenate(found) if found else np.empty((0, 5))
        return boxes[_suppress(boxes, 0.7)]


class FaceMesh:
    """468 points of a face. Raises MissingDependencyError where its weights or ai-edge-litert are missing."""

    name = "MediaPipe face mesh"

    def __init__(self) -> None:
        self._net = open_tflite(find_weights("face-mesh"))

    def points(self, image: np.ndarray, face: Face) -> np.ndarray | None:
        """(468, 2) x, y in px of a face of image (H, W, 3) uint8; None where the network sees no face."""
        left, top, right, bottom = face.box
        side = 1.5 * max(right - left, bottom - top)
        eyes = face.points[1] - face.points[0]
        angle = math.degrees(math.atan2(eyes[1], eyes[0]))
        matrix = cv2.getRotationMatrix2D(((left + right) / 2, (top + bottom) / 2), angle, MESH_PX / side)
        matrix[:, 2] += MESH_PX / 2 - np.array(((left + right) / 2, (top + bottom) / 2))
        crop = cv2.warpAffine(image, matrix, (MESH_PX, MESH_PX), borderMode=cv2.BORDER_REPLICATE)
        self._net.set_tensor(self._net.get_input_details()[0]["index"], (crop / np.float32(255))[None])
        self._net.invoke()
        mesh, seen = (self._net.get_tensor(output["index"]).ravel() for output in self._net.get_output_details())
        if 1 / (1 + math.exp(-float(seen[0]))) < 0.5:
            return None
        return cv2.transform(mesh.reshape(1, -1, 3)[..., :2], cv2.invertAffineTransform(matrix))[0]


class FaceEmbedder:
    """Identity features of faces by an ArcFace ONNX file that the user names, for the face similarity of the paper.

    The files known to fit (112 px, such as InsightFace's w600k_*.onnx) are for non-commercial research, so none is a
    default. Raises MissingDependencyError if the file is not there."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingDependencyError(
                f"no face recognition weights at {path}: name an ArcFace ONNX file whose licence allows your use"
            )
        self._session = open_onnx(path)

    def embed(self, image: np.ndarray, face: Face) -> np.ndarray:
        """A feature of length 1: the dot product of two is their face similarity."""
        template = np.array(
            ((38.3, 51.7), (73.5, 51.5), (56.0, 71.7), (41.5, 92.4), (70.7, 92.2)), np.float32
        )  # ArcFace's
        matrix, _ = cv2.estimateAffinePartial2D(face.points.astype(np.float32), template, method=cv2.LMEDS)
        crop = cv2.warpAffine(image, matrix, (112, 112))
        batch = ((crop.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None]
        (feature,) = self._session.run(None, {self._session.get_inputs()[0].name: batch})
        return feature[0] / np.linalg.norm(feature[0])


def _load(net: nn.Module, path: Path) -> nn.Module:
    try:
        net.load_state_dict(torch.load(path, weights_only=True))
    except RuntimeError as error:
        raise CheckpointError(f"{path.name} does not hold the weights of MTCNN ({error})") from error
    return net.eval().requires_grad_(False)


def _as_batch(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 as (N, 3, H, W) float32 about -1 … 1."""
    return torch.from_numpy((images.astype(np.float32) - 127.5) / 128).permute(0, 3, 1, 2).contiguous()


def _crops(image: np.ndarray, boxes: np.ndarray, side_px: int) -> Tensor:
    """The boxes of a picture, black where they leave it, each resized to a square."""
    cut = []
    for left, top, right, bottom in boxes[:, :4].round().astype(int):
        size = max(1, right - left), max(1, bottom - top)
        patch = np.zeros((size[1], size[0], 3), np.uint8)
        y0, x0 = max(top, 0), max(left, 0)
        inside = image[y0 : max(bottom, 0), x0 : max(right, 0)]
        patch[y0 - top : y0 - top + inside.shape[0], x0 - left : x0 - left + inside.shape[1]] = inside
        cut.append(cv2.resize(patch, (side_px, side_px), interpolation=cv2.INTER_AREA))
    return _as_batch(np.stack(cut))


def _squared(boxes: np.ndarray) -> np.ndarray:
    """Boxes widened to squares about their centres."""
    size = boxes[:, 2:4] - boxes[:, :2]
    longer = size.max(1, keepdims=True)
    corner = boxes[:, :2] + size / 2 - longer / 2
    return np.concatenate((corner, corner + longer, boxes[:, 4:]), 1)


def _suppress(boxes: np.ndarray, limit: float, by_smaller: bool = False) -> np.ndarray:
    """Indices of the boxes that stay when of any two that overlap more than `limit` the lower score goes.

    by_smaller: overlap is measured against the smaller box instead of the union."""
    order, kept = boxes[:, 4].argsort(kind="stable")[::-1], []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        low = np.maximum(boxes[first, :2], boxes[rest, :2])
        high = np.minimum(boxes[first, 2:4], boxes[rest, 2:4])
        common = (high - low).clip(0).prod(1)
        whole = np.minimum(area[first], area[rest]) if by_smaller else area[first] + area[rest] - common
        order = rest[common <= limit * whole]
    return np.array(kept, int)
