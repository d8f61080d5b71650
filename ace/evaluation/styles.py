"""Which style is this picture drawn in? A small convolutional network that learned the world's drawings and looks.

It judges the style tasks of ace-world: an answer succeeded if it is taken for the style that was asked for. The weights
ship with the package (`styles.safetensors`, float16) and were trained by `recipes/style_classifier.py` on pictures of
concepts other than those that its accuracy is measured on; `docs/evaluation.md` gives that accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ace.data.world.chance import COLOR_STYLES
from ace.data.world.scene import LOOKS
from ace.data.world.sprites import HELD_OUT_STYLE

STYLES = (*COLOR_STYLES, HELD_OUT_STYLE, *LOOKS[1:])
WEIGHTS = Path(__file__).with_name("styles.safetensors")
SIDE_PX = 64
WIDTHS = (32, 48, 64, 96)  # channels; each layer after the first halves the side


class StyleNetwork(nn.Module):
    """Pictures (N, 3, 64, 64) in [-1, 1] → logits (N, styles). Fine detail tells styles apart, so the first layer keeps
    every pixel, and both the mean and the maximum over the picture are looked at."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)):
            convolution = nn.Conv2d(before, after, 3, stride=1 if number == 0 else 2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * WIDTHS[-1], len(STYLES))

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.layers(pictures)  # (N, C, 8, 8)
        return self.head(torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1))


class StyleClassifier:
    """The network with its shipped weights. weights: another file of the same layout."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self.network = StyleNetwork().eval()
        self.network.load_state_dict(load_file(weights))  # copied into float32

    @torch.no_grad()
    def classify(self, pictures: Sequence[Image.Image]) -> list[str]:
        """The style of each picture, one of `STYLES`. Pictures of another size are resized to 64 px."""
        logits = self.network(torch.stack([as_input(picture) for picture in pictures]))
        return [STYLES[number] for number in logits.argmax(dim=1).tolist()]


def as_input(picture: Image.Image) -> Tensor:
    """A picture as the network sees it: (3, 64, 64) float32 in [-1, 1]."""
    picture = picture.convert("RGB")
    if picture.size != (SIDE_PX, SIDE_PX):
        picture = picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
