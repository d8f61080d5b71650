"""Published models become pipeline folders, whole or not at all; the files are laid out as the released ones are, with
the weights of the recorded cases."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from ace import files
from ace.errors import CheckpointError, ConfigError, ModelNotFoundError, OutputError
from ace.inference.pipeline import ACEPipeline
from ace.model.convert import from_pixart, from_published, vae_from_published
from ace.weights.convert import (
    PUBLISHED,
    PublishedModel,
    check_manifest,
    convert_folder,
    find_files,
)
from ace.weights.sources import find_model
from tests.parity.conftest import SHIPPED, read_case
from tests.parity.published_models import config_of

E2E = read_case(SHIPPED / "e2e_edit1.json")
VAE_SIZES = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
MODEL = PublishedModel(
    "ace-0.6b-512", "scepter-studio/ACE-0.6B-512px", config_of(E2E.meta["config"]["DIFFUSION_MODEL"]), 16, 20, VAE_SIZES
)
LDM_WEIGHTS = read_case(SHIPPED / "vae_kl_tiny.json").weights("sd.")


def published_folder(folder: Path) -> Path:
    """The published layout, every weight file a torch pickle."""
    models = folder / "models"
    for name in ("dit", "vae", "text_encoder/t5-v1_1-xxl", "tokenizer"):
        (models / name).mkdir(parents=True)
    torch.save(E2E.weights("sd."), models / "dit" / "ace_0.6b_512px.pth")
    torch.save(LDM_WEIGHTS, models / "vae" / "vae.bin")
    text = models / "text_encoder" / "t5-v1_1-xxl"
    (text / "config.json").write_text(json.dumps(E2E.meta["t5_config"]))
    whole = E2E.weights("sd_t5.") | {"decoder.final_layer_norm.weight": torch.ones(32), "lm_head.weight": torch.ones(3)}
    names = sorted(whole)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, own in shards.items():
        torch.save({name: whole[name] for name in own}, text / shard)
    weight_map = {name: shard for shard, own in shards.items() for name in own}
    (text / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    shutil.copytree(SHIPPED / E2E.meta["tokenizer"], models / "tokenizer" / "t5-v1_1-xxl")
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return published_folder(tmp_path_factory.mktemp("published") / "ACE-0.6B-512px")


@pytest.fixture(scope="module")
def converted(published) -> Path:
    said: list[str] = []
    made = convert_folder(published, published.parent / "ace-0.6b-512", model=MODEL, progress=said.append)
    assert said == ["checking", "text encoder", "transformer", "autoencoder", "hashing"]
    return made


@pytest.fixture
def light(published, tmp_path) -> Path:
    """The published layout with safetensors instead of pickles, to be spoiled."""
    folder = tmp_path / "ACE-0.6B-512px"
    shutil.copytree(published, folder)
    models = folder / "models"
    (models / "dit" / "ace_0.6b_512px.pth").unlink()
    (models / "vae" / "vae.bin").unlink()
    text = models / "text_encoder" / "t5-v1_1-xxl"
    for pickle in text.glob("*.bin*"):
        pickle.unlink()
    save_file(E2E.weights("sd."), models / "dit" / "ace_0.6b_512px.safetensors")
    save_file(LDM_WEIGHTS, models / "vae" / "vae.safetensors")
    save_file(E2E.weights("sd_t5."), text / "model.safetensors")
    return folder


def refused(folder: Path, error: type[Exception], words: str, **settings: object) -> None:
    """The conversion is refused with these words, and nothing is left beside the source."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(error, match=words):
        convert_folder(folder, folder.parent / "made", **{"model": MODEL, **settings})
    assert sorted(folder.parent.iterdir()) == before


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(path)
    edit(state)
    save_file(state, path)


