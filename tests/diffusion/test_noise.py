"""The schedule, noising and per-image noise."""

import pytest
import torch

from ace.diffusion.noise import add_noise, linear_schedule, per_token, sample_noise, seeded_generator
from ace.errors import ConfigError, ShapeError


def test_alpha_bar_is_the_product_of_one_minus_beta():
    schedule = linear_schedule()
    expected = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    assert schedule.num_train_timesteps == 1000
    torch.testing.assert_close(schedule.alpha_bar.double(), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(schedule.alpha_bar + schedule.sigma**2, torch.ones(1000))


@pytest.mark.parametrize(("timestep", "signal", "noise"), [(0, 0.99995, 0.01), (999, 0.00635, 0.99998)])
def test_timestep_zero_is_the_clean_end(timestep, signal, noise):
    one, zero, t = torch.ones(1, 3), torch.zeros(1, 3), torch.tensor([timestep])
    torch.testing.assert_close(add_noise(one, zero, t), torch.full((1, 3), signal), atol=1e-5, rtol=0)
    torch.testing.assert_close(add_noise(zero, one, t), torch.full((1, 3), noise), atol=1e-5, rtol=0)


def test_noised_unit_latents_keep_unit_variance_but_not_in_the_published_form():
    latents = sample_noise((1, 100_000), seeded_generator(0))
    noise = sample_noise((1, 100_000), seeded_generator(1))
    t = torch.tensor([600])
    assert add_noise(latents, noise, t).std().item() == pytest.approx(1.0, abs=0.01)
    assert add_noise(latents, noise, t, published=True).std().item() > 1.3


def test_packed_tokens_with_one_timestep_per_sample_equal_each_sample_alone():
    lengths, timestep = [3, 5, 1], torch.tensor([10, 900, 400])
    latents, noise = torch.randn(9, 16), torch.randn(9, 16)
    packed = add_noise(latents, noise, per_token(timestep, lengths))
    alone = [
        add_noise(x[None], n[None], t[None])[0]
        for x, n, t in zip(latents.split(lengths), noise.split(lengths), timestep, strict=True)
    ]
    assert torch.equal(packed, torch.cat(alone))


def test_half_precision_latents_are_noised_in_float32_and_come_back_in_their_dtype():
    latents, noise, t = torch.randn(2, 4).bfloat16(), torch.randn(2, 4), torch.tensor([5, 990])
    result = add_noise(latents, noise, t)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, add_noise(latents.float(), noise, t).bfloat16())


def test_noise_depends_on_the_images_own_seed_alone():
    first = sample_noise((4, 8, 8), seeded_generator(7))
    torch.manual_seed(123)
    torch.randn(5)
    assert torch.equal(first, sample_noise((4, 8, 8), seeded_generator(7)))
    assert not torch.equal(first, sample_noise((4, 8, 8), seeded_generator(8)))
    assert first.dtype == torch.float32 and first.device.type == "cpu"


def test_shapes_that_do_not_fit_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ShapeError, match="differ"):
        add_noise(x, torch.zeros(2, 4), torch.tensor([1, 2]))
    with pytest.raises(ShapeError, match="one entry per row"):
        add_noise(x, x, torch.tensor([1]))
    with pytest.raises(ShapeError, match="fractional"):
        add_noise(x, x, torch.tensor([1.0, 2.5]))
    with pytest.raises(ShapeError, match="one length per sample"):
        per_token(torch.tensor([1, 2]), [3])


def test_impossible_betas_are_refused():
    for start, end in ((0.0, 0.02), (0.02, 0.01), (0.01, 1.0)):
        with pytest.raises(ConfigError, match="betas"):
            linear_schedule(1000, start, end)
    with pytest.raises(ConfigError, match="at least 1"):
        linear_schedule(0)
