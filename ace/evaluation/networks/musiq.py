"""How good is it technically, about 0 to 100? MUSIQ (Ke et al. 2021), the multi-scale image quality transformer.

A picture is read at three sizes (longer sides 224 and 384 px, and its own) in patches of 32 px, each through a small
convolutional stem; patches know their place on a 10 x 10 grid and their size. Names of the weights are those of the
published KonIQ-10k file. Patches that would only pad a size to its full number are left out: the published network
masks them, so they change nothing that the score is read from.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ace.evaluation.networks.aesthetic import at_height
from ace.evaluation.networks.weights import fill, find_file, read_weights

MUSIQ = "musiq_koniq_ckpt-e95806b9"
PATCH_PX, GRID = 32, 10
LONGER_SIDES_PX = (224, 384)
STEM, WIDTH, MLP_WIDTH, HEADS, LAYERS = 64, 384, 1152, 6, 14


class _Convolution(nn.Conv2d):
    """A convolution with standardised weights (Qiao et al. 2019) and TensorFlow's "same" padding."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(_same(input, self.kernel_size[0], self.stride[0]), weight, stride=self.stride)


class _Bottleneck(nn.Module):
    """A residual block whose input is brought to the output's channels. (N, 64, H, W) → (N, 256, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.gn1 = _Convolution(STEM, STEM, 1, bias=False), nn.GroupNorm(32, STEM, eps=1e-4)
        self.conv2, self.gn2 = _Convolution(STEM, STEM, 3, bias=False), nn.GroupNorm(32, STEM, eps=1e-4)
        self.conv3, self.gn3 = _Convolution(STEM, 4 * STEM, 1, bias=False), nn.GroupNorm(32, 4 * STEM, eps=1e-4)
        self.conv_proj = _Convolution(STEM, 4 * STEM, 1, bias=False)
        self.gn_proj = nn.GroupNorm(32, 4 * STEM, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.gn1(self.conv1(x)))
        inner = F.relu(self.gn2(self.conv2(inner)))
        return F.relu(self.gn3(self.conv3(inner)) + self.gn_proj(self.conv_proj(x)))


class _Attention(nn.Module):
    """Multi-head self-attention. (T, D) → (T, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        projections = (self.query, self.key, self.value)
        q, k, v = (layer(tokens).reshape(len(tokens), HEADS, -1).transpose(0, 1) for layer in projections)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (heads, T, D / heads)
        return self.out(mixed.transpose(0, 1).flatten(1))


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, MLP_WIDTH), nn.Linear(MLP_WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH, eps=1e-6), _Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH, eps=1e-6), _Mlp()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position_emb = nn.Parameter(torch.zeros(1, GRID * GRID, WIDTH))


class _Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale_emb = nn.Parameter(torch.zeros(len(LONGER_SIDES_PX) + 1, WIDTH))


class _Encoder(nn.Module):
    """Patch embeddings with their places and sizes → the class token after all blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.posembed_input, self.scaleembed_input = _Positions(), _Scales()
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.transformer = nn.ModuleDict({f"encoderblock_{n}": _Block() for n in range(LAYERS)})
        self.encoder_norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, tokens: Tensor, places: Tensor, scales: Tensor) -> Tensor:
        tokens = tokens + self.posembed_input.position_emb[0, places] + self.scaleembed_input.scale_emb[scales]
        tokens = torch.cat([self.cls[0], tokens])  # (1 + T, D)
        for block in self.transformer.values():
            tokens = block(tokens)
        return self.encoder_norm(tokens)[0]


class Musiq(nn.Module):
    """The whole network for one picture, (3, H, W) in [-1, 1] → its score."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_root = _Convolution(3, STEM, 7, 2, bias=False)
        self.gn_root = nn.GroupNorm(32, STEM, eps=1e-6)
        self.block1 = _Bottleneck()
        self.embedding = nn.Linear(4 * STEM * (PATCH_PX // 4) ** 2, WIDTH)
        self.transformer_encoder = _Encoder()
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, picture: Tensor) -> Tensor:
        patches, places, scales = multiscale_patches(picture)
        x = F.relu(self.gn_root(self.conv_root(patches)))  # (T, 64, 16, 16)
        x = self.block1(F.max_pool2d(_same(x, 3, 2), 3, 2))  # (T, 256, 8, 8)
        tokens = self.embedding(x.permute(0, 2, 3, 1).flatten(1))  # channels last, as the weights were trained
        return self.head(self.transformer_encoder(tokens, places, scales))[0]

    @torch.no_grad()
    def score(self, picture: Image.Image) -> float:
        """The score of a picture, brought to ICE-Bench's height first."""
        values = np.asarray(at_height(picture), dtype=np.float32) / 127.5 - 1
        return float(self(torch.from_numpy(values).permute(2, 0, 1)))


def load_musiq(folder: Path) -> Musiq:
    """From a folder with the published file or its safetensors. Raises MissingDependencyError, CheckpointError."""
    file, network = find_file(folder, MUSIQ), Musiq()
    fill(network, read_weights(file), file)
    return network


def multiscale_patches(picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All patches of a picture (3, H, W) at its three sizes: (T, 3, 32, 32), places on the grid (T,), sizes (T,)."""
    height, width = picture.shape[1:]
    parts = []
    for scale, longer in enumerate((*LONGER_SIDES_PX, None)):
        shown = picture[None]
        if longer is not None:
            size = round(height * longer / max(height, width)), round(width * longer / max(height, width))
            shown = F.interpolate(shown, size, mode="bicubic", align_corners=False)
        cut = F.unfold(_same(shown, PATCH_PX, PATCH_PX), PATCH_PX, stride=PATCH_PX)[0].T  # (T, 3 · 32 · 32)
        rows, columns = (math.ceil(side / PATCH_PX) for side in shown.shape[2:])
        places = (_hashed(rows)[:, None] * GRID + _hashed(columns)).flatten()
        parts.append((cut.reshape(-1, 3, PATCH_PX, PATCH_PX), places, torch.full_like(places, scale)))
    patches, places, scales = zip(*parts, strict=True)
    return torch.cat(patches), torch.cat(places), torch.cat(scales)


def _hashed(count: int) -> Tensor:
    """Which of the grid's ten lines each of `count` lines of patches falls on, (count,) int."""
    return torch.arange(count) * GRID // count


def _same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zero padding as TensorFlow's "same": what a convolution needs to give ceil(side / stride) values."""
    down, across = ((math.ceil(side / stride) - 1) * stride + kernel - side for side in x.shape[2:])
    down, across = max(0, down), max(0, across)
    return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
