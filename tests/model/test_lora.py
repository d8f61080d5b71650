"""Adapters in every format do what their numbers say: alpha / rank · B · A is added to a layer's weight."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ace.errors import CheckpointError, ConfigError
from ace.model.convert import key_map
from ace.model.lora import Adapter, attach, swap
from ace.model.lora import read_adapter as read_file
from ace.weights.adapters import find_adapter
from tests.random_models import PUBLISHED_LIKE, random_transformer

RANK, ALPHA = 4, 8.0
LAYERS = ("blocks.0.self_attn.to_q", "blocks.1.cross_attn.to_k", "blocks.1.mlp.up", "patch_embed", "final.linear")
PUBLISHED = {ours: old for old, ours in key_map(PUBLISHED_LIKE).items()}


def read_adapter(path, model) -> Adapter:
    return read_file(find_adapter(path), model, path.stem)


def published(layer: str) -> str:
    return PUBLISHED[f"{layer}.weight"].removesuffix(".weight")


def halves(seed: int, rank: int = RANK) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B of every layer."""
    generator = torch.Generator().manual_seed(seed)
    model = random_transformer(PUBLISHED_LIKE)
    found = {}
    for layer in LAYERS:
        linear = model.get_submodule(layer)
        down = 0.1 * torch.randn(rank, linear.in_features, generator=generator)
        found[layer] = down, 0.1 * torch.randn(linear.out_features, rank, generator=generator)
    return found


def write_peft(folder, own, **settings):
    folder.mkdir()
    state = {}
    for layer, (down, up) in own.items():
        state[f"base_model.model.{layer}.lora_A.weight"] = down
        state[f"base_model.model.{layer}.lora_B.weight"] = up
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA, **settings}))
    return folder


def write_diffusers(folder, own):
    folder.mkdir()
    state = {}
    for layer, (down, up) in own.items():
        state[f"transformer.{layer}.lora_A.weight"], state[f"transformer.{layer}.lora_B.weight"] = down, up
    settings = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA}
    path = folder / "pytorch_lora_weights.safetensors"
    save_file(state, path, metadata={"lora_adapter_metadata": json.dumps(settings)})
    return folder


def write_swift(folder, own):
    """As the published trainer saves it, whose scale is one: B carries it here."""
    folder.mkdir()
    state = {}
    for layer, (down, up) in own.items():
        name = f"model.{published(layer)}"
        state[f"{name}.lora_A.0_SwiftLoRA.weight"] = down
        state[f"{name}.lora_B.0_SwiftLoRA.weight"] = up * (ALPHA / RANK)
    save_file(state, folder / "adapter.safetensors")
    return folder


