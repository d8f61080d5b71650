"""Scores of clips: the dimensions of VBench (Huang et al. 2024) that can be computed with what is at hand.

Each is named after what it really uses. `temporal_flicker` is VBench's formula on frames. `flow_smoothness` and
`flow_dynamic_degree` stand for its motion smoothness and dynamic degree, which use a frame interpolator and RAFT: here
they use OpenCV's dense flow. `subject_consistency` and `background_consistency` are its formulas with any embedder that
is given (VBench: DINO and CLIP), and named after it. The other dimensions need weights that a user has, and are not
here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ace.errors import DataError
from ace.video.clips import Clip, read_clip
from ace.video.controls import dense_flow

Embed = Callable[[Sequence[np.ndarray]], np.ndarray]  # frames (H, W, 3) uint8 -> (N, D), unit length or not
_FASTEST_SHARE = 0.05  # of the pixels, whose mean speed is a clip's
_PX_PER_SIDE = 6 / 256  # VBench's threshold of speed, in shares of the shorter side per frame at 8 fps


def temporal_flicker(frames: np.ndarray) -> float:
    """1 - mean absolute difference of neighbouring frames, 0 to 1; 1 = nothing flickers. frames: (T, H, W, 3) uint8."""
    if len(frames) < 2:
        return 1.0
    steps = [np.abs(one.astype(np.int16) - other).mean() for one, other in itertools.pairwise(frames)]
    return float(1 - np.mean(steps) / 255)


def flow_smoothness(frames: np.ndarray) -> float:
    """How well each frame is foretold by its neighbours: 1 - mean absolute difference from the middle of both, moved
    half the way along the flow; 0 to 1. 1 for fewer than three frames."""
    import cv2

    errors = []
    for before, middle, after in zip(frames, frames[1:], frames[2:], strict=False):
        flow = dense_flow(before, after)
        height, width = flow.shape[:2]
        columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        halves = [
            cv2.remap(frame, columns + share * flow[..., 0], rows + share * flow[..., 1], cv2.INTER_LINEAR,
                      borderMode=cv2.BORDER_REPLICATE)
            for frame, share in ((before, -0.5), (after, 0.5))
        ]  # fmt: skip
        foretold = (halves[0].astype(np.float32) + halves[1]) / 2
        errors.append(float(np.abs(foretold - middle).mean()))
    return 1.0 if not errors else 1 - float(np.mean(errors)) / 255


def flow_speed(frames: np.ndarray) -> float:
    """Mean length of the fastest 5 % of the flow, in shares of the shorter side per frame; 0 = still."""
    speeds = []
    for before, after in itertools.pairwise(frames):
        length = np.sort(np.hypot(*np.moveaxis(dense_flow(before, after), -1, 0)), axis=None)
        speeds.append(float(length[-max(1, int(_FASTEST_SHARE * length.size)) :].mean()) / min(before.shape[:2]))
    return float(np.mean(speeds)) if speeds else 0.0


def flow_dynamic_degree(frames: np.ndarray, fps: float) -> float:
    """1 if the clip moves, else 0; of several clips the mean is VBench's dynamic degree."""
    return float(flow_speed(frames) * fps / 8 > _PX_PER_SIDE)


def consistency(frames: Sequence[np.ndarray], embed: Embed) -> float:
    """Mean over the frames of the similarity to the first and to the one before, as VBench's subject and background
    consistency; embed decides which of them it is."""
    vectors = np.asarray(embed(frames), np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if len(vectors) < 2:
        return 1.0
    first, before = vectors[1:] @ vectors[0], (vectors[1:] * vectors[:-1]).sum(1)
    return float(((first.clip(0) + before.clip(0)) / 2).mean())


def embedders(subject: str = "", background: str = "") -> dict[str, Embed]:
    """Embedders by the names of their scores. subject: DINO weights; background: CLIP weights; a folder or hub id each,
    "" = without. Raises ConfigError or MissingDependencyError."""
    from PIL import Image

    found: dict[str, Embed] = {}
    if subject:
        from ace.evaluation.encoders import load_dino

        dino = load_dino(subject)
        found["subject"] = lambda frames: np.asarray(dino.images([Image.fromarray(one) for one in frames]))
    if background:
        from ace.evaluation.encoders import load_clip

        clip = load_clip(background)
        found["background"] = lambda frames: np.asarray(clip.images([Image.fromarray(one) for one in frames]))
    return found


def score_clip(clip: Clip, embedders: Mapping[str, Embed] | None = None) -> dict[str, float]:
    """Every dimension of one clip. embedders: "subject" and "background" or any other name -> an embedder; its score
    is `NAME_consistency`."""
    frames = np.stack(list(clip.frames))
    scores = {
        "temporal_flicker": temporal_flicker(frames),
        "flow_smoothness": flow_smoothness(frames),
        "flow_dynamic_degree": flow_dynamic_degree(frames, float(clip.fps)),
    }
    return scores | {
        f"{name}_consistency": consistency(list(frames), embed) for name, embed in (embedders or {}).items()
    }


def score_list(path: Path, embedders: Mapping[str, Embed] | None = None) -> dict[str, dict[str, float]]:
    """Task -> the mean of every dimension over its clips. path: JSON lines of "task" and "video", a file beside it.

    Raises DataError or ImageError."""
    rows: dict[str, list[dict[str, float]]] = {}
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        named = [(str(line["task"]), path.parent / str(line["video"])) for line in lines]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path.name} is no list of clips: write lines with task and video") from None
    for task, video in named:
        rows.setdefault(task, []).append(score_clip(read_clip(video), embedders))
    return {task: {name: float(np.mean([row[name] for row in of])) for name in of[0]} for task, of in rows.items()}


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Scores by task as Markdown."""
    names = sorted({name for row in scores.values() for name in row})
    lines = ["| task | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for task, row in sorted(scores.items()):
        lines.append(f"| {task} | " + " | ".join(f"{row[name]:.4f}" if name in row else "" for name in names) + " |")
    return "\n".join(lines)
