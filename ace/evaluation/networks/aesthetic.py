"""How beautiful is it, about 1 to 10? Aesthetic Predictor V2.5: a stack of linear layers on SigLIP's pooled embedding.

Between the layers is dropout only, no activation, as published; so is the form of LAION's predictor on CLIP. ICE-Bench
runs it in bfloat16, here it is float32.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import SiglipVisionModel

from ace.errors import CheckpointError, MissingDependencyError
from ace.evaluation.networks.weights import find_file, read_weights

HEIGHT_PX = 1024  # ICE-Bench brings every picture to this height first
TOWER, HEAD = "siglip-so400m-patch14-384", "aesthetic_predictor_v2_5"


class Aesthetic:
    """tower: its pooled output is normalised to length 1. layers: (weight, bias) of each linear layer, in order."""

    def __init__(self, tower: SiglipVisionModel, layers: list[tuple[Tensor, Tensor]]) -> None:
        self.tower = tower.eval()
        self.layers = layers

    @torch.no_grad()
    def score(self, picture: Image.Image) -> float:
        """The score of a picture."""
        side = self.tower.config.image_size
        assert isinstance(side, int)
        shown = at_height(picture).resize((side, side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(shown, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        features = torch.nn.functional.normalize(self.tower(pixel_values=pixels).pooler_output, dim=1)
        for weight, bias in self.layers:
            features = features @ weight.T + bias
        return float(features)


def load_aesthetic(folder: Path) -> Aesthetic:
    """From a folder with SigLIP in transformers' format and the head's file. Raises MissingDependencyError,
    CheckpointError."""
    head = find_file(folder, HEAD)
    if not (folder / TOWER).is_dir():
        raise MissingDependencyError(f"no {TOWER}/ in {folder.name}")
    try:
        tower = SiglipVisionModel.from_pretrained(folder / TOWER, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{TOWER} is no SigLIP in transformers' format: {error}") from error
    return Aesthetic(tower, linear_stack(read_weights(head), tower.config.hidden_size, head))


def linear_stack(weights: dict[str, Tensor], width: int, file: Path) -> list[tuple[Tensor, Tensor]]:
    """The linear layers of a head in the order of their numbers, from `width` features to one score.

    Raises CheckpointError if they do not fit one another."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in weights.items():
        if numbered := re.search(r"(\d+)\.(weight|bias)$", name):
            found.setdefault(int(numbered[1]), {})[numbered[2]] = value
    layers = [found[number] for number in sorted(found)]
    for layer in layers:
        if layer.keys() != {"weight", "bias"} or layer["weight"].shape[1] != width:
            raise CheckpointError(f"{file.name} does not hold linear layers that fit a tower of this width")
        width = layer["weight"].shape[0]
    if width != 1 or not layers:
        raise CheckpointError(f"{file.name} does not end in one score")
    return [(layer["weight"], layer["bias"]) for layer in layers]


def at_height(picture: Image.Image) -> Image.Image:
    """The picture, RGB, 1,024 px high."""
    picture = picture.convert("RGB")
    if picture.height == HEIGHT_PX:
        return picture
    width = max(1, int(picture.width * HEIGHT_PX / picture.height))
    return picture.resize((width, HEIGHT_PX), Image.Resampling.BICUBIC)
