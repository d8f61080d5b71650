"""Approximate accelerations, asked for by name, each with its measured error; and `torch.compile`, which is exact.

`pipeline.fast = FAST["cache"]` changes how a pipeline samples: another solver with fewer steps, guidance in a part of
the steps only (Kynkäänniemi et al. 2024), or predictions that are used again while the latents hardly move (after Zhou
et al. 2025, EasyCache). All of it is decided per request, so that a request is still computed as if alone.
`measure_error` runs requests both ways and says what that changed: nobody has to believe in an acceleration.

diffusers' own cache hooks are not used: they decide once per batch and expect blocks that return what enters, while
ours holds requests at different steps, and its last block computes the targets only.

Not here: exact savings (they are always on, in `ace/model`), quantised weights.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image
from torch import Tensor

from ace import __version__
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.diffusion import DIFFUSERS_SCHEDULE
from ace.errors import ConfigError

if TYPE_CHECKING:
    from ace.inference.pipeline import ACEPipeline, Request, RequestState

WARM_UP = 3  # steps that are always computed, at the start; and the last one


@dataclass(frozen=True)
class Fast:
    """Approximate sampling.

    solver: diffusers' DPM-Solver++ ("dpm") or UniPC in place of DDIM, None = as it is. step_share: of the steps asked
    for that are done. guided: (from, to) shares of the steps in which guidance acts. reuse: predictions are used again
    until their estimated relative change adds up to this; 0 = never. Raises ConfigError for impossible values."""

    solver: Literal["dpm", "unipc"] | None = None
    step_share: float = 1.0
    guided: tuple[float, float] = (0.0, 1.0)
    reuse: float = 0.0

    def __post_init__(self) -> None:
        if self.solver not in (None, "dpm", "unipc"):
            raise ConfigError(f"unknown solver {self.solver!r}: dpm or unipc")
        if not 0 < self.step_share <= 1 or not 0 <= self.guided[0] < self.guided[1] <= 1 or not 0 <= self.reuse < 1:
            raise ConfigError(f"impossible acceleration {self}: shares lie between 0 and 1")

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
    "cache": Fast(reuse=0.1),
    "all": Fast(solver="unipc", step_share=0.5, guided=(0.0, 0.6), reuse=0.1),
}


def fast_by_name(name: str) -> Fast:
    """A named acceleration. Raises ConfigError for an unknown name."""
    if name not in FAST:
        raise ConfigError(f"unknown acceleration {name!r}: one of {', '.join(FAST)}")
    return FAST[name]


def fast_again(name: str) -> Fast | None:
    """The acceleration that a recipe names, with the steps as they were done. Raises ConfigError for an unknown one."""
    return dataclasses.replace(fast_by_name(name), step_share=1.0) if name else None


@dataclass
class Reuse:
    """When one request's prediction may be used again.

    With k = |change of the prediction| / |change of the latents| at the last computed steps, the next prediction
    changes by about k |change of the latents|; these, relative to the prediction's size, are added up to `limit`."""

    limit: float
    rate: float | None = None
    total: float = 0.0
    prediction: Tensor | None = None
    computed_at: Tensor | None = None
    seen: Tensor | None = None

    def again(self, latents: Tensor) -> Tensor | None:
        """The prediction to use again for these latents, or None: it must be computed."""
        if self.prediction is None or self.rate is None or self.seen is None:
            return None
        size = float(self.prediction.norm().clamp_min(1e-12))
        self.total += self.rate * float((latents - self.seen).norm()) / size
        if self.total >= self.limit:
            return None
        self.seen = latents
        return self.prediction

    def computed(self, latents: Tensor, prediction: Tensor) -> None:
        """Take note of a computed prediction."""
        if self.prediction is not None and self.computed_at is not None:
            moved = float((latents - self.computed_at).norm().clamp_min(1e-12))
            self.rate = float((prediction - self.prediction).norm()) / moved
        self.prediction, self.computed_at, self.seen, self.total = prediction, latents, latents, 0.0


def reused_prediction(state: RequestState) -> Tensor | None:
    """The prediction that a state uses again in its next step, None = compute it."""
    if state.reuse is None or not WARM_UP <= state.step_index < state.num_steps - 1:
        return None
    return state.reuse.again(state.latents)


