"""A small WanVACEPipeline of the real classes with random weights, as a folder that it was saved to."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanVACEPipeline, WanVACETransformer3DModel
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from tests.random_flux import TOKENIZER
from tests.random_models import randomise


def random_vace() -> WanVACEPipeline:
    """Four layers, two of them VACE's; an autoencoder of cells of 8 px and 4 frames."""
    torch.manual_seed(0)
    transformer = WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=3,
        rope_max_seq_len=64,
        vace_layers=[0, 2],
        vace_in_channels=96,
    ).eval()
    randomise(transformer, 1, 0.05)
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    text = UMT5EncoderModel(UMT5Config(vocab_size=128, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)).eval()
    return WanVACEPipeline(
        tokenizer=AutoTokenizer.from_pretrained(TOKENIZER),
        text_encoder=text,
        vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer,
    )


def save_vace(folder: Path) -> Path:
    """The pipeline as a folder."""
    random_vace().save_pretrained(folder)
    return folder
