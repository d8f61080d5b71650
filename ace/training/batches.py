"""`EditSample` → batches: any mixture of tasks, image counts and sizes, packed without padding.

The dice of a sample (dropped text) come from its number, so a batch is the same after a restart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ace.conditions.images import prepare_image
from ace.data.sample import EditSample
from ace.data.world import World
from ace.data.world.chance import Split
from ace.inference.inputs import Geometry, Inputs, prepare_inputs
from ace.model.text import TokenBatch, tokenize


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    pictures: all distinct pictures (3, H, W); frames: per sample, the numbers of its frames in `pictures`; targets: per
    sample, that of its target. tokens: all distinct texts; texts: per sample, the numbers of its texts in `tokens`."""

    inputs: tuple[Inputs, ...]
    pictures: tuple[Tensor, ...]
    frames: tuple[tuple[int, ...], ...]
    targets: tuple[int, ...]
    tokens: TokenBatch
    texts: tuple[tuple[int, ...], ...]
    tasks: tuple[str, ...]


class WorldSamples(Dataset):
    """Samples of the procedural world by number."""

    def __init__(
        self, size_px: int, split: Split, first: int, count: int, tasks: dict[str, float] | None = None
    ) -> None:
        self.world = World(size_px=size_px, split=split)
        self.first = first
        self.count = count
        self.tasks = tasks or {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, EditSample]:
        number = self.first + index
        task = None
        if self.tasks:
            task = random.Random(f"{number}:task").choices(list(self.tasks), list(self.tasks.values()))[0]
        return number, self.world.sample(number, task)


class Collate:
    """Turns numbered samples into a `Batch`; runs in the data workers."""

    def __init__(
        self, geometry: Geometry, tokenizer: PreTrainedTokenizerBase, max_length: int, spell: bool, dropout: float
    ) -> None:
        self.geometry = geometry
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.spell = spell
        self.dropout = dropout

    def __call__(self, samples: Sequence[tuple[int, EditSample]]) -> Batch:
        inputs, texts, pictures, frames, targets = [], [], [], [], []
        for number, sample in samples:
            prepared = prepare_inputs(sample.request, self.geometry)
            dropped = random.Random(f"{number}:dropout").random() < self.dropout
            texts.append(prepared.null_texts if dropped else prepared.texts)
            inputs.append(prepared)
            frames.append(tuple(range(len(pictures), len(pictures) + len(prepared.frames))))
            pictures += [torch.from_numpy(frame) for frame in prepared.frames]
            targets.append(len(pictures))
            pictures.append(torch.from_numpy(prepare_image(sample.target, prepared.size)))
        distinct = list(dict.fromkeys(text for sample_texts in texts for text in sample_texts))
        number_of = {text: number for number, text in enumerate(distinct)}
        return Batch(
            tuple(inputs),
            tuple(pictures),
            tuple(frames),
            tuple(targets),
            tokenize(distinct, self.tokenizer, self.max_length, self.spell),
            tuple(tuple(number_of[text] for text in sample_texts) for sample_texts in texts),
            tuple(sample.task for _, sample in samples),
        )
