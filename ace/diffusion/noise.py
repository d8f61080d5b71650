"""The noise schedule of ACE and the noising of latents (DDPM, Ho et al. 2020, arXiv 2006.11239).

Notable choices: everything is float32; `alpha_bar` is the product of (1 - beta), never its root; noise belongs to one
image, so it is drawn from that image's own generator, on the CPU unless the generator lives elsewhere: CPU and CUDA
then start from the same noise. Index 0 of every table is the least noisy timestep.

Not here: the sampler (`ddim.py`), the training target (`loss.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ace.errors import ConfigError, ShapeError

NUM_TRAIN_TIMESTEPS = 1000
BETA_START = 1e-4
BETA_END = 0.02


@dataclass(frozen=True)
class NoiseSchedule:
    """The tables of a schedule, each (num_train_timesteps,) float32, index 0 = least noise.

    betas: beta_t. alpha_bar: prod over s <= t of (1 - beta_s). sigma: sqrt(1 - alpha_bar), the noise standard
    deviation."""

    betas: Tensor
    alpha_bar: Tensor
    sigma: Tensor

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps the tables hold."""
        return self.betas.shape[0]

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar) per timestep, (num_train_timesteps,)."""
        return self.alpha_bar / (1 - self.alpha_bar)


@lru_cache(maxsize=16)
def _linear_schedule(num_train_timesteps: int, beta_start: float, beta_end: float, device: str) -> NoiseSchedule:
    # Built on the CPU and then moved, so that every device holds the same numbers.
    betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float32, device="cpu")
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    sigma = torch.sqrt(1 - alpha_bar)
    return NoiseSchedule(betas.to(device), alpha_bar.to(device), sigma.to(device))


def linear_schedule(
    num_train_timesteps: int = NUM_TRAIN_TIMESTEPS,
    beta_start: float = BETA_START,
    beta_end: float = BETA_END,
    device: torch.device | str = "cpu",
) -> NoiseSchedule:
    """The schedule of ACE: betas linear from `beta_start` to `beta_end`. Made once per device and shared: do not write
    to it.

    Raises ConfigError unless 0 < beta_start <= beta_end < 1 and there is at least one timestep."""
    if num_train_timesteps < 1:
        raise ConfigError(f"num_train_timesteps is {num_train_timesteps}: give at least 1")
    if not 0 < beta_start <= beta_end < 1:
        raise ConfigError(
            f"betas run from {beta_start} to {beta_end}: both must lie between 0 and 1, the first not larger"
        )
    return _linear_schedule(int(num_train_timesteps), float(beta_start), float(beta_end), str(torch.device(device)))


def broadcast_rows(values: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, …, 1) with as many axes as `like`, so that row n of `like` meets entry n of `values`."""
    return values.reshape(values.shape[0], *(1,) * (like.ndim - 1))


def add_noise(
    latents: Tensor,
    noise: Tensor,
    timestep: Tensor,
    schedule: NoiseSchedule | None = None,
    *,
    published: bool = False,
) -> Tensor:
    """Diffuse clean latents to a timestep: sqrt(alpha_bar_t) x_0 + sigma_t noise (Ho et al. 2020, equation 4).

    latents, noise: (N, …), VAE units; timestep: (N,) int in [0, num_train_timesteps), 0 = clean end.
    Packed tokens are the same call: latents (T, D) with one timestep per token, (T,); `per_token` makes those from one
    timestep per sample.
    published=True: the literal published signal factor sqrt(1 - beta_t^2), which leaves the signal unattenuated. A
    defect, kept for comparison only.
    Returns latents' shape and dtype, computed in float32.
    Raises ShapeError if latents and noise differ or timestep does not match their first axis."""
    if latents.shape != noise.shape:
        raise ShapeError(
            f"latents {tuple(latents.shape)} and noise {tuple(noise.shape)} differ: draw noise of the latents' shape"
        )
    if timestep.ndim != 1 or timestep.shape[0] != latents.shape[0]:
        raise ShapeError(
            f"timestep {tuple(timestep.shape)} does not fit latents {tuple(latents.shape)}: one entry per row"
        )
    if timestep.is_floating_point():
        raise ShapeError("timestep is fractional: noising takes integer timesteps")
    schedule = schedule or linear_schedule(device=latents.device)
    if published:
        signal = torch.sqrt(1 - schedule.betas[timestep] ** 2)
    else:
        signal = torch.sqrt(schedule.alpha_bar[timestep])
    sigma = schedule.sigma[timestep]
    noisy = broadcast_rows(signal, latents) * latents.float() + broadcast_rows(sigma, latents) * noise.float()
    return noisy.to(latents.dtype)


def per_token(values: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
    """Repeat one value per sample for each of the sample's rows: (N,), (N,) -> (T,) with T = sum of lengths."""
    lengths = torch.as_tensor(lengths, device=values.device)
    if lengths.shape != values.shape[:1]:
        raise ShapeError(f"{lengths.numel()} lengths for {values.shape[0]} values: give one length per sample")
    return values.repeat_interleave(lengths, dim=0)


def seeded_generator(seed: int) -> torch.Generator:
    """One image's generator, on the CPU, so that a seed means the same noise on every device."""
    return torch.Generator(device="cpu").manual_seed(seed)


def sample_noise(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise, float32, on the generator's device (None: torch's global CPU generator).

    Call it once per image with that image's generator; move the result to where the model runs."""
    device = generator.device if generator is not None else "cpu"
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device=device)
