"""What a model with a memory starts from: the vocabulary of the procedural world, pretrained word pieces, and tables of
the principal components of the drawings themselves.

A row of a table then says from the first step how its cell looks; what is left to learn is where things stand, how they
lie over what is behind them, and all that is no drawing. The components are a least-squares fit to training pictures,
as a layer's first weights might be; the rows are trained on like any other weight.

Not here: the encoder (`ace/model/lexicon.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from ace.conditions.prompt import IMAGE_NAMES
from ace.data.wordings import ALIASES
from ace.data.world.levels import DEFAULT_STYLE
from ace.data.world.scene import GRID_FONT, TextObject, text_layer
from ace.data.world.sprites import HELD_OUT_STYLE, STYLE_NAMES, STYLES, SpriteLibrary
from ace.model.lexicon import CELLS, HALVES, LETTERS, SIDE, Lexicon, LexiconConfig, LexiconEncoder, LexiconTokenizer

CELL_PX = 16
LETTERS_COUNT = 30  # as often as a cell of a drawing, so that the few letters are coded well
KEPT_SPREAD = 0.5  # power of the spread that components keep: 1 = as they are, 0 = all alike


def start_lexicon(
    folder: Path, width: int, heads: int, with_tables: bool, with_codes: bool = False
) -> tuple[LexiconTokenizer, LexiconEncoder, Tensor | None]:
    """A fresh tokenizer and encoder, and with codes the decoder of these, (4 x 16 x 16, width), for `Drawing`.

    folder: of a BERT encoder, whose word pieces and their embeddings are taken. with_tables: tables start as the
    drawings' components, else at random. with_codes: the encoder gives codes of the drawings themselves."""
    library = SpriteLibrary()
    concepts = [concept for concept in library.concepts if concept.core]
    styles = [DEFAULT_STYLE, *(s for s in STYLES if s not in (DEFAULT_STYLE, HELD_OUT_STYLE))]
    lexicon = Lexicon(
        {concept.name: ALIASES.get(concept.name, ()) for concept in concepts}, {s: STYLE_NAMES[s] for s in styles}
    )
    pieces = AutoTokenizer.from_pretrained(folder)
    pieces.add_special_tokens({"additional_special_tokens": list(IMAGE_NAMES)})
    tokenizer = LexiconTokenizer(Tokenizer.from_str(pieces.backend_tokenizer.to_str()), lexicon)
    config = LexiconConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_words=tokenizer.layout.num_words,
        num_names=len(concepts),
        num_styles=len(styles),
        gives_codes=with_codes,
    )
    encoder = LexiconEncoder(config)
    pretrained = AutoModel.from_pretrained(folder, dtype=torch.float32).embeddings.word_embeddings.weight.detach()
    decoder = None
    with torch.no_grad():
        encoder.pieces.weight[: len(pretrained)] = components(pretrained, width)[: config.num_words]
        if with_tables or with_codes:
            cells = drawing_cells(library, [c.slug for c in concepts], styles)
            letters = letter_cells(library)
        if with_tables:
            encoder.table.weight.copy_(components(cells, width))
            encoder.halves.weight.copy_(components(letters, width))
        if with_codes:
            codes, half_codes, decoder = coded(cells, letters, width)
            encoder.codes.weight.copy_(codes)
            encoder.half_codes.weight.copy_(half_codes)
    encoder.freeze_pretrained()
    return tokenizer, encoder, decoder


def coded(cells: Tensor, letters: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cells (R, F) and letters (S, F) as codes of `width` numbers, of unit size on the whole, and the decoder (F,
    width) that gives them back: their common principal components, not centred, so that no code is no drawing."""
    weighted = torch.cat([cells, LETTERS_COUNT**0.5 * letters]).double()
    axes = torch.linalg.eigh(weighted.T @ weighted)[1].flip(1)[:, :width]
    codes = torch.cat([cells, letters]).double() @ axes
    size = codes.square().mean().sqrt()
    own, of_letters = (codes / size).float().split([len(cells), len(letters)])
    return own, of_letters, (axes * size).float()


def components(rows: Tensor, width: int) -> Tensor:
    """Rows (R, F) in their first principal components, (R, width), of unit size on the whole; small components are
    raised, but stay smaller. Components that the rows do not have are zero."""
    centred = (rows - rows.mean(0)).double()
    spread, axes = torch.linalg.eigh(centred.T @ centred)  # much smaller than the rows
    spread, axes = spread.flip(0).clamp(min=0).sqrt(), axes.flip(1)
    kept = min(width, int((spread > 1e-6 * spread[0]).sum()))
    made = centred @ axes[:, :kept] * spread[:kept] ** (KEPT_SPREAD - 1)
    made = made / made.square().mean().sqrt() * (kept / width) ** -0.5
    return torch.nn.functional.pad(made, (0, width - kept)).float()


def drawing_cells(library: SpriteLibrary, slugs: list[str], styles: list[str]) -> Tensor:
    """Cells of drawings, (slugs x styles x CELLS, 4 x 16 x 16): colour times alpha, and alpha."""
    side = SIDE * CELL_PX
    pictures = np.stack([library.sprite(slug, style, side) for slug in slugs for style in styles])
    rgba = torch.from_numpy(pictures.astype(np.float32)) / 255
    rgba = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1)
    cells = rgba.unflatten(2, (SIDE, CELL_PX)).unflatten(1, (SIDE, CELL_PX)).transpose(2, 3)
    return cells.reshape(len(pictures) * CELLS, -1)


def letter_cells(library: SpriteLibrary) -> Tensor:
    """Upper and lower halves of letters, (36 x 2, F): a white letter's colour times alpha, and alpha."""
    rows = []
    for letter in LETTERS:
        layer = text_layer(TextObject(letter, "white", 0.5, 0.5, HALVES / 8, GRID_FONT), library, 8 * CELL_PX)
        ink, alpha = layer.ink.astype(np.float32) / 255**2, layer.alpha[..., None]
        cell = torch.from_numpy(np.concatenate([ink, alpha], axis=-1))  # (32, 16, 4)
        rows += cell.unflatten(0, (HALVES, CELL_PX)).flatten(1)
    return torch.stack(rows)
