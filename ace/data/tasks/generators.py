"""The diffusion models behind the tasks that need one, run through diffusers by whoever has the weights and a GPU.

- `similar`: IP-Adapter at a strength of 0.6, content-related pairs from one picture and words (B.4.3).
- `portray`: InstantID, the same person with the face in the same place (B.4.1, aligned).
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

import cv2
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
INSTANT_ID_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
INSTANT_ID_STRENGTH = 0.8  # of its control net and of its adapter, as its authors set them
ANY_TEXT = "tolgacangoz/anytext"
# a face as InstantID is shown it: each point in its colour, joined to the nose
FACE_COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
NOSE_POINT = 2


@dataclass(frozen=True)
class Generators:
    """Folders of models in diffusers' layout, None = not to be had.

    base, ip_adapter: for `similar`. editor: for `restyle` and `edit`. portrait: InstantID's `ControlNetModel`,
    `ip-adapter.bin` and its pipeline file under the name `pipeline.py`, for `portray`; portrait_base: the SDXL model
    that it steers. writer: AnyText's, with its `pipeline.py`, for `write`. device: torch's name. steps: of denoising.
    side_px: the size that they work at, the side of a square of as many pixels. The code of a `pipeline.py` is run:
    name folders that you trust. Raises MissingDependencyError, naming the model and where it can be had, if a folder is
    not there."""

    base: Path | None = None
    ip_adapter: Path | None = None
    editor: Path | None = None
    portrait: Path | None = None
    portrait_base: Path | None = None
    writer: Path | None = None
    device: str = "cuda"
    steps: int = 30
    side_px: int = 512

    def __post_init__(self) -> None:
        for folder, hub_id in (
            (self.base, BASE),
            (self.ip_adapter, IP_ADAPTER),
            (self.editor, EDITOR),
            (self.portrait, INSTANT_ID),
            (self.portrait_base, INSTANT_ID_BASE),
            (self.writer, ANY_TEXT),
        ):
            if folder is not None and not folder.is_dir():
                raise MissingDependencyError(
                    f"no model folder at {folder}: fetch one with: hf download {hub_id} --local-dir {folder}"
                )
        if (self.base is None) != (self.ip_adapter is None):
            raise MissingDependencyError(
                f"an IP-Adapter needs its base model and the other way round: give both ({BASE}, {IP_ADAPTER})"
            )
        if (self.portrait is None) != (self.portrait_base is None):
            raise MissingDependencyError(
                f"InstantID needs the SDXL model that it steers: give both ({INSTANT_ID}, {INSTANT_ID_BASE})"
            )
        for folder in (self.portrait, self.writer):
            if folder is not None and not (folder / "pipeline.py").is_file():
                raise MissingDependencyError(
                    f"{folder} lacks pipeline.py: put the pipeline file that the model's authors publish there"
                )

    can_vary = property(lambda self: self.ip_adapter is not None, doc="Whether `similar` can be called.")
    can_restyle = property(lambda self: self.editor is not None, doc="Whether `restyle` and `edit` can be called.")
    can_portray = property(lambda self: self.portrait is not None, doc="Whether `portray` can be called.")
    can_write = property(lambda self: self.writer is not None, doc="Whether `write` can be called.")

    def similar(self, image: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """A picture with the content of image (H, W, 3) uint8 and what the prompt says; its size is kept."""
        pipeline = self._adapted
        made = pipeline(
            prompt,
            ip_adapter_image=picture(image),
            num_inference_steps=self.steps,
            generator=self._noise(seed),
            **self._size(image),
        )
        return _as(made.images[0], image)

    def edit(self, image: np.ndarray, instruction: str, seed: int) -> np.ndarray:
        """The picture as an instruction editor changes it; its size is kept."""
        made = self._editing(
            instruction,
            image=picture(self._scaled(image)),
            num_inference_steps=self.steps,
            generator=self._noise(seed),
        )
        return _as(made.images[0], image)

    def restyle(self, image: np.ndarray, style: str, seed: int) -> np.ndarray:
        """The picture in a style, by words."""
        return self.edit(image, f"turn it into a {style}", seed)

    def portray(self, image: np.ndarray, face: Face, identity: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """Another picture of a person, the face where it is in image (H, W, 3) uint8.

        identity: the face's ArcFace feature, (512,) float32."""
        made = self._portraits(
            prompt or "a portrait photo",
            image_embeds=identity,
            image=picture(self._scaled(draw_face(face, *image.shape[:2]))),
            controlnet_conditioning_scale=INSTANT_ID_STRENGTH,
            ip_adapter_scale=INSTANT_ID_STRENGTH,
            num_inference_steps=self.steps,
            generator=self._noise(seed),
        )
        return _as(made.images[0], image)

    def write(self, image: np.ndarray, text: str, mask: np.ndarray, seed: int) -> np.ndarray:
        """The picture with a text under a mask (H, W) bool, by AnyText's own pipeline."""
        made = self._writing(
            f'an image that says "{text}"',
            mode="edit",
            draw_pos=picture(self._scaled(np.where(mask[..., None], np.uint8(0), np.uint8(255)).repeat(3, 2))),
            ori_image=picture(self._scaled(image)),
            **self._size(image),
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

        return _load(StableDiffusionInstructPix2PixPipeline, self.editor).to(self.device)

    @cached_property
    def _portraits(self) -> Any:
        from diffusers import ControlNetModel

        assert self.portrait is not None
        steering = ControlNetModel.from_pretrained(self.portrait / "ControlNetModel", local_files_only=True)
        pipeline = _load(_class_in(self.portrait), self.portrait_base, controlnet=steering)
        pipeline.to(self.device)
        pipeline.load_ip_adapter_instantid(str(self.portrait / "ip-adapter.bin"))
        return pipeline

    @cached_property
    def _writing(self) -> Any:
        return _load(_class_in(self.writer), self.writer).to(self.device)

    def _size(self, image: np.ndarray) -> dict[str, int]:
        """Height and width that a latent model takes, about side_px a side, with the picture's aspect."""
        height, width = image.shape[:2]
        scale = self.side_px / (height * width) ** 0.5
        return {"height": max(64, round(height * scale / 8) * 8), "width": max(64, round(width * scale / 8) * 8)}

    def _scaled(self, image: np.ndarray) -> np.ndarray:
        size = self._size(image)
        return cv2.resize(image, (size["width"], size["height"]), interpolation=cv2.INTER_AREA)

    def _noise(self, seed: int) -> Any:
        import torch

        return torch.Generator("cpu").manual_seed(seed)


def draw_face(face: Face, height_px: int, width_px: int) -> np.ndarray:
    """A face's five points and their lines to the nose on black, as InstantID reads them; (H, W, 3) uint8."""
    canvas = np.zeros((height_px, width_px, 3), np.uint8)
    points = [(round(float(x)), round(float(y))) for x, y in face.points]
    thick = max(2, min(height_px, width_px) // 128)
    for number, point in enumerate(points):
        if number != NOSE_POINT:
            dim = tuple(int(0.6 * level) for level in FACE_COLORS[number])
            cv2.line(canvas, point, points[NOSE_POINT], dim, 2 * thick)
    for point, color in zip(points, FACE_COLORS, strict=True):
        cv2.circle(canvas, point, 2 * thick, color, cv2.FILLED)
    return canvas


def _load(kind: Any, folder: Path | None, **parts: Any) -> Any:
    assert folder is not None
    pipeline = kind.from_pretrained(folder, local_files_only=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _class_in(folder: Path | None) -> Any:
    """The pipeline that a folder's `pipeline.py` defines.

    Not diffusers' `custom_pipeline`: it copies every such file to one place, where the second meets the first."""
    from diffusers import DiffusionPipeline

    assert folder is not None
    spec = importlib.util.spec_from_file_location(f"pipeline_of_{folder.name}", folder / "pipeline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for found in vars(module).values():
        if isinstance(found, type) and issubclass(found, DiffusionPipeline) and found.__module__ == module.__name__:
            return found
    raise MissingDependencyError(f"{folder / 'pipeline.py'} defines no diffusers pipeline: is it the authors' file?")


def _as(made: Image.Image, image: np.ndarray) -> np.ndarray:
    return pixels(made.resize((image.shape[1], image.shape[0]), Image.Resampling.LANCZOS))
