"""Training against recorded steps of the published trainers: ACE's loss and gradients, ACE++'s items, flow's loss."""

from __future__ import annotations

import pytest
import torch

from ace.diffusion import add_noise, diffusion_losses
from ace.diffusion.flow import flow_losses, flow_noise
from ace.model.convert import key_map
from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents, unpack_latents
from ace.training.canvas import training_canvas
from tests.parity.published_models import config_of, transformer_of


@pytest.mark.parity("train_ace")
def test_loss_and_gradients_of_a_published_step(case, assert_close):
    config = config_of(case.meta["config"])
    given = case.tensors
    model = transformer_of(config, case.weights("sd."), given["in.text_position_embeddings"])
    requests, sizes = [], []
    for n, sample in enumerate(case.meta["samples"]):
        texts = [given[f"in.context.{n}"][k, :length] for k, length in enumerate(sample["lens"])]
        edits = [given[f"in.edit.{n}.{k}"][0] for k in range(len(sample["edits"]))]
        masks = [given.get(f"in.edit_mask.{n}.{k}") for k in range(len(sample["edits"]))]
        mask = given.get(f"in.x_mask.{n}")
        sizes.append(tuple(sample["target"]))
        requests.append(
            RequestFrames(
                size=sizes[-1],
                texts=tuple(texts) if len(texts) == len(edits) + 1 else (texts[-1], *texts),
                target_mask=None if mask is None else mask[0],
                images=tuple(edits),
                image_masks=tuple(None if m is None else m[0] for m in masks),
            )
        )
    timestep = given["in.t"]
    noisy = add_noise(given["in.x0"], given["in.noise"], timestep, published=True)
    assert_close(noisy, given["out.x_t"], 1e-6)
    layout = make_layout(requests, config.patch_size, config.head_dim)
    conditions = [condition_patches(request, config.patch_size, 0) for request in requests]
    latents = [x[:, : h * w].unflatten(1, (h, w)) for x, (h, w) in zip(noisy, sizes, strict=True)]
    texts = torch.cat([text for request in requests for text in request.texts])
    predicted = model(pack_latents(latents, conditions, config.patch_size), timestep, layout, texts=texts)
    pictures = unpack_latents(predicted, layout, config.patch_size, config.latent_channels)
    padded = torch.stack(  # the published loss counts the padding, where the prediction is zero
        [torch.nn.functional.pad(p.flatten(1), (0, noisy.shape[2] - p.shape[1] * p.shape[2])) for p in pictures]
    )
    losses = diffusion_losses(padded, given["in.x0"], given["in.noise"], timestep, "epsilon")
    assert_close(losses.detach(), given["out.loss"], 1e-5)
    losses.mean().backward()
    ours = key_map(config)
    gradients = case.weights("out.grad.")
    assert gradients
    parameters = dict(model.named_parameters())
    for name, recorded in gradients.items():
        gradient = parameters[ours[name]].grad
        assert gradient is not None
        assert_close(gradient, recorded.reshape(gradient.shape), 1e-4)


@pytest.mark.parity("flow_loss")
def test_flow_noising_target_and_loss_are_the_published_ones(case, assert_close):
    given = case.tensors
    sigma = given["in.t"] / 1000
    assert_close(sigma, given["out.sigma"], 1e-6)
    noisy = flow_noise(given["in.x0"], given["in.noise"], sigma)
    assert_close(noisy, given["out.x_t"], 1e-6)
    prediction = 0.6 * noisy - 0.2 * sigma.reshape(-1, 1, 1)  # the recorded formula; its t is sigma
    target = given["in.noise"] - given["in.x0"]
    assert_close((prediction - target) ** 2, given["out.loss_none"], 1e-5)
    assert_close(flow_losses(prediction, given["in.x0"], given["in.noise"]), given["out.loss"], 1e-5)


@pytest.mark.parity("prep_train")
def test_items_of_the_published_trainer(case, assert_close):
    assert case.meta["rows"]
    for n, row in enumerate(case.meta["rows"]):
        given = {key: case.tensors.get(f"in.{n}.{key}") for key in ("target", "edit", "mask", "ref")}
        arrays = {key: None if value is None else value.numpy() for key, value in given.items()}
        canvas = training_canvas(
            arrays["target"],
            arrays["edit"],
            arrays["mask"],
            arrays["ref"],
            reference_height=(row["ref_heights"] or [0])[0],
            repainting_scale=case.meta["repainting_scale"],
            max_sequence=case.meta["max_seq_len"],
            modify_mode=case.meta["modify_mode"],
        )
        recorded = {key: case.tensors[f"out.{n}.{key}"] for key in ("image", "src_image", "modify_image", "image_mask")}
        assert_close(canvas.target, recorded["image"], 1e-6)
        assert_close(canvas.source, recorded["src_image"], 1e-6)
        assert_close(canvas.change, recorded["modify_image"], 1e-6)
        assert torch.equal(canvas.mask, recorded["image_mask"])
        assert torch.equal(canvas.mask, case.tensors[f"out.{n}.src_mask"])
