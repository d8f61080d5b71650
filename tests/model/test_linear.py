"""The layer that takes oneDNN's kernel: the same numbers, and plain torch wherever that kernel does not belong."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from ace.model.linear import MIN_FEATURES, Linear, onednn_has_bfloat16
from ace.model.transformer import Mlp

needs_onednn = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available(),
    reason="the kernel is for x86 CPUs",
)


def layer(dtype: torch.dtype = torch.float32, features: int = MIN_FEATURES) -> Linear:
    torch.manual_seed(0)
    return Linear(features, 2 * features).to(dtype)


@pytest.fixture
def kernel_calls(monkeypatch):
    """How often oneDNN's product was asked for."""
    calls, product = [], torch.ops.mkldnn._linear_pointwise

    def count(*arguments):
        calls.append(arguments)
        return product(*arguments)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", count)
    return calls


@needs_onednn
@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
def test_the_kernel_gives_what_torch_gives(kernel_calls, gelu):
    ours = layer()
    x = torch.randn(3, 40, MIN_FEATURES)
    with torch.no_grad():
        fast = ours(x, gelu)
        exact = F.linear(x.double(), ours.weight.double(), ours.bias.double())
        exact = exact if gelu is None else F.gelu(exact, approximate=gelu)
    assert len(kernel_calls) == 1
    assert fast.shape == (3, 40, 2 * MIN_FEATURES)
    assert (fast - exact).abs().max() <= 1e-5 * exact.abs().max()


@needs_onednn
def test_bfloat16_takes_the_kernel_where_the_processor_has_it(kernel_calls):
    ours = layer(torch.bfloat16)
    x = torch.randn(20, MIN_FEATURES).bfloat16()
    with torch.no_grad():
        fast, plain = ours(x), F.linear(x, ours.weight, ours.bias)
    assert len(kernel_calls) == onednn_has_bfloat16() and fast.dtype == torch.bfloat16
    assert (fast.float() - plain.float()).abs().max() <= 2e-2 * plain.float().abs().max()


def test_gradients_small_layers_and_other_precisions_go_the_plain_way(kernel_calls):
    ours = layer()
    x = torch.randn(4, MIN_FEATURES)
    ours(x, "tanh").sum().backward()
    assert ours.weight.grad is not None
    with torch.no_grad():
        layer(features=64)(torch.randn(4, 64))
        layer(torch.float64)(x.double())
        transposed = layer()
        transposed.weight = nn.Parameter(transposed.weight.t().contiguous().t())  # oneDNN would take minutes
        assert torch.equal(transposed(x), F.linear(x, transposed.weight, transposed.bias))
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(x).dtype == torch.bfloat16
    assert not kernel_calls


@pytest.mark.parametrize("trained", [False, True], ids=["as it starts", "changed"])
def test_an_adapter_adds_before_the_gelu(trained):
    torch.manual_seed(0)
    mlp = Mlp(MIN_FEATURES, MIN_FEATURES, MIN_FEATURES, "tanh").eval()
    x = torch.randn(5, MIN_FEATURES)
    with torch.no_grad():
        before = mlp(x)
        adapted: Any = get_peft_model(mlp, LoraConfig(r=4, target_modules=["up"]))  # pyright: ignore[reportArgumentType]
        layers = adapted.eval().base_model.model
        a, b = layers.up.lora_A["default"].weight, layers.up.lora_B["default"].weight
        if trained:
            nn.init.normal_(b)
        up, down = layers.up.base_layer, layers.down
        wanted = F.linear(
            F.gelu(F.linear(x, up.weight + 2 * b @ a, up.bias), approximate="tanh"), down.weight, down.bias
        )
        after = adapted(x)
    assert torch.allclose(after, wanted, atol=1e-4)
    assert torch.allclose(after, before, atol=1e-4) is not trained
