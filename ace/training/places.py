"""Teach a text encoder where things are wanted before any picture is drawn.

What a text says of places and grounds is learnt from a picture only through all that lies between; asked directly it is
learnt many times faster, since only words are computed. The world knows the answers: for every thing that has to be
drawn from its name the cell of its corner and its size, and for a picture from text alone its ground. The heads that
answer are thrown away.

Not here: the encoder (`ace/model/lexicon.py`), the pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ace.data.world import World
from ace.data.world.backgrounds import COLORS
from ace.data.world.places import CELLS
from ace.data.world.scene import SpriteObject
from ace.model.lexicon import LexiconEncoder, LexiconTokenizer

TASKS = {
    "text_guided_generation/text_to_image": 0.6,
    "element_editing/object_add": 0.25,
    "element_editing/object_replace": 0.15,
}
LEAST_PX = 16  # of the pictures, which nobody looks at
BATCH = 32
WARM_UP = 100
SIZES = 8  # sides of things in cells that are told apart


class _Answers(nn.Module):
    """Linear readings of states: where a name's thing has its corner, its size; kind and colours of the ground."""

    def __init__(self, width: int, num_grounds: int) -> None:
        super().__init__()
        self.corner = nn.Linear(width, CELLS * CELLS)
        self.size = nn.Linear(width, SIZES)
        self.ground = nn.Linear(width, num_grounds)
        self.colors = nn.Linear(width, 2 * len(COLORS))


def teach_places(tokenizer: LexiconTokenizer, encoder: LexiconEncoder, level: str, samples: int, lr: float) -> float:
    """Train the encoder's words on so many samples of the world, its tables aside; returns the share of corners that
    the last tenth of them got right."""
    world = World(LEAST_PX, "train", level=level)
    grounds: dict[str, int] = {}
    names = {slug: n for n, slug in enumerate(_slugs(world, tokenizer))}
    answers = _Answers(encoder.config.hidden_size, 64)
    trained = [p for n, p in encoder.named_parameters() if p.requires_grad and not n.startswith(("table", "halves"))]
    optimizer = torch.optim.AdamW([*trained, *answers.parameters()], lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    encoder.train()
    steps = samples // BATCH
    hits: list[float] = []
    numbers = itertools.count()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / WARM_UP) * max(0.02, min(1.0, 3 * (1 - step / steps)))
        loss, right = _loss(tokenizer, encoder, answers, world, itertools.islice(numbers, BATCH), names, grounds)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        hits += right if step >= 0.9 * steps else []
    return sum(hits) / max(1, len(hits))


def _slugs(world: World, tokenizer: LexiconTokenizer) -> list[str]:
    """The concept of every name, in the lexicon's order."""
    slug_of = {concept.name: concept.slug for concept in world.library.concepts}
    return [slug_of[name] for name in tokenizer.lexicon.names]


def _loss(
    tokenizer: LexiconTokenizer,
    encoder: LexiconEncoder,
    answers: _Answers,
    world: World,
    numbers: Iterator[int],
    names: dict[str, int],
    grounds: dict[str, int],
) -> tuple[Tensor, list[float]]:
    """Cross-entropies of a batch's questions, added up, and for every corner whether it was found."""
    texts, where, ground = [], [], []
    for number in numbers:
        rng = torch.Generator().manual_seed(number)
        task = list(TASKS)[int(torch.multinomial(torch.tensor(list(TASKS.values())), 1, generator=rng))]
        text = world.sample(number, task).request.instruction
        row = [i for i in tokenizer.ids_of(text) if i < tokenizer.layout.rows]  # rows say nothing here
        for drawn in world.drawn(number, task):
            item = drawn.scene.objects[drawn.index]
            wanted = _id(tokenizer, names, item.slug) if isinstance(item, SpriteObject) else -1
            own = [n for n, i in enumerate(row) if i == wanted]
            if len(own) == 1:
                column, line = (min(CELLS - 1, max(0, round((c - item.size / 2) * CELLS))) for c in (item.x, item.y))
                where.append((len(texts), own[0], line * CELLS + column, min(SIZES - 1, round(item.size * CELLS))))
            if task == next(iter(TASKS)):
                kind = f"{drawn.scene.background.kind} {drawn.scene.background.time_of_day}"
                number_of = grounds.setdefault(kind, len(grounds)) % 64
                colors = [list(COLORS).index(c) for c in (*drawn.scene.background.colors, None, None)[:2] if c]
                ground.append((len(texts), number_of, colors))
        texts.append(row)
    longest = max(map(len, texts))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in texts])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in texts])
    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[..., : encoder.config.hidden_size]
    loss, right = states.new_zeros(()), []
    if where:
        rows, columns, corners, sizes = (torch.tensor(values) for values in zip(*where, strict=True))
        chosen = states[rows, columns]
        guessed = answers.corner(chosen)
        loss = loss + F.cross_entropy(guessed, corners) + 0.3 * F.cross_entropy(answers.size(chosen), sizes)
        right = (guessed.argmax(1) == corners).float().tolist()
    if ground:
        rows, kinds = (torch.tensor(values) for values in zip(*((r, k) for r, k, _ in ground), strict=True))
        real = mask[rows, :, None]
        pooled = (states[rows] * real).sum(1) / real.sum(1).sqrt()
        loss = loss + F.cross_entropy(answers.ground(pooled), kinds)
        shown = [(n, place * len(COLORS) + c) for n, (_, _, cs) in enumerate(ground) for place, c in enumerate(cs)]
        if shown:
            who, what = (torch.tensor(values) for values in zip(*shown, strict=True))
            logits = answers.colors(pooled).unflatten(1, (2, -1)).log_softmax(-1).flatten(1)
            loss = loss - logits[who, what].mean()
    return loss, right


def _id(tokenizer: LexiconTokenizer, names: dict[str, int], slug: str) -> int:
    return tokenizer.layout.names + names[slug] if slug in names else -1
