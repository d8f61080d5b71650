"""Published FLUX weights and adapters in diffusers' names: every key, every format, nothing guessed."""

import dataclasses

import pytest
import torch
from diffusers import FluxTransformer2DModel

from ace.adapter_files import AdapterSettings
from ace.errors import CheckpointError
from ace.plus.layouts import (
    ACE_PLUS_FFT,
    FLUX_FILL,
    FluxSizes,
    check_checkpoint,
    checkpoint_shapes,
    flux_sizes,
    pieces,
    read_adapter,
    widen,
)
from tests.random_flux import diffusers_state, published_state

SMALL = FluxSizes(384, 64, 64, 32, 1, 1, 32, 24, True, 256)


def small_model(sizes=SMALL, seed=0):
    torch.manual_seed(seed)
    return FluxTransformer2DModel(**sizes.config()).eval()


def adapter_tensors(names, rank=2, seed=0, sizes=SMALL):
    """{module: (down, up)} for published modules."""
    generator = torch.Generator().manual_seed(seed)
    shapes = checkpoint_shapes(sizes)
    return {
        name: (
            torch.randn(rank, shapes[f"{name}.weight"][1], generator=generator),
            torch.randn(shapes[f"{name}.weight"][0], rank, generator=generator),
        )
        for name in names
    }


@pytest.mark.parametrize(
    ("sizes", "parameters"), [(FLUX_FILL, 11_902_391_360), (ACE_PLUS_FFT, 11_902_587_968)], ids=["fill", "fft"]
)
def test_the_real_models_have_the_right_keys_shapes_and_size_in_both_layouts(sizes, parameters):
    with torch.device("meta"):
        model = FluxTransformer2DModel(**sizes.config())
    state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert sum(value.numel() for value in model.parameters()) == parameters
    published = checkpoint_shapes(sizes)
    assert len(published) == 780  # tensors of flux1-fill-dev.safetensors
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in published.items()}
    ours = {new: tuple(piece.of(tensors[piece.source]).shape) for new, piece in pieces(sizes).items()}
    assert ours == state
    assert flux_sizes(published) == flux_sizes(state) == sizes
    assert flux_sizes({f"model.diffusion_model.{name}": shape for name, shape in published.items()}) == sizes


def test_a_model_survives_the_way_to_the_published_layout_and_back():
    model = small_model()
    back = diffusers_state(published_state(model))
    for name, value in model.state_dict().items():
        assert torch.equal(back[name], value), name


def test_a_checkpoint_that_is_not_whole_is_refused_by_name():
    shapes = checkpoint_shapes(SMALL)
    check_checkpoint(shapes, SMALL)
    broken = {**shapes, "double_blocks.0.extra": (1,)}
    del broken["double_blocks.0.img_mlp.0.bias"]
    with pytest.raises(
        CheckpointError, match=r"missing double_blocks\.0\.img_mlp\.0\.bias, unknown double_blocks\.0\.extra"
    ):
        check_checkpoint(broken, SMALL)
    with pytest.raises(CheckpointError, match="no weights of a FLUX"):
        flux_sizes({"conv_in.weight": (320, 4, 3, 3)})


@torch.no_grad()
def test_a_widened_model_ignores_the_change_channels_and_sees_the_mask_where_it_moved():
    model = small_model()
    wide = small_model(dataclasses.replace(SMALL, in_channels=448), seed=1)
    state = model.state_dict()
    state["x_embedder.weight"] = widen(state["x_embedder.weight"])
    wide.load_state_dict(state, strict=True)
    tokens, change = torch.randn(1, 6, 384), torch.randn(1, 6, 64)
    rest = {
        "encoder_hidden_states": torch.randn(1, 3, 32),
        "pooled_projections": torch.randn(1, 24),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([50.0]),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(3, 3),
        "return_dict": False,
    }
    (narrow_output,) = model(tokens, **rest)
    (wide_output,) = wide(torch.cat([tokens[..., :128], change, tokens[..., 128:]], dim=-1), **rest)
    torch.testing.assert_close(narrow_output, wide_output, atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match="cannot be widened"):
        widen(torch.zeros(4, 448))


MODULES = (
    "double_blocks.0.img_attn.qkv",
    "double_blocks.0.txt_mlp.2",
    "single_blocks.0.linear1",
    "final_layer.adaLN_modulation.1",
)


def as_comfy(pairs, alpha):
    tensors = {}
    for name, (down, up) in pairs.items():
        flat = "lora_unet_" + name.replace(".", "_")
        tensors |= {
            f"{flat}.lora_down.weight": down,
            f"{flat}.lora_up.weight": up,
            f"{flat}.alpha": torch.tensor(alpha),
        }
    return tensors


