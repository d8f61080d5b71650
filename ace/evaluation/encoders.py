"""Picture and text features for scores: CLIP and DINO through transformers, framed as their reference code frames them.

Framing is the evaluators' own: shorter side resized (bicubic), centre crop, ImageNet-like statistics; each picture goes
through it by itself, so two pictures are never brought to a common size first. Weights are a folder or a hub name; none
ship here.

Not here: what the features are used for (`pairs.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, Dinov2Model, PreTrainedModel, PreTrainedTokenizerBase, ViTModel

from ace.errors import MissingDependencyError

CLIP_WEIGHTS = "openai/clip-vit-base-patch32"
DINO_WEIGHTS = "facebook/dino-vits16"
DINOV2_WEIGHTS = "facebook/dinov2-giant"
BATCH = 32
MAX_CLIP_TOKENS = 77
NO_SETTINGS = ("_name_or_path", "transformers_version", "architectures")  # of a configuration: they change no feature
TOKEN_PROBE = "A red cat's hat, on 2 dogs"  # shows how a tokenizer cuts words, besides its vocabulary


@dataclass(frozen=True)
class Framing:
    """How a picture is brought to the encoder. resize_px: of its shorter side. crop_px: side of the centre crop.

    mean, std: of the channels, for pictures in [0, 1]."""

    resize_px: int
    crop_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CLIP_FRAMING = Framing(224, 224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINO_FRAMING = Framing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def frame(picture: Image.Image, framing: Framing) -> Tensor:
    """A picture as the encoder sees it, (3, crop_px, crop_px) float32: the resize, crop and normalisation that the
    reference evaluators take from torchvision, on PIL (rounding as there)."""
    picture = picture.convert("RGB")
    short = min(picture.size)
    if short != framing.resize_px:
        width, height = (
            framing.resize_px if side == short else int(framing.resize_px * side / short) for side in picture.size
        )
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    crop = framing.crop_px
    left, top = round((picture.width - crop) / 2), round((picture.height - crop) / 2)
    values = np.asarray(picture.crop((left, top, left + crop, top + crop)), dtype=np.float32) / 255
    values = (values - np.asarray(framing.mean, np.float32)) / np.asarray(framing.std, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def network_sha256(model: PreTrainedModel, *more: str) -> str:
    """A hash of what a network computes: its settings, every tensor, and `more`; not of where it was loaded from."""
    settings = {name: value for name, value in model.config.to_dict().items() if name not in NO_SETTINGS}
    digest = hashlib.sha256(json.dumps([settings, *more], sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


class ClipEncoder:
    """CLIP's two towers (Radford et al. 2021). Features are float32 and not normalised.

    num_truncated: captions that had more than 77 tokens and were cut."""

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, framing: Framing = CLIP_FRAMING) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.framing = framing
        self.num_truncated = 0

    @cached_property
    def sha256(self) -> str:
        """A hash of what makes the features what they are: weights, framing, tokens."""
        words = self.tokenizer(TOKEN_PROBE)["input_ids"], sorted(self.tokenizer.get_vocab().items())
        return network_sha256(self.model, json.dumps([asdict(self.framing), words]))

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features of pictures, (N, D)."""
        return torch.cat(
            [
                self.model.visual_projection(
                    self.model.vision_model(pixel_values=_batch(part, self.framing, self.model)).pooler_output
                )
                for part in _parts(pictures)
            ]
        ).float()

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Features of captions, (N, D)."""
        features = []
        for part in _parts(captions):
            whole = self.tokenizer(list(part))["input_ids"]
            self.num_truncated += sum(len(ids) > MAX_CLIP_TOKENS for ids in whole)
            tokens = self.tokenizer(
                list(part), padding=True, truncation=True, max_length=MAX_CLIP_TOKENS, return_tensors="pt"
            ).to(self.model.device)
            states = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            features.append(self.model.text_projection(states.pooler_output))
        return torch.cat(features).float()


class DinoEncoder:
    """DINO's class token (Caron et al. 2021), or with `mean_tokens` the mean of all tokens of DINOv2's last layer, as
    ICE-Bench takes it. Features are float32 and not normalised."""

    def __init__(
        self, model: ViTModel | Dinov2Model, framing: Framing = DINO_FRAMING, mean_tokens: bool = False
    ) -> None:
        self.model = model.eval()
        self.framing = framing
        self.mean_tokens = mean_tokens

    @cached_property
    def sha256(self) -> str:
        """A hash of what makes the features what they are: weights, framing, which tokens."""
        return network_sha256(self.model, json.dumps([asdict(self.framing), self.mean_tokens]))

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features of pictures, (N, D)."""
        features = []
        for part in _parts(pictures):
            tokens = self.model(pixel_values=_batch(part, self.framing, self.model)).last_hidden_state  # (N, T, D)
            features.append(tokens.mean(dim=1) if self.mean_tokens else tokens[:, 0])
        return torch.cat(features).float()


def load_clip(weights: str = CLIP_WEIGHTS, device: str = "cpu") -> ClipEncoder:
    """CLIP from a folder or the hub. Raises MissingDependencyError if it is not there."""
    try:
        model = CLIPModel.from_pretrained(weights, use_safetensors=_safe(weights), dtype=torch.float32)
        model.to(device)  # pyright: ignore[reportArgumentType]  (transformers' wrapper hides the signature)
        side = model.vision_model.config.image_size  # 224, or 336 for ICE-Bench's
        framing = replace(CLIP_FRAMING, resize_px=side, crop_px=side)
        return ClipEncoder(model, AutoTokenizer.from_pretrained(weights), framing)
    except OSError as error:
        raise MissingDependencyError(_how("CLIP", weights, "--clip")) from error


def load_dino(weights: str = DINO_WEIGHTS, device: str = "cpu") -> DinoEncoder:
    """DINO from a folder or the hub. Raises MissingDependencyError if it is not there."""
    try:
        model = ViTModel.from_pretrained(
            weights, add_pooling_layer=False, use_safetensors=_safe(weights), dtype=torch.float32
        )
        model.to(device)  # pyright: ignore[reportArgumentType]
        return DinoEncoder(model)
    except OSError as error:
        raise MissingDependencyError(_how("DINO", weights, "--dino")) from error


def load_dinov2(weights: str = DINOV2_WEIGHTS, device: str = "cpu") -> DinoEncoder:
    """DINOv2 for ICE-Bench, from a folder or the hub. Raises MissingDependencyError if it is not there."""
    try:
        model = Dinov2Model.from_pretrained(weights, use_safetensors=_safe(weights), dtype=torch.float32)
        model.to(device)  # pyright: ignore[reportArgumentType]
        return DinoEncoder(model, DINO_FRAMING, mean_tokens=True)
    except OSError as error:
        raise MissingDependencyError(_how("DINOv2", weights, "--dinov2")) from error


def _safe(weights: str) -> bool | None:
    """Local folders must hold safetensors; what the hub has under the well-known names is left to transformers."""
    return True if Path(weights).is_dir() else None


def _how(name: str, weights: str, option: str) -> str:
    return f"no {name} weights {weights!r} here: name a folder in transformers' format with {option}, or go online once"


def _parts(values: Sequence) -> list[Sequence]:
    return [values[start : start + BATCH] for start in range(0, len(values), BATCH)]


def _batch(pictures: Sequence[Image.Image], framing: Framing, model: CLIPModel | Dinov2Model | ViTModel) -> Tensor:
    return torch.stack([frame(picture, framing) for picture in pictures]).to(model.device, model.dtype)
