"""Names, letters and their rows as tokens; the encoder that binds them; a transformer and a pipeline that read them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from ace.conditions.images import normalise_image
from ace.conditions.prompt import IMAGE_NAMES
from ace.conversation import Message, Picture, Settings, make, open_message
from ace.diffusion import ACEDDIMScheduler, seeded_generator
from ace.errors import ConfigError
from ace.families.ace import AceFamily
from ace.inference.pipeline import ACEPipeline, Request
from ace.inference.pixels import Pixels
from ace.model.config import ROW_CHANNELS, ACEConfig
from ace.model.frames import encode_all, num_tokens
from ace.model.lexicon import CELLS, SIDE, Lexicon, LexiconConfig, LexiconEncoder, LexiconTokenizer
from ace.model.text import encode_indicators, encode_texts
from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents
from ace.model.transformer import ACETransformer, FrameKeysValues
from ace.weights.sources import SHIPPED_MODEL, ModelFiles, find_model, load_pipeline
from tests.random_models import randomise

LEXICON = Lexicon(
    {"cat": ("kitten",), "ice cream": (), "red apple": ("apple",)}, {"3d": ("3d render",), "flat": ("flat vector",)}
)
SIZES = ACEConfig(
    patch_size=4,
    latent_channels=3,
    hidden_size=48,
    depth=3,
    num_heads=4,
    text_channels=48 + ROW_CHANNELS,
    learned_sigma=False,
    source_on_channels=True,
    source_as_frame=False,
    predict_change=True,
    absolute_positions=True,
    pooled_text=True,
    open_gates=True,
    rotary_theta=10.0,
    rotary_scale=2.0,
    memory_blocks=(1,),
    frames_once=True,
)


@pytest.fixture(scope="module")
def tokenizer() -> LexiconTokenizer:
    return LexiconTokenizer(Tokenizer.from_file(str(SHIPPED_MODEL / "tokenizer" / "tokenizer.json")), LEXICON)


@pytest.fixture(scope="module")
def encoder(tokenizer: LexiconTokenizer) -> LexiconEncoder:
    torch.manual_seed(0)
    layout = tokenizer.layout
    config = LexiconConfig(48, 1, 4, layout.num_words, layout.num_names, layout.num_styles)
    return LexiconEncoder(config).eval()


@pytest.fixture(scope="module")
def pipeline(tokenizer: LexiconTokenizer, encoder: LexiconEncoder) -> ACEPipeline:
    torch.manual_seed(1)
    transformer = ACETransformer(**vars(SIZES)).eval()
    randomise(transformer, 2)
    transformer.set_indicators(encode_indicators(tokenizer, encoder, position=1))
    made = ACEPipeline(
        transformer=transformer,
        vae=Pixels(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=ACEDDIMScheduler(prediction_type="sample"),
        budget=16,
        enlarge=True,
        mask_by_area=True,
        max_text_tokens=200,
        num_inference_steps=2,
        guidance_scale=1.0,
    )
    made.set_progress_bar_config(disable=True)
    return made


def test_a_change_is_added_to_as_much_of_the_source_as_is_kept():
    model = ACETransformer(**vars(SIZES)).eval()
    source = torch.randn(3, 8, 8, generator=seeded_generator(3))
    request = RequestFrames((8, 8), (torch.zeros(2, 48 + ROW_CHANNELS),), source=source)
    layout = make_layout([request], 4, model.sizes.head_dim, (), model.sizes.rotary, True, [0])
    patches = pack_latents([torch.randn(3, 8, 8)], [condition_patches(request, 4, 3)], 4)

    def answer() -> torch.Tensor:
        cells = model(patches, torch.full((1,), 999.0), layout, texts=request.texts[0]).view(2, 2, 4, 4, 3)
        return cells.permute(4, 0, 2, 1, 3).reshape(3, 8, 8)

    with torch.no_grad():
        assert torch.equal(answer(), source)  # an untrained model copies
        model.final.linear.bias.view(-1, 4)[:] = torch.tensor([0.25, 0.25, 0.25, -1.0])
        assert torch.equal(answer(), torch.full_like(source, 0.25))  # nothing is kept


DRAWS = dataclasses.replace(SIZES, text_channels=2 * 48 + ROW_CHANNELS, draws_from_memory=True)


def test_a_code_that_a_token_points_to_is_laid_over_the_picture():
    model = ACETransformer(**vars(DRAWS)).eval()
    source = torch.rand(3, 8, 8, generator=seeded_generator(3))
    words = torch.zeros(2, 2 * 48 + ROW_CHANNELS)  # a word and a row
    words[1, 48:96], words[1, 96] = 1.0, 1.0
    request = RequestFrames((8, 8), (words,), source=source)
    layout = make_layout([request], 4, model.sizes.head_dim, (), model.sizes.rotary, True, [0])
    patches = pack_latents([torch.randn(3, 8, 8)], [condition_patches(request, 4, 3)], 4)
    covers = torch.tensor([1.0, 0.5, 0.0, 1.0])  # orange, opaque: colour times alpha, and alpha
    with torch.no_grad():
        model.drawing.to_q.weight.zero_()  # points to the word and to the row alike
        model.drawing.set_decoder((covers.repeat(16) / 48)[:, None].expand(-1, 48))
        cells = model(patches, torch.full((1,), 999.0), layout, texts=words).view(2, 2, 4, 4, 3)
    drawn = torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    expected = 0.5 * drawn + 0.5 * source
    assert torch.allclose(cells.permute(4, 0, 2, 1, 3).reshape(3, 8, 8), expected, atol=1e-5)


def rows_of(ids: list[int], tokenizer: LexiconTokenizer) -> list[int]:
    return [i for i in ids if i >= tokenizer.layout.rows]


def picture(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(256, (16, 16, 3), generator=generator, dtype=torch.uint8).numpy())


def test_a_name_brings_the_rows_of_the_style_that_is_named_and_else_of_all(tokenizer):
    layout = tokenizer.layout
    first = layout.rows + 2 * layout.num_styles * CELLS
    assert rows_of(tokenizer.ids_of("add an apple"), tokenizer) == list(range(first, first + 2 * CELLS))
    flat = tokenizer.ids_of("add an Apple, flat vector style")
    assert rows_of(flat, tokenizer) == list(range(first + CELLS, first + 2 * CELLS))
    assert layout.names + 2 in flat


def test_names_are_whole_words_and_the_longest_that_fit(tokenizer):
    assert tokenizer.names_in("put a kitten beside ICE CREAM and a red apple") == ["cat", "ice cream", "red apple"]
    assert tokenizer.names_in("catch the applecart with ice") == []
    assert tokenizer.names_in('write "CAT" at the top') == []  # quoted: letters, not a thing


def test_quoted_letters_know_their_index_and_the_words_length(tokenizer):
    layout = tokenizer.layout

    def letters(text: str) -> list[int]:
        return [i for i in tokenizer.ids_of(text) if layout.letters <= i < layout.rows]

    assert len(letters("write 'ABA'")) == 3
    assert len(set(letters("write 'AAA'"))) == 3  # same letter, other index
    assert letters("write 'AB'")[0] != letters("write 'ABC'")[0]  # same letter and index, other length
    assert letters("write “ab”") == letters('write "AB"')


def test_a_long_text_is_cut_and_an_empty_one_is_one_token(tokenizer):
    long = " and ".join(["a cat"] * 60)
    assert len(tokenizer(long, max_length=150)["input_ids"][0]) == 150
    assert tokenizer.ids_of("") == [tokenizer.cls_token_id]
    assert set(tokenizer.ids_of(IMAGE_NAMES[0])) - {tokenizer.cls_token_id}


def test_rows_carry_their_cell_and_words_none(tokenizer, encoder):
    text = "a cat, flat vector, and 'HI'"
    (states,) = encode_texts([text], tokenizer, encoder, 200, False)
    ids = torch.tensor(tokenizer.ids_of(text))
    of_cat = (ids >= tokenizer.layout.rows) & (ids < tokenizer.layout.halves)
    cells = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))
    assert states[of_cat, -ROW_CHANNELS:].tolist() == [[1.0, *cell] for cell in cells.tolist()]
    assert states[ids >= tokenizer.layout.halves, -2:].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert not states[ids < tokenizer.layout.rows, -ROW_CHANNELS:].any()


def test_a_text_has_the_same_states_in_any_company(tokenizer, encoder):
    texts = ["add a cat on the left", "", "write 'ABC' and an apple and a cat and ice cream at the bottom of it"]
    with torch.no_grad():
        together = encode_texts(texts, tokenizer, encoder, 400, False)
        for text, states in zip(texts, together, strict=True):
            (alone,) = encode_texts([text], tokenizer, encoder, 400, False)
            assert (alone - states).abs().max() <= 1e-5


def test_what_a_row_says_depends_on_the_words_around_its_name(tokenizer, encoder):
    with torch.no_grad():
        left, right = encode_texts(["a cat left", "a cat right"], tokenizer, encoder, 200, False)
    rows = left[:, -ROW_CHANNELS] > 0
    assert (left[rows, :-ROW_CHANNELS] - right[rows, :-ROW_CHANNELS]).abs().max() > 1e-3


def test_blocks_without_memory_do_not_read_rows(tokenizer, encoder):
    with torch.no_grad():
        states = encode_texts(["a cat"], tokenizer, encoder, 200, False)[0]
    layout = make_layout([RequestFrames((16, 16), (states,))], 4, SIZES.head_dim, (), SIZES.rotary, True)
    words = int((states[:, -ROW_CHANNELS] == 0).sum())
    assert len(layout.tokens.words.long_index) == words < len(layout.tokens.text.long_index) == len(states)
    assert len(layout.spoken) == words


def test_tokens_trained_on_are_computed_as_among_all_but_for_attention(tokenizer, encoder):
    """A part of the target's tokens can be computed alone: with one token kept it sees itself only."""
    torch.manual_seed(3)
    model = ACETransformer(**vars(dataclasses.replace(SIZES, depth=2))).eval()
    randomise(model, 4)
    with torch.no_grad():
        states = encode_texts(["a cat"], tokenizer, encoder, 200, False)[0]
        noisy = torch.randn(3, 16, 16)
        kept = torch.tensor([1, 6, 9])
        request = RequestFrames((16, 16), (states,), source=torch.randn(3, 16, 16))
        results = []
        for one in (
            dataclasses.replace(request, kept=torch.arange(16)),
            request,
            dataclasses.replace(request, kept=kept),
        ):
            layout = make_layout([one], 4, SIZES.head_dim, (), SIZES.rotary, True)
            patches = pack_latents([noisy], [condition_patches(one, 4, 3)], 4)
            results.append(model(patches, torch.tensor([500]), layout, texts=states))
    everything, plain, part = results
    assert torch.equal(everything, plain)
    assert part.shape == (3, 48)
    assert layout.tokens.positions[:, 1:].tolist() == [[0, 1], [1, 2], [2, 1]]


