"""Names of things: EfficientNet-Lite2 (Tan and Le 2019, trained on ImageNet-1k) says what a masked object is.

`Namer.name` looks at an object's surroundings and at the object alone, adds up what ImageNet's classes mean in everyday
words (`naming.txt`: 118 breeds are a dog), and says nothing unless both looks agree with some certainty, or the
picture's caption says the word. Classes that
are no things to take hold of, such as rooms, clothes, materials and landscapes, have no word, so they are never said.

Not here: people, who are no class of ImageNet; places and colours (`ace.data.tasks.describe`).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ace.errors import CheckpointError
from ace.extract.mobile import EPSILON, SameConv, inverted_blocks
from ace.extract.weights import find_weights

SIDE_PX = 260
MIN_CERTAINTY = 0.4
MIN_SAID_CERTAINTY = 0.1  # of a word that the caption says
_MARGIN = 0.15  # of an object's longer side, shown around it
_GRAY = 127
_MEAN, _STD = 127.0, 128.0
# blocks of EfficientNet-Lite2: how many, kernel px, first stride, expansion, channels out
_STAGES = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)


class Namer:
    """The classifier with its published weights. Raises MissingDependencyError where they are missing."""

    def __init__(self) -> None:
        self._net = load_efficientnet()

    def name(self, image: np.ndarray, mask: np.ndarray, caption: str = "") -> str | None:
        """The everyday word for what is under mask (H, W) bool in image (H, W, 3) uint8, None if there is no certain
        one. A word that the picture's caption says needs less certainty."""
        looks = self.certainties(image, mask)
        mean = looks.mean(0)
        best = int(mean.argmax())
        if mean[best] >= MIN_CERTAINTY and looks[:, best].min() >= MIN_CERTAINTY / 2:
            return words()[best]
        said = [n for n, word in enumerate(words()) if re.search(rf"\b{re.escape(word)}(s|es)?\b", caption.casefold())]
        best = max(said, key=lambda n: mean[n], default=-1)
        return words()[best] if said and mean[best] >= MIN_SAID_CERTAINTY else None

    def certainty(self, image: np.ndarray, mask: np.ndarray, word: str) -> float:
        """How likely what is under the mask is called by a word of `words`, 0 … 1."""
        return float(self.certainties(image, mask)[:, words().index(word)].mean())

    @torch.inference_mode()
    def certainties(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(2, number of words): with its surroundings, and alone on grey; rows sum to at most 1."""
        crops = np.stack([_cut(image, mask), _cut(np.where(mask[..., None], image, np.uint8(_GRAY)), mask)])
        batch = torch.from_numpy((crops.transpose(0, 3, 1, 2) - np.float32(_MEAN)) / np.float32(_STD))
        classes = self._net(batch).softmax(1).numpy()
        table = _table()
        return np.stack([np.bincount(table[table >= 0], row[table >= 0], len(words())) for row in classes])


def load_efficientnet() -> EfficientNetLite2:
    """The network with its published weights. Raises MissingDependencyError where they are missing."""
    path = find_weights("efficientnet-lite2")
    stored = torch.load(path, weights_only=True, map_location="cpu")
    net = EfficientNetLite2()
    try:
        net.load_state_dict({key.replace("._", ".").lstrip("_"): value for key, value in stored.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path.name} does not hold the weights of EfficientNet-Lite2 ({error})") from error
    return net.eval().requires_grad_(False)


class EfficientNetLite2(nn.Module):
    """(N, 3, 260, 260), values -1 … 1, to logits (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = SameConv(3, 32, 3, 2), nn.BatchNorm2d(32, EPSILON)
        self.blocks = inverted_blocks(32, _STAGES)
        self.conv_head, self.bn1 = SameConv(352, 1280, 1, 1), nn.BatchNorm2d(1280, EPSILON)
        self.fc = nn.Linear(1280, 1000)

    def maps(self, x: Tensor) -> Tensor:
        """(N, 1280, 9, 9), 0 … 6: what the last convolution says of each place."""
        x = F.relu6(self.bn0(self.conv_stem(x)))  # (N, 32, 130, 130)
        x = self.blocks(x)  # (N, 352, 9, 9)
        return F.relu6(self.bn1(self.conv_head(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.maps(x).mean((2, 3)))


@cache
def words() -> tuple[str, ...]:
    """The everyday words, in the order of `naming.txt`."""
    return tuple(dict.fromkeys(word for _, word in _lines()))


@cache
def _table() -> np.ndarray:
    """(1000,) the number of each class' word, -1 = none."""
    table = np.full(1000, -1)
    for (first, last), word in _lines():
        table[first : last + 1] = words().index(word)
    return table


@cache
def _lines() -> tuple[tuple[tuple[int, int], str], ...]:
    """First and last class of ImageNet, and their word."""
    rows = (Path(__file__).with_suffix(".txt")).read_text(encoding="utf-8").splitlines()
    found = (row.split(" ", 1) for row in rows if not row.startswith("#"))
    return tuple(((int(where.split("-")[0]), int(where.split("-")[-1])), word) for where, word in found)


def _cut(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The square around a mask with a margin, (SIDE_PX, SIDE_PX, 3); grey beyond the picture's borders."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    side = round(max(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) * (1 + 2 * _MARGIN))
    top, left = (rows[0] + rows[-1] + 1 - side) // 2, (columns[0] + columns[-1] + 1 - side) // 2
    square = np.full((side, side, 3), _GRAY, np.uint8)
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + side, image.shape[0]), min(left + side, image.shape[1])
    square[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    how = cv2.INTER_AREA if side > SIDE_PX else cv2.INTER_CUBIC
    return cv2.resize(square, (SIDE_PX, SIDE_PX), interpolation=how)
