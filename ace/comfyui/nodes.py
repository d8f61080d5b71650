"""ComfyUI nodes for ACE++ (canvas, conditioning, loaders) and ACE (generate, edit, chat).

ComfyUI's protocol: IMAGE is float32 (B, H, W, 3) in [0, 1], MASK (B, H, W) in [0, 1], CONDITIONING a list of
[tensor, options], LATENT a dict with "samples". Nodes and parameters carry the published names, so that published
workflows find them. The canvas is the published one; what was put right is the crop margin: an edited picture is cut
out exactly where it lies, a new one loses 30 px beside the seam, for LoRA and FFT alike. `ACEPlusFinish` does the
cutting, brings the picture to its size and keeps everything outside the mask.

ComfyUI itself (`folder_paths`, `comfy.sd`) is imported only by the loaders, when they run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ace.conditions.canvas import MARGIN_PX, Canvas, published_canvas
from ace.conditions.images import normalise_image
from ace.errors import ConfigError, ImageError, MaskError

CATEGORY = "ACE"
WEIGHT_TYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
FFT_TASKS = (
    "repainting",
    "no_preprocess",
    "contour_repainting",
    "depth_repainting",
    "recolorizing",
    "mosaic_repainting",
)
LORA_TASKS = (*FFT_TASKS, "canny_repainting")
_CONTROL_OF = {
    "contour_repainting": "contour",
    "depth_repainting": "depth",
    "recolorizing": "gray",
    "mosaic_repainting": "mosaic",
    "canny_repainting": "canny",
}
_SIDE = {"default": 1024, "min": 256, "max": 1436, "step": 16}
_BUDGET = {"default": 3072, "min": 1024, "max": 5120, "step": 1}


# Pictures between ComfyUI's tensors, arrays and Pillow


def to_array(image: Tensor) -> np.ndarray:
    """The first picture of an IMAGE as (3, H, W) float32 in [-1, 1]. Raises ImageError for another shape."""
    if image.ndim != 4 or image.shape[-1] < 3:
        raise ImageError(f"an IMAGE of shape {tuple(image.shape)}: connect a picture, (1, H, W, 3)")
    return np.ascontiguousarray((image[0, ..., :3].float().cpu().numpy() * 2 - 1).transpose(2, 0, 1))


def to_image(array: np.ndarray) -> Tensor:
    """(3, H, W) in [-1, 1] as an IMAGE."""
    return torch.from_numpy(np.ascontiguousarray((array.transpose(1, 2, 0) + 1) / 2))[None].float()


def to_picture(image: Tensor) -> Image.Image:
    """The first picture of an IMAGE as an RGB picture."""
    levels = (image[0, ..., :3].float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(levels)


def from_picture(picture: Image.Image) -> Tensor:
    """An RGB picture as an IMAGE."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def to_mask(mask: Tensor, size: tuple[int, int]) -> Image.Image | None:
    """The first of a MASK as an "L" picture of `size` (width, height); None if it selects nothing or everything.

    Raises MaskError for another size."""
    change = mask.reshape(-1, *mask.shape[-2:])[0].cpu().numpy() > 0.5
    if change.shape != (size[1], size[0]):
        raise MaskError(
            f"the mask is {change.shape[1]}x{change.shape[0]} px, the picture {size[0]}x{size[1]} px: "
            "make the mask the size of the picture"
        )
    return None if change.all() or not change.any() else Image.fromarray(change.astype(np.uint8) * 255)


# ACE++


