"""Cleaning, tokens, text states and segments against recordings with both tokenizers."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ace.conditions.prompt import IMAGE_NAMES
from ace.inference.inputs import Geometry
from ace.inference.published import PublishedUnit, prepare_published_inputs
from ace.model.text import clean_text, encode, encode_indicators, encode_texts, tokenize
from tests.parity.published_models import text_encoder_of, tokenizer_of


@pytest.mark.parity("text")
def test_cleaning_and_tokens_are_the_published_ones(case):
    raw = case.meta["raw_prompts"]
    assert [clean_text(text) for text in raw] == case.meta["cleaned_prompts"]
    tokens = tokenize(raw, tokenizer_of(case.path, case.meta["tokenizer"]), case.meta["length"], False)
    recorded = case.tensors["out.clean.input_ids"]
    width = tokens.ids.shape[1]
    assert torch.equal(tokens.ids, recorded[:, :width])
    assert torch.equal(tokens.mask, case.tensors["out.clean.attention_mask"][:, :width])
    assert not case.tensors["out.clean.attention_mask"][:, width:].any()


@pytest.mark.parity("text")
def test_text_states_are_the_published_ones(case, assert_close):
    tokenizer = tokenizer_of(case.path, case.meta["tokenizer"])
    encoder = text_encoder_of(case.meta["t5_config"], case.weights("sd_t5."))
    tokens = tokenize(case.meta["raw_prompts"], tokenizer, case.meta["length"], False)
    with torch.no_grad():
        states = encode(tokens, encoder)
    for ours, recorded, mask in zip(
        states, case.tensors["out.clean.features"], case.tensors["out.clean.attention_mask"], strict=True
    ):
        assert_close(ours, recorded[: int(mask.sum())], 1e-5)


@pytest.mark.parity("text")
def test_indicators_are_the_first_tokens_of_the_image_names(case, assert_close):
    tokenizer = tokenizer_of(case.path, case.meta["tokenizer"])
    encoder = text_encoder_of(case.meta["t5_config"], case.weights("sd_t5."))
    assert list(IMAGE_NAMES) == case.meta["identifiers"]
    assert_close(encode_indicators(tokenizer, encoder), case.tensors["out.text_position_embeddings"], 1e-5)


@pytest.mark.parity("text")
def test_segments_of_every_image_count_are_the_published_ones(case, assert_close):
    tokenizer = tokenizer_of(case.path, case.meta["tokenizer"])
    encoder = text_encoder_of(case.meta["t5_config"], case.weights("sd_t5."))
    geometry = Geometry(budget=16, cell_px=16, latent_px=8, enlarge=False, mask_by_area=False)
    for number, recorded_case in enumerate(case.meta["cases"]):
        images = (Image.new("RGB", (32, 32)),) * recorded_case["n_edit"]
        unit = PublishedUnit(tuple(recorded_case["prompts"]), images)
        inputs = prepare_published_inputs(unit, geometry, None)
        for texts, prefix in ((inputs.texts, ""), (inputs.null_texts, "null_")):
            with torch.no_grad():
                states = encode_texts(texts, tokenizer, encoder, case.meta["length"], False)
            lengths = [len(state) for state in states]
            assert lengths == case.tensors[f"out.{number}.{prefix}txt_lens"].tolist()
            assert_close(torch.cat(states), case.tensors[f"out.{number}.{prefix}packed_y"], 1e-5)
