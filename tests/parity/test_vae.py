"""The published autoencoder's weights in diffusers' class."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from ace.model.convert import vae_from_published


def autoencoder_of(case) -> AutoencoderKL:
    encoder = case.meta["config"]["ENCODER"]
    levels = len(encoder["CH_MULT"])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(encoder["CH"] * factor for factor in encoder["CH_MULT"]),
        layers_per_block=encoder["NUM_RES_BLOCKS"],
        latent_channels=encoder["Z_CHANNELS"],
    ).eval()


@pytest.mark.parity("vae_kl")
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("quant_names", [("conv1", "conv2"), ("quant_conv", "post_quant_conv")])
def test_autoencoder_computes_what_the_published_one_does(case, assert_close, prefix, quant_names):
    state = {}
    for name, value in case.weights("sd.").items():
        first, _, rest = name.partition(".")
        first = {"conv1": quant_names[0], "conv2": quant_names[1]}.get(first, first)
        state[f"{prefix}{first}.{rest}"] = value
    vae = autoencoder_of(case)
    vae.load_state_dict(vae_from_published(state, vae), strict=True)
    with torch.no_grad():
        moments = vae.encode(case.tensors["in.x"]).latent_dist.parameters
        decoded = vae.decode(case.tensors["in.z"]).sample
    assert_close(moments, case.tensors["out.moments"], 1e-5)
    assert_close(decoded, case.tensors["out.decoded"], 1e-5)