def _canvas(
    use_reference: bool,
    height: int,
    width: int,
    task_type: str,
    max_seq_length: int,
    reference_image: Tensor | None,
    edit_image: Tensor | None,
    edit_mask: Tensor | None,
    *,
    keep_pixels: bool,
    rate: float,
    use_change: bool,
) -> tuple[Canvas, int]:
    """The published canvas of a processor node, and where to cut the answer out of it."""
    reference = to_array(reference_image) if use_reference and reference_image is not None else None
    if use_reference and reference is None:
        raise ImageError("use_reference is on, but no reference_image is connected: connect one, or turn it off")
    edit = mask = None
    if edit_image is not None:
        edit = to_array(edit_image)
        if edit_mask is not None:
            change = edit_mask.reshape(-1, *edit_mask.shape[-2:])[0].cpu().numpy() > 0.5
            mask = change.astype(np.float32)[None] if change.shape == edit.shape[1:] else None  # as published
        control = _CONTROL_OF.get(task_type)
        if control is not None:
            edit = _controlled(edit, mask, control)
    canvas, _ = published_canvas(
        reference,
        edit,
        mask,
        size=(width, height),
        repainting_scale=1.0 if task_type == "repainting" else 0.0,
        keep_pixels=keep_pixels,
        keep_pixels_rate=rate,
        use_change=use_change,
        max_seq_length=max_seq_length if use_change else 2 * max_seq_length,  # as published
    )
    seam = canvas.references[0][2] if canvas.references else 0  # where it is, not rounded down to a cell
    cut = seam + MARGIN_PX if seam and edit is None else seam
    if cut >= canvas.size[0]:
        raise ImageError("the reference leaves no room for the picture: crop the reference")
    return canvas, cut


def _controlled(edit: np.ndarray, mask: np.ndarray | None, control: str) -> np.ndarray:
    from ace.inference.plus_edit import draw_control

    picture = Image.fromarray(np.round((edit.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8))
    painted = None if mask is None else Image.fromarray((mask[0] * 255).astype(np.uint8))
    return to_array(from_picture(draw_control(control, picture, painted)))


def _output_size(edit_image: Tensor | None, canvas: Canvas, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the answer: the edited picture's, or what was asked for."""
    if edit_image is None:
        return height, width
    if canvas.references:
        return canvas.output_size[1], canvas.output_size[0]
    return int(edit_image.shape[1]), int(edit_image.shape[2])


class AcePlusFFTProcessor:
    """Canvas of the fully fine-tuned model: what it sees unchanged, what the mask hides, and the mask."""

    CATEGORY = CATEGORY
    FUNCTION = "preprocess"
    RETURN_TYPES = ("IMAGE", "IMAGE", "MASK", "INT", "INT", "INT")
    RETURN_NAMES = ("UC_IMAGE", "C_IMAGE", "MASK", "OUT_H", "OUT_W", "SLICE_W")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        return {
            "required": {
                "use_reference": ("BOOLEAN", {"default": True}),
                "height": ("INT", _SIDE),
                "width": ("INT", _SIDE),
                "task_type": (list(FFT_TASKS), {"default": "repainting"}),
                "keep_pixels_rate": ("FLOAT", {"default": 0.8, "min": 0.0, "max": 1.0, "step": 0.01}),
                "max_seq_length": ("INT", _BUDGET),
            },
            "optional": {"reference_image": ("IMAGE",), "edit_image": ("IMAGE",), "edit_mask": ("MASK",)},
        }

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
        canvas, cut = _canvas(
            use_reference, height, width, task_type, max_seq_length, reference_image, edit_image, edit_mask,
            keep_pixels=True, rate=keep_pixels_rate, use_change=True,
        )  # fmt: skip
        assert canvas.change is not None
        out_h, out_w = _output_size(edit_image, canvas, height, width)
        return to_image(canvas.content), to_image(canvas.change), torch.from_numpy(canvas.mask), out_h, out_w, cut


class AcePlusLoraProcessor:
    """Canvas of FLUX.1-Fill with a LoRA of ACE++."""

    CATEGORY = CATEGORY
    FUNCTION = "preprocess"
    RETURN_TYPES = ("IMAGE", "MASK", "INT", "INT", "INT")
    RETURN_NAMES = ("IMAGE", "MASK", "OUT_H", "OUT_W", "SLICE_W")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        inputs = AcePlusFFTProcessor.INPUT_TYPES()
        required = {name: kind for name, kind in inputs["required"].items() if name != "keep_pixels_rate"}
        required["task_type"] = (list(LORA_TASKS), {"default": "repainting"})
        return {"required": required, "optional": inputs["optional"]}

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
        canvas, cut = _canvas(
            use_reference, height, width, task_type, max_seq_length, reference_image, edit_image, edit_mask,
            keep_pixels=False, rate=0.8, use_change=False,
        )  # fmt: skip
        out_h, out_w = _output_size(edit_image, canvas, height, width)
        return to_image(canvas.content), torch.from_numpy(canvas.mask), out_h, out_w, cut


class AcePlusConditioning:
    """Puts the FFT model's canvas into the conditioning: latents of both pictures, and the mask."""

    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("positive", "negative", "latent")
    PICTURES: ClassVar[tuple[str, ...]] = ("ucpixels", "cpixels")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        return {
            "required": {
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "vae": ("VAE",),
                **dict.fromkeys(cls.PICTURES, ("IMAGE",)),
                "mask": ("MASK",),
                "noise_mask": ("BOOLEAN", {"default": True}),
            }
        }

    def encode(
        self,
        positive: list,
        negative: list,
        vae: Any,
        ucpixels: Tensor,
        cpixels: Tensor,
        mask: Tensor,
        noise_mask: bool = True,
    ) -> tuple[list, list, dict]:
        """positive, negative, latent."""
        return _condition(positive, negative, vae, [ucpixels, cpixels], mask, noise_mask)


class AcePlusLoraConditioning(AcePlusConditioning):
    """Puts the LoRA models' canvas into the conditioning: latents of the picture, and the mask."""

    PICTURES: ClassVar[tuple[str, ...]] = ("pixels",)

    def encode(  # type: ignore[override]
        self, positive: list, negative: list, vae: Any, pixels: Tensor, mask: Tensor, noise_mask: bool = True
    ) -> tuple[list, list, dict]:
        """positive, negative, latent."""
        return _condition(positive, negative, vae, [pixels], mask, noise_mask)


def _condition(
    positive: list, negative: list, vae: Any, pictures: list[Tensor], mask: Tensor, noise_mask: bool
) -> tuple[list, list, dict]:
    height, width = pictures[0].shape[1:3]
    if any(picture.shape[1:3] != (height, width) for picture in pictures):
        raise ImageError("both pictures must have one size: connect the outputs of one processor node")
    mask = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]).float(), size=(height, width), mode="bilinear")
    top, left = height % 8 // 2, width % 8 // 2
    rows, columns = height // 8 * 8, width // 8 * 8
    mask = mask[:, :, top : top + rows, left : left + columns]
    latents = [vae.encode(p[:, top : top + rows, left : left + columns, :3]) for p in pictures]
    values = {"concat_latent_image": torch.cat(latents, dim=1), "concat_mask": mask}
    whole = (rows, columns) == (height, width)
    latent = {
        "samples": latents[0] if whole else vae.encode(pictures[0][..., :3]),
        **({"noise_mask": mask} if noise_mask else {}),
    }
    filled = ([[entry[0], {**entry[1], **values}] for entry in conditioning] for conditioning in (positive, negative))
    first, second = filled
    return first, second, latent


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


