"""`VideoPipeline`: prepared clips → clips, by the parts of diffusers' `WanVACEPipeline`, one denoising step at a time.

The library's own call is not used: it scales and letterboxes what it is given by rules other than the published ones,
and cannot be left between steps. Its parts are: text encoder, autoencoder, scheduler and transformer, with its methods
for latents and masks. What it does differently from the published code is listed in docs/video.md.

Not here: files (`request.py`), loading and memory (`ace/families/video.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import WanVACEPipeline
from torch import Tensor

from ace.diffusion import seeded_generator
from ace.errors import CheckpointError, ConfigError
from ace.video.prepare import PreparedClip, latent_frames

MAX_TEXT_TOKENS = 512


@dataclass(eq=False)
class VideoState:
    """A clip on its way. latents: (1, C, N + t, h, w), the N references' frames first; conditioning: (1, 2 C + 64,
    N + t, h, w); text, negative: (1, L, D); step_index: steps done."""

    prepared: PreparedClip
    latents: Tensor
    conditioning: Tensor
    text: Tensor
    negative: Tensor | None
    guidance_scale: float
    strength: float
    scheduler: Any
    step_index: int = 0
    timesteps: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return len(self.timesteps)

    @property
    def done(self) -> bool:
        """True when only decoding is left."""
        return self.step_index >= self.num_steps


class VideoPipeline:
    """A loaded WanVACEPipeline with weights that stay as they are."""

    def __init__(self, pipeline: WanVACEPipeline) -> None:
        if pipeline.transformer is None or pipeline.config.boundary_ratio is not None:
            raise CheckpointError("this model denoises with two transformers (Wan 2.2): use a Wan 2.1 VACE model")
        self.parts = pipeline

    @classmethod
    def from_pretrained(cls, folder: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> VideoPipeline:
        """A model folder, whole in memory. Raises CheckpointError."""
        try:
            parts = WanVACEPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise CheckpointError(f"the model cannot be loaded ({reason}): fetch it again") from error
        parts.set_progress_bar_config(disable=True)
        return cls(parts.to(device))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.parts._execution_device

    def __call__(self, instruction: str, prepared: PreparedClip, seed: int = 0, **settings: Any) -> np.ndarray:
        """The model's own clip of a request, (T, H, W, 3) uint8, before anything is pasted back; see `start`."""
        state = self.start(instruction, prepared, seed, **settings)
        while not state.done:
            self.step(state)
        return self.finish(state)

    @torch.no_grad()
    def start(
        self,
        instruction: str,
        prepared: PreparedClip,
        seed: int,
        *,
        negative: str = "",
        num_steps: int = 50,
        guidance_scale: float = 5.0,
        strength: float = 1.0,
        shift: float | None = None,
    ) -> VideoState:
        """Text and clip encoded, noise drawn. strength: of the conditioning; shift: of the schedule, None = the
        model's own. Raises CheckpointError or ConfigError."""
        scheduler = self._scheduler(shift)
        scheduler.set_timesteps(num_steps, device=self.device)
        dtype = self.parts.transformer.dtype
        text, nothing = self.parts.encode_prompt(
            instruction, negative, guidance_scale > 1, max_sequence_length=MAX_TEXT_TOKENS, device=self.device
        )
        conditioning = self.conditioning(prepared).to(dtype)
        shape = (1, self.parts.transformer.config.in_channels, *conditioning.shape[2:])
        noise = torch.randn(shape, generator=seeded_generator(seed), dtype=torch.float32).to(self.device)
        return VideoState(
            prepared,
            noise,
            conditioning,
            text.to(dtype),
            None if nothing is None else nothing.to(dtype),
            guidance_scale,
            strength,
            scheduler,
            timesteps=scheduler.timesteps,
        )

    @torch.no_grad()
    def step(self, state: VideoState) -> None:
        """One denoising step."""
        timestep = state.timesteps[state.step_index]
        predicted = self._predict(state, timestep, state.text)
        if state.negative is not None:
            without = self._predict(state, timestep, state.negative)
            predicted = without + state.guidance_scale * (predicted - without)
        state.latents = state.scheduler.step(predicted, timestep, state.latents, return_dict=False)[0]
        state.step_index += 1

    @torch.no_grad()
    def finish(self, state: VideoState) -> np.ndarray:
        """The clip, (T, H, W, 3) uint8; the references' frames are cut off. Raises CheckpointError if it is no clip."""
        clip = self.decode(state.latents[:, :, len(state.prepared.references) :])
        if not torch.isfinite(clip).all():
            raise CheckpointError("the model's answer is not finite: its weights are damaged, or try --dtype float32")
        return levels(clip)

    @torch.no_grad()
    def preview(self, state: VideoState) -> np.ndarray:
        """The middle frame as it is now, (H, W, 3) uint8, decoded alone."""
        middle = len(state.prepared.references) + (state.latents.shape[2] - len(state.prepared.references)) // 2
        return levels(self.decode(state.latents[:, :, middle : middle + 1]))[0]

    def encode(self, frames: Tensor) -> Tensor:
        """(1, 3, T, H, W) in [-1, 1] → normalised latents (1, C, t, h, w), the mean of the posterior."""
        vae = self.parts.vae
        mean, scale = self._statistics()
        latents = vae.encode(frames.to(vae.device, vae.dtype)).latent_dist.mode()
        return (latents.float() - mean) / scale

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents → (1, 3, T, H, W) in [-1, 1]."""
        mean, scale = self._statistics()
        return self.parts.vae.decode((latents * scale + mean).to(self.parts.vae.dtype), return_dict=False)[0]

    def free(self) -> None:
        """Parts that wait outside the GPU leave it."""
        self.parts.maybe_free_model_hooks()

    def conditioning(self, prepared: PreparedClip) -> Tensor:
        """Latents of what is kept and of what is made anew, and the mask in cells; references before them, in order."""
        frames = torch.from_numpy(prepared.model_frames()).permute(3, 0, 1, 2)[None]
        mask = torch.from_numpy((prepared.masks > 0).astype(np.float32))[None, None]
        latents = torch.cat([self.encode(frames * (1 - mask)), self.encode(frames * mask)], dim=1)
        given = []
        for reference in torch.from_numpy(prepared.model_references()):
            encoded = self.encode(reference.permute(2, 0, 1)[None, :, None])
            given.append(torch.cat([encoded, torch.zeros_like(encoded)], dim=1))
        cells = mask_cells(mask.to(latents.device), latents.shape[2], self.parts.vae_scale_factor_spatial)
        before = cells.new_zeros((1, cells.shape[1], len(given), *cells.shape[3:]))
        return torch.cat([torch.cat([*given, latents], dim=2), torch.cat([before, cells], dim=2)], dim=1)

    def _predict(self, state: VideoState, timestep: Tensor, text: Tensor) -> Tensor:
        transformer = self.parts.transformer
        strength = torch.full((len(transformer.config.vace_layers),), state.strength)
        return transformer(
            hidden_states=state.latents.to(transformer.dtype),
            timestep=timestep.expand(1),
            encoder_hidden_states=text,
            control_hidden_states=state.conditioning,
            control_hidden_states_scale=strength.to(state.latents.device, transformer.dtype),
            return_dict=False,
        )[0]

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, (1, C, 1, 1, 1)."""
        config = self.parts.vae.config
        return tuple(
            torch.tensor(values, device=self.device, dtype=torch.float32).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )  # type: ignore[return-value]

    def _scheduler(self, shift: float | None) -> Any:
        scheduler = self.parts.scheduler
        if shift is None:
            return type(scheduler).from_config(scheduler.config)
        name = next((name for name in ("flow_shift", "shift") if name in scheduler.config), None)
        if name is None:
            raise ConfigError(f"a {type(scheduler).__name__} has no shift: leave it out")
        return type(scheduler).from_config(scheduler.config, **{name: shift})


def mask_cells(mask: Tensor, num_frames: int, cell_px: int) -> Tensor:
    """A mask (1, 1, T, H, W) of 0 and 1 in the cells of latents: (1, cell_px², t, h, w), pixels of a cell as channels.

    Of the frames that a latent frame stands for, the nearest counts, as published."""
    _, _, count, height, width = mask.shape
    cells = mask[0, 0].view(count, height // cell_px, cell_px, width // cell_px, cell_px)
    cells = cells.permute(2, 4, 0, 1, 3).reshape(1, cell_px**2, count, height // cell_px, width // cell_px)
    assert num_frames == latent_frames(count), "frames of latents and of the clip do not fit"
    size = (num_frames, *cells.shape[3:])
    return torch.nn.functional.interpolate(cells, size=size, mode="nearest-exact")


def levels(clip: Tensor) -> np.ndarray:
    """(1, 3, T, H, W) in [-1, 1] → (T, H, W, 3) uint8."""
    values = ((clip[0].float().clamp(-1, 1) + 1) * 127.5).round()
    return values.to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
