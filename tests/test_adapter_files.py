"""Adapter files are looked over before a model is loaded: their kind, their strength, their soundness."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from ace.adapter_files import AdapterSettings, check_file, read_settings
from ace.errors import CheckpointError, ConfigError
from ace.model.lora import attach, read_adapter
from ace.plus.layouts import FluxSizes
from ace.plus.weights import load_adapter
from ace.weights.adapters import AdapterChoice
from tests.random_models import PUBLISHED_LIKE, random_transformer

LAYER = "blocks.0.self_attn.to_v"
WIDTH = PUBLISHED_LIKE.hidden_size
FLUX = FluxSizes(384, 64, 64, 16, 2, 2, 32, 16, True, 256)
FLUX_LAYER = "transformer_blocks.0.attn.to_q"


def pair(width: int, rank: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rank, width, generator=generator), torch.randn(width, rank, generator=generator)


def write(path, layer=LAYER, width=WIDTH, metadata=None, **more):
    down, up = pair(width)
    state = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up, **more}
    save_file(state, path, metadata=metadata)
    return path


def with_config(path, **settings):
    (path.parent / "adapter_config.json").write_text(json.dumps({"r": 4, **settings}))
    return path


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lycoris_blocks_0_self_attn_to_v.lokr_w1", "LoKr"),
        ("base_model.model.blocks.0.self_attn.to_v.lokr_w1", "LoKr"),
        ("lora_unet_blocks_0_self_attn_to_v.hada_w1_a", "LoHa"),
        ("blocks.0.self_attn.to_v.oft_R.weight", "OFT"),
        (f"{LAYER}.lora_magnitude_vector.weight", "DoRA"),
        (f"{LAYER}.dora_scale", "DoRA"),
    ],
)
def test_what_is_no_lora_is_refused_by_its_name(key, kind, tmp_path):
    path = write(tmp_path / "a.safetensors", **{key: torch.ones(4, 4)})
    with pytest.raises(ConfigError, match=rf"a\.safetensors is a {kind} adapter"):
        AdapterChoice.parse(str(path))
    with pytest.raises(CheckpointError, match=kind):
        read_adapter(path, random_transformer(PUBLISHED_LIKE))


def test_dora_without_magnitudes_is_incomplete(tmp_path):
    path = with_config(write(tmp_path / "a.safetensors", FLUX_LAYER, 64), lora_alpha=8, use_dora=True)
    for load in (check_file, lambda file: load_adapter(file, FLUX)):
        with pytest.raises(CheckpointError, match="incomplete DoRA"):
            load(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_in_every_number_type(dtype, bad, tmp_path):
    sound = torch.tensor([-2.0]).to(dtype)
    write(tmp_path / "sound.safetensors", **{f"{LAYER}.alpha": sound})
    assert check_file(tmp_path / "sound.safetensors") == ()
    path = write(tmp_path / "bad.safetensors", **{f"{LAYER}.alpha": torch.tensor([bad]).to(dtype)})
    with pytest.raises(ConfigError, match=r"bad\.safetensors holds values that are not finite, in .*alpha"):
        AdapterChoice.parse(str(path))


def test_a_bias_is_not_dropped_silently(tmp_path):
    path = write(tmp_path / "a.safetensors", **{f"{LAYER}.lora_B.bias": torch.ones(WIDTH)})
    with pytest.raises(CheckpointError, match=r"has biases .*lora_B\.bias"):
        read_adapter(path, random_transformer(PUBLISHED_LIKE))


def test_the_bias_of_a_flux_pair_has_the_strength_of_the_pair(tmp_path):
    bias = torch.arange(64.0)
    path = write(tmp_path / "a.safetensors", FLUX_LAYER, 64, **{f"{FLUX_LAYER}.lora_B.bias": bias})
    adapter = load_adapter(with_config(path, lora_alpha=8), FLUX)
    torch.testing.assert_close(adapter.deltas[f"{FLUX_LAYER}.bias"].apply(torch.zeros(64), 1.0), 2 * bias)


def test_text_encoder_tensors_are_left_out_and_the_rest_is_loaded(tmp_path):
    more = {
        "lora_te1_text_model_layers_0_fc1.lora_down.weight": torch.ones(4, 8),
        "text_encoder.a.alpha": torch.ones(()),
    }
    ours = write(tmp_path / "ours.safetensors", **more)
    adapter = read_adapter(ours, random_transformer(PUBLISHED_LIKE))
    assert list(adapter.factors) == [LAYER]
    assert adapter.notes == ("ours.safetensors: its 2 tensors for the text encoder are left out, the rest is loaded",)
    flux = load_adapter(write(tmp_path / "flux.safetensors", FLUX_LAYER, 64, **more), FLUX)
    assert list(flux.deltas) == [f"{FLUX_LAYER}.weight"]
    assert flux.notes == check_file(tmp_path / "flux.safetensors")
    save_file(more, tmp_path / "only.safetensors")
    with pytest.raises(CheckpointError, match="is made for a text encoder"):
        load_adapter(tmp_path / "only.safetensors", FLUX)
    with pytest.raises(CheckpointError, match="nothing for its transformer"):
        read_adapter(tmp_path / "only.safetensors", random_transformer(PUBLISHED_LIKE))


STRENGTHS = [
    ({"lora_alpha": 8}, 2.0),
    ({"lora_alpha": 8, "use_rslora": True}, 4.0),
    ({"lora_alpha": 8, "alpha_pattern": {"to_q": 2, "to_v": 2}}, 0.5),
    ({"lora_alpha": 8, "alpha_pattern": {r".*attn\.to_[qv]": 12}}, 3.0),
    ({}, 1.0),
]


@pytest.mark.parametrize(("settings", "strength"), STRENGTHS)
@pytest.mark.parametrize("where", ["beside", "diffusers metadata"])
def test_both_families_read_the_same_strength(settings, strength, where, tmp_path):
    metadata = None
    if where != "beside":
        own = {f"transformer.{key}": value for key, value in settings.items()} | {"text_encoder.lora_alpha": 99}
        metadata = {"lora_adapter_metadata": json.dumps(own)}
    ours = write(tmp_path / "ours.safetensors", metadata=metadata)
    flux = write(tmp_path / "flux.safetensors", FLUX_LAYER, 64, metadata=metadata)
    if where == "beside":
        with_config(ours, **settings)
    down, up = pair(WIDTH)
    model, plain = random_transformer(PUBLISHED_LIKE), random_transformer(PUBLISHED_LIKE)
    attach(model, [(read_adapter(ours, model), 1.0)])
    units = torch.eye(WIDTH)
    change = (model.get_submodule(LAYER)(units) - plain.get_submodule(LAYER)(units)).T
    torch.testing.assert_close(change, strength * up @ down, atol=1e-4, rtol=1e-4)
    down, up = pair(64)
    delta = load_adapter(flux, FLUX).deltas[f"{FLUX_LAYER}.weight"]
    torch.testing.assert_close(delta.apply(torch.zeros(64, 64), 1.0), strength * up @ down)


def test_a_hostile_pattern_is_not_searched_for_hours():
    settings = AdapterSettings(8.0, {"(a+)+(b+)+$": 1.0, "[": 2.0})
    assert settings.strength("a" * 60, 4) == 2.0


def test_damaged_settings_are_named(tmp_path):
    path = write(tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": "much"}')
    with pytest.raises(CheckpointError, match=r"the settings of a\.safetensors cannot be read"):
        read_settings(path)


def test_an_adapter_is_refused_before_torch_is_imported(tmp_path):
    path = write(tmp_path / "a.safetensors", **{f"{LAYER}.alpha": torch.tensor(float("nan"))})
    script = (
        "import sys\nfrom ace.weights.adapters import AdapterChoice\n"
        f"try:\n    AdapterChoice.parse({str(path)!r})\nexcept Exception as error:\n    print(error)\n"
        "print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "not finite" in said
    assert said.strip().endswith("False")
