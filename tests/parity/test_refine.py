"""The refiner's levels and steps against the recorded ones."""

from __future__ import annotations

import pytest
import torch

from ace.diffusion import flow_euler, refiner_sigmas


@pytest.mark.parity("flow")
def test_the_refiners_trajectory_is_the_recorded_one(case, assert_close):
    if "refiner" not in case.meta["scheduler"]:
        return  # ACE++'s, see test_plus.py
    strength = case.meta["reverse_scale"]
    sigmas = refiner_sigmas(case.meta["steps"], 1.0 if strength < 0 else strength)
    torch.testing.assert_close(sigmas, case.tensors["out.sigmas"], atol=1e-6, rtol=0)
    seen: list[tuple[torch.Tensor, float]] = []

    def velocity(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append((latents, sigma))
        return 0.6 * latents + 0.1 * torch.sin(3 * latents) - 0.2 * sigma

    noise = case.tensors["in.noise"]
    clean = case.tensors.get("in.x", torch.zeros_like(noise))
    final = flow_euler(velocity, clean, noise, sigmas)
    assert_close(torch.tensor([sigma for _, sigma in seen]), case.tensors["out.model_t"], 1e-6)
    assert_close(seen[0][0], case.tensors["out.x_start"], 1e-6)
    for number in case.meta["kept_steps"]:
        assert_close(seen[number][0], case.tensors[f"out.x_t.{number}"], 1e-5)
    assert_close(final, case.tensors["out.final"], 1e-5)