def as_names(pairs, prefix, a, b):
    return {f"{prefix}{n}.{k}": t for n, pair in pairs.items() for k, t in zip((a, b), pair, strict=True)}


@pytest.mark.parametrize("prefix", ["model.", "", "diffusion_model.", "base_model.model.model."])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("lora_A.0_SwiftLoRA.weight", "lora_B.0_SwiftLoRA.weight"),
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_down.weight", "lora_up.weight"),
    ],
)
def test_every_published_format_means_the_same(prefix, a, b):
    pairs = adapter_tensors(MODULES)
    comfy = read_adapter(as_comfy(pairs, 2.0), SMALL, "comfy")
    other = read_adapter(as_names(pairs, prefix, a, b), SMALL, "other")
    state = small_model().state_dict()
    assert comfy.deltas.keys() == other.deltas.keys()
    for name, delta in comfy.deltas.items():
        assert torch.equal(delta.apply(state[name], 1.0), other.deltas[name].apply(state[name], 1.0))


def test_diffusers_names_mean_the_same_as_published_ones():
    pairs = adapter_tensors(["single_blocks.0.linear1"])
    published = read_adapter(as_comfy(pairs, 2.0), SMALL, "comfy")
    down, up = pairs["single_blocks.0.linear1"]
    split = zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), up.split([64, 64, 64, 256]), strict=True)
    tensors = {}
    for module, part in split:
        stem = f"transformer.single_transformer_blocks.0.{module}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": part}
    ours = read_adapter(tensors, SMALL, "diffusers")
    assert ours.deltas.keys() == published.deltas.keys()
    for name, delta in ours.deltas.items():
        assert torch.equal(delta.apply(torch.zeros(()), 1.0), published.deltas[name].apply(torch.zeros(()), 1.0))


def test_alpha_counts_wherever_it_stands():
    pairs = adapter_tensors(MODULES)
    plain = read_adapter(as_comfy(pairs, 2.0), SMALL, "rank = alpha")
    half = read_adapter(as_comfy(pairs, 1.0), SMALL, "half")
    beside = read_adapter(
        as_names(pairs, "", "lora_A.weight", "lora_B.weight"), SMALL, "metadata", AdapterSettings(1.0)
    )
    zero = torch.zeros(())
    for name, delta in plain.deltas.items():
        whole = delta.apply(zero, 1.0)
        torch.testing.assert_close(half.deltas[name].apply(zero, 1.0), whole / 2)
        torch.testing.assert_close(beside.deltas[name].apply(zero, 1.0), whole / 2)
        torch.testing.assert_close(half.deltas[name].apply(zero, 2.0), whole)


def test_full_weight_and_bias_entries_are_merged_too():
    shapes = checkpoint_shapes(SMALL)
    tensors = {
        "double_blocks.0.img_attn.qkv.diff": torch.ones(shapes["double_blocks.0.img_attn.qkv.weight"]),
        "double_blocks.0.img_attn.qkv.diff_b": torch.ones(192),
        "double_blocks.0.img_attn.norm.query_norm.scale": torch.full((32,), 3.0),
    }
    adapter = read_adapter(tensors, SMALL, "full")
    state = small_model().state_dict()
    key = "transformer_blocks.0.attn.to_k.weight"
    torch.testing.assert_close(adapter.deltas[key].apply(state[key], 0.5), state[key] + 0.5)
    key = "transformer_blocks.0.attn.to_k.bias"
    torch.testing.assert_close(adapter.deltas[key].apply(state[key], 1.0), state[key] + 1)
    key = "transformer_blocks.0.attn.norm_q.weight"
    torch.testing.assert_close(adapter.deltas[key].apply(state[key], 1.0), torch.full((32,), 3.0))
    with pytest.raises(CheckpointError, match=r"full changes .* merge it"):
        adapter.peft_state()


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", (2, 64), "SDXL"),
        ("lora_unet_double_blocks_7_img_mod_lin.lora_down.weight", (2, 64), "no place for"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (2, 64), "text encoder"),
        ("lora_unet_double_blocks_0_img_mod_lin.lora_down.weight", (2, 64), "lacks half"),
    ],
)
def test_an_adapter_of_another_model_is_refused_by_name(key, shape, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        read_adapter({key: torch.zeros(shape)}, SMALL, "other.safetensors")
    assert "other.safetensors" in str(caught.value)


def test_an_adapter_of_another_size_says_both_sizes():
    pairs = {"img_in": (torch.zeros(2, 448), torch.zeros(64, 2))}
    with pytest.raises(CheckpointError, match="made for 448 input channels, this model has 384"):
        read_adapter(as_comfy(pairs, 2.0), SMALL, "wide.safetensors")
