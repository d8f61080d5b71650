"""Small pipelines of diffusers that edit images, with random weights, as folders that they were saved to."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from tests.random_flux import TOKENIZER, random_words
from tests.random_models import randomise

# Two levels: cells of 2 px, so that images of 32x32 px are 64 tokens.
_LEVELS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}


def save_kontext(folder: Path) -> Path:
    """A small FLUX.1 Kontext: one image, negative instructions."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    randomise(transformer, 1, 0.05)
    clip, tokenizer, t5 = random_words(32, 32)
    FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKL(**_LEVELS, scaling_factor=0.36, shift_factor=0.12).eval(),
        text_encoder=clip,
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=AutoTokenizer.from_pretrained(TOKENIZER),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def save_klein(folder: Path) -> Path:
    """A small FLUX.2 klein: several images or none, no negative instructions."""
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    ).eval()
    randomise(transformer, 1, 0.05)
    letters = {letter: number for number, letter in enumerate(("<|endoftext|>", *sorted(ByteLevel.alphabet())))}
    tokenizer = Qwen2Tokenizer(vocab=letters, merges=[])
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(letters),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=28,  # it reads the 9th, 18th and 27th
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    ).eval()
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLFlux2(**_LEVELS, sample_size=32).eval(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder
