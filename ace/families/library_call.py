"""One call of a diffusers pipeline: what it is told, what it shows on the way, and what it answers.

Not here: which pipelines there are, loading them (`library.py`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from PIL import Image

from ace.conversation.job import Job
from ace.errors import CheckpointError
from ace.families.signature import Signature
from ace.families.stepwise import OnStep

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

PREVIEW_CELLS = 32  # of the autoencoder, a side
_NAME = re.compile(r"\{image(\d*)\}")


def arguments(
    call: Signature, job: Job, size: tuple[int, int], most_px: int, guidance_name: str | None
) -> dict[str, Any]:
    """What a pipeline is called with.

    size: (width, height) in px of the answer; most_px: pixels of a reference at most; guidance_name: the parameter
    that is the model's guidance scale, or None."""
    from ace.diffusion import seeded_generator  # torch, only when a model runs

    settings, images = job.settings, list(job.unit.current.images)
    asked: dict[str, Any] = {
        "prompt": _words(job.instruction, len(images)),
        "num_inference_steps": settings.num_inference_steps or int(call.number("num_inference_steps") or 50),
        "generator": seeded_generator(settings.seed),
    }
    fitted = [_within(image, most_px) for image in images]
    if job.source is not None and images:
        fitted[0] = images[0].convert("RGB").resize(size, Image.Resampling.LANCZOS)
    if fitted:
        asked["image"] = fitted if call.several_images else fitted[0]
    if "mask_image" in call:
        mask = Image.new("L", (1, 1), 255) if job.mask is None else job.mask
        asked["mask_image"] = mask.resize(size, Image.Resampling.NEAREST)
    if "height" in call:
        asked |= {"width": size[0], "height": size[1]}
    if "max_area" in call:  # by which Kontext would change the size again
        asked |= {"max_area": size[0] * size[1], "_auto_resize": False}
    if guidance_name is not None:
        guidance = call.number(guidance_name) if settings.guidance_scale is None else settings.guidance_scale
        with_negative = settings.negative_instruction and "true_cfg_scale" in call
        asked["true_cfg_scale" if with_negative else guidance_name] = guidance
        if settings.negative_instruction:
            asked["negative_prompt"] = settings.negative_instruction
        elif guidance_name == "true_cfg_scale" and "negative_prompt" in call:
            asked["negative_prompt"] = " "  # without one there is no guidance
    if settings.guidance_rescale:
        asked["guidance_rescale"] = settings.guidance_rescale
    return asked


def call_pipeline(pipeline: DiffusionPipeline, asked: dict[str, Any], on_step: OnStep) -> Image.Image:
    """The whole call in the library's hands, which hands back control after every step."""

    def after_step(_: object, index: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(tensors.get("latents"))
        return tensors

    made = getattr(pipeline(**asked, callback_on_step_end=after_step), "images", None)
    image = made[0] if isinstance(made, list) and made else None
    if not isinstance(image, Image.Image):
        raise CheckpointError(f"a {type(pipeline).__name__} answered without an image: use another model")
    return image.convert("RGB")


def _words(instruction: str, num_images: int) -> str:
    """The instruction with the names of its images in words, counted from 1, as these models were taught."""
    if num_images < 2:
        return _NAME.sub("the image", instruction)
    return _NAME.sub(lambda match: f"image {int(match[1] or 0) + 1}", instruction)


def _within(image: Image.Image, most_px: int) -> Image.Image:
    """The image, reduced to at most so many pixels."""
    image = image.convert("RGB")
    ratio = (most_px / (image.width * image.height)) ** 0.5
    if ratio >= 1:
        return image
    return image.resize((max(1, int(image.width * ratio)), max(1, int(image.height * ratio))), Image.Resampling.LANCZOS)


def decode_small(pipeline: DiffusionPipeline, latents: torch.Tensor | None, size: tuple[int, int]) -> Any:
    """Latents decoded at a side of at most `PREVIEW_CELLS`; None for latents of an unknown kind."""
    import torch
    from diffusers import AutoencoderKL, AutoencoderKLFlux2
    from torch.nn import functional

    vae: Any = pipeline.vae
    is_flux_2 = isinstance(pipeline.vae, AutoencoderKLFlux2)
    if latents is None or not (is_flux_2 or isinstance(pipeline.vae, AutoencoderKL)):
        return None
    cells: Any = latents
    with torch.no_grad():
        if cells.ndim == 3:  # (1, T, 4 C): FLUX's tokens of 2 x 2 cells, channel slowest
            columns, rows = (side // (2 * pipeline.vae_scale_factor) for side in size)
            if cells.shape[1] != rows * columns:
                return None
            cells = cells.transpose(1, 2).reshape(1, -1, rows, columns)
            if is_flux_2:
                mean, variance = (value.view(1, -1, 1, 1) for value in (vae.bn.running_mean, vae.bn.running_var))
                cells = cells * (variance + vae.config.batch_norm_eps).sqrt() + mean
            cells = functional.pixel_shuffle(cells, 2)
        if cells.ndim != 4:
            return None
        if max(cells.shape[2:]) > PREVIEW_CELLS:
            cells = functional.interpolate(cells, scale_factor=PREVIEW_CELLS / max(cells.shape[2:]), mode="area")
        cells = cells / (getattr(vae.config, "scaling_factor", None) or 1.0)
        cells = cells + (getattr(vae.config, "shift_factor", None) or 0.0)
        return pipeline.image_processor.postprocess(vae.decode(cells.to(vae.dtype)).sample, output_type="pil")[0]


def round_trip(pipeline: DiffusionPipeline, image: Image.Image, size: tuple[int, int]) -> Image.Image | None:
    """An image encoded and decoded at (width, height) px; None for an autoencoder of another kind."""
    import torch
    from diffusers import AutoencoderKL, AutoencoderKLFlux2

    vae: Any = pipeline.vae
    if not isinstance(vae, AutoencoderKL | AutoencoderKLFlux2):
        return None
    processor: Any = pipeline.image_processor
    with torch.no_grad():
        pixels = processor.preprocess(image.resize(size, Image.Resampling.LANCZOS), height=size[1], width=size[0])
        latents = vae.encode(pixels.to(pipeline._execution_device, vae.dtype)).latent_dist.mode()
        made = processor.postprocess(vae.decode(latents).sample, output_type="pil")[0]
    return made if made.size == tuple(size) else made.resize(size, Image.Resampling.BICUBIC)
