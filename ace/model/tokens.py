"""Long-context condition units as packed tokens, and back: the only ragged code.

A request has N image frames and a target. Its visual sequence is the target's tokens followed by those of each image,
in the order of `LongContextConditionUnit.frames`; requests are concatenated without padding. A `Layout` holds
everything about a batch that does not depend on the timestep: positions, indicator rows, attention plans, rotary
tables; and what need not be computed: two guidance branches are the same until they read their texts, a text of one
token needs no attention, and of the last block only the targets are wanted.

Indicator rows: image k (from 0) carries `{image k}`; the target carries the row after the last image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ace.errors import ShapeError
from ace.model.attention import AttentionPlan, plan_attention
from ace.model.config import PUBLISHED_ROTARY, ROW_CHANNELS, Rotary
from ace.model.devices import moved
from ace.model.rope import rotary_table

MAX_INDICATORS = 10
TEXT_PADDING = 32  # text keys go in groups of equal padded length, padded by their own number only


@dataclass(frozen=True)
class RequestFrames:
    """What one request shows the model, apart from its noisy latents.

    size: (h, w) of the target in latent cells. target_mask: (1, h, w) in [0, 1], 1 = change, or None for all ones.
    images: latents (C, h_k, w_k), one per frame; image_masks: (1, h_k, w_k) or None each. texts: N + 1 text states
    (L_k, text_channels), the target's first. source: latents (C, h, w) of the image being edited, for models with
    `source_on_channels`; None for text to image. indicators: rows of the indicator table, the target's first; empty =
    that after the last image, and the images in order. kept: (T_0,) the target's tokens that are computed, for training
    on a part of them; None = all. frame: number of the target among the frames, 0; of an image that is computed as a
    target is (`frames.py`), its own."""

    size: tuple[int, int]
    texts: tuple[Tensor, ...]
    target_mask: Tensor | None = None
    images: tuple[Tensor, ...] = ()
    image_masks: tuple[Tensor | None, ...] = ()
    source: Tensor | None = None
    indicators: tuple[int, ...] = ()
    kept: Tensor | None = None
    frame: int = 0

    def __post_init__(self) -> None:
        if not self.indicators:
            object.__setattr__(self, "indicators", (len(self.images), *range(len(self.images))))
        if len(self.texts) != len(self.images) + 1 or len(self.image_masks) != len(self.images):
            raise ShapeError(
                f"{len(self.images)} images need {len(self.images)} masks and {len(self.images) + 1} texts, "
                f"got {len(self.image_masks)} and {len(self.texts)}"
            )
        if max(self.indicators) >= MAX_INDICATORS:
            raise ShapeError(f"{max(self.indicators)} images, at most {MAX_INDICATORS - 1} have an indicator")

    def alone(self) -> RequestFrames:
        """The target without its image frames."""
        return replace(self, texts=self.texts[:1], images=(), image_masks=(), indicators=self.indicators[:1])

    def image_frames(self) -> list[RequestFrames]:
        """Every image frame as a request of its own, without a source."""
        own = zip(self.images, self.image_masks, self.texts[1:], self.indicators[1:], strict=True)
        return [
            RequestFrames(tuple(image.shape[-2:]), (text,), mask, indicators=(row,), frame=row + 1)  # pyright: ignore[reportArgumentType]
            for image, mask, text, row in own
        ]

    def without_source(self, index: int) -> RequestFrames:
        """The same without the frame `index` of the edited image, which the target's own channels show; the others keep
        their names."""
        others = [n for n in range(len(self.images)) if n != index]
        return replace(
            self,
            texts=(self.texts[0], *(self.texts[n + 1] for n in others)),
            images=tuple(self.images[n] for n in others),
            image_masks=tuple(self.image_masks[n] for n in others),
            indicators=(self.indicators[0], *(self.indicators[n + 1] for n in others)),
        )


@dataclass(frozen=True)
class TextPlan:
    """Which visual tokens read which text.

    A frame whose text has one token needs no attention: the softmax over one key is 1, so all its tokens read that one
    value (the empty instruction of guidance is such a text). long_index: (L_long,) rows of the texts that are attended
    to; one_index: rows of the texts of one token. readers: (T_long,) tokens that attend, None = all; followers:
    (T_one,) tokens that read a text of one token, and follows: (T_one,) which of them. plan: of the readers, None if
    there are none."""

    long_index: Tensor
    one_index: Tensor
    readers: Tensor | None
    followers: Tensor
    follows: Tensor
    plan: AttentionPlan | None

    def in_float16(self) -> TextPlan:
        """The same plan, with attention of float32 models rounded to float16."""
        return replace(self, plan=None if self.plan is None else replace(self.plan, round_to_float16=True))


@dataclass(frozen=True)
class TokenSet:
    """The visual tokens that a part of the network computes: whose they are, where they stand, what they read.

    request_index: (T,) request of each token. rotary: (T, 1, head_dim / 2) complex. self_plan: to all tokens of the
    same request. text: to each frame's text. uniform_length: tokens per request if equal for all, else 0. positions:
    (T, 3) frame, row, column. words: to each frame's text without the rows of tables (`text` itself where there are
    none). place_rotary: as `rotary`, by row and column alone, for reading those rows."""

    num_requests: int
    request_index: Tensor
    rotary: Tensor
    self_plan: AttentionPlan
    text: TextPlan
    uniform_length: int
    positions: Tensor
    words: TextPlan
    place_rotary: Tensor

    def spread(self, per_request: Tensor) -> Tensor:
        """Give every token its request's row. (B, D) → (B, 1, D) if all requests are equally long, else (T, D)."""
        return per_request.unsqueeze(1) if self.uniform_length else F.embedding(self.request_index, per_request)

    def fold(self, tokens: Tensor) -> Tensor:
        """(T, …) → (B, L, …) if all requests are equally long, so that `spread` broadcasts; else unchanged."""
        return tokens.unflatten(0, (self.num_requests, self.uniform_length)) if self.uniform_length else tokens

    def in_float16(self) -> TokenSet:
        """The same set, with attention of float32 models rounded to float16 before and after."""
        return replace(
            self,
            self_plan=replace(self.self_plan, round_to_float16=True),
            text=self.text.in_float16(),
            words=self.words.in_float16(),
        )


