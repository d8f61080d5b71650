"""The refiner's noise levels and its steps: SDEdit (Meng et al. 2021, section 3) with a rectified flow, as published.

Not here: the network and its pictures (`inference/refine.py`); the flow of ACE++ (diffusers' scheduler).
"""

# torch types `tolist`, `from_numpy` and `split` only in part.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ace.errors import ConfigError

TABLE_STEPS = 1000


def refiner_sigmas(num_steps: int = 30, strength: float = 1.0, shift: float = 3.0) -> Tensor:
    """Noise levels from the first to the last, (at most num_steps + 1,) float32.

    strength: how much noise the picture gets, 1 = nothing of it is left. The published table starts at its first entry,
    so the last level is 0.003, not 0. Raises ConfigError for numbers out of range."""
    if not 1 <= num_steps <= TABLE_STEPS or not 0 < strength <= 1:
        raise ConfigError(f"refining with {num_steps} steps, strength {strength:g}: use 1 to 1000 and 0 to 1")
    times = torch.linspace(TABLE_STEPS, 0, num_steps + 1)
    kept = times[int((1 - strength) * (num_steps + 1)) :]
    if len(kept) < 2:
        raise ConfigError(f"strength {strength:g} leaves none of {num_steps} steps: use more of either")
    u = (torch.arange(TABLE_STEPS) + 1) / TABLE_STEPS
    table = shift * u / (1 + (shift - 1) * u)
    return table[kept.floor().long().clamp(max=TABLE_STEPS - 1)]


def flow_euler(
    velocity: Callable[[Tensor, float], Tensor],
    clean: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Noise clean latents to the first level and lead them to the last, x += (next - now) · v(x, now).

    velocity: the network, called with latents and a noise level; progress: told the steps done and in all."""
    levels = [float(level) for level in sigmas]
    latents = (1 - levels[0]) * clean + levels[0] * noise
    for number, (now, following) in enumerate(itertools.pairwise(levels), start=1):
        latents = latents + (following - now) * velocity(latents, now)
        progress(number, len(levels) - 1)
    return latents