def test_an_untrained_model_that_predicts_the_change_gives_the_source_back(tokenizer, encoder):
    model = ACETransformer(**vars(SIZES)).eval()  # its last layer starts at zero
    source = torch.randn(3, 16, 16)
    with torch.no_grad():
        states = encode_texts(["a cat"], tokenizer, encoder, 200, False)[0]
        request = RequestFrames((16, 16), (states,), source=source)
        layout = make_layout([request], 4, SIZES.head_dim, (), SIZES.rotary, True)
        patches = pack_latents([torch.randn(3, 16, 16)], [condition_patches(request, 4, 3)], 4)
        out = model(patches, torch.tensor([999]), layout, texts=states)
    cells = out.reshape(4, 4, 4, 4, 3).permute(4, 0, 2, 1, 3).reshape(3, 16, 16)
    assert torch.allclose(cells, source)


def test_requests_of_a_pixel_model_are_made_as_if_alone(pipeline):
    from ace.conditions.units import ConditionUnit, LongContextConditionUnit

    def request(text: str, *images: Image.Image, guidance_scale: float = 1.0) -> Request:
        unit = LongContextConditionUnit(ConditionUnit(text, images))
        return Request(unit, guidance_scale=guidance_scale, generator=seeded_generator(5))

    def requests() -> list[Request]:
        return [
            request("a cat"),
            request("add an apple to {image}", picture(1), guidance_scale=2.0),
            request("put {image} beside {image1}", picture(2), picture(3)),
        ]

    together = pipeline(requests=requests()).latents
    for number, latents in enumerate(together):
        alone = pipeline(requests=[requests()[number]]).latents[0]
        assert (alone - latents).abs().max() <= 1e-4 * latents.abs().max()


