"""Clips from a small model of the real classes: exact outside the mask, the same bytes again, window by window."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ace.cli import app
from ace.conversation import Job, Loading, Message, Picture, Session, Settings, keep, make, open_job, open_message, run
from ace.conversation.job import clip_job
from ace.conversation.media import CLIP, read_recipe, write
from ace.conversation.recipe import match_files
from ace.conversation.replay import job_of_recipe
from ace.diffusion import seeded_generator
from ace.errors import CheckpointError, ConfigError, InputError
from ace.families import find_family
from ace.families.video import VideoFamily
from ace.video.clips import open_clip, read_clip, write_clip
from ace.video.made import paste_frames, uncover
from ace.video.pipeline import VideoPipeline
from ace.video.prepare import controlled, fit, letterbox, nothing, repainted, resize_cover
from ace.video.request import ClipRequest
from tests.random_video import save_vace
from tests.video.clips import block_masks, ramp_clip
from tests.video.test_clips import with_sound

SETTINGS = Settings(seed=3, num_inference_steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("video")
    save_vace(root / "model")
    write_clip(root / "clip.mkv", ramp_clip(9, 64, 64), Fraction(16))
    write_clip(root / "long.mkv", ramp_clip(21, 64, 64), Fraction(16))
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(root / "black.png")
    Image.fromarray(ramp_clip(1, 40, 30, seed=2)[0]).save(root / "a.png")
    return root


@pytest.fixture(scope="module")
def family(folder) -> VideoFamily:
    found = find_family(str(folder / "model"))
    assert isinstance(found, VideoFamily)
    found.load(Loading(device="cpu"))
    return found


@pytest.fixture(scope="module")
def pipeline(family) -> VideoPipeline:
    return family.pipeline


def job_of(family: VideoFamily, settings: Settings = SETTINGS, **request) -> Job:
    return open_job(family, clip_job("a cat", settings, ClipRequest(**request)))


def made_of(family: VideoFamily, **request):
    (made,) = make(family, [job_of(family, **request)])
    return made


# The pipeline


def test_the_steps_are_those_of_the_librarys_own_call(pipeline):
    prepared = fit(repainted(ramp_clip(9, 64, 64), block_masks(9, 64, 64)), (64, 64))
    ours = pipeline("a cat", prepared, 1, num_steps=2)
    frames = torch.from_numpy((prepared.model_frames() + 1) / 2).permute(0, 3, 1, 2)[None]
    masks = torch.from_numpy((prepared.masks > 0).astype(np.float32))[None, :, None].repeat(1, 1, 3, 1, 1)
    theirs = pipeline.parts(
        prompt="a cat",
        negative_prompt="",
        video=frames,
        mask=masks,
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        generator=seeded_generator(1),
        output_type="np",
    ).frames[0]
    assert np.abs(ours - np.round(theirs * 255)).max() <= 1


def test_references_come_first_in_their_order_and_are_cut_off(pipeline):
    references = np.stack([letterbox(ramp_clip(1, 30, 60, seed=n)[0], (64, 64)) for n in (1, 4)])
    prepared = replace(fit(nothing(9, (64, 64)), (64, 64)), references=references)
    state = pipeline.start("a cat", prepared, 1, num_steps=2)
    assert state.conditioning.shape == (1, 96, 2 + 3, 8, 8)
    for number, reference in enumerate(prepared.model_references()):
        alone = pipeline.encode(torch.from_numpy(reference).permute(2, 0, 1)[None, :, None])
        assert torch.allclose(state.conditioning[:, :16, number], alone[:, :, 0], atol=1e-5)
    assert not state.conditioning[:, 16:32, :2].any() and not state.conditioning[:, 32:, :2].any()
    assert state.conditioning[:, 32:, 2:].min() == 1
    with_them = pipeline("a cat", prepared, 1, num_steps=2)
    without = pipeline("a cat", replace(prepared, references=references[:0]), 1, num_steps=2)
    assert with_them.shape == without.shape == (9, 64, 64, 3)
    assert not np.array_equal(with_them, without)


def test_more_references_than_frames_of_latents_are_taken(pipeline):
    prepared = fit(nothing(1, (32, 32)), (32, 32))
    prepared = replace(prepared, references=np.zeros((4, 32, 32, 3), np.float32))
    assert pipeline("a cat", prepared, 1, num_steps=1).shape == (1, 32, 32, 3)


def test_what_is_shown_changes_the_clip(pipeline):
    def clip(draft, **options):
        return pipeline("a cat", fit(draft, (64, 64)), 1, num_steps=2, **options)

    shown = clip(controlled(ramp_clip(9, 64, 64)))
    assert not np.array_equal(shown, clip(nothing(9, (64, 64))))
    assert not np.array_equal(shown, clip(controlled(ramp_clip(9, 64, 64)), strength=0.5))
    assert not np.array_equal(shown, clip(controlled(ramp_clip(9, 64, 64)), shift=8.0))
    assert np.array_equal(shown, clip(controlled(ramp_clip(9, 64, 64))))


# Exactness


def test_outside_the_mask_every_value_is_the_sources_in_every_frame(family, folder):
    made = made_of(family, video=folder / "clip.mkv", mask="box:10,12,40,50")
    inside = np.zeros((64, 64), bool)
    inside[12:50, 10:40] = True
    source = ramp_clip(9, 64, 64)
    assert np.array_equal(made.content.frames[:, ~inside], source[:, ~inside])
    assert (made.content.frames[:, inside] != source[:, inside]).mean() > 0.5


def test_a_source_of_another_size_and_aspect_is_kept_at_its_own(family, tmp_path):
    source = ramp_clip(9, 171, 99)
    write_clip(tmp_path / "odd.mkv", source, Fraction(16))
    made = made_of(family, video=tmp_path / "odd.mkv", extend=(("left", 0.25),))
    assert made.content.frames.shape == (9, 99, 171 + 42, 3)
    assert np.array_equal(made.content.frames[:, :, 42:], source)


def test_an_all_black_mask_returns_the_source(family, folder):
    made = made_of(family, video=folder / "clip.mkv", mask=str(folder / "black.png"))
    assert np.array_equal(made.content.frames, ramp_clip(9, 64, 64))
    assert any("selects nothing" in note for note in made.notes)


def test_given_frames_are_the_answers_own(family, folder):
    made = made_of(family, first=folder / "a.png", frames=9)
    assert np.array_equal(made.content.frames[0], ramp_clip(1, 40, 30, seed=2)[0])
    assert made.content.frames.shape == (9, 30, 40, 3)


def test_a_clip_that_goes_on_needs_room_for_new_frames(family, folder):
    with pytest.raises(ConfigError, match="ask for more with --frames"):
        job_of(family, video=folder / "clip.mkv", continues=True, frames=9)


@pytest.mark.parametrize("verb", ["swap", "animate", "move", "expand", "refer"])
def test_the_five_compositions_are_made(family, folder, tmp_path, monkeypatch, verb):
    if verb == "animate":
        monkeypatch.setattr("ace.video.request.draw_controls", lambda _, frames: frames)
    given = {
        "swap": [
            "--video",
            folder / "clip.mkv",
            "--mask",
            "box:10,12,40,50",
            "-i",
            f"{folder / 'a.png'}@box:2,2,20,20",
        ],
        "animate": ["--video", folder / "clip.mkv", "-i", folder / "a.png"],
        "move": ["--first", folder / "a.png", "--layout", "2,2,12,12:20,10,32,24", "--frames", "5"],
        "expand": ["--first", folder / "a.png", "--extend", "left=0.5", "-i", folder / "a.png", "--frames", "5"],
        "refer": ["-i", folder / "a.png", "--frames", "5"],
    }[verb]
    out = tmp_path / f"{verb}.mkv"
    monkeypatch.setenv("ACE_MODEL", str(folder / "model"))
    call("video", "compose", verb, "a cat", *given, "--steps", 1, "--seed", 1, "-o", out)
    made = read_clip(out).frames
    if verb == "expand":
        assert made.shape == (5, 30, 60, 3)
        assert np.array_equal(made[0, :, 20:], ramp_clip(1, 40, 30, seed=2)[0])
    assert "needs" in call("video", "compose", verb, "a cat", "-o", tmp_path / "no.mkv", code=2)


def test_uncover_brings_back_what_cover_showed():
    frames = ramp_clip(2, 96, 50)
    small = resize_cover(frames, (64, 32))
    back = uncover(small[0], (96, 50))
    assert back.shape == (50, 96, 3)
    flat = np.full((1, 50, 96, 3), 90, np.uint8)
    assert np.all(uncover(resize_cover(flat, (64, 32))[0], (96, 50)) == 90)


def test_frames_whose_mask_is_empty_are_not_touched():
    masks = block_masks()
    masks[4] = 0
    draft = repainted(ramp_clip(), masks)
    frames = list(paste_frames(draft, np.zeros((9, 32, 48, 3), np.uint8)))
    assert np.array_equal(frames[4], ramp_clip()[4])


# The same again


def test_the_same_request_gives_the_same_bytes_and_another_seed_others(family, folder):
    def data(seed: int) -> bytes:
        job = job_of(family, replace(SETTINGS, seed=seed), video=folder / "clip.mkv", mask="box:10,12,40,50")
        (made,) = make(family, [job])
        return CLIP.encode(made.content, "MKV", made.recipe)

    assert data(3) == data(3) != data(4)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_recipe_in_the_file_makes_it_again(family, folder, tmp_path, suffix):
    made = made_of(family, video=folder / "clip.mkv", mask="box:10,12,40,50", references=(folder / "a.png",))
    path = tmp_path / f"out{suffix}"
    write(made, path)
    recipe = read_recipe(path)
    assert recipe == made.recipe and str(folder) not in recipe.to_json()
    files = match_files(recipe, [folder / "clip.mkv", folder / "a.png"])
    (again,) = make(family, [open_job(family, job_of_recipe(recipe, files))])
    assert CLIP.encode(again.content, CLIP.format_of(path), again.recipe) == path.read_bytes()


def test_a_session_keeps_a_clip_without_loss(family, folder, tmp_path):
    made = made_of(family, video=folder / "clip.mkv", mask="box:10,12,40,50")
    session = Session.create(tmp_path / "talk")
    node = keep(session, made)
    assert node.answer_path.name == "clip.mkv"
    assert np.array_equal(read_clip(node.answer_path).frames, made.content.frames)


def test_a_photo_is_the_first_frame_and_other_images_are_references(family):
    from ace.conditions.images import normalise_image

    photo = Picture.of_image(normalise_image(Image.fromarray(ramp_clip(1, 64, 48)[0]), name="photo"), "photo")
    other = Picture.of_image(normalise_image(Image.fromarray(ramp_clip(1, 30, 48, 2)[0]), name="other"), "other")
    job = open_message(family, Message("it moves", replace(SETTINGS, options={"frames": 5}), photo, (other,)))
    (made,) = make(family, [job])
    assert made.content.frames.shape == (5, 48, 64, 3)
    assert np.array_equal(made.content.frames[0], ramp_clip(1, 64, 48)[0])


# Long clips


def test_a_killed_run_goes_on_at_its_last_window_and_ends_the_same(family, folder, tmp_path):
    request = {"video": folder / "long.mkv", "mask": "box:10,12,40,50"}
    whole = np.stack(list(made_of(family, **request).content.frames))
    family.work = tmp_path / "windows"
    try:
        steps = iter(range(100))
        told = list(run(family, [job_of(family, **request)], cancelled=lambda: next(steps) > 3))
        assert len(told) == 4  # stopped after three of eight steps
        assert [file.name for file in sorted(family.work.glob("*.mkv"))] == ["0000.mkv"]
        before = (family.work / "0000.mkv").stat().st_mtime_ns
        again = made_of(family, **request)
        assert (family.work / "0000.mkv").stat().st_mtime_ns == before
        assert np.array_equal(np.stack(list(again.content.frames)), whole)
        with pytest.raises(InputError, match="another request"):
            make(family, [job_of(family, replace(SETTINGS, seed=9), **request)])
    finally:
        family.work = None
    assert len(whole) == 21 and open_clip(folder / "long.mkv").num_frames == 21
    inside = np.zeros((64, 64), bool)
    inside[12:50, 10:40] = True
    assert np.array_equal(whole[:, ~inside], ramp_clip(21, 64, 64)[:, ~inside])


# Loading


def test_an_adapter_changes_the_clip_and_another_kind_is_refused(family, folder, tmp_path):
    from peft import LoraConfig

    parts = family.pipeline.parts
    parts.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "new")
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(parts.transformer, adapter_name="new"))
    type(parts).save_lora_weights(tmp_path, transformer_lora_layers=weights)
    parts.transformer.delete_adapters("new")
    plain = made_of(family, frames=5).content.frames
    other = find_family(str(folder / "model"), Loading(adapters=(f"{tmp_path}:0.5",)))
    other.load(Loading(device="cpu", adapters=(f"{tmp_path}:0.5",)))
    (made,) = make(other, [job_of(other, frames=5)])
    assert not np.array_equal(made.content.frames, plain)
    assert json.loads(made.recipe.settings["adapters"])[0]["weight"] == 0.5
    from safetensors.torch import save_file

    save_file(
        {"unet.x.lora_A.weight": torch.zeros(2, 4), "unet.x.lora_B.weight": torch.zeros(4, 2)},
        tmp_path / "x.safetensors",
    )
    wrong = find_family(str(folder / "model"), Loading(adapters=(str(tmp_path / "x.safetensors"),)))
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        wrong.load(Loading(device="cpu", adapters=(str(tmp_path / "x.safetensors"),)))


# The command line


def call(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_a_clip_is_made_told_and_replayed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_MODEL", str(folder / "model"))
    source = with_sound(tmp_path / "source.mp4", ramp_clip(9, 64, 64))
    out = tmp_path / "out.mkv"
    arguments = ["video", "a cat", "--video", source, "--mask", "box:10,12,40,50", "--steps", 1, "--seed", 1]
    told = json.loads(call(*arguments, "-o", out, "--json"))
    assert told["num_frames"] == 9 and told["sound"] is True
    assert json.loads((tmp_path / "out.mkv.json").read_text())["seed"] == 1
    assert not list(tmp_path.glob(".*"))
    assert "the same to the byte" in call("replay", out)
    assert "H.264 is lossy" in call(*arguments, "-o", tmp_path / "out.mp4")
    call(*arguments, "-o", tmp_path / "frames")
    assert np.array_equal(read_clip(tmp_path / "frames").frames, read_clip(out).frames)
    short = with_sound(tmp_path / "short.mp4", ramp_clip(5, 64, 64))
    longer = [
        "video",
        "a cat",
        "--video",
        short,
        "--continue",
        "--frames",
        9,
        "--steps",
        1,
        "-o",
        tmp_path / "longer.mkv",
    ]
    assert "sound of short.mp4 is left out" in call(*longer)
    assert np.array_equal(read_clip(tmp_path / "longer.mkv").frames[:5], read_clip(short).frames)


def test_a_dry_run_loads_nothing_and_says_what_it_takes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_MODEL", str(folder / "model"))
    monkeypatch.setattr(VideoFamily, "load", lambda *_: pytest.fail("loaded"))
    told = json.loads(call("video", "a cat", "--video", folder / "long.mkv", "--dry-run", "--json"))
    assert told["num_windows"] == 4 and told["tokens"] == 48 and told["seconds"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["", "-o", "a.mp4"], "instruction is empty"),
        (["a cat", "--frames", "12"], "4n+1"),
        (["a cat", "-o", "a.xyz"], "no suffix"),
        (["a cat", "-o", "a.mp4", "--lossless"], "not lossless"),
        (["a cat", "--steps", "0"], "steps"),
        (["a cat", "--extend", "left"], "names each side once"),
        (["a cat", "--model", "ace-tiny"], "makes images"),
    ],
)
def test_wrong_requests_end_in_one_line(folder, monkeypatch, tmp_path, words, message):
    monkeypatch.setenv("ACE_MODEL", str(folder / "model"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VideoFamily, "load", lambda *_: pytest.fail("loaded"))
    output = call("video", *words, code=2)
    assert message in output and list(tmp_path.iterdir()) == []
