"""The small model's text encoder: layers that bind words together, and a memory of what every known thing looks like.

Facts are what a small model lacks room and time for, so they lie in a table. Every name that the tokenizer knows is one
token, followed by its rows of the table: one for each of the 4 x 4 cells of a drawing, in the style that the text names
or in all of them. A row is read where it is wanted: its state says where in the drawing the cell lies, and the
transformer's cross-attention turns keys by that place and queries by their own (`memory_blocks`), so that "where is the
thing" is learnt once for all its cells. Letters of quoted words are tokens with their index and the word's length, and
two rows each, upper and lower half. All other words are word pieces with pretrained embeddings, so that a wording never
seen in training still means something.

Notable: ids alone say everything (what, which style, which cell), so that this is a tokenizer and an encoder like any
other, loaded by diffusers and encoded by `model/text.py`.

Not here: what is known (`lexicon.json` beside the tokenizer), the cross-attention (`transformer.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BatchEncoding, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from ace.errors import ConfigError

SIDE = 4  # cells on a side of a drawing in the table
CELLS = SIDE * SIDE
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
LONGEST = 8  # letters of a quoted word that have an index
HALVES = 2  # cells of a letter: upper and lower
MAX_WORDS = 64  # tokens of a text without its rows
MAX_NAMED = 3  # things of a text whose rows are shown
_MARKS = LONGEST * (LONGEST + 1)
_QUOTED = "[\"“”'‘’]([A-Za-z0-9]{1,40})[\"“”'‘’]"


@dataclass(frozen=True)
class Lexicon:
    """What the model knows by name.

    names: name → other words for it; their order is that of the table. styles: style → how it is called."""

    names: dict[str, tuple[str, ...]]
    styles: dict[str, tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> Lexicon:
        """Raises ConfigError for a file that holds no lexicon."""
        try:
            table = json.loads(Path(path).read_text(encoding="utf-8"))
            names, styles = ({k: tuple(map(str, v)) for k, v in table[key].items()} for key in ("names", "styles"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{path} holds no lexicon ({error}): copy the whole model again") from None
        return cls(names, styles)

    def write(self, path: Path) -> None:
        """As JSON."""
        table = {"names": self.names, "styles": self.styles}
        Path(path).write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Ids:
    """How token ids are laid out, one range after the other.

    words: word pieces and image names. names: one per known name. letters: one per letter, index and length.
    rows: of the names' table, (name, style, cell). halves: of the letters' table, (letter, half)."""

    num_words: int
    num_names: int
    num_styles: int

    @property
    def names(self) -> int:
        """First id of a name."""
        return self.num_words

    @property
    def letters(self) -> int:
        """First id of a letter."""
        return self.names + self.num_names

    @property
    def rows(self) -> int:
        """First id of a row of the names' table."""
        return self.letters + len(LETTERS) * _MARKS

    @property
    def halves(self) -> int:
        """First id of a row of the letters' table."""
        return self.rows + self.num_names * self.num_styles * CELLS

    @property
    def end(self) -> int:
        """How many ids there are."""
        return self.halves + len(LETTERS) * HALVES


