"""Schedule, noising and sampler against recorded runs of the published code (kinds ddim_schedule, ddim_addnoise,
ddim_traj)."""

import math

import pytest
import torch

from ace.diffusion import add_noise, ddim_plan, diffusion_losses, guide, linear_schedule
from tests.parity.published_schedule import allowed, recorded_scheduler

PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def recorded_network(meta: dict, x: torch.Tensor, timestep: int, offset: float) -> torch.Tensor:
    """The toy network of the recordings; its formula is in every case's json."""
    if meta["model"] == "linear":
        return 0.1 * x + 0.01 * timestep / 1000 + offset
    pattern = torch.sin(0.37 * torch.arange(math.prod(x.shape[1:]), dtype=torch.float32)).reshape(x.shape[1:])
    return 0.97 * x + 0.05 * torch.sin(2 * x) + 0.02 * timestep / 1000 + offset * pattern


def assert_within(ours: torch.Tensor, recorded: torch.Tensor, tolerance: torch.Tensor | float) -> None:
    """Every entry equal up to its own relative tolerance."""
    assert ours.shape == recorded.shape
    excess = (ours.double() - recorded.double()).abs() - tolerance * ours.double().abs()
    assert (excess <= 0).all(), f"entry {int(excess.argmax())} is off by {float(excess.max()):.2e} more than allowed"


@pytest.mark.parity("ddim_schedule")
def test_schedule_tables_are_the_published_ones(case):
    schedule = linear_schedule(case.meta["num_timesteps"], case.meta["beta_min"], case.meta["beta_max"])
    tolerance = allowed(torch.arange(len(schedule.betas)), schedule.alpha, schedule.sigma)
    assert_within(schedule.betas, case.tensors["out.betas"], 1e-6)
    assert_within(schedule.sigma, case.tensors["out.sigmas"], tolerance["sigma"])
    assert_within(schedule.alpha, case.tensors["out.alphas_bar"], tolerance["alpha"])
    well = slice(100, 600)  # not near the clean end, not near pure noise
    assert max(tolerance["k"][well]) < 2e-5
    assert tolerance["k"][-1] < 1e-2


@pytest.mark.parity("ddim_schedule")
def test_every_recorded_step_count_gives_the_published_steps(case):
    assert case.meta["steps"]
    for steps in case.meta["steps"]:
        plan = ddim_plan(steps)
        recorded = case.weights(f"out.steps{steps}.")
        tolerance = allowed(plan.timesteps.ceil(), plan.alpha[:-1], plan.sigma[:-1])
        assert torch.equal(plan.model_timesteps, recorded["t_model"])
        assert_within(plan.timesteps, recorded["t"], 1e-6)
        assert_within(plan.k, recorded["sigmas_k"], tolerance["k"])
        assert_within(plan.sigma[:-1], recorded["sigmas_vp"][:-1], tolerance["sigma"])
        assert plan.sigma[-1] == recorded["sigmas_vp"][-1] == 0
        assert_within(plan.floor_alpha, recorded["alpha_bar_init"], tolerance["alpha"])
        assert_within(plan.floor_sigma, recorded["sigma_init"], tolerance["sigma"])


@pytest.mark.parity("ddim_addnoise")
def test_noising_is_textbook_unless_the_published_form_is_asked_for(case, assert_close):
    given = case.tensors
    x_t = add_noise(given["in.x0"], given["in.noise"], given["in.t"], published=True)
    assert_close(x_t, given["out.x_t"], 1e-6)
    assert_close(add_noise(given["in.x0"], given["in.noise"], given["in.t"]), given["out.x_t_textbook"], 1e-6)


@pytest.mark.parity("ddim_addnoise")
def test_loss_per_sample_is_the_recorded_one(case, assert_close):
    given = case.tensors
    x_t = given["out.x_t"]
    pattern = torch.sin(0.37 * torch.arange(x_t[0].numel(), dtype=torch.float32)).reshape(x_t.shape[1:])
    time = given["in.t"].float().reshape(-1, 1, 1) / 1000
    prediction = 0.97 * x_t + 0.05 * torch.sin(2 * x_t) + 0.02 * time + case.meta["s"] * pattern
    losses = diffusion_losses(prediction, given["in.x0"], given["in.noise"], given["in.t"])
    assert_close(losses, given["out.loss"], 1e-6)


@pytest.mark.parity("ddim_traj")
def test_sampling_follows_the_recorded_trajectory(case, assert_close):
    meta, recorded = case.meta, case.tensors
    own = ddim_plan(meta["steps"])
    assert torch.equal(own.model_timesteps, recorded["out.t_model"][:, 0])
    assert_close(own.timesteps, recorded["out.t"], 1e-6)
    scheduler = recorded_scheduler(case.weights("out."), PREDICTION_TYPES[meta["prediction_type"]])
    scheduler.set_timesteps(meta["steps"])
    x = recorded["in.noise"]
    for step, timestep in enumerate(scheduler.timesteps):
        assert_close(x, recorded["out.x_t"][step], 1e-6)
        cond = recorded_network(meta, x, int(timestep), meta["s_cond"])
        uncond = recorded_network(meta, x, int(timestep), meta["s_uncond"])
        prediction = guide(cond, uncond, meta["guide_scale"] or 1.0, meta["guide_rescale"], published=True)
        result = scheduler.step(prediction, timestep, x)
        assert_close(result.pred_original_sample, recorded["out.x0_pred"][step], 1e-6)
        x = result.prev_sample
    assert_close(x, recorded["out.final"], 1e-6)
