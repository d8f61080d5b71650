"""What the makers are made of: words, places, colours, styles, cleaning of removals, generators of diffusers."""

from random import Random

import cv2
import numpy as np
import pytest

from ace.data.tasks.common import say
from ace.data.tasks.describe import name_color, name_place_of
from ace.data.tasks.stylers import STYLERS
from ace.data.tasks.things import is_part, seam, solidity
from ace.data.tasks.tools import Tools
from tests.extract.photographs import needs, photograph


def test_only_templates_with_exactly_these_slots_are_used():
    templates = ("make it <color>", "make the <thing> <color>", "change it")
    assert say(templates, {"color": "red"}, Random(0)) == "make it red"
    assert say(templates, {}, Random(0)) == "change it"
    assert say(("add a <thing>",), {"thing": "orange object"}, Random(0)) == "add an orange object"


def test_places_and_colours_are_said_as_they_are():
    image = np.full((90, 90, 3), 128, np.uint8)
    mask = np.zeros((90, 90), bool)
    mask[5:25, 65:85] = True
    image[mask] = (210, 30, 30)
    assert name_place_of(mask) == "in the top right corner" and name_color(image, mask) == "red"
    image[mask] = np.random.default_rng(0).integers(0, 255, (int(mask.sum()), 3))
    assert name_color(image, mask) is None


@pytest.mark.parametrize("style", STYLERS)
def test_a_style_changes_the_picture_visibly_and_keeps_its_size(style):
    image = photograph("chelsea", 200)
    styled = STYLERS[style](image)
    assert styled.shape == image.shape and styled.dtype == np.uint8
    assert np.abs(styled.astype(int) - image).mean() > 4
    assert np.array_equal(styled, STYLERS[style](image))


def test_styles_differ_from_each_other():
    image = photograph("chelsea", 200)
    styled = [STYLERS[style](image).astype(int) for style in STYLERS]
    assert min(np.abs(a - b).mean() for n, a in enumerate(styled) for b in styled[n + 1 :]) > 5


def test_a_hard_patch_has_a_seam_and_a_smooth_filling_has_none():
    image = np.ascontiguousarray(photograph("coffee", 256)).copy()
    hole = np.zeros(image.shape[:2], bool)
    hole[40:90, 20:60] = True
    patched = image.copy()
    patched[hole] = (0, 255, 0)
    smooth = cv2.inpaint(image, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    assert seam(patched, hole) > 2 * seam(smooth, hole)


def test_rims_and_parts_are_no_whole_objects():
    y, x = np.mgrid[:120, :120]
    distance = np.hypot(y - 60, x - 60)
    disc, rim, inner = distance < 40, (distance < 40) & (distance > 30), distance < 28
    assert solidity(disc) > 0.95 and solidity(rim) < 0.6
    assert is_part(inner, rim) and is_part(inner, disc)
    assert not is_part(disc, inner) and not is_part(disc, np.ones_like(disc))
    assert not is_part(np.roll(inner, 50, 1), disc)


@pytest.mark.slow
def test_an_instruction_editor_of_diffusers_makes_the_styled_side(tmp_path):
    """A pipeline of the published class with tiny random weights, saved and found as a user's folder would be."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionInstructPix2PixPipeline,
        UNet2DConditionModel,
    )
    from PIL import Image
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from ace.data.sample import EditSample
    from ace.data.tasks import Source, Tools, check, style
    from ace.data.tasks.generators import Generators

    torch.manual_seed(0)
    letters = {f"{letter}</w>": number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    vocabulary = {**letters, "<|startoftext|>": 26, "<|endoftext|>": 27}
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, norm_num_groups=4, attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=28,
            bos_token_id=26, eos_token_id=27, pad_token_id=27,
        )
    )  # fmt: skip
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=vae, text_encoder=text, tokenizer=CLIPTokenizer(vocabulary, [], model_max_length=77), unet=unet,
        scheduler=EulerAncestralDiscreteScheduler(), safety_checker=None, feature_extractor=None,
        image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(tmp_path / "editor")
    tools = Tools(generators=Generators(editor_folder=tmp_path / "editor", device="cpu", steps=1))
    source = Source(Image.fromarray(photograph("chelsea", 64)), "cat")
    sample = style.make(source, Random(0), tools)
    assert isinstance(sample, EditSample) and sample.provenance["made_by"] == "instruction editor"
    assert check(sample, tools) is None


POSE_AND_NAMES = ("pose-detector", "pose-landmarks", "mtcnn-p", "mtcnn-r", "mtcnn-o", "efficientnet-lite2")


@needs(*POSE_AND_NAMES)
def test_an_animal_is_no_person_and_is_called_by_its_name():
    tools = Tools()
    assert tools.person(photograph("astronaut")) is not None
    assert tools.person(photograph("chelsea")) is None
    cat = photograph("chelsea")
    assert tools.word(cat, np.ones(cat.shape[:2], bool)) == "cat"
    astronaut = photograph("astronaut")
    assert tools.word(astronaut, np.ones(astronaut.shape[:2], bool)) == "person"
