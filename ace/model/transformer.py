"""`ACETransformer`: the long-context diffusion transformer (ACE, section 2.2 and figure 3), as a diffusers model.

Notable choices, all exact: one packed sequence for any mixture of requests; time conditioning once per request, not
per token; the rotary table once per layout; text keys and values once per request (`encode_text`), since they do not
depend on the timestep; two guidance branches as one request until they read their texts; a text of one token without
attention; in the last block only what the targets need. Queries and keys share one RMS norm, as the published weights
expect.

Not here: autoencoder, text encoder, sampling, checkpoint conversion.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook  # offloading watches `forward` only
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace.errors import ConfigError
from ace.model.attention import attend
from ace.model.config import PRESETS, ROW_CHANNELS, ACEConfig
from ace.model.linear import Linear
from ace.model.rope import apply_rotary, rotary_table
from ace.model.tokens import MAX_INDICATORS, Layout, Stage, TextPlan, TokenSet

NORM_EPS = 1e-6
TIME_CHANNELS = 256
MIN_ROWS = 16  # products of fewer rows round differently on CPUs: requests alone would differ from those in a batch

# per block: keys and values (L_long, heads, d) of texts, and for texts of one token what is read there, (L_one, D)
BlockText = tuple[Tensor, Tensor, Tensor]


# per block: keys and values (T, heads, d) of image frames that are computed once
FrameKeysValues = tuple[tuple[Tensor, Tensor], ...]


@dataclasses.dataclass(frozen=True)
class TextKeysValues:
    """What a model reads of the texts of its requests, the same at every step.

    blocks: what each block reads. pooled: (B, D) each target's text as a whole, for models with `pooled_text`. drawn:
    keys and codes of what a `Drawing` may lay down, (L_long, heads, d) each."""

    blocks: tuple[BlockText, ...]
    pooled: Tensor | None = None
    drawn: tuple[Tensor, Tensor] | None = None

    @classmethod
    def joined(cls, parts: Sequence[TextKeysValues]) -> TextKeysValues:
        """Of several packed batches as one, in their order."""
        blocks = [
            tuple(torch.cat(own) for own in zip(*of_block, strict=True))
            for of_block in zip(*(part.blocks for part in parts), strict=True)
        ]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        drawn = [part.drawn for part in parts if part.drawn is not None]
        return cls(
            tuple(blocks),  # pyright: ignore[reportArgumentType]
            torch.cat(pooled) if pooled else None,
            (torch.cat([keys for keys, _ in drawn]), torch.cat([codes for _, codes in drawn])) if drawn else None,
        )


class ACETransformer(ModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin):
    """One diffusion transformer for creation and editing.

    The arguments are those of `ACEConfig`, plus indicator_states: (10, text_channels) text states of the image names
    `{image}` … `{image9}`, a buffer saved with the weights (zeros until set by `set_indicators`)."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ACEBlock"]
    _repeated_blocks = ["ACEBlock"]
    _skip_layerwise_casting_patterns = ["patch_embed", "time_embed", "norm"]

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        latent_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        text_channels: int = 4096,
        max_positions: int = 1024,
        learned_sigma: bool = True,
        qk_norm: bool = True,
        gelu: Literal["tanh", "none"] = "tanh",
        source_on_channels: bool = False,
        source_as_frame: bool = True,
        predict_change: bool = False,
        absolute_positions: bool = False,
        pooled_text: bool = False,
        open_gates: bool = False,
        rotary_theta: float = 10000.0,
        rotary_scale: float = 1.0,
        memory_blocks: tuple[int, ...] = (),
        frames_once: bool = False,
        draws_from_memory: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = ACEConfig(
            patch_size,
            latent_channels,
            hidden_size,
            depth,
            num_heads,
            mlp_ratio,
            text_channels,
            max_positions,
            learned_sigma,
            qk_norm,
            gelu,
            source_on_channels,
            source_as_frame,
            predict_change,
            absolute_positions,
            pooled_text,
            open_gates,
            rotary_theta,
            rotary_scale,
            memory_blocks,
            frames_once,
            draws_from_memory,
        )
        cells = patch_size**2
        self.patch_embed = nn.Linear(self.sizes.in_channels * cells, hidden_size)
        self.time_embed = TimeEmbedding(hidden_size)
        self.time_modulation = Linear(hidden_size, 6 * hidden_size)
        if self.sizes.memory_blocks:  # states are the model's own, trained along
            self.text_embed = nn.Identity()
        else:
            self.text_embed = Mlp(text_channels, hidden_size, hidden_size, gelu)
        self.pooled_embed = Linear(hidden_size, hidden_size) if pooled_text else None
        self.blocks = nn.ModuleList(ACEBlock(hidden_size, num_heads, mlp_ratio, qk_norm, gelu) for _ in range(depth))
        self.final = FinalLayer(hidden_size, self.sizes.out_channels * cells)
        self.drawing = Drawing(hidden_size, num_heads, cells) if draws_from_memory else None
        self.register_buffer("indicator_states", torch.zeros(MAX_INDICATORS, text_channels))
        self.gradient_checkpointing = False
        self.initialise()

    @classmethod
    def from_preset(cls, name: str) -> ACETransformer:
        """A freshly initialised model of a named size. Raises ConfigError for an unknown name."""
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}: one of {', '.join(PRESETS)}")
        return cls(**dataclasses.asdict(PRESETS[name]))

    def set_indicators(self, states: Tensor) -> None:
        """Store the text states of the ten image names, (10, text_channels)."""
        self.indicator_states.copy_(states)

    @apply_forward_hook
    def encode_text(self, texts: Tensor, layout: Layout) -> TextKeysValues:
        """Keys and values of every block's cross-attention, once per request (equation 3 adds the image indicators).

        texts: (L, text_channels), all segments of all requests, in the layout's order. The last block has those of the
        targets only."""
        text_tokens = self._embed_text(texts, layout)  # (L, D)
        places = None
        if self.sizes.memory_blocks:
            positions = F.pad(texts[:, 1 - ROW_CHANNELS :], (1, 0))
            places = rotary_table(positions, self.sizes.head_dim, self.sizes.rotary)
        last = len(self.blocks) - 1
        read = []
        for number, block in enumerate(self.blocks):
            tokens = layout.targets if number == last else layout.tokens
            reads_rows = number in self.sizes.memory_blocks
            plan = tokens.text if reads_rows else tokens.words
            own = places if reads_rows else None
            read.append(block.cross_attn.read_texts(text_tokens, plan, layout.rounds_to_float16, own))
        drawn = None
        if self.drawing is not None:
            codes = texts[:, self.sizes.hidden_size : -ROW_CHANNELS]
            drawn = self.drawing.read(text_tokens, codes, layout.targets.text, places)
        return TextKeysValues(tuple(read), self._pool_text(text_tokens, layout), drawn)

    def _pool_text(self, text_tokens: Tensor, layout: Layout) -> Tensor | None:
        if self.pooled_embed is None:
            return None
        count = len(layout.target_sizes)
        words = torch.zeros(count, text_tokens.shape[1], dtype=text_tokens.dtype, device=text_tokens.device)
        words = words.index_add(0, layout.speakers, text_tokens[layout.spoken])
        lengths = torch.bincount(layout.speakers, minlength=count).to(words).sqrt()
        padded = F.pad(words / lengths[:, None], (0, 0, 0, max(0, MIN_ROWS - count)))
        return self.pooled_embed(padded)[:count]

    def forward(
        self,
        patches: Tensor,
        timestep: Tensor,
        layout: Layout,
        texts: Tensor | None = None,
        text_keys_values: TextKeysValues | None = None,
        before: FrameKeysValues | None = None,
    ) -> Tensor:
        """Predict the noise (or v, or the clean latents, as trained) of every target token.

        patches: (T_entering, in_channels · p · p) from `pack_latents`; timestep: (B_entering,), 0 = clean end; texts:
        (L, text_channels) or text_keys_values from `encode_text`; before: of the image frames that the layout says are
        seen besides (`frames.py`). Returns (T_target, p · p · out_channels)."""
        if texts is not None and text_keys_values is None:
            text_keys_values = self.encode_text(texts, layout)
        elif texts is not None or text_keys_values is None:
            raise ConfigError("give either texts or text_keys_values")
        tokens, modulation, time = self._enter(patches, timestep, layout, text_keys_values)
        for number, (stage, block, text) in enumerate(
            zip(layout.stages(len(self.blocks)), self.blocks, text_keys_values.blocks, strict=True)
        ):
            more = number in self.sizes.memory_blocks, None if before is None else before[number]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, modulation, text, stage, *more, use_reentrant=False)
            else:
                tokens = block(tokens, modulation, text, stage, *more)
            if stage.owners is not None:
                modulation, time = modulation[stage.owners], time[stage.owners]
        out = self.final(tokens, time, layout.targets)
        if self.drawing is not None:
            out = out + self.drawing(tokens, text_keys_values.drawn, layout.targets)
        return self._changed(out, self._source(patches, layout)) if self.sizes.predict_change else out

    @apply_forward_hook
    def encode_frames(
        self, patches: Tensor, layout: Layout, texts: Tensor, before: FrameKeysValues | None = None
    ) -> FrameKeysValues:
        """Keys and values of image frames in every block, once for all steps (`frames_once`).

        Each frame is a request of the layout, clean, at timestep 0, and sees itself and what came before it. Arguments
        as of `forward`."""
        text_keys_values = self.encode_text(texts, layout)
        timestep = torch.zeros(len(layout.target_sizes), device=patches.device)
        tokens, modulation, _ = self._enter(patches, timestep, layout, text_keys_values)
        read = []
        for number, (stage, block, text) in enumerate(
            zip(layout.stages(len(self.blocks)), self.blocks, text_keys_values.blocks, strict=True)
        ):
            read.append(block.self_keys_values(tokens, modulation, stage))
            if number < len(self.blocks) - 1:
                earlier = None if before is None else before[number]
                tokens = block(tokens, modulation, text, stage, number in self.sizes.memory_blocks, earlier)
        return tuple(read)

    def _enter(
        self, patches: Tensor, timestep: Tensor, layout: Layout, text_keys_values: TextKeysValues
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The first tokens, (T, D) or (B, T / B, D), and of every entering request modulation, (B, 6, D), and time."""
        indicators = self._indicators(patches.dtype)  # (10, D)
        tokens = self.patch_embed(patches)  # (T_entering, D)
        tokens = tokens + F.embedding(layout.indicator, indicators)  # equation 4
        if self.sizes.absolute_positions:
            tokens = tokens + absolute_positions(layout.entering.positions, tokens)
        tokens = layout.entering.fold(tokens)  # (B, T / B, D) if all requests are equally long
        padded = F.pad(timestep, (0, max(0, MIN_ROWS - len(timestep))))
        time = self.time_embed(padded, patches.dtype)  # (B or more, D)
        if text_keys_values.pooled is not None:
            pooled = text_keys_values.pooled
            time = time + F.pad(pooled, (0, 0, 0, len(padded) - len(pooled)))
        modulation = self.time_modulation(F.silu(time)).unflatten(-1, (6, -1))[: len(timestep)]  # (B, 6, D)
        return tokens, modulation, time[: len(timestep)]

    def _changed(self, out: Tensor, source: Tensor) -> Tensor:
        """The source plus a change, less what is not kept of it. out: (T_target, p · p · (C + 1)), the last channel how
        much more than all of the source is kept (0 = a copy, -1 = nothing). source, result: (T_target, p · p · C)."""
        cells = out.unflatten(1, (-1, self.sizes.out_channels))
        change, kept = cells.split([self.sizes.latent_channels, 1], dim=-1)
        return torch.addcmul(change, 1 + kept, source.unflatten(1, change.shape[1:])).flatten(1)

    def _source(self, patches: Tensor, layout: Layout) -> Tensor:
        """The source's latents of every target token, with features ordered as the output's: (row, col, C)."""
        channels = patches.unflatten(1, (self.sizes.in_channels, -1))[:, -self.sizes.latent_channels :]
        entering = layout.target_index if layout.repeated is None else layout.repeated[layout.target_index]
        return channels[entering].transpose(1, 2).flatten(1)

    def _indicators(self, dtype: torch.dtype) -> Tensor:
        """Embeddings of the ten image names, (10, D)."""
        return self.text_embed(self.indicator_states.to(dtype))[:, : self.sizes.hidden_size]

    def _embed_text(self, texts: Tensor, layout: Layout) -> Tensor:
        embedded = self.text_embed(texts)[:, : self.sizes.hidden_size]
        return embedded + F.embedding(layout.text_indicator, self._indicators(texts.dtype))  # equation 3

    def initialise(self) -> None:
        """Initial weights of the published training code."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ACEBlock):
                nn.init.zeros_(module.cross_attn.to_out.weight)
        embedded = [self.text_embed.up, self.text_embed.down] if isinstance(self.text_embed, Mlp) else []
        for linear in (*self.time_embed.linears(), self.time_modulation, *embedded):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.final.linear.weight)
        if self.drawing is not None:
            nn.init.zeros_(self.drawing.ink.weight)
        if self.sizes.open_gates:
            self._open()

    def _open(self) -> None:
        """Gates at one, time and text of unit size, and every branch a share of the depth."""
        for linear in self.time_embed.linears():
            nn.init.xavier_uniform_(linear.weight)
        nn.init.normal_(self.time_modulation.weight, std=0.01)
        nn.init.zeros_(self.final.modulation)
        for block in self.blocks:
            assert isinstance(block, ACEBlock)
            nn.init.zeros_(block.modulation)
            block.modulation.data[[2, 5]] = 1.0
            nn.init.xavier_uniform_(block.cross_attn.to_out.weight)
            for last in (block.self_attn.to_out, block.cross_attn.to_out, block.mlp.down):
                last.weight.data *= len(self.blocks) ** -0.5


