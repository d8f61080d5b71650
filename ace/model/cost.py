"""What a request costs, before anything is loaded: multiplications and additions of one step, bytes of weights.

Counted are matrix products (two operations per multiply-add), which are all but a few percent of the time; norms,
activations and rotary turns are not. Counts are those of the code as it runs: time conditioning and text once, not per
token or per step.

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


def step_cost(config: ACEConfig, frames: Sequence[int], texts: Sequence[int]) -> StepCost:
    """Cost of one step of one request and one guidance branch (two branches cost twice this).

    frames: tokens of every frame, the target first; texts: tokens of every frame's text, as many entries.
    Self-attention grows with the square of all tokens, all else in proportion."""
    width, tokens = config.hidden_size, sum(frames)
    hidden = int(width * config.mlp_ratio)
    cells = config.patch_size**2
    per_token = 4 * width * width + 2 * width * width + 2 * width * hidden  # self: q, k, v, o; cross: q, o; MLP
    once = (
        tokens * config.in_channels * cells * width
        + frames[0] * width * config.out_channels * cells
        + NUM_INDICATORS * (config.text_channels * width + width * width)
        + TIME_CHANNELS * width
        + 7 * width * width
    )
    attended = sum(frame * text for frame, text in zip(frames, texts, strict=True))
    return StepCost(
        linears=2 * (config.depth * tokens * per_token + once),
        self_attention=4 * config.depth * tokens * tokens * width,
        cross_attention=4 * config.depth * attended * width,
    )


def text_cost(config: ACEConfig, texts: Sequence[int]) -> int:
    """Operations for the keys and values of all texts of one branch, once per request."""
    width, tokens = config.hidden_size, sum(texts)
    embed = (tokens + NUM_INDICATORS) * (config.text_channels * width + width * width)
    return 2 * (embed + config.depth * tokens * 2 * width * width)


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
        + (config.text_channels * width + width)
        + (width * width + width)
        + config.depth * block
        + 2 * width
        + width * config.out_channels * cells
        + config.out_channels * cells
    )


def weight_bytes(config: ACEConfig, bytes_per_weight: int) -> int:
    """Memory of the transformer's weights and indicator states."""
    return bytes_per_weight * (num_parameters(config) + NUM_INDICATORS * config.text_channels)
