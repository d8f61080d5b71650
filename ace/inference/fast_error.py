"""What an approximate acceleration changes: the same requests made exactly and fast, from the same noise, compared.

Nobody has to believe in an acceleration: `measure_error` says what it does to requests of one's own, and `known_error`,
measured once per model, is what the command line prints.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ace import __version__
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.errors import ConfigError
from ace.inference.accelerate import Fast
from ace.inference.pipeline import ACEPipeline, Request


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
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # not measured yet, or not readable: measured (again)
    side = pipeline.geometry.side_px
    across = np.linspace(60, 200, side)[None, :, None] * np.ones((side, 1, 3))
    across[side // 4 : side // 2, side // 3 : side // 2] = (200, 60, 40)
    picture = Image.fromarray(across.astype(np.uint8))
    units = [ConditionUnit("a red apple on a green background"), ConditionUnit("make the background blue", (picture,))]
    error = measure_error(pipeline, [Request(LongContextConditionUnit(unit)) for unit in units])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(error)), encoding="utf-8")
    except OSError:
        pass  # a cache that cannot be written is measured again the next time
    return error
