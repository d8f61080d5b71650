"""A second stage that sharpens finished pictures: FLUX.1-dev adds detail to what ACE made, and changes little else.

The published one of the 1024 px model: the picture is enlarged to about 1024x1024 px, noised
(sigma 0.43) and led back in six steps. Different on purpose: the autoencoder's mean is taken, not a sample; noise is
float32 and drawn on the CPU, so that it is the same everywhere; ACE always makes the picture that is refined, where
the original leaves text to image to FLUX alone.

Not here: levels and steps (`diffusion/refine.py`); FLUX itself, which is diffusers' and has a licence of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxImg2ImgPipeline
from PIL import Image
from torch import Tensor

from ace.diffusion import flow_euler, refiner_sigmas, sample_noise, seeded_generator
from ace.errors import CheckpointError, ConfigError, ModelNotFoundError
from ace.model.devices import working_device
from ace.model.sizes import BYTES, GB, free_memory, weight_bytes

PROMPT = "High Resolution, Sharpness, Clarity, Detail Enhancement, Noise Reduction, HD, 4k, Image Restoration, HDR"
CELL_PX = 16
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class RefineSettings:
    """How pictures are refined; the defaults are the published ones.

    strength: of the noise, 0 to 1. prompt: added to the instruction of an edit. budget: cells of 16 px that a picture
    is enlarged to."""

    num_steps: int = 30
    strength: float = 0.2
    guidance: float = 3.5
    prompt: str = PROMPT
    budget: int = 4096
    max_text_tokens: int = 512


class Refiner:
    """Refines pictures one by one. name: of the model, for recipes."""

    def __init__(
        self, pipeline: FluxImg2ImgPipeline, name: str = "FLUX.1-dev", settings: RefineSettings | None = None
    ) -> None:
        self.pipeline, self.name = pipeline, name
        self.settings = settings or RefineSettings()
        self.sigmas = refiner_sigmas(self.settings.num_steps, self.settings.strength)

    def describe(self) -> str:
        """What a recipe records: JSON."""
        return json.dumps({"model": self.name, **asdict(self.settings)})

    @torch.no_grad()
    def refine(
        self,
        picture: Image.Image,
        instruction: str,
        seed: int,
        *,
        edited: bool = True,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Image.Image:
        """A picture → the same with more detail, at about the budget's size (never smaller).

        instruction: what it was made from. edited: from another picture, so that the words say what to change rather
        than what is there; the refiner's own prompt is added then. seed: of the noise."""
        pixels = enlarge(_to_tensor(picture), self.settings.budget)  # (1, 3, H, W)
        clean = self._encode(pixels)  # (1, 16, H / 8, W / 8)
        noise = sample_noise(tuple(clean.shape[1:]), seeded_generator(seed))[None].to(clean)
        refined = flow_euler(
            self._network(self._prompt(instruction, edited), clean), clean, noise, self.sigmas, progress
        )
        made = self._decode(refined)
        self.pipeline.maybe_free_model_hooks()
        return made

    def _prompt(self, instruction: str, edited: bool) -> str:
        if not edited:
            return instruction
        return re.sub(r"\s+", " ", f"{re.sub(r'{image[0-9]*}', '', instruction)} {self.settings.prompt}").strip()

    def _encode(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(working_device(vae), vae.dtype)).latent_dist.mode()
        return (latents.float() - vae.config.shift_factor) * vae.config.scaling_factor

    def _network(self, prompt: str, clean: Tensor) -> Callable[[Tensor, float], Tensor]:
        """The velocity that FLUX predicts for this prompt: latents (1, 16, h, w) and sigma → the same shape."""
        pipeline, settings = self.pipeline, self.settings
        device, dtype = clean.device, pipeline.transformer.dtype
        states, pooled, text_ids = pipeline.encode_prompt(
            prompt, None, device=device, max_sequence_length=settings.max_text_tokens
        )
        assert states is not None and pooled is not None  # diffusers' type allows it
        _, channels, height, width = clean.shape
        ids = pipeline._prepare_latent_image_ids(1, height // 2, width // 2, device, dtype)
        guidance = None
        if pipeline.transformer.config.guidance_embeds:
            guidance = torch.full([1], settings.guidance, device=device, dtype=torch.float32)

        def velocity(latents: Tensor, sigma: float) -> Tensor:
            tokens = pipeline._pack_latents(latents.to(dtype), 1, channels, height, width)
            predicted = pipeline.transformer(
                hidden_states=tokens,
                timestep=torch.full([1], sigma, device=device, dtype=dtype),
                guidance=guidance,
                pooled_projections=pooled.to(dtype),
                encoder_hidden_states=states.to(dtype),
                txt_ids=text_ids,
                img_ids=ids,
                return_dict=False,
            )[0]
            return pipeline._unpack_latents(predicted, height * 8, width * 8, 8).float()

        return velocity

    def _decode(self, latents: Tensor) -> Image.Image:
        vae = self.pipeline.vae
        pixels = vae.decode((latents / vae.config.scaling_factor + vae.config.shift_factor).to(vae.dtype)).sample[0]
        levels = (pixels.float().clamp(-1, 1).permute(1, 2, 0).cpu().numpy() + 1) * 127.5
        return Image.fromarray(np.rint(levels).astype(np.uint8))


def load_refiner(model: str, device: str = "cpu", settings: RefineSettings | None = None) -> Refiner:
    """A refiner from a folder in diffusers' layout or a hub id that is in the hub's cache.

    On a GPU its parts take turns. Raises ModelNotFoundError, ConfigError if it does not fit into memory, or
    CheckpointError."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        needed = sum(weight_bytes(folder / part, BYTES["bfloat16"]) for part in PARTS)
        if needed > free_memory():
            raise ConfigError(
                f"the refiner needs {needed / GB:.1f} GB of memory, {free_memory() / GB:.1f} GB are free: leave it out"
            )
    try:
        pipeline = FluxImg2ImgPipeline.from_pretrained(
            str(folder) if folder.is_dir() else model, dtype=torch.bfloat16, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        if not folder.is_dir():
            raise ModelNotFoundError(
                f"no refiner {model!r} here: name a folder, or fetch it once (`hf download {model}`)"
            ) from None
        reason = str(error).strip().split("\n")[0][:160]
        raise CheckpointError(f"the refiner {folder.name} cannot be loaded ({reason}): copy it again") from None
    pipeline.set_progress_bar_config(disable=True)
    if device == "cuda":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    return Refiner(pipeline, folder.name if folder.is_dir() else model, settings)


def enlarge(pixels: Tensor, budget: int) -> Tensor:
    """A picture (N, 3, H, W) at about `budget` cells of 16 px, sides cut down to whole cells; never made smaller than
    that allows."""
    height, width = pixels.shape[-2:]
    scale = max(1.0, (budget / ((height / CELL_PX) * (width / CELL_PX))) ** 0.5)
    size = [max(CELL_PX, int(side * scale) // CELL_PX * CELL_PX) for side in (height, width)]
    return F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)


def _to_tensor(picture: Image.Image) -> Tensor:
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