class ACEBlock(nn.Module):
    """Long-context attention block: self-attention over all frames of a request, cross-attention per frame, MLP."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, qk_norm: bool, gelu: str) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(6, hidden_size) / math.sqrt(hidden_size))
        self.self_attn = Attention(hidden_size, num_heads, qk_norm)
        self.cross_attn = Attention(hidden_size, num_heads, qk_norm)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), hidden_size, gelu)

    def forward(
        self,
        tokens: Tensor,
        modulation: Tensor,
        text: BlockText,
        stage: Stage,
        reads_rows: bool = False,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """tokens: those that enter, (T, D) or (B, T / B, D); modulation: (B, 6, D); reads_rows: `text` has rows of
        tables; before: keys and values of frames seen besides. Returns the tokens that leave."""
        rows = (self.modulation + modulation).to(tokens.dtype)  # (B, 6, D)
        shift, scale = (stage.entering.spread(rows[:, n]) for n in (0, 1))
        normed = modulate(tokens, shift, scale)
        own, tokens = (choose(x, stage.narrowed, stage.computed) for x in (normed, tokens))
        mixed = self.self_attn.among(own, normed, stage.computed, stage.entering, before)
        tokens = torch.addcmul(tokens, stage.computed.spread(rows[:, 2]), mixed)
        tokens = choose(tokens, stage.repeated, stage.leaving)
        rows = rows if stage.owners is None else rows[stage.owners]
        leaving = stage.leaving
        plan, place = (leaving.text, leaving.place_rotary) if reads_rows else (leaving.words, None)
        tokens = tokens + self.cross_attn.to_text(tokens, text, plan, place)  # equation 5
        shift, scale, gate = (stage.leaving.spread(rows[:, n]) for n in (3, 4, 5))
        return torch.addcmul(tokens, gate, self.mlp(modulate(tokens, shift, scale)))

    def plain(
        self,
        tokens: Tensor,
        modulation: Tensor,
        text: BlockText,
        stage: Stage,
        reads_rows: bool = False,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`forward` as figure 3 draws it, with the same arguments and, up to rounding, the same result: every token
        that enters attends to its request; nothing is left out because nobody reads it."""
        rows = (self.modulation + modulation).to(tokens.dtype)  # (B, 6, D)
        shift, scale, gate = (stage.entering.spread(rows[:, n]) for n in (0, 1, 2))
        x = modulate(tokens, shift, scale)
        tokens = tokens + gate * self.self_attn.among(x, x, stage.entering, stage.entering, before)

        leaving = stage.leaving  # those that are read later, and once more for every other text
        tokens = choose(tokens, stage.narrowed if stage.repeated is None else stage.repeated, leaving)
        rows = rows if stage.owners is None else rows[stage.owners]
        plan, place = (leaving.text, leaving.place_rotary) if reads_rows else (leaving.words, None)
        tokens = tokens + self.cross_attn.to_text(tokens, text, plan, place)  # equation 5

        shift, scale, gate = (leaving.spread(rows[:, n]) for n in (3, 4, 5))
        return tokens + gate * self.mlp(modulate(tokens, shift, scale))

    def self_keys_values(self, tokens: Tensor, modulation: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Keys and values of self-attention of the tokens that enter, (T, heads, d) each."""
        rows = (self.modulation + modulation).to(tokens.dtype)  # (B, 6, D)
        shift, scale = (stage.entering.spread(rows[:, n]) for n in (0, 1))
        return self.self_attn.keys_values(modulate(tokens, shift, scale), stage.entering)


class Attention(nn.Module):
    """Multi-head attention with one RMS norm, over all heads at once, for queries and keys alike."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = num_heads
        self.to_q = Linear(hidden_size, hidden_size)
        self.to_k = Linear(hidden_size, hidden_size)
        self.to_v = Linear(hidden_size, hidden_size)
        self.to_out = Linear(hidden_size, hidden_size)
        self.norm_qk = RMSNorm(hidden_size) if qk_norm else nn.Identity()  # upstream normalises keys with norm_q

    def among(
        self,
        wanted: Tensor,
        tokens: Tensor,
        queries: TokenSet,
        keys: TokenSet,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Self-attention within each request, of the wanted tokens (the set `queries`) to all (the set `keys`) and to
        frames that were computed before."""
        query = apply_rotary(self._split(self.norm_qk(self.to_q(wanted))), queries.rotary)
        key, value = self.keys_values(tokens, keys)
        if before is not None:
            key, value = torch.cat([key, before[0]]), torch.cat([value, before[1]])
        out = attend(query, key, value, queries.self_plan)  # (T, heads, d)
        return self.to_out(out.flatten(1).view(wanted.shape))

    def keys_values(self, tokens: Tensor, keys: TokenSet) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens, (T, heads, d) each."""
        return apply_rotary(self._split(self.norm_qk(self.to_k(tokens))), keys.rotary), self._split(self.to_v(tokens))

    def to_text(self, tokens: Tensor, text: BlockText, plan: TextPlan, place: Tensor | None = None) -> Tensor:
        """Cross-attention of each frame to its own text segment. place: rotary table that turns the queries by where
        they stand, (T, 1, d / 2), None = they are not turned."""
        keys, values, one = text
        if plan.readers is None and plan.plan is not None:
            query = self._split(self.norm_qk(self.to_q(tokens)))
            query = query if place is None else apply_rotary(query, place)
            return self.to_out(attend(query, keys, values, plan.plan).flatten(1).view(tokens.shape))
        rows = tokens.reshape(-1, tokens.shape[-1])
        out = one.index_select(0, plan.follows)
        if plan.plan is not None and plan.readers is not None:
            query = self._split(self.norm_qk(self.to_q(rows.index_select(0, plan.readers))))
            query = query if place is None else apply_rotary(query, place[plan.readers])
            read = self.to_out(attend(query, keys, values, plan.plan).flatten(1))
            order = torch.cat([plan.followers, plan.readers])
            out = torch.empty_like(rows).index_copy(0, order, torch.cat([out, read]))
        return out.view(tokens.shape)

    def read_texts(
        self, text_tokens: Tensor, plan: TextPlan, round_to_float16: bool, places: Tensor | None = None
    ) -> BlockText:
        """Keys and values of the longer texts, and what tokens read of the texts of one token. text_tokens: (L, D).
        places: rotary table that turns the keys, (L, 1, d / 2)."""
        long, one = (text_tokens.index_select(0, index) for index in (plan.long_index, plan.one_index))
        keys, values = self._split(self.norm_qk(self.to_k(long))), self._split(self.to_v(long))
        keys = keys if places is None else apply_rotary(keys, places[plan.long_index])
        value = self.to_v(one)
        if round_to_float16 and value.dtype == torch.float32:
            value = value.half().float()
        return keys, values, self.to_out(value)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.heads, x.shape[-1] // self.heads)


class Drawing(nn.Module):
    """Lays drawings out of a `LexiconEncoder`'s tables over the picture: each target token points to a row, as in a
    pointer network, and the row's code, decoded, covers what is there as far as it is opaque.

    Every head points for its own channels of the codes. Words are rows without a code: to point to one draws nothing.
    """

    def __init__(self, hidden_size: int, num_heads: int, cells: int) -> None:
        super().__init__()
        self.heads = num_heads
        self.to_q = Linear(hidden_size, hidden_size)
        self.to_k = Linear(hidden_size, hidden_size)
        self.norm_qk = RMSNorm(hidden_size)
        self.ink = nn.Linear(hidden_size, 3)  # by how much more of a colour than in the table a token draws
        self.decode = nn.Linear(hidden_size, cells * 4, bias=False)  # (pixel, channel): colour times alpha, and alpha

    def read(self, text_tokens: Tensor, codes: Tensor, plan: TextPlan, places: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and codes of the texts that are longer than a token, (L_long, heads, d) each. text_tokens, codes:
        (L, D); places: rotary table that turns the keys by their cell in the drawing."""
        keys = self._split(self.norm_qk(self.to_k(text_tokens.index_select(0, plan.long_index))))
        keys = keys if places is None else apply_rotary(keys, places[plan.long_index])
        own = codes.index_select(0, plan.long_index).unflatten(-1, (-1, self.heads))
        return keys, own.transpose(1, 2)  # channels in turn, so that every head has large and small components

    def set_decoder(self, weight: Tensor) -> None:
        """Decode codes so: (cells · 4, D), columns in the order of a code's channels."""
        order = torch.arange(weight.shape[1]).view(-1, self.heads).t().flatten()  # as `forward` has them, head by head
        self.decode.weight.data.copy_(weight[:, order])

    def forward(self, tokens: Tensor, drawn: tuple[Tensor, Tensor] | None, targets: TokenSet) -> Tensor:
        """tokens: of the targets. Returns what is added to the last layer's output, (T_target, cells · 4): a change,
        and how much less of the source is kept."""
        plan = targets.text
        rows = tokens.reshape(-1, tokens.shape[-1])
        if plan.plan is None or drawn is None:
            return rows.new_zeros(len(rows), self.decode.out_features)
        rows = F.layer_norm(rows, rows.shape[-1:], eps=NORM_EPS)
        own, place = rows, targets.place_rotary
        if plan.readers is not None:
            own, place = rows.index_select(0, plan.readers), place[plan.readers]
        query = apply_rotary(self._split(self.norm_qk(self.to_q(own))), place)
        code = attend(query, *drawn, plan.plan).flatten(1)  # (readers, D)
        color, alpha = self.decode(code).unflatten(-1, (-1, 4)).split([3, 1], dim=-1)
        change = 2 * (1 + self.ink(own)).unsqueeze(1) * color - alpha  # latents run from -1 to 1
        out = torch.cat([change, -alpha], dim=-1).flatten(1)
        if plan.readers is None:
            return out
        return out.new_zeros(len(rows), out.shape[1]).index_copy(0, plan.readers, out)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.heads, x.shape[-1] // self.heads)


class Mlp(nn.Module):
    """Two linears with a GELU between them."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int, gelu: str) -> None:
        super().__init__()
        self.gelu = gelu
        self.up = Linear(in_features, hidden_features)
        self.down = Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        if isinstance(self.up, Linear):
            return self.down(self.up(x, self.gelu))
        return self.down(F.gelu(self.up(x), approximate=self.gelu))  # an adapter adds to the sum before the GELU


class RMSNorm(nn.Module):
    """Root mean square norm in float32, whatever the input's precision."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """(…, size) → same shape and dtype."""
        return (F.rms_norm(x.float(), self.weight.shape, eps=NORM_EPS) * self.weight.float()).to(x.dtype)


class TimeEmbedding(nn.Module):
    """Sinusoidal timestep features (cosines first) through a two-layer MLP, computed once per request."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.up = nn.Linear(TIME_CHANNELS, hidden_size)
        self.down = nn.Linear(hidden_size, hidden_size)

    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        """Both layers, for initialisation."""
        return self.up, self.down

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """(B,) timesteps → (B, D)."""
        steps = torch.arange(TIME_CHANNELS // 2, dtype=torch.float32, device=timestep.device)
        angle = timestep[:, None].float() * torch.exp(-math.log(10000) * steps / (TIME_CHANNELS // 2))
        features = torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype)
        return self.down(F.silu(self.up(features)))


class FinalLayer(nn.Module):
    """Last norm, modulation by the time embedding itself, and the projection to patches of the target tokens."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(2, hidden_size) / math.sqrt(hidden_size))
        self.linear = nn.Linear(hidden_size, out_features)

    def forward(self, tokens: Tensor, time: Tensor, targets: TokenSet) -> Tensor:
        """tokens: of the targets; time: (B, D). Returns (T_target, out_features)."""
        shift, scale = (self.modulation + time.unsqueeze(1)).unbind(1)  # (B, D) each
        out = self.linear(modulate(tokens, targets.spread(shift), targets.spread(scale)))
        return out.reshape(-1, out.shape[-1])


def absolute_positions(positions: Tensor, like: Tensor) -> Tensor:
    """Sines and cosines of row and column, of unit size; periods of 4 to 100 tokens. positions: (T, 3). Returns (T, D)
    in the precision of `like`."""
    quarter = like.shape[-1] // 4
    frequencies = 1.5 / 30 ** (torch.arange(quarter, device=positions.device) / quarter)
    angles = positions[:, 1:, None].float() * frequencies  # (T, 2, D / 4)
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)


def choose(tokens: Tensor, index: Tensor | None, among: TokenSet) -> Tensor:
    """The rows `index` of tokens of any shape, in the shape of their set; None = the tokens as they are."""
    if index is None:
        return tokens
    return among.fold(tokens.reshape(-1, tokens.shape[-1]).index_select(0, index))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without its own weights, then scale and shift from the timestep."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)
