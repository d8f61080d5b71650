"""`EditSample` → items → batches: any mixture of tasks, image counts and sizes, packed without padding.

`Samples` runs in the data workers: it makes a sample and prepares it as inference does. What is random
in it is drawn by a generator seeded with its number, so that a batch is the same after a restart. `make_batch` puts
prepared samples together.

Not here: the order of samples (`sources.py`, `stream.py`), encoders (`denoiser.py`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from struct import error as StructError

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ace.conditions.images import prepare_image
from ace.data.sample import EditSample
from ace.errors import AceError
from ace.inference.inputs import Geometry, Inputs, prepare_inputs
from ace.model.text import TokenBatch, tokenize
from ace.training.sources import Mixture
from ace.training.stream import Item, Skipped

# what broken files, rows and pictures end in; anything else is a mistake of ours and stops the run
BROKEN = (AceError, OSError, ValueError, LookupError, TypeError, ArithmeticError, SyntaxError, EOFError, StructError)


@dataclass(frozen=True)
class Prepared:
    """One sample as arrays.

    frames, target: pictures (3, H, W) in [-1, 1]. texts: as the model reads them, the instruction perhaps dropped."""

    inputs: Inputs
    frames: tuple[Tensor, ...]
    target: Tensor
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    numbers: of the samples, for their noise. pictures: all distinct pictures (3, H, W); frames: per sample, the numbers
    of its frames in `pictures`; targets: per sample, that of its target. tokens: all distinct texts; texts: per sample,
    the numbers of its texts in `tokens`; words: the distinct texts themselves."""

    numbers: tuple[int, ...]
    inputs: tuple[Inputs, ...]
    pictures: tuple[Tensor, ...]
    frames: tuple[tuple[int, ...], ...]
    targets: tuple[int, ...]
    tokens: TokenBatch
    texts: tuple[tuple[int, ...], ...]
    words: tuple[str, ...]


class Samples(Dataset):
    """Prepared samples by their number in the run; one that cannot be made is a `Skipped`.

    max_images: samples with more are left out. dropout: share of samples whose current instruction is emptied."""

    def __init__(self, mixture: Mixture, geometry: Geometry, dropout: float, max_images: int = 9) -> None:
        self.mixture = mixture
        self.geometry = geometry
        self.dropout = dropout
        self.max_images = max_images

    def __getitem__(self, number: int) -> Item | Skipped:
        try:
            name, sample = self.mixture[number]
            if (count := len(sample.request.frames())) > self.max_images:
                return Skipped(number, name, f"{count} images, the stage takes {self.max_images}")
            prepared = prepare_sample(sample, self.geometry, self.drops(number))
        except BROKEN as error:
            reason = " ".join(str(error).split())[:300]
            return Skipped(number, self.mixture.name(number), f"{type(error).__name__}: {reason}")
        return Item(number, f"{name} {sample.task}", sample.task, count_tokens(prepared, self.geometry), prepared)

    def drops(self, number: int) -> bool:
        """Whether a sample's instruction is dropped."""
        return random.Random(f"{number}:dropout").random() < self.dropout


def prepare_sample(sample: EditSample, geometry: Geometry, dropped: bool = False) -> Prepared:
    """Arrays of a sample, as inference makes them, and its target at the same size."""
    inputs = prepare_inputs(sample.request, geometry)
    return Prepared(
        inputs,
        tuple(torch.from_numpy(frame) for frame in inputs.frames),
        torch.from_numpy(prepare_image(sample.target, inputs.size)),
        inputs.null_texts if dropped else inputs.texts,
    )


def count_tokens(prepared: Prepared, geometry: Geometry) -> int:
    """Visual tokens of a sample: its target's and all its frames'."""
    return sum(p.shape[-2] * p.shape[-1] for p in (prepared.target, *prepared.frames)) // geometry.cell_px**2


def make_batch(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, max_length: int, spell: bool) -> Batch:
    """Put prepared samples together; equal texts are tokenised once."""
    samples: list[Prepared] = [item.content for item in items]
    pictures: list[Tensor] = []
    frames, targets = [], []
    for sample in samples:
        frames.append(tuple(range(len(pictures), len(pictures) + len(sample.frames))))
        targets.append(len(pictures) + len(sample.frames))
        pictures += [*sample.frames, sample.target]
    distinct = tuple(dict.fromkeys(text for sample in samples for text in sample.texts))
    number_of = {text: number for number, text in enumerate(distinct)}
    return Batch(
        tuple(item.number for item in items),
        tuple(sample.inputs for sample in samples),
        tuple(pictures),
        tuple(frames),
        tuple(targets),
        tokenize(distinct, tokenizer, max_length, spell),
        tuple(tuple(number_of[text] for text in sample.texts) for sample in samples),
        distinct,
    )
