"""`ACEPlusPipeline` on a small random FLUX: what stays, what comes out, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ace.conditions.images import OpenedImage, normalise_image
from ace.diffusion import seeded_generator
from ace.errors import CheckpointError, ConditionError, ConfigError, ImageError, MaskError
from ace.plus import pipeline as pipeline_plus
from ace.plus.canvas import Reference
from ace.plus.layouts import checkpoint_shapes, read_adapter, widen
from ace.plus.load import place
from ace.plus.pipeline import ACEPlusPipeline, PlusRequest
from tests.random_flux import SMALL, SMALL_FFT, random_plus


@pytest.fixture(scope="module")
def lora():
    return random_plus(SMALL)


@pytest.fixture(scope="module")
def fft():
    return random_plus(SMALL_FFT)


def noise_picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def box_mask(width, height, box):
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, box)
    return mask


def make(pipeline, *arguments, seed=0, **settings):
    return pipeline(*arguments, generator=seeded_generator(seed), **settings).images[0]


@pytest.mark.parametrize("name", ["lora", "fft"])
def test_every_pixel_outside_the_mask_and_the_size_stay_whatever_the_size_and_the_references(name, request):
    pipeline = request.getfixturevalue(name)
    photo = noise_picture(101, 67)
    mask = box_mask(101, 67, (30, 20, 70, 50))
    references = [Reference(noise_picture(33, 50, 1)), Reference(noise_picture(40, 20, 2), "above", "keep")]
    result = make(pipeline, "put {image1} into {image}", photo, mask, references)
    assert result.size == photo.size
    outside = np.asarray(mask) == 0
    np.testing.assert_array_equal(np.asarray(result)[outside], np.asarray(photo)[outside])
    assert (np.asarray(result)[~outside] != np.asarray(photo)[~outside]).mean() > 0.5


def test_alpha_and_colour_profile_of_the_edited_picture_come_out_again(lora):
    photo = noise_picture(64, 48).convert("RGBA")
    photo.putalpha(box_mask(64, 48, (0, 0, 40, 48)))
    opened = normalise_image(photo)
    opened = OpenedImage(opened.image, opened.stored, opened.alpha, b"a profile", opened.mode)
    result = make(lora, "a hat", opened, box_mask(64, 48, (8, 8, 24, 24)))
    assert result.mode == "RGBA" and result.info["icc_profile"] == b"a profile"
    np.testing.assert_array_equal(np.asarray(result)[..., 3], np.asarray(photo)[..., 3])


def test_a_new_picture_after_references_has_the_size_asked_for(lora):
    result = make(lora, "{image} on a mug", None, None, [noise_picture(40, 60)], size=(80, 48))
    assert result.size == (80, 48)


def test_the_same_seed_gives_the_same_picture_alone_and_among_others(lora):
    def asked():
        return PlusRequest("a cat", noise_picture(48, 48), generator=seeded_generator(5))

    alone = lora(requests=[asked()]).images[0]
    other = PlusRequest("another", None, size=(64, 32), references=(Reference(noise_picture(9, 9)),))
    among = lora(requests=[other, asked()]).images[1]
    np.testing.assert_array_equal(np.asarray(alone), np.asarray(among))
    np.testing.assert_array_equal(np.asarray(lora(requests=[asked(), asked()]).images[0]), np.asarray(alone))
    assert not np.array_equal(np.asarray(alone), np.asarray(make(lora, "a cat", noise_picture(48, 48), seed=6)))


@pytest.mark.parametrize("name", ["lora", "fft"])
def test_requests_of_one_canvas_size_go_together_unless_the_pipeline_is_exact(name, request, monkeypatch):
    pipeline = request.getfixturevalue(name)
    assert pipeline.exact  # on a CPU
    monkeypatch.setattr(pipeline, "_exact", False)

    def asked(seed, steps, guidance, size=(48, 48)):
        photo = noise_picture(*size, seed=seed)
        return PlusRequest(
            f"a cat, {seed}",
            photo,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=seeded_generator(seed),
        )

    wanted = [(1, 3, 50.0), (2, 3, 4.0), (3, 2, 30.0), (4, 3, 50.0, (64, 32))]
    alone = []
    for arguments in wanted:
        (state,) = pipeline.prepare([asked(*arguments)])
        while not state.done:
            pipeline.step(state)
        alone.append(state.latents)
    passes = []
    handle = pipeline.transformer.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    try:
        states = pipeline.prepare([asked(*arguments) for arguments in wanted])
        while running := [state for state in states if not state.done]:
            pipeline.step(*running)
        assert passes == [3, 1, 3, 1, 2, 1]
        for state, latents in zip(states, alone, strict=True):
            torch.testing.assert_close(state.latents, latents, atol=1e-5, rtol=1e-5)
        monkeypatch.setattr(pipeline_plus, "BATCH_CELLS", 2 * states[0].canvas.num_cells)
        passes.clear()
        pipeline.step(*pipeline.prepare([asked(*arguments) for arguments in wanted[:3]]))
        assert passes == [2, 1]
    finally:
        handle.remove()


def first_latents(pipeline, *arguments):
    (state,) = pipeline.prepare([PlusRequest(*arguments, generator=seeded_generator(0))])
    pipeline.step(state)
    return state.latents


def test_the_model_sees_the_words_every_reference_where_it_stands_and_the_mask(lora):
    photo, mask = noise_picture(48, 48), box_mask(48, 48, (0, 0, 24, 24))
    first, second = Reference(noise_picture(32, 32, 1)), Reference(noise_picture(32, 32, 2), "right")
    base = first_latents(lora, "a cat", photo, mask, (first, second))
    assert torch.equal(base, first_latents(lora, "a cat", photo, mask, (first, second)))
    for words, picture, change, references in (
        ("a dog", photo, mask, (first, second)),
        ("a cat", photo, mask, (first, Reference(noise_picture(32, 32, 3), "right"))),
        ("a cat", photo, mask, (Reference(first.image, "right"), Reference(second.image))),
        ("a cat", photo, box_mask(48, 48, (0, 0, 24, 26)), (first, second)),
    ):
        assert not torch.equal(base, first_latents(lora, words, picture, change, references))


def test_only_a_model_with_change_channels_sees_what_a_full_repaint_hides(lora, fft):
    mask = box_mask(48, 48, (8, 8, 40, 40))
    hidden = noise_picture(48, 48)
    other = hidden.copy()
    other.paste(noise_picture(32, 32, 9), (8, 8))
    settings = {"repainting_scale": 1.0, "preserve": False}
    assert np.array_equal(*(np.asarray(make(lora, "x", p, mask, **settings)) for p in (hidden, other)))
    settings["repainting_scale"] = 0.0
    assert not np.array_equal(*(np.asarray(make(fft, "x", p, mask, **settings)) for p in (hidden, other)))


def test_guidance_steps_and_repainting_take_their_defaults_from_the_model(lora):
    request = PlusRequest("x", noise_picture(32, 32))
    (state,) = lora.prepare([request])
    assert (state.num_steps, state.guidance_scale) == (2, 50.0)
    assert state.canvas.content.max() == 0  # repainting 1.0 hides all
    (state,) = lora.prepare([PlusRequest("x", noise_picture(32, 32), num_inference_steps=5, guidance_scale=3.5)])
    assert (state.num_steps, state.guidance_scale) == (5, 3.5)


def test_the_budget_bounds_the_canvas(lora):
    (state,) = lora.prepare([PlusRequest("x", noise_picture(400, 300), max_seq_length=48)])
    assert state.canvas.num_cells <= 48
    assert len(state.condition) == state.canvas.num_cells


def test_the_published_geometry_gives_the_published_sizes(lora):
    lora.published = True
    try:
        photo = noise_picture(101, 67)
        assert make(lora, "x", photo, box_mask(101, 67, (0, 0, 50, 50)), preserve=False).size == (96, 64)
        result = make(lora, "x", photo, None, [noise_picture(60, 90)])
        assert result.size == (101, 67)
        with pytest.raises(ConfigError, match="one reference"):
            make(lora, "x", photo, None, [noise_picture(9, 9), noise_picture(9, 9)])
    finally:
        lora.published = False


@torch.no_grad()
def test_widening_a_fill_model_changes_nothing_it_predicts(lora):
    wide = random_plus(SMALL_FFT)
    state = lora.transformer.state_dict()
    state["x_embedder.weight"] = widen(state["x_embedder.weight"])
    wide.transformer.load_state_dict(state, strict=True)
    for part in ("vae", "text_encoder", "text_encoder_2"):
        getattr(wide, part).load_state_dict(getattr(lora, part).state_dict())
    photo, mask = noise_picture(48, 32), box_mask(48, 32, (0, 0, 32, 32))
    (first,), (second,) = (
        p.prepare([PlusRequest("x", photo, mask, generator=seeded_generator(1))]) for p in (lora, wide)
    )
    while not first.done:
        lora.step(first)
        wide.step(second)
    torch.testing.assert_close(first.latents, second.latents, atol=1e-4, rtol=1e-4)


def adapter(name, seed=0, rank=2):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in checkpoint_shapes(SMALL).items():
        if key.endswith(("qkv.weight", "linear1.weight", "mlp.0.weight")):
            stem = f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
            tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, shape[1], generator=generator)
            tensors[f"{stem}.lora_up.weight"] = torch.randn(shape[0], rank, generator=generator) * 0.1
            tensors[f"{stem}.alpha"] = torch.tensor(float(rank) / 2)
    return read_adapter(tensors, SMALL, name)


def test_attached_adapters_act_like_merged_ones_with_their_strengths():
    pytest.importorskip("peft")
    attached, merged = random_plus(), random_plus()
    first, second = adapter("first.safetensors", 1), adapter("second.safetensors", 2, rank=3)
    attached.attach(first, 0.5)
    attached.attach(second, -1.0)
    state = merged.transformer.state_dict()
    for one, strength in ((first, 0.5), (second, -1.0)):
        for name, delta in one.deltas.items():
            state[name] = delta.apply(state[name], strength)
    merged.transformer.load_state_dict(state)
    photo = noise_picture(32, 32)
    (a,), (m,) = (p.prepare([PlusRequest("x", photo, generator=seeded_generator(3))]) for p in (attached, merged))
    attached.step(a)
    merged.step(m)
    torch.testing.assert_close(a.latents, m.latents, atol=1e-4, rtol=1e-4)
    (plain,) = random_plus().prepare([PlusRequest("x", photo, generator=seeded_generator(3))])
    random_plus().step(plain)
    assert not torch.allclose(plain.latents, m.latents, atol=1e-3)


@pytest.mark.parametrize("way", ["model", "group", "sequential"])
def test_moving_weights_in_and_out_changes_nothing(way, lora):
    """The hooks are the real ones; both devices are the CPU here."""
    moved = place(random_plus(SMALL), "cpu", way)
    photo = noise_picture(32, 32)
    for seed in (0, 1):
        before, after = (np.asarray(make(pipeline, "x", photo, seed=seed)) for pipeline in (lora, moved))
        np.testing.assert_array_equal(before, after)


def test_a_saved_pipeline_is_the_same_pipeline(lora, tmp_path):
    lora.save_pretrained(tmp_path)
    again = ACEPlusPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    photo = noise_picture(32, 32)
    assert np.array_equal(np.asarray(make(lora, "{image} x", photo)), np.asarray(make(again, "{image} x", photo)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("  ", noise_picture(32, 32)), ConditionError, "empty"),
        (("x", noise_picture(32, 32), Image.new("L", (16, 16), 255)), MaskError, "16x16"),
        (("x", None, Image.new("L", (16, 16), 255)), MaskError, "needs the picture"),
        (("{image2}", noise_picture(32, 32)), ConditionError, r"\{image2\}"),
        (("x", noise_picture(640, 640), None, [noise_picture(3000, 100)]), ImageError, "reference 1"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_encoded(lora, arguments, error, words, monkeypatch):
    monkeypatch.setattr(lora, "_encode", None)
    with pytest.raises(error, match=words):
        lora(*arguments)


def test_a_transformer_of_another_kind_is_refused():
    with pytest.raises(CheckpointError, match=r"64 input channels.*384.*448"):
        random_plus(replace(SMALL, in_channels=64))
