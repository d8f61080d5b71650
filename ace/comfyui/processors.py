"""The canvas of ACE++: two processors lay it out, `ACEPlusFinish` cuts the answer out.

The canvas is the published one; what was put right is the crop margin: an edited picture is cut out exactly where it
lies, a new one loses 30 px beside the seam, for LoRA and FFT alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ace.comfyui.pictures import CATEGORY, from_picture, to_array, to_image, to_mask, to_picture
from ace.conditions.images import normalise_image
from ace.errors import ConfigError, ImageError
from ace.plus.canvas import MARGIN_PX, Canvas, published_canvas

FFT_TASKS = (
    "repainting",
    "no_preprocess",
    "contour_repainting",
    "depth_repainting",
    "recolorizing",
    "mosaic_repainting",
)
LORA_TASKS = (*FFT_TASKS, "canny_repainting")
CONTROL_OF = {
    "contour_repainting": "contour",
    "depth_repainting": "depth",
    "recolorizing": "gray",
    "mosaic_repainting": "mosaic",
    "canny_repainting": "canny",
}
_SIDE = {"default": 1024, "min": 256, "max": 1436, "step": 16}
_BUDGET = {"default": 3072, "min": 1024, "max": 5120, "step": 1}


@dataclass(frozen=True)
class ProcessorRequest:
    """What both processors are asked for. height, width: px of a new picture.

    Raises ImageError if a reference is wanted and none is connected."""

    use_reference: bool
    height: int
    width: int
    task_type: str
    max_seq_length: int
    reference_image: Tensor | None
    edit_image: Tensor | None
    edit_mask: Tensor | None

    def __post_init__(self) -> None:
        if self.use_reference and self.reference_image is None:
            raise ImageError("use_reference is on, but no reference_image is connected: connect one, or turn it off")

    def lay_out(self, keep_pixels_rate: float | None, use_change: bool, max_seq_length: int) -> Canvas:
        """The published canvas. keep_pixels_rate: how large a reference that keeps its size may be, None = it is
        aligned."""
        reference = self.reference_image if self.use_reference else None
        edit, mask = self._edit()
        return published_canvas(
            None if reference is None else to_array(reference),
            edit,
            mask,
            size=(self.width, self.height),
            repainting_scale=1.0 if self.task_type == "repainting" else 0.0,
            keep_pixels=keep_pixels_rate is not None,
            keep_pixels_rate=0.8 if keep_pixels_rate is None else keep_pixels_rate,
            use_change=use_change,
            max_seq_length=max_seq_length,
        )[0]

    def ends(self, canvas: Canvas) -> tuple[int, int, int]:
        """OUT_H, OUT_W, SLICE_W: the answer's size, and where it begins in the canvas."""
        seam = canvas.references[0][2] if canvas.references else 0  # where it is, not rounded down to a cell
        cut = seam + MARGIN_PX if seam and self.edit_image is None else seam
        if cut >= canvas.size[0]:
            raise ImageError("the reference leaves no room for the picture: crop the reference")
        if self.edit_image is None:
            return self.height, self.width, cut
        if canvas.target[0]:  # else the reference is narrower than a cell, and the canvas counts as without one
            return canvas.output_size[1], canvas.output_size[0], cut
        return int(self.edit_image.shape[1]), int(self.edit_image.shape[2]), cut

    def _edit(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The picture to edit, turned into the task's signal inside its mask, and the mask."""
        if self.edit_image is None:
            return None, None
        edit, mask = to_array(self.edit_image), None
        if self.edit_mask is not None:
            change = self.edit_mask.reshape(-1, *self.edit_mask.shape[-2:])[0].cpu().numpy() > 0.5
            mask = change.astype(np.float32)[None] if change.shape == edit.shape[1:] else None  # as published
        control = CONTROL_OF.get(self.task_type)
        return (edit if control is None else _controlled(edit, mask, control)), mask


def _controlled(edit: np.ndarray, mask: np.ndarray | None, control: str) -> np.ndarray:
    from ace.plus.controls import draw_control

    picture = Image.fromarray(np.round((edit.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8))
    painted = None if mask is None else Image.fromarray((mask[0] * 255).astype(np.uint8))
    return to_array(from_picture(draw_control(control, picture, painted)))


def _inputs(tasks: tuple[str, ...], **more: tuple) -> dict:
    """The inputs of a processor, in the published order."""
    return {
        "required": {
            "use_reference": ("BOOLEAN", {"default": True}),
            "height": ("INT", _SIDE),
            "width": ("INT", _SIDE),
            "task_type": (list(tasks), {"default": "repainting"}),
            **more,
            "max_seq_length": ("INT", _BUDGET),
        },
        "optional": {"reference_image": ("IMAGE",), "edit_image": ("IMAGE",), "edit_mask": ("MASK",)},
    }


class AcePlusFFTProcessor:
    """Canvas of the fully fine-tuned model: what it sees unchanged, what the mask hides, and the mask."""

    CATEGORY = CATEGORY
    FUNCTION = "preprocess"
    RETURN_TYPES = ("IMAGE", "IMAGE", "MASK", "INT", "INT", "INT")
    RETURN_NAMES = ("UC_IMAGE", "C_IMAGE", "MASK", "OUT_H", "OUT_W", "SLICE_W")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        rate = ("FLOAT", {"default": 0.8, "min": 0.0, "max": 1.0, "step": 0.01})
        return _inputs(FFT_TASKS, keep_pixels_rate=rate)

    def preprocess(
        self,
        use_reference: bool = True,
        height: int = 1024,
        width: int = 1024,
        task_type: str = "repainting",
        keep_pixels_rate: float = 0.8,
        max_seq_length: int = 3072,
        reference_image: Tensor | None = None,
        edit_image: Tensor | None = None,
        edit_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, int, int, int]:
        """UC_IMAGE, C_IMAGE, MASK, OUT_H, OUT_W, SLICE_W."""
        request = ProcessorRequest(
            use_reference, height, width, task_type, max_seq_length, reference_image, edit_image, edit_mask
        )
        canvas = request.lay_out(keep_pixels_rate, True, max_seq_length)
        assert canvas.change is not None
        mask = torch.from_numpy(canvas.mask)
        return to_image(canvas.content), to_image(canvas.change), mask, *request.ends(canvas)


class AcePlusLoraProcessor:
    """Canvas of FLUX.1-Fill with a LoRA of ACE++."""

    CATEGORY = CATEGORY
    FUNCTION = "preprocess"
    RETURN_TYPES = ("IMAGE", "MASK", "INT", "INT", "INT")
    RETURN_NAMES = ("IMAGE", "MASK", "OUT_H", "OUT_W", "SLICE_W")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        return _inputs(LORA_TASKS)

    def preprocess(
        self,
        use_reference: bool = True,
        height: int = 1024,
        width: int = 1024,
        task_type: str = "repainting",
        max_seq_length: int = 3072,
        reference_image: Tensor | None = None,
        edit_image: Tensor | None = None,
        edit_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, int, int, int]:
        """IMAGE, MASK, OUT_H, OUT_W, SLICE_W."""
        request = ProcessorRequest(
            use_reference, height, width, task_type, max_seq_length, reference_image, edit_image, edit_mask
        )
        canvas = request.lay_out(None, False, 2 * max_seq_length)  # the doubling is published
        return to_image(canvas.content), torch.from_numpy(canvas.mask), *request.ends(canvas)


class ACEPlusFinish:
    """The answer out of a decoded canvas, at its size; with the edited picture and its mask, changed inside it only."""

    CATEGORY = CATEGORY
    FUNCTION = "finish"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        return {
            "required": {
                "canvas": ("IMAGE",),
                "OUT_H": ("INT", {"forceInput": True}),
                "OUT_W": ("INT", {"forceInput": True}),
                "SLICE_W": ("INT", {"forceInput": True}),
            },
            "optional": {"edit_image": ("IMAGE",), "edit_mask": ("MASK",)},
        }

    def finish(
        self,
        canvas: Tensor,
        OUT_H: int,
        OUT_W: int,
        SLICE_W: int,
        edit_image: Tensor | None = None,
        edit_mask: Tensor | None = None,
    ) -> tuple[Tensor]:
        """IMAGE of OUT_W x OUT_H px."""
        from ace.inference.preserve import paste_back

        picture = to_picture(canvas)
        if not 0 <= SLICE_W < picture.width:
            raise ConfigError(
                f"SLICE_W is {SLICE_W}, the canvas {picture.width} px wide: connect one processor's outputs"
            )
        answer = picture.crop((SLICE_W, 0, *picture.size)).resize((OUT_W, OUT_H), Image.Resampling.BICUBIC)
        if edit_image is not None and edit_mask is not None:
            original = normalise_image(to_picture(edit_image))
            mask = to_mask(edit_mask, original.size)
            if mask is not None:
                answer = paste_back(original, answer, mask)
        return (from_picture(answer),)
