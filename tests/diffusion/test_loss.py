"""Targets, weights and the ragged mean."""

import pytest
import torch

from ace.diffusion.loss import diffusion_loss, diffusion_losses, mean_per_sample, min_snr_weight, prediction_target
from ace.diffusion.noise import add_noise, linear_schedule
from ace.errors import ConfigError, ShapeError

TYPES = ("epsilon", "v_prediction", "sample")


@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_does(prediction_type):
    x, noise, t = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.tensor([0, 500, 999])
    target = prediction_target(x, noise, t, prediction_type)
    assert diffusion_loss(target, x, noise, t, prediction_type) == 0
    assert diffusion_loss(target + 1, x, noise, t, prediction_type).item() == pytest.approx(1.0, abs=1e-5)


def test_v_and_the_noisy_latents_give_back_latents_and_noise():
    x, noise, t = torch.randn(4, 6), torch.randn(4, 6), torch.tensor([1, 300, 700, 999])
    v, noisy = prediction_target(x, noise, t, "v_prediction"), add_noise(x, noise, t)
    schedule = linear_schedule()
    alpha, sigma = schedule.alpha[t][:, None], schedule.sigma[t][:, None]
    torch.testing.assert_close(alpha * noisy - sigma * v, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(sigma * noisy + alpha * v, noise, atol=1e-5, rtol=0)


def test_a_large_picture_weighs_as_much_as_a_small_one():
    values = torch.cat([torch.full((100, 2), 1.0), torch.full((1, 2), 3.0)])
    assert mean_per_sample(values, [100, 1]).tolist() == [1.0, 3.0]


def test_packed_losses_equal_each_sample_alone():
    lengths, t = [4, 2, 7], torch.tensor([20, 500, 980])
    x, noise, prediction = torch.randn(13, 8), torch.randn(13, 8), torch.randn(13, 8)
    packed = diffusion_losses(prediction, x, noise, t, "v_prediction", lengths=lengths, min_snr_gamma=5.0)
    for n, (p, a, b) in enumerate(zip(prediction.split(lengths), x.split(lengths), noise.split(lengths), strict=True)):
        alone = diffusion_losses(p[None], a[None], b[None], t[n : n + 1], "v_prediction", min_snr_gamma=5.0)
        torch.testing.assert_close(packed[n : n + 1], alone)


def test_min_snr_weighs_the_same_error_of_the_clean_latents_alike_for_every_prediction_type():
    t = torch.tensor([5, 200, 600, 950])
    schedule = linear_schedule()
    alpha, sigma = schedule.alpha[t][:, None], schedule.sigma[t][:, None]
    x, noise, error = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 6) * 0.1
    wrong = {"sample": x + error, "epsilon": noise - alpha / sigma * error}
    noisy = add_noise(x, noise, t)
    wrong["v_prediction"] = (alpha * noisy - (x + error)) / sigma
    losses = {k: diffusion_losses(v, x, noise, t, k, min_snr_gamma=5.0) for k, v in wrong.items()}
    torch.testing.assert_close(losses["epsilon"], losses["sample"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses["v_prediction"], losses["sample"], rtol=1e-3, atol=1e-5)


def test_min_snr_leaves_noisy_timesteps_alone_and_damps_clean_ones_for_epsilon():
    weight = min_snr_weight(torch.tensor([0, 999]), "epsilon", 5.0)
    assert weight[0] < 1e-3
    assert weight[1] == 1


def test_gradients_reach_the_prediction():
    prediction = torch.zeros(3, 2, requires_grad=True)
    diffusion_loss(prediction, torch.randn(3, 2), torch.randn(3, 2), torch.tensor([4, 8]), lengths=[1, 2]).backward()
    assert prediction.grad.abs().min() > 0


def test_what_does_not_fit_is_refused():
    x, t = torch.zeros(2, 3), torch.tensor([1, 2])
    with pytest.raises(ConfigError, match="unknown prediction type 'eps'"):
        diffusion_loss(x, x, x, t, "eps")
    with pytest.raises(ShapeError, match="learned-sigma"):
        diffusion_loss(torch.zeros(2, 6), x, x, t)
    with pytest.raises(ShapeError, match="one per sample"):
        diffusion_loss(x, x, x, torch.tensor([1]))
    with pytest.raises(ShapeError, match="add up"):
        mean_per_sample(x, [1, 2])
    with pytest.raises(ShapeError, match="without rows"):
        mean_per_sample(x, [2, 0])
    with pytest.raises(ConfigError, match="gamma"):
        min_snr_weight(t, gamma=0.0)


def test_row_weights_turn_a_samples_loss_into_a_weighted_mean_of_its_own_rows():
    latents = torch.zeros(5, 2)
    noise = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]]).expand(5, 2)
    timestep = torch.tensor([10, 500])
    weights = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0])
    given = {"lengths": [2, 3], "row_weights": weights}
    losses = diffusion_losses(torch.zeros(5, 2), latents, noise, timestep, "epsilon", **given)
    assert torch.allclose(losses, torch.tensor([(1 + 3 * 4) / 4, (9 + 16 + 25) / 3]))
