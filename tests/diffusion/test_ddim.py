"""The sampler: its plan for every step count, mixtures of requests, and its life as a diffusers scheduler."""

import decimal
import hashlib
import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from ace.diffusion import DIFFUSERS_SCHEDULE, ACEDDIMScheduler, add_noise, ddim_plan, ddim_step, linear_schedule
from ace.diffusion.loss import prediction_target
from ace.diffusion.noise import SCHEDULE_RULES
from ace.errors import ConfigError, ShapeError

TYPES = ("epsilon", "v_prediction", "sample")


def test_every_step_count_falls_from_the_last_timestep_and_ends_without_noise():
    for steps in range(1, 1001):
        plan = ddim_plan(steps)
        assert plan.model_timesteps[0] == 999
        assert 0 <= plan.model_timesteps[-1] <= plan.model_timesteps[0]
        assert (plan.timesteps.diff() < 0).all()
        assert (plan.sigma.diff() < 0).all()
        assert plan.sigma[-1] == 0
        assert len(plan) == math.ceil(1000 / (1000 / steps))


def test_the_counts_that_gain_a_step_are_the_published_ones():
    longer = [steps for steps in range(1, 301) if len(ddim_plan(steps)) == steps + 1]
    assert longer == [61, 103, 121, 122, 201, 206, 217, 223, 227, 233, 242, 244]


def test_plans_and_tables_are_the_same_to_the_bit_on_every_machine():
    """If this fails on purpose, `SCHEDULE_RULES` goes up: pictures change, and recipes have to know it."""
    digest = hashlib.sha256()
    schedule = linear_schedule()
    tables = [schedule.betas, schedule.alpha_bar, schedule.alpha, schedule.sigma]
    for steps in range(1, 1001):
        tables += vars(ddim_plan(steps)).values()
    for table in tables:
        digest.update(table.numpy().tobytes())
    assert (SCHEDULE_RULES, digest.hexdigest()[:16]) == (2, "a4d96079c597c557")


def test_the_plan_is_that_of_the_definition_in_exact_numbers():
    with decimal.localcontext(prec=40):
        product, ks = decimal.Decimal(1), []
        for t in range(1000):
            product *= 1 - (decimal.Decimal("0.0001") + decimal.Decimal("0.0199") * t / 999)
            ks.append(((1 - product) / product).sqrt())
        for steps in (1, 7, 20, 61, 400):
            plan = ddim_plan(steps)
            for t, k, sigma in zip(plan.timesteps.tolist(), plan.k.tolist(), plan.sigma.tolist(), strict=False):
                low, high, share = ks[int(t)], ks[math.ceil(t)], decimal.Decimal(t - int(t))
                exact = low * ((high / low).ln() * share).exp()
                assert k == pytest.approx(float(exact), rel=1e-7)
                assert sigma == pytest.approx(float(exact / (1 + exact**2).sqrt()), rel=1e-7)


def test_fractional_timesteps_are_rounded_for_the_network_and_floored_for_the_clean_estimate():
    plan, schedule = ddim_plan(30), linear_schedule()
    assert plan.timesteps[1].item() == pytest.approx(965.6667, abs=1e-3)
    assert plan.model_timesteps[1] == 966
    assert plan.floor_sigma[1] == schedule.sigma[965]
    assert schedule.sigma[965] < plan.sigma[1] < schedule.sigma[966]
    assert ddim_plan(400).timesteps[1] == 996.5
    assert ddim_plan(400).model_timesteps[1] == 996  # half to even


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("steps", [1, 7, 20, 61])
def test_a_perfect_network_is_sampled_to_its_clean_latents(prediction_type, steps):
    clean = torch.randn(2, 4, 6)
    scheduler = ACEDDIMScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(steps)
    x, plan = torch.randn(2, 4, 6), scheduler.plan
    for i, timestep in enumerate(scheduler.timesteps):
        alpha, sigma = plan.floor_alpha[i], plan.floor_sigma[i]
        noise = (x - alpha * clean) / sigma
        output = {"epsilon": noise, "sample": clean, "v_prediction": (alpha * x - clean) / sigma}[prediction_type]
        result = scheduler.step(output, timestep, x)
        x = result.prev_sample
    torch.testing.assert_close(x, clean, atol=2e-3, rtol=0)
    assert torch.equal(x, result.pred_original_sample)


