"""The network, adapters and sampler of ACE++ against the recorded published code."""

from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models import embeddings

from ace.plus.inputs import condition_tokens, fold_mask, pack, position_ids, shift_mu, unpack
from ace.plus.layouts import FluxSizes, check_checkpoint, flux_sizes, pieces, read_adapter
from tests.random_flux import diffusers_state, flux_with_narrow_mlp


def flow_scheduler():
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )


@pytest.mark.parity("mask_fold")
def test_mask_folds_into_the_recorded_channels(case):
    assert torch.equal(fold_mask(case.tensors["in.mask"]), case.tensors["out.mask64"][0])


def frequencies_moved(by: float):
    """diffusers' timestep embedding with every frequency times 1 + by."""
    plain = embeddings.get_timestep_embedding

    def moved(timesteps: torch.Tensor, *arguments: Any, scale: float = 1, **settings: Any) -> torch.Tensor:
        return plain(timesteps.float() * (1 + by), *arguments, scale=scale, **settings)

    return mock.patch.object(embeddings, "get_timestep_embedding", moved)


@pytest.mark.parity("flux")
@torch.no_grad()
def test_diffusers_transformer_with_our_weights_and_tokens_predicts_the_recorded_velocity(case, assert_close):
    published = case.weights("sd.")
    shapes = {name: tuple(value.shape) for name, value in published.items()}
    sizes = flux_sizes(shapes)
    check_checkpoint(shapes, sizes)
    axes, theta = case.meta["config"]["AXES_DIM"], case.meta["config"]["THETA"]
    assert sum(axes) == sizes.head_dim
    model = flux_with_narrow_mlp(sizes, axes, theta)
    model.load_state_dict(diffusers_state(published), strict=True)
    for number, (height, width) in enumerate(case.meta["sizes"]):
        noise = case.tensors["in.x"][number, :, : height * width].reshape(16, height, width)
        mask = torch.nn.functional.pixel_shuffle(case.tensors[f"in.edit_mask.{number}"], 8)
        condition = condition_tokens(case.tensors[f"in.edit.{number}"], mask, case.tensors.get(f"in.modify.{number}"))
        tokens = torch.cat([pack(noise), condition], dim=1)
        if number == 0 and "mid.img_tokens" in case.tensors:
            assert torch.equal(tokens, case.tensors["mid.img_tokens"])
        text = case.tensors[f"in.context.{number}"]
        inputs = {
            "hidden_states": tokens[None],
            "encoder_hidden_states": text[None],
            "pooled_projections": case.tensors[f"in.y.{number}"],
            "timestep": case.tensors["in.t"][number : number + 1],
            "guidance": case.tensors["in.guidance"][number : number + 1] if sizes.guidance else None,
            "img_ids": position_ids(height, width),
            "txt_ids": torch.zeros(len(text), 3),
            "return_dict": False,
        }
        (velocity,) = model(**inputs)
        recorded = case.tensors["out.v"][number, :, : height * width].reshape(16, height, width)
        # Guidance 50 enters as the sine of angles up to 50,000 rad, so the last bit of a frequency, which torch's exp
        # rounds differently by processor, is worth 0.006 rad there and up to 1e-3 of the velocity.
        moved = []
        for by in (2**-23, -(2**-23)):
            with frequencies_moved(by):
                moved.append(float((model(**inputs)[0] - velocity).abs().max() / recorded.abs().max()))
        assert max(moved) < 5e-3
        assert_close(unpack(velocity[0], height, width), recorded, 1e-4 + max(moved))


@pytest.mark.parity("lora")
def test_an_adapter_file_changes_the_published_weights_as_recorded(case, assert_close):
    config = case.meta["config"]
    tensors = case.weights("in.lora.")
    hidden = config["HIDDEN_SIZE"]
    sizes = FluxSizes(
        config["IN_CHANNELS"], 64, hidden, hidden // config["NUM_HEADS"], config["DEPTH"],
        config["DEPTH_SINGLE_BLOCKS"], config["CONTEXT_IN_DIM"], config["VEC_IN_DIM"], True,
        int(hidden * config["MLP_RATIO"]),
    )  # fmt: skip
    adapter = read_adapter(tensors, sizes, case.name)
    assert adapter.rank == case.meta["rank"]
    targeted = {piece.source.removesuffix(".weight") for new, piece in pieces(sizes).items() if new in adapter.deltas}
    assert targeted == set(case.meta["target_modules"])
    for name in case.meta["kept_deltas"]:
        ours = torch.cat(
            [
                adapter.deltas[new].apply(torch.zeros(len(delta.up), delta.down.shape[1]), 1.0)
                for new, piece in pieces(sizes).items()
                if piece.source == f"{name}.weight" and (delta := adapter.deltas[new])
            ]
        )
        assert_close(ours, case.tensors[f"out.delta.{name}.weight"], 1e-6)


@pytest.mark.parity("flow_sigmas")
def test_noise_levels_of_a_canvas_are_the_recorded_ones(case):
    for height, width, steps in case.meta["entries"]:
        scheduler = flow_scheduler()
        sigmas = torch.linspace(1, 1 / steps, steps).tolist()
        scheduler.set_timesteps(sigmas=sigmas, mu=shift_mu(height * width // 256))
        recorded = case.tensors[f"out.{height}x{width}.steps{steps}.sigmas"]
        torch.testing.assert_close(scheduler.sigmas, recorded, atol=1e-6, rtol=0)


@pytest.mark.parity("flow")
def test_euler_steps_follow_the_recorded_trajectory(case, assert_close):
    if "FluxShift" not in case.meta["scheduler"]:
        return  # the refiner of the 1024 px model, another room's
    scheduler = flow_scheduler()
    steps = case.meta["steps"]
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=shift_mu(case.meta["seq_len"]))
    latents = case.tensors["in.noise"]
    for number, timestep in enumerate(scheduler.timesteps):
        if f"out.x_t.{number}" in case.tensors:
            assert_close(latents, case.tensors[f"out.x_t.{number}"], 1e-5)
        velocity = 0.6 * latents + 0.1 * torch.sin(3 * latents) - 0.2 * timestep / 1000
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    assert_close(latents, case.tensors["out.final"], 1e-5)
