"""The transformer: batches, caches, configuration, saving."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ace.errors import ConfigError, ShapeError
from ace.model.config import PRESETS, ACEConfig
from ace.model.cost import num_parameters, step_cost, text_cost, weight_bytes
from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents
from ace.model.transformer import ACEBlock, ACETransformer
from tests.random_models import PUBLISHED_LIKE, TINY_LIKE, random_transformer


def request(config: ACEConfig, size: tuple[int, int], *images: tuple[int, int]) -> RequestFrames:
    return RequestFrames(
        size=size,
        texts=tuple(torch.randn(3 + 2 * n, config.text_channels) for n in range(len(images) + 1)),
        target_mask=(torch.rand(1, *size) > 0.5).float(),
        images=tuple(torch.randn(config.latent_channels, h, w) for h, w in images),
        image_masks=(None,) * len(images),
        source=torch.randn(config.latent_channels, *size) if config.source_on_channels and images else None,
    )


def replace_texts(one: RequestFrames, length: int) -> RequestFrames:
    """The same frames with other texts, of `length` tokens each."""
    return dataclasses.replace(one, texts=tuple(torch.randn(length, text.shape[-1]) for text in one.texts))


def run(model: ACETransformer, requests: list[RequestFrames], noisy: list[torch.Tensor], steps: list[int]):
    p, config = model.sizes.patch_size, model.sizes
    layout = make_layout(requests, p, config.head_dim)
    channels = config.latent_channels if config.source_on_channels else 0
    patches = pack_latents(noisy, [condition_patches(r, p, channels) for r in requests], p)
    texts = torch.cat([text for r in requests for text in r.texts])
    tokens = model(patches, torch.tensor(steps), layout, texts=texts)
    return tokens.split([rows * cols for rows, cols in layout.target_sizes]), (patches, layout, texts)


@pytest.mark.parametrize("config", [PUBLISHED_LIKE, TINY_LIKE], ids=["published_like", "tiny_like"])
def test_a_request_is_computed_as_if_alone(config):
    torch.manual_seed(0)
    model = random_transformer(config)
    requests = [request(config, (4, 6), (4, 4), (2, 6)), request(config, (8, 8)), request(config, (4, 6), (4, 6))]
    noisy = [torch.randn(config.latent_channels, *r.size) for r in requests]
    steps = [999, 3, 500]
    with torch.no_grad():
        together, _ = run(model, requests, noisy, steps)
        for number, packed in enumerate(together):
            (alone,), _ = run(
                model, requests[number : number + 1], noisy[number : number + 1], steps[number : number + 1]
            )
            assert (alone - packed).abs().max() <= 1e-5 * alone.abs().max()
        other_time, _ = run(model, requests, noisy, [999, 3, 501])
    assert torch.equal(together[0], other_time[0])
    assert not torch.equal(together[2], other_time[2])


@pytest.mark.parametrize("config", [PUBLISHED_LIKE, TINY_LIKE], ids=["published_like", "tiny_like"])
def test_cached_text_keys_and_values_change_nothing(config):
    torch.manual_seed(0)
    model = random_transformer(config)
    requests = [request(config, (4, 6), (4, 4)), request(config, (8, 8))]
    noisy = [torch.randn(config.latent_channels, *r.size) for r in requests]
    with torch.no_grad():
        together, (patches, layout, texts) = run(model, requests, noisy, [7, 8])
        cached = model(patches, torch.tensor([7, 8]), layout, text_keys_values=model.encode_text(texts, layout))
    assert torch.equal(torch.cat(together), cached)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = random_transformer(PUBLISHED_LIKE).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        outputs, _ = run(model, [request(PUBLISHED_LIKE, (4, 4), (4, 4))], [torch.ones(4, 4, 4)], [10])
        outputs[0].square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_either_texts_or_their_keys_and_values_are_given():
    model = random_transformer(PUBLISHED_LIKE)
    layout = make_layout([request(PUBLISHED_LIKE, (2, 2))], 2, 12)
    with pytest.raises(ConfigError, match="either"):
        model(torch.zeros(1, 20), torch.tensor([1]), layout)


def test_a_saved_transformer_is_the_same(tmp_path):
    model = random_transformer(TINY_LIKE)
    model.save_pretrained(tmp_path)
    loaded = ACETransformer.from_pretrained(tmp_path)
    assert loaded.sizes == TINY_LIKE
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_impossible_sizes_and_unknown_presets_are_refused():
    with pytest.raises(ConfigError, match="num_heads"):
        ACEConfig(hidden_size=50, num_heads=4)
    with pytest.raises(ConfigError, match="head dimension"):
        ACEConfig(hidden_size=12, num_heads=4)
    with pytest.raises(ConfigError, match="unknown preset"):
        ACETransformer.from_preset("0.6b")
    with pytest.raises(TypeError):
        ACEConfig(window_size=4)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_counted_right(name):
    config = PRESETS[name]
    with torch.device("meta"):
        model = ACETransformer(**vars(config))
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())
    assert weight_bytes(config, 2) == 2 * sum(value.numel() for value in model.state_dict().values())


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("null_length", [1, 4])
def test_two_branches_of_a_request_in_one_pass_are_the_same_as_two_requests(depth, null_length):
    torch.manual_seed(0)
    config = dataclasses.replace(PUBLISHED_LIKE, depth=depth)
    model = random_transformer(config)
    first, second = request(config, (4, 6), (4, 4)), request(config, (8, 8))
    nulls = [replace_texts(r, null_length) for r in (first, second)]
    noisy = [torch.randn(config.latent_channels, *r.size) for r in (first, second)]
    everything = [first, nulls[0], second, nulls[1], first]
    layout = make_layout(everything, 2, config.head_dim, repeats=(False, True, False, True, False))
    patches = pack_latents([*noisy, noisy[0]], [condition_patches(r, 2, 0) for r in (first, second, first)], 2)
    texts = torch.cat([text for r in everything for text in r.texts])
    with torch.no_grad():
        together = model(patches, torch.tensor([7, 400, 900]), layout, texts=texts)
        together = together.split([rows * cols for rows, cols in layout.target_sizes])
        latents = [noisy[0], noisy[0], noisy[1], noisy[1], noisy[0]]
        for one, own, step, packed in zip(everything, latents, (7, 7, 400, 400, 900), together, strict=True):
            (alone,), _ = run(model, [one], [own], [step])
            assert (alone - packed).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize("config", [PUBLISHED_LIKE, TINY_LIKE], ids=["published_like", "tiny_like"])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_block_as_the_paper_draws_it_gives_what_the_pruned_one_does(config, depth, monkeypatch):
    torch.manual_seed(0)
    config = dataclasses.replace(config, depth=depth)
    model = random_transformer(config)
    first, second = request(config, (4, 6), (4, 4)), request(config, (8, 8))
    requests = [first, replace_texts(first, 1), second]
    p = config.patch_size
    layout = make_layout(requests, p, config.head_dim, repeats=(False, True, False))
    channels = config.latent_channels if config.source_on_channels else 0
    noisy = [torch.randn(config.latent_channels, *one.size) for one in (first, second)]
    patches = pack_latents(noisy, [condition_patches(one, p, channels) for one in (first, second)], p)
    texts, steps = torch.cat([text for one in requests for text in one.texts]), torch.tensor([7, 400])
    with torch.no_grad():
        pruned = model(patches, steps, layout, texts=texts)
        monkeypatch.setattr(ACEBlock, "forward", ACEBlock.plain)
        plain = model(patches, steps, layout, texts=texts)
    assert (plain - pruned).abs().max() <= 1e-5 * pruned.abs().max()


def test_a_text_of_one_token_reads_as_attention_to_one_key():
    torch.manual_seed(0)
    model = random_transformer(PUBLISHED_LIKE)
    one = replace_texts(request(PUBLISHED_LIKE, (4, 6), (4, 4)), 1)
    twice = dataclasses.replace(one, texts=tuple(text.expand(2, -1) for text in one.texts))  # the same key two times
    noisy = [torch.randn(4, 4, 6)]
    with torch.no_grad():
        (short,), _ = run(model, [one], noisy, [300])
        (long,), _ = run(model, [twice], noisy, [300])
    assert (short - long).abs().max() <= 1e-5 * long.abs().max()


def test_a_repeat_of_other_frames_is_refused():
    first, other = request(PUBLISHED_LIKE, (4, 6), (4, 4)), request(PUBLISHED_LIKE, (4, 6), (4, 6))
    with pytest.raises(ShapeError, match="a repeat"):
        make_layout([first, other], 2, 12, repeats=(False, True))


@pytest.mark.parametrize("null_length", [None, 1, 5])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_cost_counts_what_the_model_multiplies(depth, null_length):
    from torch.utils.flop_counter import FlopCounterMode

    config = dataclasses.replace(PUBLISHED_LIKE, depth=depth)
    model = random_transformer(config)
    one = request(config, (4, 6), (4, 4))
    branches = [one] if null_length is None else [one, replace_texts(one, null_length)]
    layout = make_layout(branches, 2, config.head_dim, [number > 0 for number in range(len(branches))])
    patches = pack_latents([torch.randn(4, 4, 6)], [condition_patches(one, 2, 0)], 2)
    texts = torch.cat([text for branch in branches for text in branch.texts])
    lengths = [[len(text) for text in branch.texts] for branch in branches]
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            cached = model.encode_text(texts, layout)
        if len(branches) == 1:
            assert counter.get_total_flops() == text_cost(config, lengths[0])
        with FlopCounterMode(display=False) as counter:
            model(patches, torch.tensor([5]), layout, text_keys_values=cached)
    linears = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
    counted = step_cost(config, [6, 4], *lengths)
    rows = 15 * 2 * (256 * 48 + 7 * 48 * 48)  # time conditioning is padded to 16 rows
    assert linears == counted.linears + rows
    if depth == 2 and null_length is None:  # the last block: targets only
        assert counted.total == counted.linears + 4 * 48 * (10 * 10 + 6 * 10 + 2 * 6 * 3 + 4 * 5)
