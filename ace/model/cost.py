"""What a request costs, before anything is loaded: multiplications and additions of one step, bytes of weights.

Counted are matrix products (two operations per multiply-add), which are all but a few percent of the time; norms,
activations and rotary turns are not. Counts are those of the code as it runs: time conditioning and text once, not per
token or per step, two guidance branches as one until they read their texts, the last block for the targets only.

Not here: the autoencoder and the text encoder; seconds, which belong to a machine (`benchmarks/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ace.model.config import ACEConfig

TIME_CHANNELS = 256
NUM_INDICATORS = 10


@dataclass(frozen=True)
class StepCost:
    """Operations of one denoising step of one guidance branch, by what they are spent on."""

    linears: int
    self_attention: int
    cross_attention: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.linears + self.self_attention + self.cross_attention


def step_cost(
    config: ACEConfig, frames: Sequence[int], texts: Sequence[int], null_texts: Sequence[int] | None = None
) -> StepCost:
    """Cost of one step of one request.

    frames: tokens of every frame, the target first; texts: tokens of every frame's text, as many entries; null_texts:
    those of the second guidance branch, None = no guidance. Self-attention grows with the square of all tokens, all
    else in proportion."""
    width, tokens, target = config.hidden_size, sum(frames), frames[0]
    square, cells = width * width, config.patch_size**2
    mlp = 2 * width * int(width * config.mlp_ratio)
    branches = [texts] if null_texts is None else [texts, null_texts]
    linears = (
        tokens * config.in_channels * cells * width
        + len(branches) * target * width * config.out_channels * cells
        + NUM_INDICATORS * _text_embed(config)
        + TIME_CHANNELS * width
        + 7 * square
        + (len(branches) * target * _drawing_parameters(config))
    )
    self_attention = cross_attention = 0
    for number in range(config.depth):
        first, last = number == 0, number == config.depth - 1
        shared = first and len(branches) > 1  # branches are the same until they read their texts
        queries = target if last and not shared else tokens
        times = 1 if shared else len(branches)
        linears += times * (2 * tokens + 2 * queries) * square  # k, v; q, o
        self_attention += times * 2 * queries * tokens * width
        for branch in branches:
            read = list(zip(frames, branch, strict=True))[: 1 if last else None]
            linears += sum(frame for frame, text in read if text > 1) * 2 * square  # one key needs no attention
            linears += sum(frame for frame, _ in read) * mlp
            cross_attention += sum(2 * frame * text for frame, text in read if text > 1) * width
    return StepCost(linears=2 * linears, self_attention=2 * self_attention, cross_attention=2 * cross_attention)


def text_cost(config: ACEConfig, texts: Sequence[int]) -> int:
    """Operations for the keys and values of all texts of one branch, the target's first, once per request."""
    width = config.hidden_size
    embed = (sum(texts) + NUM_INDICATORS) * _text_embed(config)
    pooled = width * width if config.pooled_text else 0
    rows = [sum(texts)] * (config.depth - 1) + [texts[0]]  # the last block reads the target's text only
    return 2 * (embed + pooled + sum(rows) * 2 * width * width)


def _text_embed(config: ACEConfig) -> int:
    """Multiply-adds that embed one text token; a `LexiconEncoder`'s states are embedded already."""
    return 0 if config.memory_blocks else config.text_channels * config.hidden_size + config.hidden_size**2


def num_parameters(config: ACEConfig) -> int:
    """Weights of the transformer, the indicator states not counted."""
    width, cells = config.hidden_size, config.patch_size**2
    hidden = int(width * config.mlp_ratio)
    attention = 4 * (width * width + width) + (width if config.qk_norm else 0)
    block = 6 * width + 2 * attention + 2 * width * hidden + hidden + width
    return (
        config.in_channels * cells * width
        + width
        + (TIME_CHANNELS * width + width)
        + (width * width + width)
        + 6 * (width * width + width)
        + (0 if config.memory_blocks else (config.text_channels * width + width) + (width * width + width))
        + (width * width + width if config.pooled_text else 0)
        + config.depth * block
        + 2 * width
        + width * config.out_channels * cells
        + config.out_channels * cells
        + _drawing_parameters(config)
    )


def _drawing_parameters(config: ACEConfig) -> int:
    width = config.hidden_size
    linears = 2 * (width * width + width) + (width * 3 + 3) + width * 4 * config.patch_size**2
    return linears + width if config.draws_from_memory else 0


def weight_bytes(config: ACEConfig, bytes_per_weight: int) -> int:
    """Memory of the transformer's weights and indicator states."""
    return bytes_per_weight * (num_parameters(config) + NUM_INDICATORS * config.text_channels)


# Values of one token that one block keeps for the way back, in units of the width: norms, modulation, queries, keys,
# values, attention and the MLP's four-fold inner layer twice (measured: tests/model/test_cost.py).
KEPT_PER_BLOCK = 34


def activation_bytes(config: ACEConfig, tokens: int, bytes_per_value: int, checkpointed: bool) -> int:
    """Memory that a forward pass of `tokens` visual tokens keeps for its way back, about.

    checkpointed: every block keeps its input only and is computed again."""
    per_token = bytes_per_value * config.hidden_size
    if checkpointed:
        return tokens * per_token * (config.depth + KEPT_PER_BLOCK)
    return tokens * per_token * config.depth * KEPT_PER_BLOCK