def test_a_saved_pixel_model_draws_the_same(pipeline, tmp_path: Path):
    pipeline.save_pretrained(tmp_path)
    files = ModelFiles("saved", tmp_path, 16, 4, 2, 1.0)
    loaded = load_pipeline(files, device="cpu", dtype="float32")
    loaded.set_progress_bar_config(disable=True)
    made = [
        one("write 'HI' on {image}", picture(1), generator=seeded_generator(1)).latents[0] for one in (pipeline, loaded)
    ]
    assert torch.equal(*made)


def test_a_saved_pixel_model_is_loaded_by_a_process_that_knows_nothing_of_it(pipeline, tmp_path: Path):
    pipeline.save_pretrained(tmp_path / "saved")
    code = "import sys; from ace.inference.pipeline import ACEPipeline; ACEPipeline.from_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "saved")], check=True, timeout=300)


def test_an_edit_by_a_pixel_model_has_the_photographs_own_size(pipeline, tmp_path: Path):
    pipeline.save_pretrained(tmp_path / "saved")
    family = AceFamily(find_model(str(tmp_path / "saved")), pipeline)
    photo = Picture.of_image(normalise_image(picture(1).resize((40, 30))), "photo")
    job = open_message(family, Message("write 'HI' on {image}", Settings(seed=1), photo))
    (made,) = make(family, [job])
    assert made.image.size == (40, 30)
    assert made.delivered is not None


