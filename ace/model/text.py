"""Instructions → text states, for any Hugging Face encoder with a tokenizer (published: T5, small model: BERT).

One path for training and inference: clean, tokenise, encode each distinct text once, cut to its own length. Two
settings belong to a model: `max_length`, and `spell_quoted`, which spaces out the characters of quoted text so that the
encoder reads letters (our small model; the published ones were trained without it).

Not here: image names (`conditions/prompt.py`), the projection into the transformer.
"""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import ftfy
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ace.conditions.prompt import IMAGE_NAMES
from ace.model.devices import working_device
from ace.model.text_on_disk import TextEncoderOnDisk

PADDING = 16

TextEncoder = PreTrainedModel | TextEncoderOnDisk

_QUOTED = re.compile('(["“”])([^"“”]{1,40})(["“”])')


def clean_text(text: str) -> str:
    """Repair encoding, unescape HTML twice, fold white space (the published "whitespace" cleaning)."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", text).strip()


def spell_quoted(text: str) -> str:
    """'write "cat"' → 'write " c a t "'."""
    return _QUOTED.sub(lambda m: f"{m[1]} {' '.join(m[2].replace(' ', ''))} {m[3]}", text)


@dataclass(frozen=True)
class TokenBatch:
    """Distinct texts as padded token ids. ids, mask: (N, L) int64; lengths: valid tokens per text."""

    ids: Tensor
    mask: Tensor
    lengths: tuple[int, ...]


def tokenize(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    spell: bool,
    pad_to_multiple_of: int = 1,
) -> TokenBatch:
    """Clean and tokenise texts, cut to `max_length` tokens, padded to the longest of them (or a multiple beyond it)."""
    cleaned = [clean_text(t) for t in texts]
    if spell:
        cleaned = [spell_quoted(t) for t in cleaned]
    batch = tokenizer(cleaned, padding="longest", truncation=True, max_length=max_length, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    more = -ids.shape[1] % pad_to_multiple_of  # of any token: the mask hides them
    return TokenBatch(F.pad(ids, (0, more)), F.pad(mask, (0, more)), tuple(mask.sum(1).tolist()))


def unread_part(
    text: str, tokenizer: PreTrainedTokenizerBase, max_length: int, spell: bool = False, clean: bool = True
) -> str:
    """The end of a text that is cut off at `max_length` tokens, in whole words; "" if all of it is read.

    spell, clean: what is done to a text before it is tokenised, as in `tokenize`."""
    text = clean_text(text) if clean else text
    words = (spell_quoted(text) if spell else text).split()

    def fits(count: int) -> bool:
        ids = tokenizer(" ".join(words[:count]), verbose=False)["input_ids"]
        return len(ids) <= max_length  # type: ignore[arg-type]

    if fits(len(words)):
        return ""
    low, high = 0, len(words)  # what fits, what does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return " ".join(words[low:])


def encode(batch: TokenBatch, text_encoder: TextEncoder) -> list[Tensor]:
    """Text states of a token batch, one (L_k, C) per text, padding cut off."""
    device = text_encoder.device if isinstance(text_encoder, TextEncoderOnDisk) else working_device(text_encoder)
    states = text_encoder(input_ids=batch.ids.to(device), attention_mask=batch.mask.to(device)).last_hidden_state
    assert states is not None  # transformers' type allows it
    return [row[:length] for row, length in zip(states, batch.lengths, strict=True)]


def encode_texts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: TextEncoder,
    max_length: int,
    spell: bool,
    alone: bool = False,
) -> list[Tensor]:
    """Text states (L_k, C) of every text; repeated texts are encoded once and share their states.

    Texts are padded by their own length only, to a multiple of `PADDING` tokens, and those of equal length go together.
    alone: one text at a time, so that its states are the same to the bit in any company."""
    distinct = list(dict.fromkeys(texts))
    by_length: dict[tuple[int, int], list[str]] = {}
    lengths = tokenize(distinct, tokenizer, max_length, spell).lengths
    for number, (text, length) in enumerate(zip(distinct, lengths, strict=True)):
        by_length.setdefault((-(-length // PADDING), number if alone else -1), []).append(text)
    states: dict[str, Tensor] = {}
    with text_encoder.held() if isinstance(text_encoder, TextEncoderOnDisk) else contextlib.nullcontext():
        for group in by_length.values():
            batch = tokenize(group, tokenizer, max_length, spell, pad_to_multiple_of=PADDING)
            states.update(zip(group, encode(batch, text_encoder), strict=True))
    return [states[text] for text in texts]


def encode_indicators(tokenizer: PreTrainedTokenizerBase, text_encoder: TextEncoder, position: int = 0) -> Tensor:
    """States of the ten image names, (10, C): of the token at `position` of each (published: the first)."""
    with torch.no_grad():
        states = encode_texts(IMAGE_NAMES, tokenizer, text_encoder, 120, False)
    return torch.stack([own[position] for own in states])
