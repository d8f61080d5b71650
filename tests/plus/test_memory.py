"""Where an ACE++ model of the real size goes, from headers alone: the files are sparse and hold nothing."""

import json
import math
import struct

import pytest
from safetensors.torch import save_file

from ace.errors import ConfigError
from ace.model.sizes import GB
from ace.plus import memory as plus_memory
from ace.plus.layouts import ACE_PLUS_FFT, checkpoint_shapes
from ace.plus.memory import plan_plus
from ace.plus.sources import PlusFiles
from tests.random_flux import SMALL, published_state, random_plus


def sparse_file(path, shapes):
    """A safetensors file of bfloat16 whose header is real and whose values take no room."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def real_size(tmp_path_factory):
    base = tmp_path_factory.mktemp("fill")
    sparse_file(base / "fft.safetensors", checkpoint_shapes(ACE_PLUS_FFT))
    for part, count in (("text_encoder_2", 4_762_310_656), ("text_encoder", 123_060_480), ("vae", 83_819_683)):
        (base / part).mkdir()
        sparse_file(base / part / "model.safetensors", {"weight": (count,)})
    return PlusFiles("ace-plus-fft", base, base / "fft.safetensors", ACE_PLUS_FFT, (), 1.0)


@pytest.fixture
def memory(monkeypatch):
    def have(ram, gpu=0.0):
        monkeypatch.setattr(plus_memory, "free_memory", lambda: ram * GB)
        monkeypatch.setattr(plus_memory, "_free_gpu_memory", lambda: gpu * GB)

    return have


@pytest.mark.parametrize(
    ("ram", "quantization", "mode", "offload"),
    [(96, None, "auto", "none"), (64, None, "lean", "disk"), (30, "fp8", "auto", "none"), (8, None, "lean", "disk")],
)
def test_without_a_gpu_everything_stays_loaded_if_it_fits_else_it_waits_on_disk(
    ram, quantization, mode, offload, real_size, memory
):
    memory(ram)
    plan = plan_plus(real_size, device="cpu", quantization=quantization)
    assert (plan.mode, plan.offload, plan.quantization) == (mode, offload, quantization)
    assert f"of {ram:.1f} GB free" in str(plan) and not plan.plain


@pytest.mark.parametrize(
    ("gpu", "mode", "offload"),
    [(80, "auto", "none"), (32, "offload", "model"), (16, "balanced", "group"), (3, "lean", "sequential")],
)
def test_a_gpu_gets_the_fastest_way_that_fits(gpu, mode, offload, real_size, memory):
    memory(64, gpu)
    plan = plan_plus(real_size, device="cuda", dtype="bfloat16")
    assert (plan.mode, plan.offload) == (mode, offload)


def test_eight_bits_take_half_and_a_mode_is_taken_at_its_word(real_size, memory):
    memory(64, 48)
    whole = plan_plus(real_size, "auto", device="cuda", dtype="bfloat16")
    eight = plan_plus(real_size, "8bit", device="cuda", dtype="bfloat16")
    assert eight.quantization == "fp8" and eight.needed < 0.6 * whole.needed
    full = plan_plus(real_size, "full", device="cuda", dtype="bfloat16")
    assert full.tile_px == 0 and whole.tile_px == 1024


@pytest.mark.parametrize(
    ("mode", "device", "ram", "quantization", "words"),
    [
        (
            "full",
            "cpu",
            24,
            None,
            r"--memory full needs about 7\d\.\d GB of memory, 24\.0 GB are free: use --memory auto",
        ),
        ("lean", "cpu", 2, None, "--memory lean needs about .* close other programs"),
        ("auto", "cpu", 8, "int8", "int8 weights cannot wait on disk"),
        ("balanced", "cpu", 24, None, "there is none here: use 8bit"),
        ("balanced", "cuda", 24, None, "GB of memory beside the GPU's"),
        ("tight", "cpu", 24, None, "memory 'tight': use full, auto"),
    ],
)
def test_what_does_not_fit_is_refused_before_loading(mode, device, ram, quantization, words, real_size, memory):
    memory(ram, 40)
    dtype = "float32" if device == "cpu" else "bfloat16"
    with pytest.raises(ConfigError, match=words):
        plan_plus(real_size, mode, device=device, dtype=dtype, quantization=quantization)


def test_a_small_model_is_never_refused_or_moved(tmp_path, memory):
    memory(0.1)
    random_plus().save_pretrained(tmp_path)
    save_file(published_state(random_plus().transformer), tmp_path / "small.safetensors")
    files = PlusFiles("small", tmp_path, tmp_path / "small.safetensors", SMALL, (), 1.0)
    assert plan_plus(files, "full").plain
