"""The pipeline on random weights: requests keep to themselves, whatever they are packed with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from PIL import Image

from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.diffusion import DIFFUSERS_SCHEDULE, ACEDDIMScheduler, seeded_generator
from ace.errors import ConditionError, ConfigError, ImageError, InputError, ShapeError
from ace.inference.latents import LatentCache
from ace.inference.pipeline import ACEPipeline, Request
from ace.inference.published import PublishedUnit
from tests.random_models import PUBLISHED_LIKE, TINY_LIKE, random_pipeline, randomise


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def half_mask(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


def request(instruction: str, images=(), masks=(), history=(), *, seed: int, **settings: object) -> Request:
    unit = LongContextConditionUnit(ConditionUnit(instruction, images, masks), history)
    return Request(unit, generator=seeded_generator(seed), **settings)


def mixture() -> list[Request]:
    """Requests that differ in everything; made anew each time, since generators move on."""
    first = Turn(ConditionUnit("a photo of a cat"), picture(64, 64, 3))
    second = Turn(ConditionUnit("make {image} dark", (first.answer,)), picture(64, 48, 4))
    tall, wide, small = picture(40, 90, 5), picture(120, 50, 6), picture(32, 32, 7)
    return [
        request("a photo of a cat", seed=1, num_inference_steps=3, size=(48, 64)),
        request("remove the dog", (wide,), (half_mask(120, 50),), seed=2, num_inference_steps=4, guidance_scale=1.0),
        request("put {image1} on {image} like {image2}", (tall, wide, small), seed=3, num_inference_steps=2),
        request("make it red", (), (), (first, second), seed=4, num_inference_steps=3, guidance_rescale=0.0),
        request("a dog", (small,), seed=5, num_inference_steps=3, guidance_scale=7.0, negative_instruction="dark"),
    ]


@pytest.fixture(scope="module", params=[PUBLISHED_LIKE, TINY_LIKE], ids=["published_like", "tiny_like"])
def pipeline(request) -> ACEPipeline:
    return random_pipeline(request.param)


def furthest(ours: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return ((ours - other).abs().max() / other.abs().max()).item()


def test_a_request_gets_the_same_latents_alone_and_in_any_mixture(pipeline):
    alone = [pipeline(requests=[one]).latents[0] for one in mixture()]
    together = pipeline(requests=mixture()).latents
    reversed_order = pipeline(requests=mixture()[::-1]).latents[::-1]
    for own, packed, other_order in zip(alone, together, reversed_order, strict=True):
        assert torch.equal(packed, own)
        assert torch.equal(other_order, own)
    assert furthest(alone[0][:, :4, :4], alone[4][:, :4, :4]) > 1e-2  # different requests differ


def test_the_picture_does_not_depend_on_its_neighbours(pipeline):
    together = pipeline(requests=mixture()).images
    for one, packed in zip(mixture(), together, strict=True):
        assert np.array_equal(np.asarray(pipeline(requests=[one]).images[0]), np.asarray(packed))


def test_states_at_different_timesteps_are_stepped_together(pipeline):
    expected = pipeline(requests=mixture()[2:]).latents
    states = pipeline.prepare(mixture()[2:])
    pipeline.step(states[1:2])
    pipeline.step(states[1:2])
    pipeline.step([states[2], states[1]])
    assert [state.step_index for state in states] == [0, 3, 1]
    pipeline.step([states[0], states[2]])
    pipeline.step([states[2], states[0]])
    assert all(state.done for state in states)
    for state, own in zip(states, expected, strict=True):
        assert furthest(state.latents, own) <= 1e-5


def test_a_finished_request_cannot_be_stepped(pipeline):
    states = pipeline.prepare(mixture()[2:3])
    pipeline.step(states)
    pipeline.step(states)
    with pytest.raises(ConfigError, match="decode it"):
        pipeline.step(states)


def test_same_seed_same_picture_and_another_seed_another(pipeline):
    first, again = (pipeline("a photo of a cat", num_inference_steps=2, generator=seeded_generator(8)) for _ in "ab")
    other = pipeline("a photo of a cat", num_inference_steps=2, generator=seeded_generator(9))
    assert first.images[0].tobytes() == again.images[0].tobytes()
    assert furthest(first.latents[0], other.latents[0]) > 1e-2


def test_each_picture_of_a_batch_has_its_own_generator(pipeline):
    texts = ["a photo of a cat", "a dog"]
    both = pipeline(texts, num_inference_steps=2, generator=[seeded_generator(1), seeded_generator(2)]).latents
    for text, seed, own in zip(texts, (1, 2), both, strict=True):
        assert furthest(pipeline(text, num_inference_steps=2, generator=seeded_generator(seed)).latents[0], own) <= 1e-5
    with pytest.raises(ConditionError, match="one each"):
        pipeline(texts, generator=[seeded_generator(1)])


def test_guidance_follows_the_instruction_and_leads_away_from_the_negative_one(pipeline):
    def latents(**settings: object) -> torch.Tensor:
        return pipeline("a dog", num_inference_steps=2, generator=seeded_generator(1), **settings).latents[0]

    plain = latents(guidance_scale=1.0)
    assert furthest(latents(guidance_scale=1.0, negative_instruction="dark"), plain) == 0  # nothing to lead away from
    guided = latents(guidance_scale=5.0)
    assert furthest(guided, plain) > 1e-4
    assert furthest(latents(guidance_scale=5.0, negative_instruction="dark"), guided) > 1e-4
    assert furthest(latents(guidance_scale=5.0, guidance_rescale=0.0), guided) > 1e-4


def test_every_part_of_a_request_reaches_the_picture(pipeline):
    image, reference, answer = picture(64, 64, 1), picture(64, 48, 2), picture(64, 64, 3)
    history = (Turn(ConditionUnit("make {image} dark", (reference,)), answer),)

    def latents(text="a dog", images=(image, reference), masks=(None, None), history=history) -> torch.Tensor:
        one = request(text, images, masks, history, seed=1, num_inference_steps=2, guidance_scale=1.0)
        return pipeline(requests=[one]).latents[0]

    base = latents()
    assert furthest(latents(text="a cat"), base) > 1e-5
    assert furthest(latents(images=(image, answer)), base) > 1e-5
    assert furthest(latents(masks=(half_mask(64, 64), None)), base) > 1e-5
    assert furthest(latents(masks=(None, half_mask(64, 48))), base) > 1e-5
    assert furthest(latents(history=()), base) > 1e-5
    other_text = (dataclasses.replace(history[0], unit=ConditionUnit("make {image} bright", (reference,))),)
    assert furthest(latents(history=other_text), base) > 1e-5
    other_answer = (dataclasses.replace(history[0], answer=reference),)
    assert furthest(latents(history=other_answer), base) > 1e-5


def test_callback_sees_every_step(pipeline):
    seen = []
    pipeline(
        requests=mixture()[:3],
        callback_on_step_end=lambda pipe, step, states: seen.append((step, [s.step_index for s in states])),
    )
    assert [indices for _, indices in seen] == [[1, 1, 1], [2, 2, 2], [3, 3, 2], [3, 4, 2]]
    assert [step for step, _ in seen] == [1, 2, 3, 4]


def test_rounds_that_do_not_fit_are_reported(pipeline):
    rounds = [Turn(ConditionUnit("a dog", (picture(32, 32, n),)), picture(32, 32, n + 20)) for n in range(7)]
    result = pipeline("a cat", picture(32, 32), history=rounds, num_inference_steps=1)
    assert result.num_dropped_rounds == [3]  # 4 rounds of two images and one current image are nine
    assert pipeline("a cat", history=rounds[:2], num_inference_steps=1).num_dropped_rounds == [0]


def test_a_masked_edit_keeps_the_rest_of_the_picture_exactly(pipeline):
    image, mask = picture(150, 100), half_mask(150, 100)
    made = pipeline("a dog", image, mask, num_inference_steps=1).images[0]
    kept = np.asarray(mask) == 0
    assert made.size == image.size
    assert np.array_equal(np.asarray(made)[kept], np.asarray(image)[kept])
    assert not np.array_equal(np.asarray(made), np.asarray(image))
    whole = pipeline("a dog", image, mask, num_inference_steps=1, preserve=False).images[0]
    assert not np.array_equal(np.asarray(whole.resize(image.size))[kept], np.asarray(image)[kept])


def conversation(pipeline: ACEPipeline, turn: Turn):
    """The round after a turn, that starts from its answer."""
    one = request("make it red", (turn.answer,), history=(turn,), seed=3, num_inference_steps=2)
    return pipeline.prepare([one])[0]


def test_a_turns_own_latents_take_the_place_of_encoding_its_answer(pipeline):
    (turn,) = pipeline("a dog", picture(64, 64), num_inference_steps=2, generator=seeded_generator(1)).turns
    pipeline.latent_cache.clear()
    before = pipeline.latent_cache.num_encoded
    with_latents = conversation(pipeline, turn).branches[0].frames
    assert pipeline.latent_cache.num_encoded == before + 1  # the first input picture; the answer is not encoded
    assert np.array_equal(with_latents.images[-1].numpy(), turn.latents)
    encoded = conversation(pipeline, dataclasses.replace(turn, latents=None)).branches[0].frames
    assert pipeline.latent_cache.num_encoded == before + 2
    assert not torch.equal(encoded.images[-1], with_latents.images[-1])
    assert torch.equal(encoded.images[0], with_latents.images[0])


def test_latents_of_another_size_are_encoded_anew_and_of_another_model_refused(pipeline):
    (turn,) = pipeline("a dog", picture(64, 64), num_inference_steps=1).turns
    smaller = dataclasses.replace(turn, latents=turn.latents[:, :-2])
    expected = conversation(pipeline, dataclasses.replace(turn, latents=None)).branches[0].frames
    assert torch.equal(conversation(pipeline, smaller).branches[0].frames.images[-1], expected.images[-1])
    with pytest.raises(ShapeError, match="channels"):
        conversation(pipeline, dataclasses.replace(turn, latents=turn.latents[:-1]))


def test_a_masked_turn_keeps_the_latents_of_the_edited_image_outside_the_mask(pipeline):
    image, mask = picture(64, 64), half_mask(64, 64)
    result = pipeline("a dog", image, mask, num_inference_steps=2, generator=seeded_generator(1))
    source = conversation(pipeline, result.turns[0]).branches[0].frames.images[0]
    kept = torch.from_numpy(result.turns[0].latents)
    middle = kept.shape[-1] // 2
    assert torch.equal(kept[..., :middle], source[..., :middle])
    assert torch.equal(kept[..., middle:], result.latents[0][..., middle:])
    whole = pipeline("a dog", image, mask, num_inference_steps=2, generator=seeded_generator(1), preserve=False)
    assert np.array_equal(whole.turns[0].latents, whole.latents[0].numpy())


def test_a_picture_is_encoded_once_and_the_cache_stays_within_its_bound(pipeline):
    cache = pipeline.latent_cache
    cache.clear()
    before = cache.num_encoded
    same = [picture(64, 64, 1), picture(64, 64, 1).copy(), picture(64, 64, 2)]
    first = pipeline.prepare([request("a dog", tuple(same), seed=1)])[0].branches[0].frames.images
    again = pipeline.prepare([request("a cat", (same[2], same[0]), seed=1)])[0].branches[0].frames.images
    assert cache.num_encoded == before + 2
    assert torch.equal(first[0], first[1])
    assert torch.equal(again[0], first[2])
    small = LatentCache(max_bytes=first[0].nbytes)
    for array in (np.zeros((3, 64, 64), np.float32), np.ones((3, 64, 64), np.float32)) * 2:
        small.encode(pipeline.vae, [array])
    assert small.num_encoded == 4  # one fits, so it has gone again each time


def test_published_pipelines_neither_keep_nor_use_latents(pipeline):
    published = ACEPipeline(**pipeline.components, budget=16, max_text_tokens=24, published=True)
    published.set_progress_bar_config(disable=True)
    (turn,) = published("a dog", picture(64, 64), num_inference_steps=1).turns
    assert turn.latents is None
    assert published.latent_cache.num_encoded == 0


def test_an_edit_keeps_the_aspect_and_a_size_is_obeyed(pipeline):
    made = pipeline("a dog", picture(150, 100), num_inference_steps=1).images[0]
    assert abs(made.width / made.height - 1.5) < 0.03
    assert pipeline("a dog", num_inference_steps=1, size=(32, 48)).images[0].size == (32, 48)
    with pytest.raises(InputError, match="multiples"):
        pipeline("a dog", num_inference_steps=1, size=(33, 48))


def test_wrong_calls_say_what_is_wrong(pipeline):
    with pytest.raises(ConditionError, match="either"):
        pipeline()
    with pytest.raises(ConditionError, match="either"):
        pipeline("a dog", requests=mixture())
    with pytest.raises(ConfigError, match="0 steps"):
        pipeline("a dog", num_inference_steps=0)
    with pytest.raises(ConfigError, match="published=True"):
        pipeline(requests=[Request(PublishedUnit(("a dog",)))])


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler(**DIFFUSERS_SCHEDULE, final_sigmas_type="zero"),
        UniPCMultistepScheduler(**DIFFUSERS_SCHEDULE),
    ],
    ids=["dpm_solver", "unipc"],
)
def test_faster_solvers_take_the_place_of_ddim(scheduler):
    pipeline = random_pipeline(PUBLISHED_LIKE)
    exact = pipeline(requests=[dataclasses.replace(mixture()[4], num_inference_steps=100)]).latents[0]
    coarse = pipeline(requests=[dataclasses.replace(mixture()[4], num_inference_steps=10)]).latents[0]
    pipeline.scheduler = scheduler
    fast = pipeline(requests=[dataclasses.replace(mixture()[4], num_inference_steps=10)]).latents[0]
    assert furthest(fast, exact) < furthest(coarse, exact)
    alone = [pipeline(requests=[one]).latents[0] for one in mixture()]
    together = pipeline(requests=mixture()).latents
    for own, packed in zip(alone, together, strict=True):
        assert furthest(packed, own) <= 1e-5


def test_a_saved_pipeline_makes_the_same_picture(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = ACEPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert dict(loaded.config).items() >= {"budget": 16, "max_text_tokens": 24}.items()
    assert isinstance(loaded.scheduler, ACEDDIMScheduler)
    for ours, theirs in zip(pipeline(requests=mixture()).latents, loaded(requests=mixture()).latents, strict=True):
        assert torch.equal(ours, theirs)


def test_published_is_asked_for_at_loading_and_not_saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    published = ACEPipeline.from_pretrained(tmp_path, published=True)
    assert published.published
    assert published.float16_attention
    published.save_pretrained(tmp_path / "again")
    assert not ACEPipeline.from_pretrained(tmp_path / "again").published


def test_published_pipelines_sample_posteriors_and_ours_do_not(pipeline):
    published = ACEPipeline(**pipeline.components, budget=16, max_text_tokens=24, published=True)
    published.set_progress_bar_config(disable=True)
    one = Request(LongContextConditionUnit(ConditionUnit("a dog", (picture(64, 64),))))
    images = []
    for pipe in (pipeline, published):
        first, second = pipe.prepare([one])[0], pipe.prepare([one])[0]
        images.append(furthest(first.branches[0].frames.images[0], second.branches[0].frames.images[0]))
    assert images[0] == 0
    assert images[1] > 1e-6
    with pytest.raises(ImageError, match="at least"):
        published("a dog", picture(64, 7))


def test_adapters_attach_and_detach():
    peft = pytest.importorskip("peft")
    pipeline = random_pipeline(PUBLISHED_LIKE)
    one = mixture()[4]
    plain = pipeline(requests=[mixture()[4]]).latents[0]
    pipeline.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]), "style")
    assert furthest(pipeline(requests=[mixture()[4]]).latents[0], plain) <= 1e-5  # a new adapter starts at nothing
    randomise(pipeline.transformer, 9, std=0.05)
    pipeline.transformer.disable_adapters()
    without = pipeline(requests=[mixture()[4]]).latents[0]
    pipeline.transformer.enable_adapters()
    assert furthest(pipeline(requests=[mixture()[4]]).latents[0], without) > 1e-4
    pipeline.transformer.delete_adapters(["style"])
    assert furthest(pipeline(requests=[one]).latents[0], without) <= 1e-5


def test_bfloat16_follows_float32():
    exact = random_pipeline(PUBLISHED_LIKE)
    rounded = random_pipeline(PUBLISHED_LIKE).to(torch.bfloat16)
    for one, other in zip(mixture(), mixture(), strict=True):
        first, second = exact.prepare([one])[0], rounded.prepare([other])[0]
        exact.step([first])
        rounded.step([second])
        assert second.latents.dtype == torch.float32
        assert furthest(second.latents, first.latents) < 0.1
    assert len(rounded(requests=mixture()).images) == 5
