"""The diffusion models behind the tasks that need one, run through diffusers by whoever has the weights and a GPU.

- `similar`: IP-Adapter at a strength of 0.6, content-related pairs from one picture and words (B.4.3).
- `portray`: InstantID, the same person in another picture (B.4.1).
- `restyle` and `edit`: an instruction editor, InstructPix2Pix by default (B.4.2, B.4.3).
- `write`: a text editor, AnyText (B.5.1).

`Generators` checks at the start that what it was given is on disk, so that a missing file stops a run before any work.
Nothing is downloaded. Without generators the tasks fall back to what image processing can do, or reject with what they
need.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ace.data.tasks.common import picture, pixels
from ace.errors import MissingDependencyError
from ace.extract.faces import Face

IP_ADAPTER_STRENGTH = 0.6
BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
IP_ADAPTER = "h94/IP-Adapter"
EDITOR = "timbrooks/instruct-pix2pix"
INSTANT_ID = "InstantX/InstantID"
ANY_TEXT = "tolgacangoz/anytext"
SIDE_PX = 512


@dataclass(frozen=True)
class Generators:
    """Folders of models in diffusers' layout, None = not to be had.

    base, ip_adapter: for `similar`. editor_folder: for `restyle` and `edit`. portrait_folder: a pipeline folder that
    contains InstantID's custom pipeline, for `portray`. text_folder: AnyText's, for `write`. device: torch's name.
    Raises MissingDependencyError, naming the model and where it can be had, if a folder is not there."""

    base: Path | None = None
    ip_adapter: Path | None = None
    editor_folder: Path | None = None
    portrait_folder: Path | None = None
    text_folder: Path | None = None
    device: str = "cuda"
    steps: int = 30

    def __post_init__(self) -> None:
        for folder, hub_id in (
            (self.base, BASE),
            (self.ip_adapter, IP_ADAPTER),
            (self.editor_folder, EDITOR),
            (self.portrait_folder, INSTANT_ID),
            (self.text_folder, ANY_TEXT),
        ):
            if folder is not None and not folder.is_dir():
                raise MissingDependencyError(
                    f"no model folder at {folder}: fetch one with: hf download {hub_id} --local-dir {folder}"
                )
        if (self.base is None) != (self.ip_adapter is None):
            raise MissingDependencyError(
                f"an IP-Adapter needs its base model and the other way round: give both ({BASE}, {IP_ADAPTER})"
            )
        if self.portrait_folder is not None and importlib.util.find_spec("insightface") is None:
            raise MissingDependencyError("InstantID needs insightface for its face features: pip install insightface")

    can_vary = property(lambda self: self.ip_adapter is not None, doc="Whether `similar` can be called.")
    can_restyle = property(
        lambda self: self.editor_folder is not None, doc="Whether `restyle` and `edit` can be called."
    )
    can_portray = property(lambda self: self.portrait_folder is not None, doc="Whether `portray` can be called.")
    can_write = property(lambda self: self.text_folder is not None, doc="Whether `write` can be called.")

    editor, portrait = "instruction editor", "InstantID"

    def similar(self, image: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """A picture with the content of image (H, W, 3) uint8 and what the prompt says; its size is kept."""
        pipeline = self._adapted
        made = pipeline(
            prompt,
            ip_adapter_image=picture(image),
            num_inference_steps=self.steps,
            generator=self._noise(seed),
            **_size(image),
        )
        return _as(made.images[0], image)

    def edit(self, image: np.ndarray, instruction: str, seed: int) -> np.ndarray:
        """The picture as an instruction editor changes it; its size is kept."""
        made = self._editing(
            instruction,
            image=picture(image).resize((_size(image)["width"], _size(image)["height"])),
            num_inference_steps=self.steps,
            generator=self._noise(seed),
        )
        return _as(made.images[0], image)

    def restyle(self, image: np.ndarray, style: str, seed: int) -> np.ndarray:
        """The picture in a style, by words."""
        return self.edit(image, f"turn it into a {style}", seed)

    def portray(self, image: np.ndarray, face: Face, prompt: str, seed: int) -> np.ndarray:
        """Another picture of a person, by InstantID's own pipeline."""
        made = self._portraits(
            prompt or "a portrait photo",
            image=picture(image),
            num_inference_steps=self.steps,
            generator=self._noise(seed),
        )
        return _as(made.images[0], image)

    def write(self, image: np.ndarray, text: str, mask: np.ndarray, seed: int) -> np.ndarray:
        """The picture with a text under a mask (H, W) bool, by AnyText's own pipeline."""
        made = self._writing(
            f'an image that says "{text}"',
            mode="edit",
            draw_pos=picture(np.where(mask[..., None], np.uint8(0), np.uint8(255)).repeat(3, 2)),
            ori_image=picture(image),
            num_inference_steps=self.steps,
            generator=self._noise(seed),
        )
        return _as(made.images[0], image)

    @cached_property
    def _adapted(self) -> Any:
        from diffusers import StableDiffusionPipeline

        assert self.ip_adapter is not None
        pipeline = _load(StableDiffusionPipeline, self.base).to(self.device)
        pipeline.load_ip_adapter(
            str(self.ip_adapter), subfolder="models", weight_name="ip-adapter_sd15.safetensors", local_files_only=True
        )
        pipeline.set_ip_adapter_scale(IP_ADAPTER_STRENGTH)
        return pipeline

    @cached_property
    def _editing(self) -> Any:
        from diffusers import StableDiffusionInstructPix2PixPipeline

        return _load(StableDiffusionInstructPix2PixPipeline, self.editor_folder).to(self.device)

    @cached_property
    def _portraits(self) -> Any:
        from diffusers import DiffusionPipeline

        return _load(DiffusionPipeline, self.portrait_folder, custom=True).to(self.device)

    @cached_property
    def _writing(self) -> Any:
        from diffusers import DiffusionPipeline

        return _load(DiffusionPipeline, self.text_folder, custom=True).to(self.device)

    def _noise(self, seed: int) -> Any:
        import torch

        return torch.Generator("cpu").manual_seed(seed)


def _load(kind: Any, folder: Path | None, custom: bool = False) -> Any:
    assert folder is not None
    options = {"custom_pipeline": str(folder)} if custom and (folder / "pipeline.py").is_file() else {}
    pipeline = kind.from_pretrained(folder, local_files_only=True, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _size(image: np.ndarray) -> dict[str, int]:
    """Height and width near SIDE_PX a side that a latent model takes, with the picture's aspect."""
    height, width = image.shape[:2]
    scale = SIDE_PX / (height * width) ** 0.5
    return {"height": max(64, round(height * scale / 8) * 8), "width": max(64, round(width * scale / 8) * 8)}


def _as(made: Image.Image, image: np.ndarray) -> np.ndarray:
    return pixels(made.resize((image.shape[1], image.shape[0]), Image.Resampling.LANCZOS))