@dataclass(frozen=True)
class Stage:
    """What one block computes: tokens enter, self-attention gives new values to some, and some leave.

    narrowed: rows of the entering tokens that are computed, None = all. repeated: rows of those that leave, None = all.
    owners: (B,) the entering request of every leaving one, None = itself."""

    entering: TokenSet
    computed: TokenSet
    leaving: TokenSet
    narrowed: Tensor | None
    repeated: Tensor | None
    owners: Tensor | None


@dataclass(frozen=True)
class Layout:
    """The packed geometry of a batch of B requests with T visual and L text tokens.

    entering: the tokens that enter, without those requests that repeat the one before them with other texts (guidance):
    up to the first text both are the same, and are computed once. tokens: all T of them. targets: the tokens of the
    targets, all that the last block computes. repeated: (T,) the row in `entering` of every token, None = itself.
    owners: (B,) the request in `entering` of every request, None = itself. indicator: (T_entering,) and text_indicator:
    (L,) rows of the indicator table. target_index: (T_target,) rows of `tokens`. target_sizes: per request (rows, cols)
    in tokens. spoken: (W,) rows of the texts that are words of a target's text, and speakers: (W,) whose."""

    entering: TokenSet
    tokens: TokenSet
    targets: TokenSet
    repeated: Tensor | None
    owners: Tensor | None
    indicator: Tensor
    text_indicator: Tensor
    target_index: Tensor
    target_sizes: tuple[tuple[int, int], ...]
    spoken: Tensor
    speakers: Tensor
    rounds_to_float16: bool = False

    @property
    def num_tokens(self) -> int:
        """T: visual tokens of all requests."""
        return len(self.tokens.request_index)

    def stages(self, depth: int) -> Iterator[Stage]:
        """What each of `depth` blocks computes: the first one repeated requests once, the last one the targets only."""
        for number in range(depth):
            first, last = number == 0, number == depth - 1
            repeating = first and self.repeated is not None
            entering = self.entering if first else self.tokens
            leaving = self.targets if last else self.tokens
            repeated = self.repeated if repeating else None
            if last and repeated is not None:
                repeated = repeated.index_select(0, self.target_index)
            narrowed = self.target_index if last and not repeating else None
            computed = entering if narrowed is None else self.targets
            yield Stage(entering, computed, leaving, narrowed, repeated, self.owners if first else None)

    def to(self, device: torch.device) -> Layout:
        """The same layout with its indices on another device."""
        return moved(self, device)

    def in_float16(self) -> Layout:
        """The same layout, with attention of float32 models rounded to float16, as the original does."""
        sets = {name: getattr(self, name).in_float16() for name in ("entering", "tokens", "targets")}
        return replace(self, **sets, rounds_to_float16=True)