def write_comfyui(folder, own):
    folder.mkdir()
    state = {}
    for layer, (down, up) in own.items():
        name = "lora_unet_" + published(layer).replace(".", "_")
        state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"] = down, up
        state[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(state, folder / "comfyui_model.safetensors")
    return folder / "comfyui_model.safetensors"


WRITERS = {"peft": write_peft, "diffusers": write_diffusers, "swift": write_swift, "comfyui": write_comfyui}


def changed(model) -> dict[str, torch.Tensor]:
    """What the attached adapters do to each layer, seen from outside: the layer's answer to unit vectors."""
    plain = random_transformer(PUBLISHED_LIKE)
    found = {}
    for layer in LAYERS:
        before, after = plain.get_submodule(layer), model.get_submodule(layer)
        units = torch.eye(before.in_features)
        found[layer] = (after(units) - before(units)).T.detach()
    return found


def expect(model, *stacked: tuple[dict, float]) -> None:
    actual = changed(model)
    for layer in LAYERS:
        expected = sum(weight * ALPHA / RANK * own[layer][1] @ own[layer][0] for own, weight in stacked)
        if not stacked:
            expected = torch.zeros_like(actual[layer])
        torch.testing.assert_close(actual[layer], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_adds_the_same(form, tmp_path):
    own = halves(1)
    model = random_transformer(PUBLISHED_LIKE)
    adapter = read_adapter(WRITERS[form](tmp_path / form, own), model)
    assert adapter.rank == RANK
    (name,) = attach(model, [(adapter, 0.5)])
    expect(model, (own, 0.5))
    model.delete_adapters(name)
    expect(model)


def test_adapters_stack_are_weighed_anew_fused_and_unloaded(tmp_path):
    first, second = halves(1), halves(2)
    model = random_transformer(PUBLISHED_LIKE)
    paths = [write_peft(tmp_path / "style", first), write_comfyui(tmp_path / "face", second)]
    one, two = attach(model, [(read_adapter(path, model), 1.0) for path in paths])
    assert (one, two) == ("style", "comfyui_model")
    expect(model, (first, 1.0), (second, 1.0))
    model.set_adapters([one, two], [0.3, -1.0])
    expect(model, (first, 0.3), (second, -1.0))
    model.disable_lora()
    expect(model)
    model.enable_lora()
    model.fuse_lora(adapter_names=[one, two])
    model.unload_lora()
    assert not [name for name in model.state_dict() if "lora" in name]
    expect(model, (first, 0.3), (second, -1.0))


def test_the_same_adapter_twice_counts_twice(tmp_path):
    own = halves(1)
    model = random_transformer(PUBLISHED_LIKE)
    adapter = read_adapter(write_peft(tmp_path / "style", own), model)
    assert attach(model, [(adapter, 1.0)]) == ("style",)
    assert attach(model, [(adapter, 0.5)]) == ("style_2",)  # the first keeps its weight
    expect(model, (own, 1.5))


@pytest.mark.parametrize("rank", [RANK, 2 * RANK])
def test_an_adapter_is_swapped_under_its_name(rank, tmp_path):
    first, second, other = halves(1), halves(2, rank), halves(3)
    model = random_transformer(PUBLISHED_LIKE)
    one, _ = attach(
        model, [(read_adapter(write_peft(tmp_path / n, own), model), 1.0) for n, own in (("a", first), ("b", other))]
    )
    scaled = {layer: (down, up * rank / RANK) for layer, (down, up) in second.items()}
    swap(model, one, read_adapter(write_peft(tmp_path / "c", scaled), model), weight=2.0)
    expect(model, (second, 2.0), (other, 1.0))
    with pytest.raises(ConfigError, match=r"no adapter 'd' is attached: use a, b|use b, a"):
        swap(model, "d", read_adapter(tmp_path / "c", model))


def test_alphas_of_single_layers_and_rank_stabilised_scales_are_respected(tmp_path):
    own = halves(1)
    model = random_transformer(PUBLISHED_LIKE)
    path = write_peft(tmp_path / "own", own, alpha_pattern={"blocks.1.mlp.up": 2.0}, use_rslora=True)
    attach(model, [(read_adapter(path, model), 1.0)])
    actual = changed(model)
    for layer in LAYERS:
        scale = (2.0 if layer == "blocks.1.mlp.up" else ALPHA) / RANK**0.5
        torch.testing.assert_close(actual[layer], scale * own[layer][1] @ own[layer][0], atol=1e-5, rtol=1e-5)


def test_files_that_are_no_adapter_of_this_model_are_named(tmp_path):
    model = random_transformer(PUBLISHED_LIKE)
    path = write_comfyui(tmp_path / "whole", halves(1))
    whole = load_file(path)

    def refused(words: str, **changed_tensors: torch.Tensor | None) -> None:
        state = {**whole, **{key.replace("__", "."): value for key, value in changed_tensors.items()}}
        save_file({key: value for key, value in state.items() if value is not None}, path)
        with pytest.raises(CheckpointError, match=words):
            read_adapter(path, model)

    up = "lora_unet_blocks_0_attn_q__lora_up__weight"
    refused("holds one half of blocks.0.self_attn.to_q", **{up: None})
    refused("is for another model: blocks.0", **{up: torch.zeros(7, RANK)})
    refused("is no LoRA of this model: it holds double_blocks", double_blocks__0__lora_A__weight=torch.zeros(1))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        read_adapter(path, model)
    with pytest.raises(CheckpointError, match="DoRA"):
        read_adapter(write_peft(tmp_path / "dora", halves(1), use_dora=True), model)