class LexiconTokenizer(PreTrainedTokenizerFast):
    """Word pieces, with names, letters of quoted words, and their rows as tokens of their own.

    pieces: of a BERT tokenizer, with the image names as tokens; lexicon: what is known by name."""

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, pieces: Tokenizer, lexicon: Lexicon) -> None:
        pieces.no_padding()
        pieces.no_truncation()
        super().__init__(tokenizer_object=pieces, cls_token="[CLS]", pad_token="[PAD]", unk_token="[UNK]")
        self.lexicon = lexicon
        self._first: int = pieces.token_to_id("[CLS]") or 0
        self.layout = Ids(pieces.get_vocab_size(), len(lexicon.names), len(lexicon.styles))
        known = enumerate(lexicon.names.items())
        self._names = {word.lower(): n for n, (name, others) in known for word in (name, *others)}
        words = "|".join(re.escape(word) for word in sorted(self._names, key=len, reverse=True))
        self._pattern = re.compile(
            rf"{_QUOTED}|(?<![a-z0-9])({words})(?![a-z0-9])" if words else _QUOTED, re.IGNORECASE
        )
        self._styles = [
            (n, re.compile("|".join(rf"(?<![a-z0-9]){re.escape(w)}(?![a-z0-9])" for w in called), re.IGNORECASE))
            for n, called in enumerate(lexicon.styles.values())
        ]

    @classmethod
    def from_pretrained(cls, folder: str | Path, *_: Any, **settings: Any) -> LexiconTokenizer:  # pyright: ignore[reportIncompatibleMethodOverride]
        """From a folder with both files. Raises ConfigError if one is missing or damaged."""
        folder = Path(folder, settings.get("subfolder") or "")
        try:
            pieces = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # noqa: BLE001  (the library raises nothing more special)
            raise ConfigError(f"{folder.name}/tokenizer.json cannot be read ({error}): copy the model again") from None
        return cls(pieces, Lexicon.read(folder / "lexicon.json"))

    def save_pretrained(self, save_directory: str | Path, *_: Any, **__: Any) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Both files."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend_tokenizer.save(str(folder / "tokenizer.json"))
        self.lexicon.write(folder / "lexicon.json")
        return str(folder / "tokenizer.json"), str(folder / "lexicon.json")

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, text: str | Sequence[str], max_length: int | None = None, return_tensors: str | None = None, **_: Any
    ) -> BatchEncoding:
        """Ids and mask of texts, padded to the longest, as tensors. max_length: of a text with its rows."""
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.ids_of(one)[:max_length] for one in texts]
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        found = {"input_ids": ids, "attention_mask": mask}
        return BatchEncoding(found if return_tensors else {key: value.tolist() for key, value in found.items()})

    def names_in(self, text: str) -> list[str]:
        """The known names that a text speaks of."""
        names = list(self.lexicon.names)
        return [names[self._names[m[2].lower()]] for m in self._pattern.finditer(text) if m.lastindex == 2]

    def ids_of(self, text: str) -> list[int]:
        """The ids of one text: [CLS], its words, and after every name and letter its rows."""
        styles = [n for n, pattern in self._styles if pattern.search(text)] or range(len(self._styles))
        ids = [self._first]
        words, named, position = 1, 0, 0

        def plain(part: str) -> list[int]:
            return self.backend_tokenizer.encode(part, add_special_tokens=False).ids if part.strip() else []

        for match in self._pattern.finditer(text):
            ids += (before := plain(text[position : match.start()])[: MAX_WORDS - words])
            position = match.end()
            words += len(before) + 1
            if words > MAX_WORDS - LONGEST:
                break
            if match.lastindex == 1:
                own = self._letters(match[1].upper())
                words += len(own) // 3 - 1
            else:
                own = self._name(self._names[match[2].lower()], styles if named < MAX_NAMED else ())
                named += 1
            ids += own
        else:
            ids += plain(text[position:])[: MAX_WORDS - words]
        return ids

    def _letters(self, word: str) -> list[int]:
        ids, length = [], min(len(word), LONGEST)
        for index, letter in enumerate(word[:LONGEST]):
            number = LETTERS.index(letter)
            first = self.layout.halves + number * HALVES
            ids += [self.layout.letters + number * _MARKS + index * (LONGEST + 1) + length, first, first + 1]
        return ids

    def _name(self, number: int, styles: Sequence[int]) -> list[int]:
        ids = [self.layout.names + number]
        for style in styles:
            first = self.layout.rows + (number * self.layout.num_styles + style) * CELLS
            ids += range(first, first + CELLS)
        return ids