@dataclass(frozen=True)
class FastError:
    """What an acceleration changed, over all requests measured.

    latents: root mean square difference as a share of the exact latents' own. levels: mean absolute difference of the
    pictures, of 255 levels; psnr_db: their peak signal-to-noise ratio. runs: network evaluations of guidance branches,
    (exact, fast). seconds: (exact, fast), one run each, on this machine as busy as it was."""

    num_requests: int
    latents: float
    levels: float
    psnr_db: float
    runs: tuple[int, int]
    seconds: tuple[float, float]

    def line(self) -> str:
        """One line for people."""
        return (
            f"{self.runs[1]} network runs instead of {self.runs[0]}; the pictures differ from the exact ones by "
            f"{self.levels:.1f} of 255 levels on average ({self.psnr_db:.1f} dB; {self.num_requests} requests)"
        )


def measure_error(pipeline: ACEPipeline, requests: Sequence[Request], fast: Fast | None = None) -> FastError:
    """Make the same pictures exactly and fast, from the same noise, and compare them.

    fast: None = the pipeline's own. Masks are not put back, so that nothing hides a difference. Raises ConfigError if
    there is nothing to compare."""
    fast = fast or pipeline.fast
    if fast is None or not requests:
        raise ConfigError("nothing to measure: name an acceleration and at least one request")
    kept, results = pipeline.fast, []
    seeds = [int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(n))) for n in range(len(requests))]
    try:
        for own in (None, fast):
            pipeline.fast = own
            start = time.perf_counter()
            states = pipeline.prepare(
                [
                    dataclasses.replace(request, generator=torch.Generator().manual_seed(seed))
                    for request, seed in zip(requests, seeds, strict=True)
                ]
            )
            while running := [state for state in states if not state.done]:
                pipeline.step(running)
            pictures = pipeline.decode(states, preserve=False)
            results.append((states, pictures, time.perf_counter() - start))
    finally:
        pipeline.fast = kept
    (exact_states, exact_pictures, exact_seconds), (fast_states, fast_pictures, fast_seconds) = results
    latents = [
        float((own.latents - exact.latents).square().mean().sqrt() / exact.latents.square().mean().sqrt())
        for exact, own in zip(exact_states, fast_states, strict=True)
    ]
    differences = [
        np.asarray(own, dtype=np.float64) - np.asarray(exact, dtype=np.float64)
        for exact, own in zip(exact_pictures, fast_pictures, strict=True)
    ]
    square = float(np.mean([np.mean(d**2) for d in differences]))
    return FastError(
        num_requests=len(requests),
        latents=float(np.mean(latents)),
        levels=float(np.mean([np.abs(d).mean() for d in differences])),
        psnr_db=float(10 * np.log10(255**2 / max(square, 1e-9))),
        runs=(sum(state.num_runs for state in exact_states), sum(state.num_runs for state in fast_states)),
        seconds=(exact_seconds, fast_seconds),
    )


def known_error(pipeline: ACEPipeline, model_sha256: str, folder: Path) -> FastError:
    """The error of the pipeline's acceleration on two fixed requests at the model's own settings.

    Measured once per model, acceleration and version, then read from `folder`."""
    key = hashlib.sha256(f"{model_sha256} {pipeline.fast} {__version__}".encode()).hexdigest()[:24]
    path = folder / f"{key}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return FastError(**{**kept, "runs": tuple(kept["runs"]), "seconds": tuple(kept["seconds"])})
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or not readable: measured (again)
    side = int(pipeline.config.budget**0.5) * pipeline.geometry.cell_px
    across = np.linspace(60, 200, side)[None, :, None] * np.ones((side, 1, 3))
    across[side // 4 : side // 2, side // 3 : side // 2] = (200, 60, 40)
    picture = Image.fromarray(across.astype(np.uint8))
    from ace.inference.pipeline import Request  # the pipeline imports this file

    units = [ConditionUnit("a red apple on a green background"), ConditionUnit("make the background blue", (picture,))]
    error = measure_error(pipeline, [Request(LongContextConditionUnit(unit)) for unit in units])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(error)), encoding="utf-8")
    except OSError:
        pass  # a cache that cannot be written is measured again the next time
    return error


def compile_blocks(pipeline: ACEPipeline, backend: str = "inductor") -> None:
    """Compile the transformer's blocks with `torch.compile`, once for all of them (regional compilation).

    Exact up to rounding. The first steps at new sizes take long, and on CPUs a C++ compiler is needed; it pays for many
    pictures of the same sizes. backend: torch's name for what generates the code."""
    pipeline.transformer.compile_repeated_blocks(dynamic=True, backend=backend)
