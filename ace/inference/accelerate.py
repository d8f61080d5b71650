"""Approximate accelerations, asked for by name; and `torch.compile`, which is exact.

`pipeline.fast = FAST["cache"]` changes how a pipeline samples: another solver with fewer steps, guidance in a part of
the steps only (Kynkäänniemi et al. 2024), or steps whose prediction is not computed but continued from those before
(TaylorSeer, Liu et al. 2025), by diffusers' hook on the transformer. Every request has a series of its own in that hook
and a pass of its own through the network, so that it is still computed as if alone.

Not here: what an acceleration changes (`fast_error.py`), exact savings (always on, in `ace/model`), quantised weights.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.hooks import HookRegistry, TaylorSeerCacheConfig
from diffusers.hooks.taylorseer_cache import _TAYLORSEER_CACHE_HOOK, TaylorSeerCacheHook
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ace.diffusion import DIFFUSERS_SCHEDULE
from ace.errors import ConfigError
from ace.model.transformer import ACETransformer

WARM_UP = 3  # steps of a series that are always computed, at its start; and the last one
TAYLOR_ORDER = 2


@dataclass(frozen=True)
class Fast:
    """Approximate sampling.

    solver: diffusers' DPM-Solver++ ("dpm") or UniPC in place of DDIM, None = as it is. step_share: of the steps asked
    for that are done. guided: (from, to) shares of the steps in which guidance acts. cache_interval: after the first
    steps one of so many is computed, the others are continued from those before; 1 = every step is computed. Raises
    ConfigError for impossible values."""

    solver: Literal["dpm", "unipc"] | None = None
    step_share: float = 1.0
    guided: tuple[float, float] = (0.0, 1.0)
    cache_interval: int = 1

    def __post_init__(self) -> None:
        if self.solver not in (None, "dpm", "unipc"):
            raise ConfigError(f"unknown solver {self.solver!r}: dpm or unipc")
        if not 0 < self.step_share <= 1 or not 0 <= self.guided[0] < self.guided[1] <= 1:
            raise ConfigError(f"impossible acceleration {self}: shares lie between 0 and 1")
        if self.cache_interval < 1:
            raise ConfigError(f"cache interval {self.cache_interval}: use 1 (every step is computed) or more")

    @property
    def name(self) -> str:
        """Its name, as a recipe keeps it. Recipes keep the steps that were done, so their share does not count."""
        same = [name for name, known in FAST.items() if dataclasses.replace(known, step_share=self.step_share) == self]
        return same[0] if same else str(self)

    def num_steps(self, asked: int) -> int:
        """Steps that are done where `asked` were asked for."""
        return max(1, round(asked * self.step_share))

    def scheduler(self, exact: SchedulerMixin) -> SchedulerMixin:
        """The scheduler to sample with, in place of the exact one."""
        settings: dict[str, Any] = {**DIFFUSERS_SCHEDULE, "prediction_type": exact.config.prediction_type}
        if self.solver == "dpm":
            return DPMSolverMultistepScheduler(**settings, final_sigmas_type="zero")
        if self.solver == "unipc":
            return UniPCMultistepScheduler(**settings)
        return copy.deepcopy(exact)

    def guides(self, step_index: int, num_steps: int) -> bool:
        """True if guidance acts in this step."""
        return self.guided[0] * num_steps <= step_index < self.guided[1] * num_steps


FAST: dict[str, Fast] = {
    "solver": Fast(solver="unipc", step_share=0.5),
    "guidance": Fast(guided=(0.0, 0.6)),
    "cache": Fast(cache_interval=3),
    "all": Fast(solver="unipc", step_share=0.5, guided=(0.0, 0.6), cache_interval=3),
}


def fast_by_name(name: str) -> Fast:
    """A named acceleration. Raises ConfigError for an unknown name."""
    if name not in FAST:
        raise ConfigError(f"unknown acceleration {name!r}: one of {', '.join(FAST)}")
    return FAST[name]


def fast_again(name: str) -> Fast | None:
    """The acceleration that a recipe names, with the steps as they were done. Raises ConfigError for an unknown one."""
    return dataclasses.replace(fast_by_name(name), step_share=1.0) if name else None


def set_step_cache(transformer: ACETransformer, fast: Fast | None) -> None:
    """Turn diffusers' step cache on as `fast` says, or off; what it has seen so far is forgotten."""
    if transformer.is_cache_enabled:
        transformer.disable_cache()
    if fast is not None and fast.cache_interval > 1:
        transformer.enable_cache(
            TaylorSeerCacheConfig(
                cache_interval=fast.cache_interval,
                disable_cache_before_step=WARM_UP,
                max_order=TAYLOR_ORDER,
                taylor_factors_dtype=torch.float32,
                cache_identifiers=["^$"],  # the whole transformer: what is continued is its answer
            )
        )


def continue_series(
    transformer: ACETransformer, name: str, compute: Callable[[], Tensor], last: bool
) -> tuple[Tensor, bool]:
    """The transformer's answer in the series of this name, and whether it was computed; the last one always is.

    compute: calls the transformer, which answers from its step cache if the step is to be continued."""
    with transformer.cache_context(name):
        hook = _hook(transformer)
        hook.disable_cache_after_step = 0 if last else None
        answer = compute()
        state = hook.state_manager.get_state()
        return answer, last or state.last_update_step == state.current_step


def end_series(transformer: ACETransformer, name: str) -> None:
    """Let go of what the step cache keeps of a series."""
    _hook(transformer).state_manager._state_cache.pop(name, None)  # diffusers itself forgets all series or none


def _hook(transformer: ACETransformer) -> TaylorSeerCacheHook:
    return cast(
        TaylorSeerCacheHook,
        HookRegistry.check_if_exists_or_initialize(transformer).get_hook(_TAYLORSEER_CACHE_HOOK),
    )


def compile_blocks(transformer: ACETransformer, backend: str = "inductor") -> None:
    """Compile a transformer's blocks with `torch.compile`, once for all of them (regional compilation).

    Exact up to rounding. The first steps at new sizes take long, and on CPUs a C++ compiler is needed; it pays for many
    pictures of the same sizes. backend: torch's name for what generates the code."""
    transformer.compile_repeated_blocks(dynamic=True, backend=backend)
