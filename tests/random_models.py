"""Small pipelines of the real classes with random weights, for tests of behaviour that no training is needed for."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from ace.diffusion import ACEDDIMScheduler
from ace.inference.pipeline import ACEPipeline
from ace.model.config import ACEConfig
from ace.model.text import encode_indicators
from ace.model.transformer import ACETransformer

TOKENIZER = Path(__file__).parent / "parity" / "cases" / "tokenizer_special"
PUBLISHED_LIKE = ACEConfig(hidden_size=48, depth=2, num_heads=4, text_channels=32, max_positions=64)
TINY_LIKE = ACEConfig(
    patch_size=1,
    hidden_size=48,
    depth=2,
    num_heads=4,
    text_channels=32,
    max_positions=64,
    learned_sigma=False,
    source_on_channels=True,
)


def randomise(module: nn.Module, seed: int, std: float = 0.2) -> None:
    """Give every weight a random value, also those that start at zero, so that nothing is hidden behind them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)


def random_transformer(config: ACEConfig, seed: int = 0) -> ACETransformer:
    torch.manual_seed(seed)
    model = ACETransformer(**vars(config)).eval()
    randomise(model, seed + 1)
    return model


def random_pipeline(config: ACEConfig = PUBLISHED_LIKE, **settings: object) -> ACEPipeline:
    """A pipeline whose pictures have `budget` cells: 8 px autoencoder cells, tokens of `patch_size` of them."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=4,
        scaling_factor=0.18215,
    ).eval()
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=114, d_model=config.text_channels, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    ).eval()
    randomise(text_encoder, 2)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    transformer = random_transformer(config)
    transformer.set_indicators(encode_indicators(tokenizer, text_encoder))
    pipeline = ACEPipeline(
        transformer,
        vae,
        text_encoder,
        tokenizer,
        ACEDDIMScheduler(),
        **{"budget": 16, "max_text_tokens": 24, **settings},
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