def test_a_published_folder_becomes_a_pipeline(converted):
    pipeline = ACEPipeline.from_pretrained(converted)
    config = pipeline.config
    assert (config.budget, config.num_inference_steps) == (16, 20)
    assert (config.guidance_scale, config.guidance_rescale) == (4.5, 0.5)
    assert not config.enlarge and not config.mask_by_area and not config.spell_quoted
    assert config.max_text_tokens == 120
    expected = from_published(E2E.weights("sd."), MODEL.config)
    state = pipeline.transformer.state_dict()
    assert state.keys() == expected.keys() | {"indicator_states"}
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    vae = vae_from_published(LDM_WEIGHTS, AutoencoderKL(**VAE_SIZES))
    assert all(torch.equal(pipeline.vae.state_dict()[name], value) for name, value in vae.items())
    for name, value in E2E.weights("sd_t5.").items():
        assert torch.equal(pipeline.text_encoder.state_dict()[name], value.bfloat16().to(pipeline.text_encoder.dtype))
    recorded = E2E.tensors["out.text_position_embeddings"]
    assert (state["indicator_states"] - recorded).abs().max() < 0.03 * recorded.abs().max()  # T5 runs in bfloat16
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a photo of a cat", num_inference_steps=1).images[0].size == (16, 16)


