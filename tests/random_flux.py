"""Small FLUX transformers and ACE++ pipelines of the real classes with random weights, and their published layouts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from ace.model.convert_plus import FluxSizes, flux_sizes, pieces


def diffusers_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint in published names, in diffusers' names."""
    sizes = flux_sizes({name: tuple(value.shape) for name, value in published.items()})
    return {new: piece.of(published[piece.source]) for new, piece in pieces(sizes).items()}


def published_state(model: FluxTransformer2DModel) -> dict[str, Tensor]:
    """The weights of diffusers' model in published names: the inverse, written on its own."""
    state = model.state_dict()
    sizes = flux_sizes({name: tuple(value.shape) for name, value in state.items()})
    parts: dict[str, list[Tensor]] = {}
    for new, piece in pieces(sizes).items():
        value = state[new]
        parts.setdefault(piece.source, []).append(torch.cat(value.chunk(2)[::-1]) if piece.swapped else value)
    return {source: torch.cat(values).contiguous() for source, values in parts.items()}


def flux_with_narrow_mlp(sizes: FluxSizes) -> FluxTransformer2DModel:
    """diffusers' model with an MLP of another ratio than 4, as the recorded toy networks have."""
    ratio_4 = FluxSizes(**{**vars(sizes), "mlp_size": 4 * sizes.hidden_size})
    model = FluxTransformer2DModel(**ratio_4.config()).eval()
    for block in model.transformer_blocks:
        for feed in (block.ff, block.ff_context):
            feed.net[0].proj = nn.Linear(sizes.hidden_size, sizes.mlp_size)
            feed.net[2] = nn.Linear(sizes.mlp_size, sizes.hidden_size)
    for block in model.single_transformer_blocks:
        block.mlp_hidden_dim = sizes.mlp_size
        block.proj_mlp = nn.Linear(sizes.hidden_size, sizes.mlp_size)
        block.proj_out = nn.Linear(sizes.hidden_size + sizes.mlp_size, sizes.hidden_size)
    return model