@dataclass
class _Segments:
    """Lengths and tables of a token set while it is laid out: one entry per frame, or per request."""

    positions: list[Tensor] = field(default_factory=list)
    frame_lengths: list[int] = field(default_factory=list)
    texts: list[Tensor] = field(default_factory=list)  # of each frame: the rows of its text
    words: list[Tensor] = field(default_factory=list)  # the same without rows of tables
    query_lengths: list[int] = field(default_factory=list)  # of each request
    key_lengths: list[int] = field(default_factory=list)

    def add(self, positions: list[Tensor], texts: list[Tensor], words: list[Tensor], num_keys: int) -> None:
        """One request: its frames' positions and texts, and how many tokens it has in all."""
        self.positions += positions
        self.frame_lengths += [len(p) for p in positions]
        self.texts += texts
        self.words += words
        self.query_lengths.append(sum(len(p) for p in positions))
        self.key_lengths.append(num_keys)

    def token_set(self, head_dim: int, rotary: Rotary, before: Sequence[int] = ()) -> TokenSet:
        """before: per request, keys of earlier frames that it also sees; they follow all requests' own."""
        lengths, positions = self.query_lengths, torch.cat(self.positions)
        plan = plan_attention(
            lengths, [own + n for own, n in zip(self.key_lengths, before or [0] * len(lengths), strict=True)]
        )
        if any(before):
            own = torch.arange(sum(self.key_lengths)).split(self.key_lengths)
            earlier = (torch.arange(sum(before)) + sum(self.key_lengths)).split(list(before))
            rows = torch.cat([part for pair in zip(own, earlier, strict=True) for part in pair])
            plan = replace(plan, key_rows=rows)
        text = _plan_texts(self.frame_lengths, self.texts)
        has_rows = any(len(w) < len(t) for w, t in zip(self.words, self.texts, strict=True))
        return TokenSet(
            num_requests=len(lengths),
            request_index=torch.repeat_interleave(torch.tensor(lengths)),
            rotary=rotary_table(positions, head_dim, rotary),
            self_plan=plan,
            text=text,
            uniform_length=lengths[0] if len(set(lengths)) == 1 else 0,
            positions=positions,
            words=_plan_texts(self.frame_lengths, self.words) if has_rows else text,
            place_rotary=rotary_table(F.pad(positions[:, 1:], (1, 0)), head_dim, rotary),
        )