def test_a_damaged_lexicon_is_refused(tmp_path: Path):
    path = tmp_path / "lexicon.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="copy the whole model again"):
        Lexicon.read(path)


def conversation(pipeline: ACEPipeline, turns: int) -> list[torch.Tensor]:
    """Latents of the answers to so many turns, each after all before it."""
    history, answers = [], []
    for number in range(turns):
        made = pipeline(
            f"add a cat, {number}", () if history else picture(1), history=history, generator=seeded_generator(number)
        )
        history.append(made.turns[0])
        answers.append(made.latents[0])
    return answers


def test_frames_of_earlier_turns_are_computed_once(pipeline):
    pipeline.frame_cache.clear()
    before = pipeline.frame_cache.num_encoded
    kept = conversation(pipeline, 4)
    assert pipeline.frame_cache.num_encoded - before == 3  # of turns 2 to 4, each the picture before the edited one
    afresh = []
    for turns in range(1, 5):
        pipeline.frame_cache.clear()
        afresh.append(conversation(pipeline, turns)[-1])
    for one, other in zip(kept, afresh, strict=True):
        assert torch.equal(one, other)


def test_an_earlier_frame_changes_the_answer_and_a_later_one_no_earlier_frame(pipeline):
    with torch.no_grad():
        (text,) = encode_texts(["a cat"], pipeline.tokenizer, pipeline.text_encoder, 200, False)
    images = tuple(torch.randn(3, 16, 16) for _ in range(3))

    def chain(*chosen: int) -> FrameKeysValues:
        own = tuple(images[n] for n in chosen)
        request = RequestFrames((16, 16), (text,) * (len(own) + 1), images=own, image_masks=(None,) * len(own))
        with torch.no_grad():
            (frames,) = encode_all(pipeline.transformer, [request])
        assert frames is not None
        return frames

    both, first, other = chain(0, 1), chain(0), chain(2, 1)
    count = len(first[0][0])
    for (keys, values), (alone, own) in zip(both, first, strict=True):
        assert torch.allclose(keys[:count], alone, atol=1e-5) and torch.allclose(values[:count], own, atol=1e-5)
    assert not torch.allclose(both[-1][1][count:], other[-1][1][count:], atol=1e-3)


def test_frames_of_several_requests_together_are_as_alone(pipeline):
    with torch.no_grad():
        texts = encode_texts(["a cat", "an apple at the top"], pipeline.tokenizer, pipeline.text_encoder, 200, False)
        requests = [
            RequestFrames(
                (16, 16),
                (texts[0],) * (count + 1),
                images=tuple(torch.randn(3, 16, 12) for _ in range(count)),
                image_masks=(None,) * count,
            )
            for count in (2, 0, 3)
        ]
        together = encode_all(pipeline.transformer, requests)
        for request, frames in zip(requests, together, strict=True):
            (alone,) = encode_all(pipeline.transformer, [request])
            assert num_tokens(alone) == num_tokens(frames) == 12 * len(request.images)
            for own, other in zip(alone or (), frames or (), strict=True):
                assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(own, other, strict=True))


def test_outside_a_mask_a_turn_keeps_the_edited_picture(pipeline):
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    made = pipeline("add a cat", picture(1), mask, generator=seeded_generator(3))
    before = torch.tensor(np.asarray(picture(1))).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(torch.from_numpy(made.turns[0].latents)[:, :, 8:], before[:, :, 8:], atol=1e-6)
