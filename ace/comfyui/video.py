"""`ACEVideoPrepare`: source, mask and references for ComfyUI's own VACE nodes, as the published tools prepare them.

Its outputs go into `WanVaceToVideo`: control_video, control_masks and reference_image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ace.comfyui.pictures import CATEGORY
from ace.errors import ConfigError, ImageError, MaskError
from ace.video import prepare
from ace.video.controls import CONTROLS, draw_controls
from ace.video.prepare import Draft
from ace.video.track import default_tracker

TASKS = ("repaint", "extend", "first frame", "last frame", "continue", *CONTROLS)


class ACEVideoPrepare:
    """Lay out a clip for a VACE model. 4n+1 frames are kept; sizes in steps of 16 px."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE", "MASK", "IMAGE", "INT", "INT", "INT")
    RETURN_NAMES = ("control_video", "control_masks", "reference_image", "width", "height", "length")
    FUNCTION = "lay_out"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """What ComfyUI asks for."""
        share = {"default": 0.0, "min": 0.0, "max": 2.0, "step": 0.05}
        return {
            "required": {
                "frames": ("IMAGE",),
                "task": (list(TASKS),),
                "area": (list(prepare.SIZES),),
                "length": ("INT", {"default": 81, "min": 1, "max": 401, "step": 4}),
                "left": ("FLOAT", share),
                "right": ("FLOAT", share),
                "up": ("FLOAT", share),
                "down": ("FLOAT", share),
                "track": ("BOOLEAN", {"default": False}),
                "grow": (list(prepare.SHAPES),),
                "grow_ratio": ("FLOAT", {"default": 0.3, "min": 0.0, "max": 1.0, "step": 0.05}),
            },
            "optional": {"mask": ("MASK",), "references": ("IMAGE",)},
        }

    def lay_out(
        self,
        frames: Tensor,
        task: str,
        area: str,
        length: int,
        left: float = 0.0,
        right: float = 0.0,
        up: float = 0.0,
        down: float = 0.0,
        track: bool = False,
        grow: str = "original",
        grow_ratio: float = 0.3,
        mask: Tensor | None = None,
        references: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, int, int, int]:
        """frames: (T, H, W, 3); mask: one or T of (H, W), for repaint. Raises InputError."""
        clip = _levels(frames)
        draft = self._draft(
            clip, task, prepare.check_frames(length), (left, right, up, down), mask, track, grow, grow_ratio
        )
        shape = (draft.frames.shape[2], draft.frames.shape[1])
        width, height = prepare.SIZES[area]
        _, wide, high = prepare.working_size(shape, len(draft.frames), width * height)
        made = prepare.fit(draft, (wide, high))
        shown = (made.model_frames() + 1) / 2
        shown_references = (
            np.ones((1, high, wide, 3), np.float32)
            if references is None
            else np.stack([prepare.letterbox(one, (wide, high)) for one in _levels(references)]) / np.float32(255)
        )
        masks = (made.masks > 0).astype(np.float32)
        tensors = (torch.from_numpy(np.ascontiguousarray(one)) for one in (shown, masks, shown_references))
        return (*tensors, wide, high, len(made.frames))  # type: ignore[return-value]

    def _draft(
        self,
        clip: np.ndarray,
        task: str,
        length: int,
        room: tuple[float, float, float, float],
        mask: Tensor | None,
        track: bool,
        grow: str,
        grow_ratio: float,
    ) -> Draft:
        if task not in TASKS:
            raise ConfigError(f"no task is called {task!r}: use one of {', '.join(TASKS)}")
        if task in ("first frame", "last frame", "continue"):
            given = clip[:1] if task == "first frame" else clip[-1:] if task == "last frame" else clip
            if len(given) >= length:
                raise ImageError(f"{len(given)} frames are given and {length} asked for: ask for more")
            last = task == "last frame"
            return prepare.continued(None if last else given, given if last else None, length - len(given))
        count = min(length, (len(clip) - 1) // prepare.STEP_FRAMES * prepare.STEP_FRAMES + 1)
        clip = clip[prepare.pick_frames(_even(len(clip)), count)[0]] if count < len(clip) else clip
        if task == "extend":
            return prepare.extended(clip, *room)
        if task != "repaint":
            return prepare.controlled(np.stack(list(draw_controls(task, clip))))
        if mask is None:
            raise MaskError("repaint needs a mask: connect one")
        masks = (mask.reshape(-1, *mask.shape[-2:]).cpu().numpy() > 0.5).astype(np.uint8) * 255
        if masks.shape[1:] != clip.shape[1:3] or len(masks) not in (1, len(clip)):
            raise MaskError(f"the mask is {masks.shape}, the frames {clip.shape[:3]}: make it one, or one for each")
        if len(masks) == 1:
            masks = np.stack(list(default_tracker()(clip, masks[0]))) if track else masks.repeat(len(clip), axis=0)
        elif track:
            raise MaskError("track follows one mask of the first frame: connect one, or turn it off")
        return prepare.repainted(clip, np.stack([prepare.grow_mask(one, grow, grow_ratio) for one in masks]))


def _levels(frames: Tensor) -> np.ndarray:
    """An IMAGE as (T, H, W, 3) uint8. Raises ImageError."""
    if frames.ndim != 4 or frames.shape[-1] < 3:
        raise ImageError(f"an IMAGE of shape {tuple(frames.shape)}: connect frames, (T, H, W, 3)")
    return (frames[..., :3].float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _even(count: int) -> np.ndarray:
    starts = np.arange(count) / float(prepare.DEFAULT_FPS)
    return np.stack([starts, starts + 1 / float(prepare.DEFAULT_FPS)], axis=1)
