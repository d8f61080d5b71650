"""What can be measured: a real server over HTTP, a real diffusers pipeline, and the refusals of both."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from ace.conditions import ConditionUnit, LongContextConditionUnit, Turn
from ace.conversation import Loading
from ace.errors import ConditionError, DataError
from ace.evaluation.systems import contestant_of, edit_over_http
from ace.families import find_family
from tests.server.running import running

from .random_encoders import picture, random_clip

SHOWN = picture(1, (64, 64))
WITH_HISTORY = LongContextConditionUnit(
    ConditionUnit("now red", (SHOWN,)), (Turn(ConditionUnit("add a cat", (SHOWN,)), SHOWN),)
)


def unit(words: str, *images) -> LongContextConditionUnit:
    return LongContextConditionUnit(ConditionUnit(words, images))


def test_a_server_is_measured_through_the_openai_api(tmp_path):
    with running() as server:
        edit = edit_over_http(f"{server.url}/v1", "random")
        units = [unit("make the background blue", SHOWN), unit("a red apple")]
        first, again, other = edit(units, [1, 1]), edit(units, [1, 1]), edit(units, [2, 2])
        with pytest.raises(ConditionError, match="history"):
            edit([WITH_HISTORY], [0])
        with pytest.raises(DataError, match="does not exist"):
            edit_over_http(f"{server.url}/v1", "another")([unit("a red apple")], [0])
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    assert first[0].tobytes() != other[0].tobytes() and first[0].mode == "RGB"


def test_an_editing_pipeline_of_diffusers_is_measured_as_it_is(tmp_path):
    torch.manual_seed(0)
    words = random_clip().tokenizer
    words.model_max_length = 77
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=AutoencoderKL(
            block_out_channels=[8], norm_num_groups=4, latent_channels=4, sample_size=32, layers_per_block=1
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=2,
            )
        ).eval(),
        tokenizer=words,
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            sample_size=16,
            in_channels=8,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
        ).eval(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(tmp_path / "pix2pix")
    family = find_family(str(tmp_path / "pix2pix"))
    family.load(Loading(device="cpu"))
    contestant = contestant_of(family, num_inference_steps=2)
    assert (contestant.name, contestant.pipeline) == ("pix2pix", None)
    assert contestant.settings["weights_sha256"] == family.sha256
    edit = contestant.edit
    first, again, other = (edit([unit("make it red", SHOWN)], [seed])[0] for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes() and first.size == (16, 16)
    for wrong, words in (
        (WITH_HISTORY, "sees no earlier rounds"),
        (unit("a cat"), "makes nothing from words alone"),
        (unit("{image} and {image1}", SHOWN, SHOWN), "takes one image"),
    ):
        with pytest.raises(ConditionError, match=words):
            edit([wrong], [0])
    mask = Image.new("L", SHOWN.size, 0)
    mask.paste(255, (0, 0, 32, 64))
    (masked,) = edit([LongContextConditionUnit(ConditionUnit("make it red", (SHOWN,), (mask,)))], [1])
    assert masked.crop((32, 0, 64, 64)).tobytes() == SHOWN.crop((32, 0, 64, 64)).tobytes()
