"""Requests as packed tokens and back."""

from __future__ import annotations

import pytest
import torch

from ace.errors import ShapeError
from ace.model.tokens import (
    RequestFrames,
    condition_patches,
    make_layout,
    pack_latents,
    patchify,
    unpack_latents,
    unpatchify,
)


def frames(size: tuple[int, int], *images: tuple[int, int], texts: int = 0, source: bool = False) -> RequestFrames:
    return RequestFrames(
        size=size,
        texts=tuple(torch.randn(3 + n, 8) for n in range((texts or len(images)) + (0 if texts else 1))),
        images=tuple(torch.randn(4, h, w) for h, w in images),
        image_masks=(None,) * len(images),
        source=torch.randn(4, *size) if source else None,
    )


@pytest.mark.parametrize("patch_size", [1, 2])
def test_patches_are_those_of_a_convolution_and_go_back(patch_size):
    latents = torch.randn(5, 4, 6)
    kernel = torch.randn(7, 5, patch_size, patch_size)
    convolved = torch.nn.functional.conv2d(latents[None], kernel, stride=patch_size)[0].flatten(1).T
    torch.testing.assert_close(patchify(latents, patch_size) @ kernel.flatten(1).T, convolved)
    rows, cols = 4 // patch_size, 6 // patch_size
    tokens = patchify(latents, patch_size).unflatten(1, (5, patch_size**2)).transpose(1, 2).flatten(1)
    assert torch.equal(unpatchify(tokens, (rows, cols), patch_size), latents)


def test_layout_says_whose_every_token_is():
    layout = make_layout([frames((4, 2), (2, 2), (2, 4)), frames((2, 2))], 2, 12)
    assert layout.num_tokens == 6
    assert layout.tokens.request_index.tolist() == [0, 0, 0, 0, 0, 1]
    assert layout.indicator.tolist() == [2, 2, 0, 1, 1, 0]  # the target carries the row after its last image
    assert layout.text_indicator.tolist() == [2] * 3 + [0] * 4 + [1] * 5 + [0] * 3
    assert layout.target_index.tolist() == [0, 1, 5]
    assert layout.target_sizes == ((2, 1), (1, 1))
    assert layout.tokens.uniform_length == 0
    assert make_layout([frames((4, 2)), frames((2, 4))], 2, 12).tokens.uniform_length == 2


def test_spread_gives_every_token_the_row_of_its_request():
    for requests in ([frames((4, 2)), frames((2, 4))], [frames((4, 2)), frames((2, 2))]):
        layout = make_layout(requests, 2, 12)
        rows = torch.randn(2, 5)
        tokens = torch.zeros(layout.num_tokens, 5)
        spread = (layout.tokens.fold(tokens) + layout.tokens.spread(rows)).reshape(-1, 5)
        assert torch.equal(spread, rows[layout.tokens.request_index])


@pytest.mark.parametrize("source_channels", [0, 4])
def test_latents_survive_packing(source_channels):
    requests = [frames((4, 2), (2, 2), source=bool(source_channels)), frames((2, 6), source=False)]
    layout = make_layout(requests, 2, 12)
    noisy = [torch.randn(4, *request.size) for request in requests]
    packed = pack_latents(noisy, [condition_patches(r, 2, source_channels) for r in requests], 2)
    assert packed.shape == (layout.num_tokens, (5 + source_channels) * 4)
    targets = packed[layout.target_index][:, :16].unflatten(1, (4, 4)).transpose(1, 2).flatten(1)
    for ours, back in zip(noisy, unpack_latents(targets, layout, 2, 4), strict=True):
        assert torch.equal(ours, back)


def test_frames_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="patches of 2"):
        make_layout([frames((3, 2))], 2, 12)
    with pytest.raises(ShapeError, match="got 2 and 2"):
        frames((2, 2), (2, 2), (2, 2), texts=2)
    with pytest.raises(ShapeError, match="at most 9"):
        frames((2, 2), *[(2, 2)] * 10)
