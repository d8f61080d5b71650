"""Memory modes: what is chosen, what is refused, and that the picture stays the same."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKL
from PIL import Image

from ace.diffusion import seeded_generator
from ace.errors import CheckpointError, ConfigError
from ace.inference.pipeline import ACEPipeline
from ace.model.devices import working_device
from ace.model.sizes import free_memory
from ace.model.text_on_disk import TextEncoderOnDisk
from ace.weights.memory import MemoryPlan, plan_memory, sizes_of
from ace.weights.sources import find_model, load_pipeline
from tests.random_models import PUBLISHED_LIKE, random_pipeline

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
GB = 1e9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    random_pipeline(PUBLISHED_LIKE, num_inference_steps=2).save_pretrained(folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    return tmp_path


def edit(pipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("make {image} blue", PHOTO, generator=seeded_generator(1), num_inference_steps=2)
    return np.asarray(made.images[0])


def plan_of(folder, text: str) -> MemoryPlan:
    return dataclasses.replace(plan_memory(folder, 16, "lean"), text=text)


@pytest.mark.parametrize("text", ["kept", "freed", "streamed"])
def test_every_exact_mode_gives_the_same_picture(folder, cache, text):
    model = find_model(str(folder))
    expected = edit(load_pipeline(model, device="cpu", memory="full"))
    pipeline = load_pipeline(model, device="cpu", memory=plan_of(folder, text))
    assert isinstance(pipeline.text_encoder, TextEncoderOnDisk)
    assert np.array_equal(edit(pipeline), expected)
    assert pipeline.text_encoder.num_loads == 1
    again = load_pipeline(model, device="cpu", memory=plan_of(folder, text))
    assert np.array_equal(edit(again), expected)
    assert again.text_encoder.num_loads == 0  # its texts are in the cache
    assert list((cache / "prompts").glob("*.safetensors"))


def test_a_published_autoencoder_works_channels_last_with_the_same_latents(folder):
    fast = load_pipeline(find_model(str(folder)), device="cpu").vae
    plain = AutoencoderKL.from_pretrained(folder / "vae")
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in fast.parameters() if w.ndim == 4)
    pixels = torch.rand(2, 3, 64, 64, generator=seeded_generator(0)) * 2 - 1
    with torch.no_grad():
        latents = plain.encode(pixels).latent_dist.mode()
        assert torch.allclose(fast.encode(pixels).latent_dist.mode(), latents, atol=1e-4)
        assert torch.allclose(fast.decode(latents).sample, plain.decode(latents).sample, atol=1e-4)


def test_weights_that_wait_elsewhere_are_there_when_a_part_works(folder):
    """What sequential offloading does, with the CPU in the place of a GPU: weights are nowhere while they wait."""
    pipeline = ACEPipeline.from_pretrained(folder)
    expected = edit(pipeline)
    for part in (pipeline.text_encoder, pipeline.vae, pipeline.transformer):
        cpu_offload(part, torch.device("cpu"))
        assert all(parameter.device.type == "meta" for parameter in part.parameters())
    assert np.array_equal(edit(pipeline), expected)


@pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_group_offload"])
def test_offloading_works_as_on_any_diffusers_pipeline(folder, method):
    pipeline = ACEPipeline.from_pretrained(folder)
    expected = edit(pipeline)
    if method == "enable_model_cpu_offload":
        pipeline.enable_model_cpu_offload(device="cpu")
    else:
        pipeline.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert np.array_equal(edit(pipeline), expected)
    assert np.array_equal(edit(pipeline), expected)  # hooks are set anew after every call


def test_ids_go_where_an_offloaded_text_encoder_works(folder):
    encoder = load_pipeline(find_model(str(folder)), device="cpu").text_encoder
    encoder._hf_hook = SimpleNamespace(execution_device=torch.device("cuda", 1))
    assert working_device(encoder) == torch.device("cuda", 1)  # its weights are elsewhere while they wait


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_says_in_one_line_that_there_is_no_gpu(folder, method):
    with pytest.raises(RuntimeError, match="requires accelerator, but not found"):
        getattr(ACEPipeline.from_pretrained(folder), method)()


def test_text_keys_call_the_hook_of_model_offloading(folder):
    """They are computed outside `forward`, which is all that offloading watches by itself."""
    pipeline = load_pipeline(find_model(str(folder)), device="cpu", memory="full")
    called = []
    pipeline.transformer._hf_hook = SimpleNamespace(
        pre_forward=lambda module: called.append(module), execution_device=torch.device("cpu")
    )
    edit(pipeline)
    assert called == [pipeline.transformer] * len(called)
    assert called


def fake_sizes(monkeypatch, text: float, rest: float, free: float) -> None:
    sizes = sizes_of.__globals__["Sizes"](text * GB, rest * GB, 1.5 * GB)
    monkeypatch.setitem(plan_memory.__globals__, "sizes_of", lambda *_: sizes)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * GB))


@pytest.mark.parametrize(("free", "mode"), [(24, "balanced"), (15, "balanced"), (10, "lean"), (6, "lean")])
def test_auto_takes_what_fits(folder, monkeypatch, free, mode):
    fake_sizes(monkeypatch, 9.5, 2.8, free)
    plan = plan_memory(folder, 1024)
    assert plan.mode == mode
    assert plan.needed <= free * GB
    assert f"{mode}: the text encoder is" in str(plan)
    assert "GB free" in str(plan)


def test_too_little_memory_is_found_before_anything_is_loaded(folder, monkeypatch):
    fake_sizes(monkeypatch, 9.5, 2.8, 8)
    with pytest.raises(ConfigError, match=r"--memory full needs about 14\.7 GB of memory, 8\.0 GB are free: use --mem"):
        plan_memory(folder, 1024, "full")
    fake_sizes(monkeypatch, 9.5, 2.8, 2)
    with pytest.raises(ConfigError, match=r"lean needs about 5\.2 GB .*close other programs"):
        load_pipeline(find_model(str(folder)), device="cpu")


def test_small_models_stay_whole(folder):
    plan = plan_memory(folder, 16)
    assert plan.plain
    assert not isinstance(load_pipeline(find_model(str(folder)), device="cpu").text_encoder, TextEncoderOnDisk)
    assert 0 < free_memory() < 1e15


def test_unknown_and_impossible_modes_are_refused(folder):
    with pytest.raises(ConfigError, match="memory 'tiny': use one of auto, full"):
        plan_memory(folder, 16, "tiny")
    with pytest.raises(ConfigError, match="there is none: use lean"):
        plan_memory(folder, 16, "offload", "cpu")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_cut_weights_are_named_before_anything_is_loaded(folder, tmp_path, part):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = next((copy / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=f"{path.name} in {part} is damaged or cut off"):
        plan_memory(copy, 16)