def test_one_step_keeps_latents_on_the_line_between_clean_and_noise():
    x, noise = torch.randn(1, 50), torch.randn(1, 50)
    plan = ddim_plan(20)
    noisy = add_noise(x, noise, plan.model_timesteps[8:9])
    result = ddim_step(noise, noisy, plan, 8)
    expected = add_noise(x, noise, plan.model_timesteps[9:10])
    torch.testing.assert_close(result.prev_sample, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(result.pred_original_sample, x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_requests_at_different_steps_of_different_plans_are_stepped_as_if_alone(prediction_type):
    plans, indices, lengths = [ddim_plan(5), ddim_plan(30), ddim_plan(50)], [4, 0, 17], [6, 1, 3]
    output, x = torch.randn(10, 8), torch.randn(10, 8)
    together = ddim_step(output, x, plans, indices, prediction_type, lengths=lengths)
    for n, (o, s) in enumerate(zip(output.split(lengths), x.split(lengths), strict=True)):
        alone = ddim_step(o, s, plans[n], indices[n], prediction_type)
        assert torch.equal(together.prev_sample.split(lengths)[n], alone.prev_sample)
        assert torch.equal(together.pred_original_sample.split(lengths)[n], alone.pred_original_sample)


def test_it_agrees_with_diffusers_trailing_ddim_where_steps_divide_the_schedule_and_not_elsewhere():
    def sample(scheduler, steps):
        scheduler.set_timesteps(steps)
        x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            x = scheduler.step(0.9 * x + 0.05 * torch.sin(2 * x), t, x).prev_sample
        return x

    theirs = DDIMScheduler(
        **DIFFUSERS_SCHEDULE, clip_sample=False, set_alpha_to_one=True, prediction_type="v_prediction"
    )
    ours = ACEDDIMScheduler(prediction_type="v_prediction")
    torch.testing.assert_close(sample(ours, 20), sample(theirs, 20), atol=1e-4, rtol=0)
    assert (sample(ours, 30) - sample(theirs, 30)).abs().max() > 1e-3


@pytest.mark.parametrize("solver", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_fast_solvers_of_diffusers_run_on_the_same_betas(solver):
    scheduler = solver(**DIFFUSERS_SCHEDULE, prediction_type="v_prediction")
    assert torch.equal(scheduler.betas, linear_schedule().betas)
    torch.testing.assert_close(scheduler.alphas_cumprod, linear_schedule().alpha_bar, rtol=5e-6, atol=0)
    scheduler.set_timesteps(8)
    clean, x = torch.randn(1, 64), torch.randn(1, 64)
    schedule = linear_schedule()
    for t in scheduler.timesteps:
        sigma = schedule.sigma[t]
        noise = (x - schedule.alpha[t] * clean) / sigma
        x = scheduler.step(prediction_target(clean, noise, t[None], "v_prediction"), t, x).prev_sample
    torch.testing.assert_close(x, clean, atol=2e-2, rtol=0)


def test_settings_survive_saving_and_loading(tmp_path):
    ACEDDIMScheduler(500, 2e-4, 0.01, "v_prediction").save_pretrained(tmp_path)
    loaded = ACEDDIMScheduler.from_pretrained(tmp_path)
    assert loaded.config.prediction_type == "v_prediction"
    assert loaded.schedule.num_train_timesteps == 500
    loaded.set_timesteps(10)
    original = ACEDDIMScheduler(500, 2e-4, 0.01, "v_prediction")
    original.set_timesteps(10)
    assert torch.equal(loaded.plan.sigma, original.plan.sigma)
    assert torch.equal(ACEDDIMScheduler.from_config(loaded.config).schedule.sigma, original.schedule.sigma)


def test_another_run_starts_over_and_a_later_start_is_possible():
    scheduler, x = ACEDDIMScheduler(), torch.randn(1, 8)
    scheduler.set_timesteps(4)
    first = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    assert scheduler.step_index == 1
    scheduler.set_timesteps(4)
    assert torch.equal(scheduler.step(x, scheduler.timesteps[0], x, return_dict=False)[0], first)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    later = scheduler.step(x, scheduler.timesteps[2], x).prev_sample
    assert torch.equal(later, ddim_step(x, x, scheduler.plan, 2).prev_sample)


def test_two_steps_that_round_to_one_network_timestep_are_both_taken():
    scheduler, x = ACEDDIMScheduler(prediction_type="sample"), torch.randn(1, 8)
    repeated = next(s for s in range(900, 1000) if len(set(ddim_plan(s).model_timesteps.tolist())) < len(ddim_plan(s)))
    scheduler.set_timesteps(repeated)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    assert scheduler.step_index == len(scheduler.plan)
    assert x.abs().max() == 0


def test_what_cannot_be_done_is_refused():
    x = torch.zeros(2, 3)
    for steps in (0, -1, 1001):
        with pytest.raises(ConfigError, match="choose 1 to 1000"):
            ddim_plan(steps)
    with pytest.raises(ConfigError, match="unknown prediction type"):
        ACEDDIMScheduler(prediction_type="eps")
    with pytest.raises(ConfigError, match="set_timesteps first"):
        ACEDDIMScheduler().step(x, 999, x)
    with pytest.raises(ConfigError, match="finished"):
        ddim_step(x, x, ddim_plan(5), 5)
    with pytest.raises(ShapeError, match="differ"):
        ddim_step(x, torch.zeros(2, 4), ddim_plan(5), 0)
    with pytest.raises(ShapeError, match="one per sample"):
        ddim_step(x, x, [ddim_plan(5)], [0, 1])
    with pytest.raises(ShapeError, match="add up"):
        ddim_step(x, x, ddim_plan(5), 0, lengths=[1])
    scheduler = ACEDDIMScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ConfigError, match="not one of"):
        scheduler.step(x, 998, x)
