"""Is it in the same style? CSD (Somepalli et al. 2024): CLIP ViT-L/14's picture tower with a style projection.

The published file has OpenAI's names of the tower; it is brought into transformers' CLIP, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from ace.errors import CheckpointError
from ace.evaluation.encoders import CLIP_FRAMING, frame
from ace.evaluation.networks.weights import fill, find_file, read_weights

CSD = "csd_vit_l"
HEAD_WIDTH = 64  # of attention, in every CLIP
_NAMES = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "attn.out_proj.": "self_attn.out_proj.",
}


class StyleEncoder:
    """tower: transformers' CLIP vision model. projection: (D, E), the style head."""

    def __init__(self, tower: CLIPVisionModel, projection: Tensor) -> None:
        self.tower = tower.eval()
        self.projection = projection

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Style features of pictures, (N, E), not normalised."""
        batch = torch.stack([frame(picture, CLIP_FRAMING) for picture in pictures])
        return self.tower(pixel_values=batch).pooler_output @ self.projection


def load_csd(folder: Path) -> StyleEncoder:
    """From a folder with the published file or its safetensors. Raises MissingDependencyError, CheckpointError."""
    file = find_file(folder, CSD)
    weights = {name.removeprefix("module."): value for name, value in read_weights(file).items()}
    try:
        projection = weights.pop("last_layer_style")
        config = _config(weights)
    except KeyError as error:
        raise CheckpointError(f"{file.name} is no CSD: it lacks {error}") from error
    tower = CLIPVisionModel(config)
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tower.state_dict()) else ""
    named = {f"{prefix}{name}": part for key, value in weights.items() for name, part in _renamed(key, value) if name}
    named |= {name: value for name, value in tower.state_dict().items() if name.endswith("position_ids")}
    fill(tower, named, file)
    return StyleEncoder(tower, projection)


def _config(weights: dict[str, Tensor]) -> CLIPVisionConfig:
    """The tower's sizes, read off its tensors."""
    patch = weights["backbone.conv1.weight"]
    width, positions = patch.shape[0], len(weights["backbone.positional_embedding"])
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=len(weights["backbone.transformer.resblocks.0.mlp.c_fc.bias"]),
        num_hidden_layers=sum(name.endswith("ln_1.bias") for name in weights),
        num_attention_heads=width // HEAD_WIDTH,
        patch_size=patch.shape[-1],
        image_size=patch.shape[-1] * round((positions - 1) ** 0.5),
        hidden_act="quick_gelu",
    )


def _renamed(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """OpenAI's name and tensor as transformers'; [] for what is no part of the tower."""
    if not name.startswith("backbone."):
        return []  # the content head
    name = name.removeprefix("backbone.")
    whole = {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    if name in whole:
        return [(whole[name], value)]
    if name.startswith(("ln_pre.", "ln_post.")):
        return [(name.replace("ln_pre", "pre_layrnorm").replace("ln_post", "post_layernorm"), value)]
    name = name.replace("transformer.resblocks.", "encoder.layers.")
    if "attn.in_proj_" in name:
        kind = name.rpartition("_")[2]
        stem = name.partition("attn.")[0]
        return [
            (f"{stem}self_attn.{part}_proj.{kind}", piece) for part, piece in zip("qkv", value.chunk(3), strict=True)
        ]
    for old, new in _NAMES.items():
        name = name.replace(old, new)
    return [(name, value)]
