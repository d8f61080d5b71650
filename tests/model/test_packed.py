"""Packed weights: the same numbers, the same file, and no silent misuse."""

from __future__ import annotations

import pytest
import torch

from ace.errors import ConfigError
from ace.model.packed import PackedLinear, can_pack, pack_linears, unpack_linears
from ace.model.transformer import ACETransformer
from tests.model.test_transformer import request, run
from tests.random_models import PUBLISHED_LIKE, TINY_LIKE, random_transformer


@pytest.mark.parametrize("config", [PUBLISHED_LIKE, TINY_LIKE], ids=["published_like", "tiny_like"])
def test_a_packed_network_predicts_the_same_and_unpacks_to_what_it_was(config):
    torch.manual_seed(0)
    model = random_transformer(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    requests = [request(config, (4, 6), (4, 4)), request(config, (8, 8))]
    noisy = [torch.randn(config.latent_channels, *r.size) for r in requests]
    with torch.no_grad():
        plain, _ = run(model, requests, noisy, [7, 400])
        pack_linears(model)
        assert any(isinstance(module, PackedLinear) for module in model.modules())
        packed, _ = run(model, requests, noisy, [7, 400])
        alone, _ = run(model, requests[1:], noisy[1:], [400])
        unpack_linears(model)
        again, _ = run(model, requests, noisy, [7, 400])
    for first, second, third in zip(plain, packed, again, strict=True):
        assert (first - second).abs().max() <= 1e-5 * first.abs().max()
        assert torch.equal(first, third)
    assert (alone[0] - packed[1]).abs().max() <= 1e-5 * alone[0].abs().max()
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_bfloat16_packs_too():
    torch.manual_seed(0)
    model = random_transformer(PUBLISHED_LIKE).bfloat16()
    with torch.no_grad():
        plain = model.blocks[0].mlp(torch.ones(20, 48).bfloat16())
        pack_linears(model)
        packed = model.blocks[0].mlp(torch.ones(20, 48).bfloat16())
    assert packed.dtype == torch.bfloat16
    assert (plain.float() - packed.float()).abs().max() <= 2e-2 * plain.float().abs().max()


def test_a_packed_network_is_saved_with_its_plain_weights(tmp_path):
    model = random_transformer(TINY_LIKE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pack_linears(model)
    model.save_pretrained(tmp_path)
    loaded = ACETransformer.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(ConfigError, match="unpack_linears"):
        model.load_state_dict(before)


def test_what_cannot_be_packed_says_so():
    model = random_transformer(TINY_LIKE).double()
    assert not can_pack(model)
    with pytest.raises(ConfigError, match="float64 on cpu"):
        pack_linears(model)
