"""The noise schedule of ACE and the noising of latents (DDPM, Ho et al. 2020, arXiv 2006.11239).

Notable choices: the tables are computed in float64 by numpy's sums, products and roots, which IEEE 754 fixes, and
rounded once to float32, so that every machine holds the same bits (torch's roots and exponentials differ by processor);
`alpha_bar` is the product of (1 - beta), never its root; noise belongs to one image, so it is drawn from that image's
own generator, on the CPU unless the generator lives elsewhere: CPU and CUDA then start from the same noise. Index 0 of
every table is the least noisy timestep.

Not here: the sampler (`ddim.py`), the training target (`loss.py`).
"""

# torch types `tolist`, `from_numpy` and `split` only in part.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ace.errors import ConfigError, ShapeError

NUM_TRAIN_TIMESTEPS = 1000
BETA_START = 1e-4
BETA_END = 0.02
# How these tables and the sampler's plans are computed. 1 (ace 0.1): in float32 by torch, differently by processor.
SCHEDULE_RULES = 2


@dataclass(frozen=True)
class NoiseSchedule:
    """The tables of a schedule, each (num_train_timesteps,) float32, index 0 = least noise.

    betas: beta_t. alpha_bar: prod over s <= t of (1 - beta_s). alpha: its root, what is left of the signal. sigma:
    sqrt(1 - alpha_bar), the noise standard deviation."""

    betas: Tensor
    alpha_bar: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps the tables hold."""
        return self.betas.shape[0]

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar) per timestep, (num_train_timesteps,)."""
        return self.alpha_bar / self.sigma**2


@lru_cache(maxsize=16)
def exact_tables(
    num_train_timesteps: int, beta_start: float, beta_end: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """beta, alpha_bar and 1 - alpha_bar, each (num_train_timesteps,) float64 and good to 12 digits; not to be written.

    1 - alpha_bar is a sum of positive terms, beta_t times the alpha_bar before it: the difference would cancel."""
    betas = np.linspace(beta_start, beta_end, num_train_timesteps)
    alpha_bar = np.cumprod(1 - betas)
    noise = np.cumsum(betas * np.append(1.0, alpha_bar[:-1]))
    return betas, alpha_bar, noise


@lru_cache(maxsize=16)
def _linear_schedule(num_train_timesteps: int, beta_start: float, beta_end: float, device: str) -> NoiseSchedule:
    betas, alpha_bar, noise = exact_tables(num_train_timesteps, beta_start, beta_end)
    tables = (betas, alpha_bar, np.sqrt(alpha_bar), np.sqrt(noise))
    return NoiseSchedule(*(torch.from_numpy(table.astype(np.float32)).to(device) for table in tables))


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
        signal = schedule.alpha[timestep]
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