class ACEPlusLoader:
    """FLUX.1-Fill-dev or ACE++ FFT (16 or 8 bits), checked before it is loaded."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        import folder_paths  # type: ignore[import]

        names = folder_paths.get_filename_list("diffusion_models")
        return {"required": {"unet_name": (names,), "weight_dtype": (list(WEIGHT_TYPES), {"default": "default"})}}

    def load(self, unet_name: str, weight_dtype: str = "default") -> tuple[Any]:
        """MODEL. Raises ConfigError, naming the file, for a transformer that is neither."""
        import comfy.sd  # type: ignore[import]
        import folder_paths  # type: ignore[import]

        from ace.inference.plus_weights import check_transformer, read_weight_files

        if weight_dtype not in WEIGHT_TYPES:
            raise ConfigError(f"weight_dtype {weight_dtype!r}: use {', '.join(WEIGHT_TYPES)}")
        path = folder_paths.get_full_path("diffusion_models", unet_name)
        if path is None:
            raise ConfigError(f"{unet_name} is not in ComfyUI's models/diffusion_models: put it there")
        sizes = check_transformer(read_weight_files(Path(path)))
        if sizes.in_channels not in (384, 448):
            raise ConfigError(
                f"{unet_name} has {sizes.in_channels} input channels: "
                "ACE++ needs FLUX.1-Fill-dev (384) or ACE++ FFT (448)"
            )
        options: dict[str, Any] = {}
        if weight_dtype == "fp8_e5m2":
            options["dtype"] = torch.float8_e5m2
        elif weight_dtype != "default":
            options["dtype"] = torch.float8_e4m3fn
            if weight_dtype == "fp8_e4m3fn_fast":
                options["fp8_optimizations"] = True
        return (comfy.sd.load_diffusion_model(path, model_options=options),)


# ACE


class ACEModelLoader:
    """An ACE model by name or folder, outside ComfyUI's own model management."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("ACE_MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        return {
            "required": {
                "model": ("STRING", {"default": "ace-tiny"}),
                "device": (["auto", "cpu", "cuda", "mps"], {"default": "auto"}),
            }
        }

    def load(self, model: str = "ace-tiny", device: str = "auto") -> tuple[Any]:
        """ACE_MODEL. Raises ModelNotFoundError."""
        from ace.inference.sources import find_model, load_pipeline

        pipeline = load_pipeline(find_model(model), device=device)
        pipeline.set_progress_bar_config(disable=True)
        return (pipeline,)


