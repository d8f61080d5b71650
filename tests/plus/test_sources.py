"""ACE++ models by name, address and layout; what does not fit together is refused before weights are loaded."""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ace import files as hashes
from ace.diffusion import seeded_generator
from ace.errors import CheckpointError, ConfigError, MissingDependencyError, ModelNotFoundError
from ace.files import hash_file, hash_model
from ace.plus.addresses import locate
from ace.plus.convert import convert_fp8
from ace.plus.fp8 import Fp8Linear, to_fp8
from ace.plus.layouts import checkpoint_shapes
from ace.plus.load import load_plus
from ace.plus.models import PLUS_MODELS, is_plus
from ace.plus.pipeline import PlusRequest
from ace.plus.sources import find_plus, read_adapter_option
from ace.plus.weights import load_adapter, load_transformer, read_weight_files
from tests.random_flux import SMALL, SMALL_FFT, published_state, random_plus

VARIABLES = ("FLUX_FILL_PATH", *(model.variable for model in PLUS_MODELS.values()))


def adapter_file(path, seed=0, rank=2, alpha=None, sizes=SMALL):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in checkpoint_shapes(sizes).items():
        if key.endswith(("qkv.weight", "linear1.weight")):
            stem = f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
            tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, shape[1], generator=generator)
            tensors[f"{stem}.lora_up.weight"] = torch.randn(shape[0], rank, generator=generator) * 0.1
            tensors[f"{stem}.alpha"] = torch.tensor(float(alpha or rank))
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A small FLUX.1-Fill in both layouts, an FFT file and adapters."""
    root = tmp_path_factory.mktemp("plus")
    pipeline = random_plus()
    pipeline.save_pretrained(root / "diffusers")
    pipeline.save_pretrained(root / "bfl")
    for file in (root / "bfl" / "transformer").iterdir():
        file.unlink()
    (root / "bfl" / "transformer").rmdir()
    save_file(published_state(pipeline.transformer), root / "bfl" / "flux1-fill-dev.safetensors")
    save_file(published_state(random_plus(SMALL_FFT, seed=4).transformer), root / "fft.safetensors")
    for number, name in enumerate(("portrait", "subject", "local")):
        adapter_file(root / f"{name}.safetensors", number)
    return root


@pytest.fixture(autouse=True)
def _variables(monkeypatch, disk):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLUX_FILL_PATH", str(disk / "diffusers"))
    monkeypatch.setenv("PORTRAIT_MODEL_PATH", str(disk / "portrait.safetensors"))
    monkeypatch.setenv("SUBJECT_MODEL_PATH", str(disk / "subject.safetensors"))
    monkeypatch.setenv("ACE_PLUS_FFT_MODEL", str(disk / "fft.safetensors"))


def latents_of(pipeline, seed=0, steps=1):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    (state,) = pipeline.prepare(
        [PlusRequest("a cat", photo, generator=seeded_generator(seed), num_inference_steps=steps)]
    )
    while not state.done:
        pipeline.step(state)
    return state.latents


def test_every_layout_of_the_same_weights_is_the_same_model(disk, monkeypatch):
    first = latents_of(load_plus(find_plus("ace-plus-subject"), device="cpu"))
    monkeypatch.setenv("FLUX_FILL_PATH", str(disk / "bfl"))
    second = latents_of(load_plus(find_plus("ace-plus-subject"), device="cpu"))
    assert torch.equal(first, second)
    plain = latents_of(load_plus(find_plus(str(disk / "diffusers")), device="cpu"))
    assert not torch.allclose(first, plain, atol=1e-4)


def test_several_adapters_count_with_their_strengths_merged_or_attached(disk):
    pytest.importorskip("peft")
    files = find_plus("ace-plus-subject", [("ace-plus-portrait", 0.5)])
    assert [(f.path.name, f.strength) for f in files.adapters] == [
        ("subject.safetensors", 1.0),
        ("portrait.safetensors", 0.5),
    ]
    merged = latents_of(load_plus(files, device="cpu"))
    attached = latents_of(load_plus(files, device="cpu", attach=True))
    torch.testing.assert_close(merged, attached, atol=1e-4, rtol=1e-4)
    other = latents_of(load_plus(find_plus("ace-plus-subject", [("ace-plus-portrait", 1.0)]), device="cpu"))
    assert not torch.allclose(merged, other, atol=1e-4)


def test_the_fully_tuned_model_takes_its_parts_from_the_base(disk):
    files = find_plus("ace-plus-fft")
    assert files.is_fft and files.transformer == disk / "fft.safetensors"
    pipeline = load_plus(files, device="cpu", max_seq_length=1024)
    assert pipeline.has_change_channels and pipeline.config.max_seq_length == 1024
    assert latents_of(pipeline).isfinite().all()


def test_names_and_folders_of_these_models_are_known(disk, tmp_path):
    assert is_plus("ace-plus-local") and is_plus(str(disk / "diffusers"))
    assert not is_plus("ace-tiny") and not is_plus(str(tmp_path)) and not is_plus(None)


def test_the_hash_of_a_model_follows_its_weights_and_strengths():
    same = find_plus("ace-plus-subject").sha256
    assert same == find_plus("ace-plus-subject").sha256
    assert same != find_plus("ace-plus-portrait").sha256
    assert same != find_plus("ace-plus-subject", [("ace-plus-portrait", 0.5)]).sha256


def test_a_large_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "LARGE", 10)
    read = []
    monkeypatch.setattr(hashes, "hash_file", lambda path: read.append(path.name) or hash_file(path))
    file, small = tmp_path / "weights.safetensors", tmp_path / "small.json"
    file.write_bytes(b"0123456789")
    small.write_bytes(b"{}")
    for _ in range(2):
        assert hashes.hash_once(file, tmp_path / "cache") == hash_file(file)
        assert hashes.hash_once(small, tmp_path / "cache") == hash_file(small)
    assert read.count("weights.safetensors") == 1 and read.count("small.json") == 2
    file.write_bytes(b"0123456789x")
    assert hashes.hash_once(file, tmp_path / "cache") == hash_file(file)
    (tmp_path / "cache" / "hashes.json").write_text("not JSON")
    assert hashes.hash_once(file, tmp_path / "cache") == hash_file(file)
    assert hashes.hash_model_once(tmp_path, tmp_path / "cache") == hash_model(tmp_path)


def test_addresses_lead_to_paths_mirrors_or_one_clear_error(disk, tmp_path, monkeypatch):
    assert locate(str(disk / "fft.safetensors"), "it") == disk / "fft.safetensors"
    monkeypatch.setenv("WHERE", str(disk))
    assert locate("${WHERE}/fft.safetensors", "it") == disk / "fft.safetensors"
    mirror = tmp_path / "iic" / "ACE_Plus"
    mirror.mkdir(parents=True)
    adapter_file(mirror / "ace_plus_fft.safetensors")
    monkeypatch.setenv("ACE_MODELSCOPE_MIRROR", str(tmp_path))
    doubled = "ms://iic/ACE_Plus@ace_plus_fft.safetensors.safetensors"  # as the published instructions have it
    assert locate(doubled, "it") == mirror / "ace_plus_fft.safetensors"
    monkeypatch.setitem(sys.modules, "modelscope", None)  # not installed
    for source, words in (
        ("ms://iic/ACE_Plus@portrait/x.safetensors", r"hf://ali-vilab/ACE_Plus@portrait/x\.safetensors"),
        ("hf://black-forest-labs/FLUX.1-Fill-dev", "FLUX_FILL_PATH"),
        ("black-forest-labs/FLUX.1-Fill-dev", "FLUX_FILL_PATH"),
        ("${NOT_SET_AT_ALL}/x", "NOT_SET_AT_ALL"),
        ("nowhere.safetensors", "neither a file here nor an address"),
    ):
        with pytest.raises(ModelNotFoundError, match=words) as caught:
            locate(source, "the model")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (
            "import modelscope_hub_that_is_not_here",
            "pip install modelscope-hub-that-is-not-here, or use hf://ali-vilab",
        ),
        (
            "def model_file_download(repository, file): raise ConnectionError('no route')",
            r"ms://iic/ACE_Plus@a\.safetensors was not fetched \(no route\): try again, or use hf://ali-vilab",
        ),
    ],
)
def test_a_modelscope_client_that_fails_ends_in_one_line_with_the_hubs_counterpart(
    client, words, tmp_path, monkeypatch
):
    (tmp_path / "modelscope.py").write_text(client)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "modelscope", raising=False)
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        locate("ms://iic/ACE_Plus@a.safetensors", "the model")
    assert "\n" not in str(caught.value)
    monkeypatch.delitem(sys.modules, "modelscope", raising=False)


def test_a_modelscope_client_fetches_files_and_repositories(tmp_path, monkeypatch):
    client = (
        "def model_file_download(repository, file): return f'/copies/{repository}/{file}'\n"
        "def snapshot_download(repository, allow_patterns): return f'/copies/{repository}/{allow_patterns[0]}'\n"
    )
    (tmp_path / "modelscope.py").write_text(client)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "modelscope", raising=False)
    assert locate("ms://iic/ACE_Plus@a/b.safetensors", "it") == Path("/copies/iic/ACE_Plus/a/b.safetensors")
    assert locate("ms://iic/ACE_Plus", "it", ["vae"]) == Path("/copies/iic/ACE_Plus/vae")
    monkeypatch.delitem(sys.modules, "modelscope", raising=False)


def test_a_gated_repository_says_where_to_accept_and_log_in(monkeypatch):
    import huggingface_hub
    from httpx2 import Request, Response
    from huggingface_hub.errors import GatedRepoError

    def gated(*arguments, **settings):
        raise GatedRepoError("gated", response=Response(403, request=Request("GET", "https://hub.invalid")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gated)
    with pytest.raises(ModelNotFoundError, match=r"is gated: accept its licence .* `hf auth login`.*FLUX_FILL_PATH"):
        locate("hf://black-forest-labs/FLUX.1-Fill-dev", "FLUX.1-Fill-dev")


@pytest.mark.parametrize("kind", ["sdxl", "channels", "fft for lora", "fill for fft", "cut off", "pickle", "no parts"])
def test_what_does_not_fit_is_refused_by_its_header(kind, disk, tmp_path, monkeypatch):
    path = tmp_path / "other.safetensors"
    name, error, words = "ace-plus-subject", ConfigError, "other.safetensors"
    monkeypatch.setenv("SUBJECT_MODEL_PATH", str(path))
    if kind == "sdxl":
        save_file({"lora_unet_down_blocks_0_attn.lora_down.weight": torch.zeros(2, 4)}, path)
        words = r"other\.safetensors is made for an SD or SDXL"
    elif kind == "channels":
        pair = {
            "lora_unet_img_in.lora_down.weight": torch.zeros(2, 448),
            "lora_unet_img_in.lora_up.weight": torch.zeros(64, 2),
        }
        save_file(pair, path)
        words = "448 input channels, this model has 384"
    elif kind == "fft for lora":
        monkeypatch.setenv("SUBJECT_MODEL_PATH", str(disk / "subject.safetensors"))
        base = tmp_path / "base"
        base.symlink_to(disk / "bfl")
        monkeypatch.setenv("FLUX_FILL_PATH", str(base))
        with pytest.raises(ConfigError, match=r"fft\.safetensors has 448 input channels .* needs 384: .* ace-plus-fft"):
            find_plus(name, transformer=str(disk / "fft.safetensors"))
        return
    elif kind == "fill for fft":
        name, words = (
            "ace-plus-fft",
            r"flux1-fill-dev\.safetensors has 384 input channels .* needs 448: give ACE\+\+ FFT",
        )
        monkeypatch.setenv("ACE_PLUS_FFT_MODEL", str(disk / "bfl" / "flux1-fill-dev.safetensors"))
    elif kind == "cut off":
        path.write_bytes((disk / "subject.safetensors").read_bytes()[:-100])
        words = r"other\.safetensors is cut off"
    elif kind == "pickle":
        path = tmp_path / "other.pt"
        torch.save({}, path)
        monkeypatch.setenv("SUBJECT_MODEL_PATH", str(path))
        words = r"other\.pt is no safetensors file"
    else:
        empty = tmp_path / "empty"
        empty.mkdir()
        monkeypatch.setenv("FLUX_FILL_PATH", str(empty))
        error, words = ModelNotFoundError, "empty holds no transformer"
    with pytest.raises(error, match=words) as caught:
        find_plus(name)
    assert "\n" not in str(caught.value)


def test_adapter_options_are_read_with_their_strength():
    assert read_adapter_option("a.safetensors:0.7") == ("a.safetensors", 0.7)
    assert read_adapter_option("hf://a/b@c.safetensors") == ("hf://a/b@c.safetensors", 1.0)
    assert read_adapter_option("ace-plus-portrait:-1") == ("ace-plus-portrait", -1.0)
    with pytest.raises(ConfigError, match="FILE:STRENGTH"):
        read_adapter_option("a.safetensors:much")


# 8 bits


def test_scaled_eight_bits_keep_small_weights_that_the_published_cast_loses():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 0.005
    scaled, scale = to_fp8(weight)
    plain, one = to_fp8(weight, scaled=False)
    assert one == 1.0
    error = (scaled.float() * scale - weight).norm() / weight.norm()
    published = (plain.float() - weight).norm() / weight.norm()
    assert error < 0.03 < 0.08 < published


@pytest.mark.parametrize(("scaled", "everything"), [(True, False), (False, True)])
def test_an_eight_bit_file_is_the_model_up_to_its_reported_error(scaled, everything, disk, tmp_path):
    files = read_weight_files(disk / "fft.safetensors")
    target = tmp_path / "fp8.safetensors"
    report = convert_fp8(files, target, scaled=scaled, everything=everything)
    written = read_weight_files(target)
    assert written.is_fp8
    assert target.stat().st_size < 0.5 * (disk / "fft.safetensors").stat().st_size
    tensors = load_file(target)  # any safetensors reader takes it
    original = load_file(disk / "fft.safetensors")
    for entry in report:
        weight = original[f"{entry.layer}.weight"]
        scale = tensors.get(f"{entry.layer}.scale_weight", torch.ones(()))
        back = tensors[f"{entry.layer}.weight"].float() * scale
        expected = entry.relative if scaled else entry.relative_unscaled
        assert float((back - weight).norm() / weight.norm()) == pytest.approx(expected, rel=1e-3)
    plain = load_transformer(files, dtype=torch.float32)
    as_stored = load_transformer(written, dtype=torch.float32, quantization="fp8")
    upcast = load_transformer(written, dtype=torch.float32)
    layer = "transformer_blocks.0.attn.to_k"
    assert isinstance(as_stored.get_submodule(layer), Fp8Linear)
    assert torch.equal(as_stored.get_submodule(layer).weight, upcast.get_submodule(layer).weight)
    x = torch.randn(3, 64)
    torch.testing.assert_close(as_stored.get_submodule(layer)(x), upcast.get_submodule(layer)(x), atol=1e-5, rtol=1e-5)
    difference = plain.get_submodule(layer).weight - upcast.get_submodule(layer).weight
    assert 0 < float(difference.norm() / plain.get_submodule(layer).weight.norm()) < 0.1
    with pytest.raises(CheckpointError, match="8-bit weights already"):
        convert_fp8(written, tmp_path / "again.safetensors")


def test_eight_bit_weights_stay_eight_bit_when_the_pipeline_changes_its_number_type(disk):
    pipeline = load_plus(find_plus("ace-plus-subject"), device="cpu", quantization="fp8")
    before = pipeline.transformer.get_submodule("single_transformer_blocks.0.proj_out").bytes.clone()
    pipeline.to(torch.bfloat16)
    after = pipeline.transformer.get_submodule("single_transformer_blocks.0.proj_out").bytes
    assert after.dtype == torch.uint8 and torch.equal(before, after)
    assert pipeline.transformer.dtype == torch.bfloat16
    assert latents_of(pipeline).isfinite().all()


def test_eight_bits_change_a_prediction_a_little_and_an_adapter_is_in_them(disk):
    exact = latents_of(load_plus(find_plus("ace-plus-subject"), device="cpu"))
    eight = latents_of(load_plus(find_plus("ace-plus-subject"), device="cpu", quantization="fp8"))
    plain = latents_of(load_plus(find_plus(str(disk / "diffusers")), device="cpu", quantization="fp8"))
    assert 0 < float((exact - eight).norm()) < 0.2 * float((exact - plain).norm())


@pytest.mark.parametrize(("kind", "package"), [("int8", "torchao"), ("4bit", "bitsandbytes")])
def test_other_quantizations_go_through_diffusers_with_their_package_and_name_it_without(kind, package, disk):
    from importlib.util import find_spec

    files = find_plus("ace-plus-subject")
    if find_spec(package) is None:
        with pytest.raises(MissingDependencyError, match=package):
            load_plus(files, device="cpu", quantization=kind)
        with pytest.raises(MissingDependencyError, match=package):
            load_plus(files, device="cpu", text_quantization=kind)
        return
    exact = load_plus(files, device="cpu")
    pipeline = load_plus(files, device="cpu", quantization=kind)
    assert 0 < float((latents_of(pipeline) - latents_of(exact)).norm()) < 0.5 * float(latents_of(exact).norm())
    assert type(pipeline.transformer.hf_quantizer).__module__.startswith("diffusers.quantizers.")
    changed = {
        name
        for name, parameter in pipeline.transformer.named_parameters()
        if type(parameter) is not type(exact.transformer.get_parameter(name))
    }
    assert "single_transformer_blocks.0.proj_out.weight" in changed
    assert all(name.startswith(("transformer_blocks", "single_transformer_blocks")) for name in changed)


@pytest.mark.parametrize(("kind", "package"), [("fp8", "torch"), ("int8", "torchao"), ("4bit", "bitsandbytes")])
def test_the_text_encoder_takes_fewer_bits_as_well(kind, package, disk):
    pytest.importorskip(package)
    files = find_plus("ace-plus-subject")
    exact = load_plus(files, device="cpu").encode_instruction("a cat")[0]
    small = load_plus(files, device="cpu", text_quantization=kind).encode_instruction("a cat")[0]
    assert 0 < float((small - exact).norm()) < 0.2 * float(exact.norm())


def test_four_bits_of_rows_that_are_no_whole_blocks_are_refused_before_loading(disk, tmp_path, monkeypatch):
    monkeypatch.setattr("ace.plus.quantize.find_spec", lambda package: True)
    narrow = tmp_path / "narrow"
    random_plus(replace(SMALL, text_channels=32)).save_pretrained(narrow)
    with pytest.raises(ConfigError, match=r"text_encoder_2 has rows of 32 weights, 4 bits .* multiples of 64"):
        load_plus(find_plus(str(narrow)), device="cpu", text_quantization="4bit")


def test_a_configuration_of_diffusers_quantizers_is_a_quantization(disk):
    quantization = pytest.importorskip("torchao.quantization")
    from diffusers import TorchAoConfig

    files = find_plus("ace-plus-subject")
    config = TorchAoConfig(quantization.Float8WeightOnlyConfig())
    exact = latents_of(load_plus(files, device="cpu"))
    eight = latents_of(load_plus(files, device="cpu", quantization=config))
    assert 0 < float((eight - exact).norm()) < 0.5 * float(exact.norm())


def test_a_gguf_file_stays_packed_and_is_the_same_model_up_to_its_bits(disk, tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "fill.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    for name, tensor in load_file(disk / "bfl" / "flux1-fill-dev.safetensors").items():
        if tensor.ndim == 2 and "blocks" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base = str(disk / "diffusers")
    for name in (base, "ace-plus-subject"):
        exact = latents_of(load_plus(find_plus(name), device="cpu"))
        pipeline = load_plus(find_plus(name, transformer=str(path)), device="cpu")
        error = float((latents_of(pipeline) - exact).norm() / exact.norm())
        assert 0 < error < 0.05
        kinds = {type(module).__name__ for module in pipeline.transformer.modules()}
        assert "GGUFLinear" in kinds and ("Fp8Linear" in kinds) == (name != base)


def test_alpha_in_the_metadata_of_a_diffusers_adapter_counts(disk, tmp_path):
    module = "transformer_blocks.0.attn.to_q"
    tensors = {
        f"transformer.{module}.lora_A.weight": torch.ones(4, 64),
        f"transformer.{module}.lora_B.weight": torch.ones(64, 4),
    }
    path = tmp_path / "a.safetensors"
    save_file(
        tensors, path, metadata={"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 2, "transformer.r": 4})}
    )
    delta = load_adapter(path, SMALL).deltas[f"{module}.weight"]
    assert delta.apply(torch.zeros(64, 64), 1.0)[0, 0] == 2.0  # 4 times alpha / rank


def file_behind(tensor):
    """The file that a tensor's memory is a map of, as Linux names it; "" for memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in fields[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return fields[5] if len(fields) == 6 else ""
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into Linux's table of mapped files")
@pytest.mark.parametrize("quantization", [None, "fp8"])
def test_weights_that_wait_on_disk_are_the_same_and_are_not_in_memory(quantization, disk, tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    files = find_plus("ace-plus-subject")
    loaded = load_plus(files, device="cpu", quantization=quantization)
    waiting = load_plus(files, device="cpu", offload="disk", quantization=quantization)
    torch.testing.assert_close(latents_of(waiting), latents_of(loaded), atol=1e-5, rtol=1e-5)
    blocks = waiting.transformer.transformer_blocks
    weights = [tensor for tensor in (*blocks.parameters(), *blocks.buffers()) if tensor.ndim == 2]
    assert weights and all("/mapped/weights-" in file_behind(tensor) for tensor in weights)
    assert all(parameter.device.type == "meta" for parameter in waiting.text_encoder_2.parameters())
    assert waiting.mapped is not None
    folder = waiting.mapped.folder
    assert folder.is_dir() and folder.parent == tmp_path / "mapped"
    assert not any(folder.iterdir())  # the files have no name any more: a killed process leaves nothing
    del waiting, blocks, weights
    gc.collect()
    assert not folder.exists()


def test_what_cannot_wait_where_it_should_is_refused_before_loading(disk, tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_CACHE", str(tmp_path))
    files = find_plus("ace-plus-subject")
    for offload in ("model", "group", "sequential"):
        with pytest.raises(ConfigError, match=f"offload {offload} is not for cpu: use none, or disk"):
            load_plus(files, device="cpu", offload=offload)
    with pytest.raises(ConfigError, match="none, model, group, sequential, disk"):
        load_plus(files, device="cpu", offload="tape")
    with pytest.raises(ConfigError, match="layer by layer anyhow"):
        load_plus(files, device="cpu", offload="disk", text_quantization="fp8")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(ConfigError, match=r"GB of the disk, .* set ACE_CACHE"):
        load_plus(files, device="cpu", offload="disk")
