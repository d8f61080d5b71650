"""Small FLUX transformers and ACE++ pipelines of the real classes with random weights, and their published layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from ace.plus.layouts import FluxSizes, flux_sizes, pieces
from ace.plus.pipeline import ACEPlusPipeline
from tests.random_models import randomise


def diffusers_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint in published names, in diffusers' names."""
    sizes = flux_sizes({name: tuple(value.shape) for name, value in published.items()})
    return {new: piece.of(published[piece.source]) for new, piece in pieces(sizes).items()}


def published_state(model: FluxTransformer2DModel) -> dict[str, Tensor]:
    """The weights of diffusers' model in published names: the inverse, written on its own."""
    state = model.state_dict()
    sizes = flux_sizes({name: tuple(value.shape) for name, value in state.items()})
    parts: dict[str, list[Tensor]] = {}
    for new, piece in pieces(sizes).items():
        value = state[new]
        parts.setdefault(piece.source, []).append(torch.cat(value.chunk(2)[::-1]) if piece.swapped else value)
    return {source: torch.cat(values).contiguous() for source, values in parts.items()}


def flux_with_narrow_mlp(sizes: FluxSizes, axes: Sequence[int], theta: int) -> FluxTransformer2DModel:
    """diffusers' model with an MLP of another ratio than 4 and any rotary axes, as the recorded toy networks have."""
    ratio_4 = FluxSizes(**{**vars(sizes), "mlp_size": 4 * sizes.hidden_size})
    model = FluxTransformer2DModel(**{**ratio_4.config(), "axes_dims_rope": tuple(axes)}).eval()
    model.pos_embed.theta = theta
    for block in model.transformer_blocks:
        for feed in (block.ff, block.ff_context):
            feed.net[0].proj = nn.Linear(sizes.hidden_size, sizes.mlp_size)
            feed.net[2] = nn.Linear(sizes.mlp_size, sizes.hidden_size)
    for block in model.single_transformer_blocks:
        block.mlp_hidden_dim = sizes.mlp_size
        block.proj_mlp = nn.Linear(sizes.hidden_size, sizes.mlp_size)
        block.proj_out = nn.Linear(sizes.hidden_size + sizes.mlp_size, sizes.hidden_size)
    return model


TOKENIZER = Path(__file__).parent / "parity" / "cases" / "tokenizer_plain"
SMALL = FluxSizes(384, 64, 64, 32, 1, 1, 64, 24, True, 256)  # rows of at least 64, as 4 bits need
SMALL_FFT = replace(SMALL, in_channels=448)


def random_words(pooled_channels: int, text_channels: int) -> tuple[CLIPTextModel, CLIPTokenizer, T5EncoderModel]:
    """FLUX's two text encoders, small, with the tokenizer of the first."""
    letters = [chr(c) for c in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=77)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=pooled_channels,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()
    text_encoder_2 = T5EncoderModel(
        T5Config(vocab_size=128, d_model=text_channels, d_kv=32, d_ff=64, num_layers=1, num_heads=2)
    ).eval()
    return text_encoder, tokenizer, text_encoder_2


def random_plus(sizes: FluxSizes = SMALL, seed: int = 0, **settings: object) -> ACEPlusPipeline:
    """An ACE++ pipeline whose parts are FLUX.1-Fill's, small, with random weights."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(**sizes.config()).eval()
    randomise(transformer, seed + 1, 0.05)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    text_encoder, tokenizer, text_encoder_2 = random_words(sizes.pooled_channels, sizes.text_channels)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    pipeline = ACEPlusPipeline(
        scheduler,
        vae,
        text_encoder,
        tokenizer,
        text_encoder_2,
        AutoTokenizer.from_pretrained(TOKENIZER),
        transformer,
        **{"max_text_tokens": 16, "num_inference_steps": 2, **settings},
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
