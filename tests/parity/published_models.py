"""Models of the recorded cases, built from the weights that lie in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from ace.model.config import ACEConfig
from ace.model.convert import from_published
from ace.model.transformer import ACETransformer


def config_of(published: dict[str, Any]) -> ACEConfig:
    return ACEConfig(
        patch_size=published["PATCH_SIZE"],
        latent_channels=published["IN_CHANNELS"],
        hidden_size=published["HIDDEN_SIZE"],
        depth=published["DEPTH"],
        num_heads=published["NUM_HEADS"],
        mlp_ratio=published["MLP_RATIO"],
        text_channels=published["Y_CHANNELS"],
        max_positions=published["MAX_SEQ_LEN"],
        learned_sigma=published["PRED_SIGMA"],
        qk_norm=published["QK_NORM"],
    )


def transformer_of(
    config: ACEConfig, state: dict[str, torch.Tensor], indicators: torch.Tensor | None
) -> ACETransformer:
    model = ACETransformer(**vars(config)).eval()
    if indicators is None:
        indicators = torch.zeros_like(model.indicator_states)
    model.load_state_dict({**from_published(state, config), "indicator_states": indicators}, strict=True)
    return model


def text_encoder_of(config: dict[str, Any], state: dict[str, torch.Tensor]) -> T5EncoderModel:
    model = T5EncoderModel(T5Config(**config)).eval()
    incompatible = model.load_state_dict(state, strict=False)
    assert incompatible.missing_keys in ([], ["encoder.embed_tokens.weight"])  # tied to `shared`, which is there
    assert not incompatible.unexpected_keys
    return model


def tokenizer_of(folder: Path, name: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder / name)


class ToyVAE(ModelMixin, ConfigMixin):
    """The recordings' autoencoder: z = A avg_pool8(x) + b, x = tanh(B z) in blocks of 8x8."""

    @register_to_config
    def __init__(self, scaling_factor: float = 0.18215, block_out_channels: tuple[int, ...] = (1, 1, 1, 1)) -> None:
        super().__init__()
        self.A = torch.nn.Parameter(torch.zeros(4, 3))
        self.B = torch.nn.Parameter(torch.zeros(3, 4))
        self.b = torch.nn.Parameter(torch.zeros(4))

    def encode(self, x: torch.Tensor) -> AutoencoderKLOutput:
        pooled = torch.nn.functional.avg_pool2d(x, 8)
        z = torch.einsum("zc,nchw->nzhw", self.A, pooled) + self.b[:, None, None]
        return AutoencoderKLOutput(DiagonalGaussianDistribution(torch.cat([z, z], dim=1), deterministic=True))

    def decode(self, z: torch.Tensor) -> DecoderOutput:
        x = torch.tanh(torch.einsum("cz,nzhw->nchw", self.B, z))
        return DecoderOutput(x.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3))
