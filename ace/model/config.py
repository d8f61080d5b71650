"""Sizes of an ACE transformer. Presets are literals; unknown keys raise because the dataclass refuses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ace.errors import ConfigError

ROW_CHANNELS = 3  # of a `LexiconEncoder`'s states, the last: whether it is a row of a table, its row and column


@dataclass(frozen=True)
class Rotary:
    """How far one step turns queries and keys.

    theta: from the fastest pair of an axis to the slowest. scale: radians of the fastest."""

    theta: float = 10000.0
    scale: float = 1.0


@dataclass(frozen=True)
class ACEConfig:
    """Shape of one `ACETransformer`.

    patch_size: latent cells per token side. latent_channels: C of the autoencoder. hidden_size: D. text_channels: width
    of the text encoder's states. max_positions: rows of each rotary axis. learned_sigma: the output has 2C channels, of
    which the second half is ignored (published models). gelu: torch's name for the approximation ("tanh" as published;
    "none", the exact one, is faster on CPUs). source_on_channels: the target's tokens also see the latents of the image
    being edited, on the channel axis (ACE++'s idea); off for the published models.

    What follows is off for the published models too. source_as_frame: whether the edited image is also a frame of
    its own; without it an edit costs as much as a picture from nothing. predict_change: the output is a change and,
    for each cell, how much of the source's latents it is added to, so that both copying and removing are free.
    absolute_positions: sines and cosines of row and column are added to the tokens. pooled_text: the target's text
    joins the timestep in the modulation. open_gates: initial weights with which text and position are heard from
    the start. rotary_theta, rotary_scale: see `Rotary`. memory_blocks: blocks that read the rows of a
    `LexiconEncoder`'s tables (`lexicon.py`), whose states are then as wide as the model. frames_once: image frames
    see themselves and those before them only, at timestep 0, so that they are computed once for all steps and turns
    (`frames.py`). draws_from_memory: a last attention lays rows of those tables, decoded, over the picture
    (`Drawing`).
    Raises ConfigError for impossible sizes."""

    patch_size: int = 2
    latent_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    text_channels: int = 4096
    max_positions: int = 1024
    learned_sigma: bool = True
    qk_norm: bool = True
    gelu: Literal["tanh", "none"] = "tanh"
    source_on_channels: bool = False
    source_as_frame: bool = True
    predict_change: bool = False
    absolute_positions: bool = False
    pooled_text: bool = False
    open_gates: bool = False
    rotary_theta: float = 10000.0
    rotary_scale: float = 1.0
    memory_blocks: tuple[int, ...] = ()
    frames_once: bool = False
    draws_from_memory: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "memory_blocks", tuple(self.memory_blocks))  # JSON knows lists only
        if not self.source_on_channels and (self.predict_change or not self.source_as_frame):
            raise ConfigError("predict_change and an edited image that is no frame need source_on_channels")
        if self.predict_change and self.learned_sigma:
            raise ConfigError("predict_change and learned_sigma exclude each other")
        if self.frames_once and not self.pooled_text:
            raise ConfigError("frames_once needs pooled_text: guidance branches then have passes of their own")
        if self.draws_from_memory and not (self.memory_blocks and self.predict_change and self.latent_channels == 3):
            raise ConfigError("draws_from_memory needs memory_blocks, predict_change and pixels as latents")
        states = self.hidden_size * (1 + self.draws_from_memory)
        if self.memory_blocks and self.text_channels != states + ROW_CHANNELS:
            raise ConfigError(f"memory_blocks need text states of {states} + {ROW_CHANNELS} channels")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.head_dim % 2 or self.head_dim < 6:
            raise ConfigError(f"head dimension {self.head_dim} must be even and at least 6 for three rotary axes")

    @property
    def rotary(self) -> Rotary:
        """How positions turn queries and keys."""
        return Rotary(self.rotary_theta, self.rotary_scale)

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def in_channels(self) -> int:
        """Channels of one latent cell as the model reads it: latents, mask and, if configured, the source's latents."""
        return self.latent_channels + 1 + (self.latent_channels if self.source_on_channels else 0)

    @property
    def out_channels(self) -> int:
        """Channels of one predicted latent cell."""
        return self.latent_channels * (2 if self.learned_sigma else 1) + self.predict_change


PUBLISHED_ROTARY = Rotary()
PRESETS: dict[str, ACEConfig] = {
    "tiny": ACEConfig(
        patch_size=1,
        latent_channels=16,
        hidden_size=256,
        depth=8,
        num_heads=8,
        text_channels=384,
        max_positions=64,
        learned_sigma=False,
        qk_norm=False,
        gelu="none",
        source_on_channels=True,
    ),
    "tiny-pixels": ACEConfig(
        patch_size=16,
        latent_channels=3,
        hidden_size=256,
        depth=6,
        num_heads=4,
        text_channels=2 * 256 + ROW_CHANNELS,
        max_positions=64,
        learned_sigma=False,
        gelu="none",
        source_on_channels=True,
        source_as_frame=False,
        predict_change=True,
        absolute_positions=True,
        pooled_text=True,
        open_gates=True,
        rotary_theta=10.0,
        rotary_scale=2.0,
        memory_blocks=(1, 3),
        frames_once=True,
        draws_from_memory=True,
    ),
    "0.6b-512": ACEConfig(max_positions=1024),
    "0.6b-1024": ACEConfig(max_positions=4096),
}