class ACEChat:
    """One round with an ACE model: makes a picture from words, or edits; hand HISTORY to the next round to go on."""

    CATEGORY = CATEGORY
    FUNCTION = "answer"
    RETURN_TYPES = ("IMAGE", "ACE_HISTORY")
    RETURN_NAMES = ("IMAGE", "HISTORY")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        return {
            "required": {
                "model": ("ACE_MODEL",),
                "instruction": ("STRING", {"default": "", "multiline": True}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32 - 1, "control_after_generate": True}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the model's own"}),
                "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100.0, "tooltip": "0: the model's own"}),
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": "{image}: the picture to edit"}),
                "mask": ("MASK",),
                "image1": ("IMAGE", {"tooltip": "{image1}: a further picture"}),
                "image2": ("IMAGE", {"tooltip": "{image2}: a further picture"}),
                "history": ("ACE_HISTORY",),
            },
        }

    def answer(
        self,
        model: Any,
        instruction: str,
        seed: int = 0,
        steps: int = 0,
        guidance: float = 0.0,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        image1: Tensor | None = None,
        image2: Tensor | None = None,
        history: tuple = (),
    ) -> tuple[Tensor, tuple]:
        """IMAGE, HISTORY. Raises InputError."""
        from ace.diffusion import seeded_generator

        pictures = [to_picture(picture) for picture in (image, image1, image2) if picture is not None]
        masks: list[Image.Image | None] = [None] * len(pictures)
        if mask is not None:
            if image is None:
                raise MaskError("a mask needs the picture that it belongs to: connect image")
            masks[0] = to_mask(mask, pictures[0].size)
        output = model(
            instruction,
            pictures,
            masks,
            history,
            num_inference_steps=steps or None,
            guidance_scale=guidance or None,
            generator=seeded_generator(seed),
        )
        return from_picture(output.images[0]), (*history, *output.turns)


NODE_CLASS_MAPPINGS = {
    "ACEPlusLoader": ACEPlusLoader,
    "ACEPlusFFTLoader": ACEPlusLoader,  # the published name of the same node
    "ACEPlusFFTProcessor": AcePlusFFTProcessor,
    "ACEPlusLoraProcessor": AcePlusLoraProcessor,
    "ACEPlusConditioning": AcePlusConditioning,
    "ACEPlusLoraConditioning": AcePlusLoraConditioning,
    "ACEPlusFinish": ACEPlusFinish,
    "ACEModelLoader": ACEModelLoader,
    "ACEChat": ACEChat,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ACEPlusLoader": "ACE++ Loader",
    "ACEPlusFFTLoader": "ACE++ FFT Loader",
    "ACEPlusFFTProcessor": "ACE++ FFT Processor",
    "ACEPlusLoraProcessor": "ACE++ LoRA Processor",
    "ACEPlusConditioning": "ACE++ FFT Conditioning",
    "ACEPlusLoraConditioning": "ACE++ LoRA Conditioning",
    "ACEPlusFinish": "ACE++ Finish (cut, size, keep outside the mask)",
    "ACEModelLoader": "ACE Loader",
    "ACEChat": "ACE Chat",
}