class LexiconConfig(PretrainedConfig):
    """Sizes of a `LexiconEncoder`: width, layers and heads of what binds words, and how ids are laid out."""

    model_type = "ace_lexicon"

    def __init__(
        self,
        hidden_size: int = 256,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        num_words: int = 1,
        num_names: int = 1,
        num_styles: int = 1,
        gives_codes: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_words = num_words
        self.num_names = num_names
        self.num_styles = num_styles
        self.gives_codes = gives_codes


class LexiconEncoder(PreTrainedModel):
    """Ids of a `LexiconTokenizer` → states (N, L, D + 3): the state itself, whether it is a row of a table (0 or 1),
    and the row and column of its cell in the drawing (0 for words). With `gives_codes`, (N, L, 2 D + 3): after the
    state the code of what a row shows, for a `Drawing` to decode (0 for words)."""

    config_class = LexiconConfig
    config: LexiconConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    base_model_prefix = "lexicon"

    def __init__(self, config: LexiconConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.ids = Ids(config.num_words, config.num_names, config.num_styles)
        self.pieces = nn.Embedding(config.num_words, width)  # as pretrained: a new word means what it meant there
        self.read = nn.Linear(width, width)
        self.names = nn.Embedding(config.num_names, width)
        self.letters = nn.Embedding(len(LETTERS), width)
        self.marks = nn.Embedding(_MARKS, width)
        self.order = nn.Parameter(torch.empty(MAX_WORDS, width))
        self.table = nn.Embedding(config.num_names * config.num_styles * CELLS, width)
        self.halves = nn.Embedding(len(LETTERS) * HALVES, width)
        if config.gives_codes:
            self.codes = nn.Embedding(config.num_names * config.num_styles * CELLS, width)
            self.half_codes = nn.Embedding(len(LETTERS) * HALVES, width)
        self.cell = nn.Parameter(torch.empty(CELLS + HALVES, width))
        self.style = nn.Parameter(torch.empty(config.num_styles, width))
        self.owner = nn.Linear(width, width)
        self.layers = nn.ModuleList(
            _Layer(width, config.num_attention_heads, config.num_hidden_layers) for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    def freeze_pretrained(self) -> None:
        """Keep what is not learnt here: word pieces, and the codes of drawings, which their decoder belongs to."""
        self.pieces.requires_grad_(False)
        if self.config.gives_codes:
            self.codes.requires_grad_(False)
            self.half_codes.requires_grad_(False)

    def _init_weights(self, module: nn.Module) -> None:
        """Unit size for all that says what and where: small beside the patches it would not be heard."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, _Layer):
            nn.init.ones_(module.scale)
        elif isinstance(module, LexiconEncoder):
            nn.init.normal_(module.marks.weight, std=0.5)
            for parameter, std in ((module.order, 0.5), (module.cell, 1.0), (module.style, 1.0)):
                nn.init.normal_(parameter, std=std)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """input_ids, attention_mask: (N, L) int64. Returns `last_hidden_state` (N, L, D + 3)."""
        ids = self.ids
        is_row = input_ids >= ids.rows
        real = attention_mask.bool()
        number = ((~is_row) & real).cumsum(1) - 1  # of a word among the words; of a row: of the word it belongs to
        number = number.clamp(0, MAX_WORDS - 1)
        most = (
            int(number.max()) + 1 if self.training else MAX_WORDS
        )  # one length: a text is computed alike in any company
        packed = input_ids.new_zeros(len(input_ids), most + 1)  # the last column takes what is no word
        packed = packed.scatter(1, torch.where(is_row | ~real, most, number), input_ids)[:, :most]
        lengths = ((~is_row) & real).sum(1, keepdim=True)
        words = self._bound(packed, torch.arange(most, device=packed.device) < lengths)  # (N, W, D)
        own = words.gather(1, number[..., None].expand(-1, -1, words.shape[-1]))  # (N, L, D)
        more = own.shape[-1] if self.config.gives_codes else 0
        if not bool(is_row.any()):
            return BaseModelOutput(last_hidden_state=F.pad(own, (0, more + 3)))
        rows, code, row_place = self._rows(input_ids[is_row], number, is_row, input_ids)
        states = own.clone()
        rows = rows + self.owner(own[is_row])
        states[is_row] = F.layer_norm(rows, rows.shape[-1:])
        place = own.new_zeros(*input_ids.shape, more + 3)
        place[is_row] = torch.cat([code, row_place], dim=-1) if more else row_place
        return BaseModelOutput(last_hidden_state=torch.cat([states, place], dim=-1))

    def _bound(self, packed: Tensor, real: Tensor) -> Tensor:
        """Words that know of each other. packed: (N, W) ids; real: (N, W) bool."""
        ids = self.ids
        is_letter = (packed >= ids.letters) & (packed < ids.rows)
        letter = (packed - ids.letters).clamp(0, len(LETTERS) * _MARKS - 1)
        spelt = self.letters(letter // _MARKS) + self.marks(letter % _MARKS)
        is_name = (packed >= ids.names) & (packed < ids.letters)
        words = self.read(self.pieces(packed.clamp(max=ids.names - 1)))
        words = torch.where(
            is_name[..., None], self.names((packed - ids.names).clamp(0, self.config.num_names - 1)), words
        )
        words = torch.where(is_letter[..., None], spelt, words) + self.order[: packed.shape[1]]
        bias = torch.zeros(real.shape, device=real.device).masked_fill(~real, -1e4)[:, None, None]
        for layer in self.layers:
            words = layer(words, bias)
        return F.layer_norm(words, words.shape[-1:])

    def _rows(self, rows: Tensor, number: Tensor, is_row: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of both tables, (R, D), codes of what they show, (R, D), and their places, (R, 3). rows: (R,) ids."""
        ids = self.ids
        of_name = (rows - ids.rows).clamp(0, self.table.num_embeddings - 1)
        of_letter = (rows - ids.halves).clamp(0, self.halves.num_embeddings - 1)
        spells = rows >= ids.halves
        cell, half = of_name % CELLS, of_letter % HALVES
        names = self.table(of_name) + self.cell[cell] + self.style[of_name // CELLS % self.config.num_styles]
        found = torch.where(spells[:, None], self.halves(of_letter) + self.cell[CELLS + half], names)
        code = found
        if self.config.gives_codes:
            code = torch.where(spells[:, None], self.half_codes(of_letter), self.codes(of_name))
        before = input_ids.gather(
            1, (torch.arange(input_ids.shape[1], device=rows.device) - 1).clamp(min=0).expand_as(input_ids)
        )
        previous = torch.where(before >= ids.rows, before.roll(1, 1), before)[
            is_row
        ]  # a letter's token stands one or two before
        index = ((previous - ids.letters).clamp(0, len(LETTERS) * _MARKS - 1) % _MARKS) // (LONGEST + 1)
        line = torch.where(spells, half, cell // SIDE)
        column = torch.where(spells, index, cell % SIDE)
        return found, code, torch.stack([torch.ones_like(line), line, column], dim=1).to(found)


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class _Layer(nn.Module):
    """Attention among the words of a text, queries and keys of unit length, and an MLP."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = _FeedForward(width, 4 * width, width)
        self.scale = nn.Parameter(torch.ones(width // heads))
        self.residual = depth**-0.5

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x: (N, W, D); bias: (N, 1, 1, W), 0 or very negative."""
        q, k, v = self.qkv(F.layer_norm(x, x.shape[-1:])).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (F.normalize(q, dim=-1) * self.scale) @ F.normalize(k, dim=-1).transpose(-1, -2)
        mixed = (scores * math.sqrt(q.shape[-1]) + bias).softmax(dim=-1) @ v
        x = x + self.residual * self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.residual * self.mlp(F.layer_norm(x, x.shape[-1:]))