def test_a_models_hash_trusts_the_manifest_until_a_file_changes(converted, tmp_path, monkeypatch):
    whole = files.hash_model(converted)
    model = find_model(str(converted))
    with monkeypatch.context() as patch:
        patch.setattr(files, "hash_file", lambda path: pytest.fail(f"{path} was read") if "text" in str(path) else "")
        assert model.sha256
    assert find_model(str(converted)).sha256 == whole
    copy = shutil.copytree(converted, tmp_path / "copy")
    path = next((copy / "vae").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert find_model(str(copy)).sha256 == files.hash_model(copy) != whole


def test_defaults_of_the_released_models_are_the_published_ones():
    settings = {m.name: (m.hub_id, m.budget, m.num_inference_steps, m.config.max_positions) for m in PUBLISHED.values()}
    assert settings == {
        "ace-0.6b-512": ("scepter-studio/ACE-0.6B-512px", 1024, 20, 1024),
        "ace-0.6b-1024": ("scepter-studio/ACE-0.6B-1024px", 4096, 50, 4096),
    }


def test_the_manifest_notices_a_changed_file(converted, tmp_path):
    check_manifest(converted)
    left_out = json.loads((converted / "manifest.json").read_text())["left_out"]
    assert left_out == sorted(name for name in E2E.weights("sd.") if ".norm_k." in name)
    copy = tmp_path / "copy"
    shutil.copytree(converted, copy)
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="diffusion_pytorch_model"):
        check_manifest(copy)
    assert str(converted.parent) not in (converted / "manifest.json").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_any_precision_are_read(light, dtype):
    path = light / "models" / "dit" / "ace_0.6b_512px.safetensors"
    change(path, lambda state: state.update({name: value.to(dtype) for name, value in state.items()}))
    made = convert_folder(light, light.parent / "made", model=MODEL, dtype="bfloat16")
    state = load_file(made / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, value in from_published(E2E.weights("sd."), MODEL.config).items():
        assert torch.equal(state[name], value.to(dtype).bfloat16()), name


def test_wrapped_pickles_and_diffusers_names_are_read(light):
    models = light / "models"
    (models / "dit" / "ace_0.6b_512px.safetensors").unlink()
    torch.save({"state_dict": E2E.weights("sd."), "step": 3}, models / "dit" / "ace_0.6b_512px.pth")
    vae = AutoencoderKL(**VAE_SIZES)
    save_file(vae.state_dict(), models / "vae" / "vae.safetensors")
    made = convert_folder(light, light.parent / "made", model=MODEL)
    assert load_file(made / "transformer" / "diffusion_pytorch_model.safetensors").keys() == {
        *from_published(E2E.weights("sd."), MODEL.config),
        "indicator_states",
    }
    state = load_file(made / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(state[name], value) for name, value in vae.state_dict().items())


def test_pixart_weights_become_a_model(light):
    case = read_case(SHIPPED / "init_pixart.json")
    config = config_of(case.meta["config"])
    model = PublishedModel("from-pixart", "", config, 16, 20, VAE_SIZES)
    text = light / "models" / "text_encoder" / "t5-v1_1-xxl"
    text_config = E2E.meta["t5_config"] | {"d_model": config.text_channels}
    (text / "config.json").write_text(json.dumps(text_config))
    text_encoder = T5EncoderModel(T5Config(**text_config)).state_dict()
    del text_encoder["encoder.embed_tokens.weight"]
    save_file(text_encoder, text / "model.safetensors")
    save_file(case.weights("in."), light / "models" / "dit" / "ace_0.6b_512px.safetensors")
    made = convert_folder(light, light.parent / "made", model=model)
    state = load_file(made / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, value in from_published(from_pixart(case.weights("in.")), config).items():
        assert torch.equal(state[name], value), name


class Hostile:
    """A pickle that runs a program when it is read carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_with_code_is_named_and_never_run(published, tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "it ran"
    shutil.copytree(published, folder)
    torch.save({"blocks": Hostile(marker)}, folder / "models" / "dit" / "ace_0.6b_512px.pth")
    refused(folder, CheckpointError, r"ace_0.6b_512px.pth: it holds code \(\w*\.mkdir\)")
    assert not marker.exists()


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_a_cut_pickle_is_named(light, published, keep):
    whole = (published / "models" / "vae" / "vae.bin").read_bytes()
    (light / "models" / "vae" / "vae.safetensors").unlink()
    (light / "models" / "vae" / "vae.bin").write_bytes(whole[: int(len(whole) * keep)])
    refused(light, CheckpointError, r"vae.bin: it is .*damaged")


def test_a_pickle_without_weights_is_named(light):
    (light / "models" / "vae" / "vae.safetensors").unlink()
    torch.save({"epoch": 3}, light / "models" / "vae" / "vae.bin")
    refused(light, CheckpointError, "vae.bin: this file holds no state dict")


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("dit/ace_0.6b_512px", lambda s: s.pop("blocks.1.mlp.fc1.bias"), r"ace_0.6b.*missing blocks.1.mlp.fc1.bias"),
        ("dit/ace_0.6b_512px", lambda s: s.update(extra=torch.ones(1)), "unknown extra"),
        ("dit/ace_0.6b_512px", lambda s: s.update({"t_block.1.bias": torch.ones(5)}), "another size: time_modulation"),
        ("vae/vae", lambda s: s.pop("decoder.conv_out.bias"), r"vae.safetensors.*missing decoder.conv_out.bias"),
        (
            "vae/vae",
            lambda s: s.update({"decoder.conv_out.bias": torch.ones(7)}),
            "another size: decoder.conv_out",
        ),
        ("text_encoder/t5-v1_1-xxl/model", lambda s: s.pop("shared.weight"), "lacks shared.weight"),
        ("text_encoder/t5-v1_1-xxl/model", lambda s: s.update({"shared.weight": torch.ones(2, 2)}), "does not fit"),
    ],
)
def test_partial_and_wrong_weights_are_named_before_the_long_work(light, file, edit, words):
    change(light / "models" / f"{file}.safetensors", edit)
    refused(light, CheckpointError, words)


def test_weights_of_another_model_are_refused(light):
    refused(light, CheckpointError, "not an ACE checkpoint of this size", model=None)


def test_cut_safetensors_are_named(light):
    path = light / "models" / "dit" / "ace_0.6b_512px.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(light, CheckpointError, r"ace_0.6b_512px\.safetensors: it is damaged")


@pytest.mark.parametrize("missing", ["dit", "vae", "text_encoder", "tokenizer"])
def test_a_missing_part_is_named(light, missing):
    shutil.rmtree(light / "models" / missing)
    refused(light, ModelNotFoundError, missing)


def test_a_missing_shard_is_named(published, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    (folder / "models" / "text_encoder" / "t5-v1_1-xxl" / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelNotFoundError, match=r"pytorch_model-00002-of-00002\.bin"):
        find_files(folder)


def test_wrong_arguments_are_refused(light, converted):
    refused(light, ConfigError, "float32", dtype="int4")
    with pytest.raises(ModelNotFoundError, match="neither a folder nor a known model"):
        convert_folder("someone/else", light.parent / "made")
    with pytest.raises(OutputError, match="exists already"):
        convert_folder(light, converted, model=MODEL)
    refused(converted, ModelNotFoundError, "converted model already")
    renamed = light / "models" / "dit" / "weights.safetensors"
    (light / "models" / "dit" / "ace_0.6b_512px.safetensors").rename(renamed)
    refused(light, ConfigError, "does not say which model", model=None)


def test_a_full_disk_is_noticed_before_the_work(light, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    refused(light, OutputError, "GB are needed")


HUB = str(Path(__file__).parents[1] / "stand_in_hub.py")
HUB_ID = "scepter-studio/ACE-0.6B-512px"


def test_a_hub_id_is_fetched_cached_and_found_again_offline(published, tmp_path):
    extra = published / "README.md"
    extra.write_text("not needed")
    fetch = "import sys; from ace.weights.hub import fetch; print(fetch(sys.argv[1]))"
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"HF_HOME": str(tmp_path / "hf")}
    server = subprocess.Popen([sys.executable, HUB, str(published), HUB_ID], stdout=subprocess.PIPE, text=True)
    try:
        environment["HF_ENDPOINT"] = f"http://127.0.0.1:{server.stdout.readline().strip()}"

        def run(hub_id: str, **more: str) -> subprocess.CompletedProcess:
            command = [sys.executable, "-W", "ignore", "-c", fetch, hub_id]
            return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)

        online = run(HUB_ID)
        assert online.returncode == 0, online.stderr
        absent = run("scepter-studio/ACE-0.6B-1024px")
    finally:
        server.kill()
        server.communicate()
    folder = Path(online.stdout.strip().splitlines()[-1])
    files = find_files(folder)
    assert files.dit.read_bytes() == (published / "models" / "dit" / "ace_0.6b_512px.pth").read_bytes()
    assert not (folder / "README.md").exists()
    offline = run(HUB_ID, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout.strip().splitlines()[-1] == str(folder)
    not_cached = run("scepter-studio/ACE-0.6B-1024px", HF_HUB_OFFLINE="1")
    for failed, words in ((absent, "has no scepter"), (not_cached, "not in the hub")):
        assert failed.returncode
        assert words in failed.stderr.splitlines()[-1]


def test_a_killed_download_goes_on_where_it_stopped(tmp_path):
    """The hub sends two thirds of a file and falls silent; the process is killed; the next one asks for the rest."""
    name = "models/dit/ace_0.6b_512px.pth"
    content = os.urandom(36_000_000)  # the client writes 10 MB at a time
    served = tmp_path / "served" / name
    served.parent.mkdir(parents=True)
    served.write_bytes(content)
    command = [sys.executable, HUB, str(tmp_path / "served"), HUB_ID, name]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": f"http://127.0.0.1:{server.stdout.readline().strip()}",
        }
        program = "from ace.weights.hub import fetch; print(fetch('scepter-studio/ACE-0.6B-512px'))"
        command = [sys.executable, "-W", "ignore", "-c", program]
        first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        said = [server.stdout.readline().split() for _ in range(2)]
        assert said == [["GET", name, "0"], ["STALLED"]]
        partial = tmp_path / "hf" / "hub" / "models--scepter-studio--ACE-0.6B-512px" / "blobs"
        while not any(path.stat().st_size >= 10_000_000 for path in partial.glob("*.incomplete")):
            assert first.poll() is None
            time.sleep(0.05)
        first.kill()
        first.wait()
        second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert second.returncode == 0, second.stderr
        verb, asked, start = server.stdout.readline().split()
    finally:
        server.kill()
        server.communicate()
    assert (verb, asked) == ("GET", name)
    assert int(start) >= 10_000_000
    assert (Path(second.stdout.strip().splitlines()[-1]) / name).read_bytes() == content


def test_too_little_memory_is_noticed_before_the_work(light, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    refused(light, OutputError, "GB of memory are needed")
