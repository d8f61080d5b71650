"""Sketches of photographs from soft edges: doodle, contour and scribble, dark lines on white.

Stand-ins for PiDiNet with SketchNet and for the informative drawings of the paper, whose weights no package carries:
HED's edges are thinned and drawn thick and round (doodle), drawn as dark as they are certain (contour), or thresholded
generously (scribble). `LineArt` runs the informative-drawings network itself where its weights are given.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ace.errors import CheckpointError, MissingDependencyError

INK = 20  # grey level of a line


def draw_doodle(edges: np.ndarray, threshold: float = 0.35) -> np.ndarray:
    """A rough drawing: few thick lines along the strongest edges. edges: (H, W) 0 … 1. Returns (H, W, 3) uint8."""
    smooth = cv2.GaussianBlur(edges, (0, 0), max(1.0, max(edges.shape) / 200))
    lines = _ridges(smooth) & (smooth > threshold)
    lines = _drop_small(lines, max(6, max(edges.shape) // 24))
    width = max(2, round(max(edges.shape) / 110))
    thick = cv2.dilate(lines.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width + 1, width + 1)))
    soft = cv2.GaussianBlur(thick * np.float32(255), (0, 0), width / 2)
    return _ink(soft > 110)


def draw_contour(edges: np.ndarray) -> np.ndarray:
    """Fine lines, as dark as the edge is certain. edges: (H, W) 0 … 1. Returns (H, W, 3) uint8."""
    ridge = cv2.dilate(_ridges(edges).astype(np.uint8), np.ones((2, 2), np.uint8)) > 0
    strength = np.where(ridge, edges, 0) ** 0.7
    strength = cv2.GaussianBlur(strength.astype(np.float32), (0, 0), 0.6)
    return (255 - (255 - INK) * (1.6 * strength).clip(0, 1)).round().astype(np.uint8)[..., None].repeat(3, 2)


def draw_scribble(edges: np.ndarray, threshold: float = 0.22) -> np.ndarray:
    """Broad strokes: everything that may be an edge, in ink. edges: (H, W) 0 … 1. Returns (H, W, 3) uint8."""
    smooth = cv2.GaussianBlur(edges, (0, 0), max(0.8, max(edges.shape) / 400))
    return _ink(_drop_small(smooth > threshold, max(8, max(edges.shape) // 20)))


class LineArt(nn.Module):
    """The generator of informative drawings (Chan et al. 2022): (N, 3, H, W) 0 … 1 to lines (N, 1, H, W), 1 = paper."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        norm = nn.InstanceNorm2d
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 64, 7), norm(64), nn.ReLU())
        self.model1 = nn.Sequential(
            nn.Conv2d(64, 128, 3, 2, 1), norm(128), nn.ReLU(), nn.Conv2d(128, 256, 3, 2, 1), norm(256), nn.ReLU()
        )
        self.model2 = nn.Sequential(*(_Residual(256) for _ in range(blocks)))
        self.model3 = nn.Sequential(
            nn.ConvTranspose2d(256, 128, 3, 2, 1, output_padding=1),
            norm(128),
            nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 3, 2, 1, output_padding=1),
            norm(64),
            nn.ReLU(),
        )
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(64, 1, 7), nn.Sigmoid())

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model4(self.model3(self.model2(self.model1(self.model0(pictures)))))

    @torch.inference_mode()
    def draw(self, image: np.ndarray) -> np.ndarray:
        """Line art (H, W, 3) uint8, dark on white, of image (H, W, 3) uint8."""
        height, width = image.shape[:2]
        batch = torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(255)).float()
        batch = F.pad(batch, (0, -width % 4, 0, -height % 4), mode="replicate")
        lines = self(batch)[0, 0, :height, :width].numpy()
        return (lines * 255).round().astype(np.uint8)[..., None].repeat(3, 2)


def load_line_art(path: Path) -> LineArt:
    """The network with weights from a file: `sk_model.pth` or `sk_model2.pth` of lllyasviel/Annotators (MIT).

    Raises MissingDependencyError if it is not there, CheckpointError if it does not fit."""
    if not path.is_file():
        raise MissingDependencyError(
            f"no line art weights at {path}: fetch sk_model.pth with: hf download lllyasviel/Annotators sk_model.pth"
        )
    net = LineArt()
    try:
        net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path.name} does not hold the weights of informative drawings ({error})") from error
    return net.eval().requires_grad_(False)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def _ridges(edges: np.ndarray) -> np.ndarray:
    """Where an edge map (H, W) is highest across its line, in one of four directions; (H, W) bool."""
    smooth = cv2.GaussianBlur(edges, (0, 0), 1.0)
    p = np.pad(smooth, 1, "edge")
    centre = p[1:-1, 1:-1]
    pairs = (
        (p[1:-1, :-2], p[1:-1, 2:]),
        (p[:-2, 1:-1], p[2:, 1:-1]),
        (p[:-2, :-2], p[2:, 2:]),
        (p[:-2, 2:], p[2:, :-2]),
    )
    drops = np.stack([2 * centre - a - b for a, b in pairs])
    highest = np.stack([(centre >= a) & (centre > b) for a, b in pairs])
    across = drops.argmax(0)
    return np.take_along_axis(highest, across[None], 0)[0] & (drops.max(0) > 1e-3)


def _drop_small(lines: np.ndarray, least_px: int) -> np.ndarray:
    """Without the connected pieces of fewer px."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(lines.astype(np.uint8), connectivity=8)
    keep = np.asarray(stats)[:, cv2.CC_STAT_AREA] >= least_px
    keep[0] = False
    return keep[np.asarray(labels, np.intp)]


def _ink(lines: np.ndarray) -> np.ndarray:
    return np.where(lines, np.uint8(INK), np.uint8(255))[..., None].repeat(3, 2)