def _plan_texts(frame_lengths: Sequence[int], rows: Sequence[Tensor]) -> TextPlan:
    """Plan the reading of the texts' rows `rows[i]` by the tokens of frame i."""
    starts = torch.tensor([0, *frame_lengths]).cumsum(0).tolist()
    tokens = [torch.arange(start, start + length) for start, length in zip(starts, frame_lengths, strict=False)]
    long = [n for n, own in enumerate(rows) if len(own) > 1]
    one = [n for n, own in enumerate(rows) if len(own) == 1]
    nothing = torch.zeros(0, dtype=torch.long)
    return TextPlan(
        long_index=torch.cat([nothing, *(rows[n] for n in long)]),
        one_index=torch.cat([nothing, *(rows[n] for n in one)]),
        readers=torch.cat([nothing, *(tokens[n] for n in long)]) if one else None,
        followers=torch.cat([nothing, *(tokens[n] for n in one)]),
        follows=torch.repeat_interleave(torch.tensor([frame_lengths[n] for n in one], dtype=torch.long)),
        plan=plan_attention([frame_lengths[n] for n in long], [len(rows[n]) for n in long], TEXT_PADDING)
        if long
        else None,
    )


def make_layout(
    requests: Sequence[RequestFrames],
    patch_size: int,
    head_dim: int,
    repeats: Sequence[bool] = (),
    rotary: Rotary = PUBLISHED_ROTARY,
    has_rows: bool = False,
    before: Sequence[int] = (),
) -> Layout:
    """Lay a batch of requests out as packed sequences, on the CPU.

    rotary: the model's. has_rows: texts are a `LexiconEncoder`'s states, some of them rows of its tables.
    before: per request, tokens of image frames that were computed before it and that it sees; empty = none.
    repeats: per request, True if it shows the same frames as the one before it at the same timestep, with other texts
    (a second guidance branch); empty = none does. Raises ShapeError if a side is no multiple of the patch, or if a
    repeat is of other sizes."""
    repeats = tuple(repeats) or (False,) * len(requests)
    entering, everything, only_targets = _Segments(), _Segments(), _Segments()
    indicator, text_indicator, targets, sizes, repeated, owners, spoken = [], [], [], [], [], [], []
    start = text_start = entering_start = 0
    previous: list[tuple[int, ...]] = []
    for request, repeat in zip(requests, repeats, strict=True):
        frames = [tuple(request.size), *(tuple(image.shape[-2:]) for image in request.images)]
        if repeat and frames != previous:
            raise ShapeError(f"a repeat has frames of {frames} latent cells, what it repeats of {previous}")
        previous = frames
        positions, texts, words = [], [], []
        for number, (h, w) in enumerate(frames):
            if h % patch_size or w % patch_size:
                raise ShapeError(f"a frame of {h}x{w} latent cells cannot be cut into patches of {patch_size}")
            rows, cols = h // patch_size, w // patch_size
            row = request.indicators[number]
            place = torch.cartesian_prod(
                torch.tensor([row + 1 if number else request.frame]), torch.arange(rows), torch.arange(cols)
            )
            positions.append(place if number or request.kept is None else place[request.kept])
            if not repeat:
                indicator.append(torch.full((len(positions[-1]),), row))
            text = request.texts[number]
            text_indicator.append(torch.full((len(text),), row))
            texts.append(torch.arange(text_start, text_start + len(text)))
            words.append(texts[-1][(text[:, -ROW_CHANNELS] < 0.5).cpu()] if has_rows else texts[-1])
            text_start += len(text)
        length = sum(len(p) for p in positions)
        everything.add(positions, texts, words, length)
        only_targets.add(positions[:1], texts[:1], words[:1], length)
        spoken.append(words[0])
        if not repeat:
            entering.add(positions, texts, words, length)
            entering_start += length
        owners.append(len(entering.query_lengths) - 1)
        repeated.append(torch.arange(entering_start - length, entering_start))
        sizes.append((frames[0][0] // patch_size, frames[0][1] // patch_size))
        targets.append(torch.arange(start, start + len(positions[0])))
        start += length
    tokens = everything.token_set(head_dim, rotary, before)
    return Layout(
        entering=entering.token_set(head_dim, rotary) if any(repeats) else tokens,
        tokens=tokens,
        targets=only_targets.token_set(head_dim, rotary, before),
        repeated=torch.cat(repeated) if any(repeats) else None,
        owners=torch.tensor(owners) if any(repeats) else None,
        indicator=torch.cat(indicator),
        text_indicator=torch.cat(text_indicator),
        target_index=torch.cat(targets),
        target_sizes=tuple(sizes),
        spoken=torch.cat(spoken),
        speakers=torch.repeat_interleave(torch.tensor([len(own) for own in spoken])),
    )


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """(C, h, w) → (h/p · w/p, C · p · p): row-major tokens, features ordered as in a convolution (C, row, col)."""
    c, h, w = latents.shape
    p = patch_size
    return latents.reshape(c, h // p, p, w // p, p).permute(1, 3, 0, 2, 4).reshape(h // p * (w // p), c * p * p)


def unpatchify(tokens: Tensor, size: tuple[int, int], patch_size: int) -> Tensor:
    """(rows · cols, p · p · C) with features in the order (row, col, C) → (C, rows · p, cols · p)."""
    rows, cols = size
    p = patch_size
    cells = tokens.reshape(rows, cols, p, p, -1)
    return cells.permute(4, 0, 2, 1, 3).reshape(cells.shape[-1], rows * p, cols * p)


@dataclass(frozen=True)
class ConditionPatches:
    """The timestep-independent patches of one request.

    target: what follows the target's latents on the channel axis, (T_0, F_rest). images: all image frames' patches,
    (T - T_0, F). kept: of the request."""

    target: Tensor
    images: Tensor
    kept: Tensor | None = None


def condition_patches(request: RequestFrames, patch_size: int, source_channels: int) -> ConditionPatches:
    """Cut a request's masks, source and images into patches.

    source_channels: latent channels that the model expects of the source, 0 if it takes none."""
    like = request.texts[0]

    def planes(latents: Tensor | None, mask: Tensor | None, source: Tensor | None, h: int, w: int) -> Tensor:
        parts = [] if latents is None else [latents]
        parts.append(like.new_ones(1, h, w) if mask is None else mask.to(like))
        if source_channels:
            parts.append(like.new_zeros(source_channels, h, w) if source is None else source)
        return patchify(torch.cat(parts), patch_size)

    target = planes(None, request.target_mask, request.source, *request.size)
    frames = [planes(i, m, None, *i.shape[-2:]) for i, m in zip(request.images, request.image_masks, strict=True)]
    if request.kept is not None:
        target = target[request.kept]
    return ConditionPatches(target, torch.cat(frames) if frames else target.new_zeros(0, 0), request.kept)


def pack_latents(latents: Sequence[Tensor], conditions: Sequence[ConditionPatches], patch_size: int) -> Tensor:
    """Noisy latents (C, h, w) and condition patches of every request → (T, in_channels · p · p), as laid out."""
    packed = []
    for noisy, condition in zip(latents, conditions, strict=True):
        cells = patchify(noisy, patch_size).to(condition.target)
        packed.append(torch.cat([cells if condition.kept is None else cells[condition.kept], condition.target], dim=1))
        if len(condition.images):
            packed.append(condition.images)
    return torch.cat(packed)


def unpack_latents(tokens: Tensor, layout: Layout, patch_size: int, channels: int) -> list[Tensor]:
    """Predicted tokens of all targets, (T_target, p · p · C_out) → one (channels, h, w) per request.

    Channels beyond `channels` are dropped."""
    lengths = [rows * cols for rows, cols in layout.target_sizes]
    pieces = tokens.split(lengths)
    return [unpatchify(t, s, patch_size)[:channels] for t, s in zip(pieces, layout.target_sizes, strict=True)]
