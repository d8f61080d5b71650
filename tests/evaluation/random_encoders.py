"""CLIP and DINO of the real classes with random weights, and sets in the published layouts, small enough for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

from ace.evaluation.encoders import CLIP_FRAMING, DINO_FRAMING, ClipEncoder, DinoEncoder

WORDS = "a the red blue green cat dog hat on with picture of make add remove it".split()  # noqa: SIM905


def random_clip() -> ClipEncoder:
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": len(WORDS) + 4, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
        vision_config={**tower, "image_size": 224, "patch_size": 32},
        projection_dim=24,
    )
    names = ["<s>", "</s>", "<pad>", "<unk>", *WORDS]
    tokens = Tokenizer(WordLevel({word: n for n, word in enumerate(names)}, unk_token="<unk>"))
    tokens.pre_tokenizer = Whitespace()
    tokens.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    return ClipEncoder(CLIPModel(config), tokenizer, CLIP_FRAMING)


def random_dino() -> DinoEncoder:
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=32
    )
    return DinoEncoder(ViTModel(config, add_pooling_layer=False), DINO_FRAMING)


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def write_magicbrush(folder: Path) -> Path:
    """Two sessions, of three turns and one, in the archive's layout, with local captions."""
    sessions, captions = {}, {}
    for key, turns in (("101", 3), ("202", 1)):
        place = folder / "images" / key
        place.mkdir(parents=True)
        picture(int(key)).save(place / f"{key}-input.png")
        sessions[key], captions[key] = [], {}
        for number in range(1, turns + 1):
            output = f"{key}-output{number}.png"
            picture(int(key) + number).save(place / output)
            before = f"{key}-input.png" if number == 1 else f"{key}-output{number - 1}.png"
            turn = {"input": before, "mask": f"{key}-mask{number}.png", "output": output}
            sessions[key].append({**turn, "instruction": f"make it {WORDS[number + 1]}"})
            captions[key][output] = f"a {WORDS[number + 1]} cat"
    (folder / "edit_sessions.json").write_text(json.dumps(sessions))
    (folder / "local_descriptions.json").write_text(json.dumps(captions))
    return folder
