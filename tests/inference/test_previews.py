"""Previews of the model in the package: what they show is where the picture is going."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from PIL import Image

from ace import load_tiny
from ace.conditions.units import ConditionUnit, LongContextConditionUnit
from ace.diffusion import DIFFUSERS_SCHEDULE, add_noise, seeded_generator
from ace.diffusion.loss import prediction_target
from ace.inference.latents import encode_pictures
from ace.inference.pipeline import ACEPipeline, Request
from ace.inference.previews import CELL_PX, fit_colours, predicted_clean


@pytest.fixture(scope="module")
def pipeline() -> ACEPipeline:
    pipeline = load_tiny("cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference in levels of 255, at the first one's size."""
    small = np.asarray(second.resize(first.size, Image.Resampling.BOX), dtype=float)
    return float(np.abs(np.asarray(first, dtype=float) - small).mean())


def test_colours_of_latents_are_those_of_the_picture(pipeline):
    halves = torch.ones(3, 64, 64) * torch.tensor([0.7, -0.5, -0.6])[:, None, None]
    halves[:, :, 32:] = torch.tensor([-0.4, 0.2, 0.5])[:, None, None]
    (latents,) = encode_pictures(pipeline.vae, [halves])
    shown = fit_colours(pipeline.vae).picture(latents)
    assert shown.shape == (3, 8 * CELL_PX, 8 * CELL_PX)
    for side in (slice(4, 12), slice(20, 28)):
        expected = halves[:, 0, 2 * side.start]
        assert (shown[:, 4:28, side].mean(dim=(1, 2)) - expected).abs().max() < 0.3
    assert torch.equal(shown, fit_colours(pipeline.vae).picture(latents))


def test_previews_come_closer_to_the_picture_step_by_step(pipeline):
    shown, exact = [], []

    def look(pipe: ACEPipeline, step: int, states) -> None:
        shown.append(pipe.preview(states[0]))
        exact.append(pipe.preview(states[0], exact=True))

    made = pipeline("a red apple", num_inference_steps=6, generator=seeded_generator(1), callback_on_step_end=look)
    (picture,) = made.images
    assert len(shown) == 6
    assert exact[-1].tobytes() == picture.tobytes()
    assert difference(exact[0], picture) > difference(exact[3], picture) > 0
    assert difference(shown[-1], picture) < 30


def test_a_preview_can_be_had_before_the_first_step_and_with_other_solvers(pipeline):
    solver = pipeline.scheduler
    pipeline.scheduler = UniPCMultistepScheduler(**DIFFUSERS_SCHEDULE, prediction_type=solver.config.prediction_type)
    try:
        looks = []
        made = pipeline(
            "a red apple",
            num_inference_steps=5,
            generator=seeded_generator(1),
            callback_on_step_end=lambda pipe, step, states: looks.append(pipe.preview(states[0], exact=True)),
        )
        (state,) = pipeline.prepare([Request(LongContextConditionUnit(ConditionUnit("a red apple")))])
        side = pipeline.geometry.side_px // pipeline.geometry.latent_px * CELL_PX
        assert pipeline.preview(state).size == (side, side)
    finally:
        pipeline.scheduler = solver
    assert difference(looks[1], made.images[0]) > difference(looks[3], made.images[0])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_clean_latents_are_found_in_a_right_prediction(prediction_type):
    scheduler = UniPCMultistepScheduler(**DIFFUSERS_SCHEDULE, prediction_type=prediction_type)
    clean, noise, timestep = torch.randn(4, 6, 5), torch.randn(4, 6, 5), torch.tensor([400])
    noisy = add_noise(clean[None], noise[None], timestep)[0]
    target = prediction_target(clean[None], noise[None], timestep, prediction_type)[0]
    assert (predicted_clean(target, noisy, timestep[0], scheduler) - clean).abs().max() < 1e-5
