"""A run of ACE: from a recipe to a pipeline folder or an adapter, by the loop.

Not here: the loop, one step's losses (`denoiser.py`), what it starts from (`start.py`), ACE++ (`plus.py`).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset

from ace.conditions.vocabulary import Vocabulary
from ace.data.world.vocabulary import vocabulary_of
from ace.inference.inputs import Geometry
from ace.inference.latents import scale_factor
from ace.inference.pipeline import ACEPipeline
from ace.model.cost import step_cost, text_cost
from ace.training.adapters import add_lora, save_lora
from ace.training.batches import Batch, Samples, make_batch
from ace.training.checkpoint import FOLDER as CHECKPOINTS
from ace.training.config import DataSource, ModelRecipe, TrainingStage
from ace.training.denoiser import Denoiser
from ace.training.loop import Task, measure_steps, train
from ace.training.places import teach_places
from ace.training.previews import draw_previews
from ace.training.report import write_report
from ace.training.sources import Mixture, Records, WorldRecords, open_records
from ace.training.start import start_pipeline
from ace.training.stream import Item
from ace.weights.sources import find_model

WORLD = (DataSource("world", "world"),)
_SETTINGS = (
    "budget",
    "enlarge",
    "mask_by_area",
    "max_text_tokens",
    "spell_quoted",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
)


def train_model(
    recipe: ModelRecipe, folder: Path, quiet: bool = False, on_warning: Callable[[str], None] = lambda line: None
) -> ACEPipeline:
    """Run the recipe; writes the finished pipeline to `folder/model` in float16 (an adapter to `folder/adapter` if the
    recipe has a lora) and a report."""
    torch.manual_seed(recipe.seed)
    pipeline, recipe = start_pipeline(recipe)
    run = ModelRun(pipeline, recipe, folder)
    if recipe.place_lessons and not (folder / CHECKPOINTS).exists():  # a run that goes on has had them
        level, lr = recipe.stages[-1].level, recipe.stages[0].lr
        teach_places(pipeline.tokenizer, pipeline.text_encoder, level, recipe.place_lessons, lr)
    train(run.task(), recipe, folder, quiet, on_warning)
    if not PartialState().is_main_process:
        return run.pipeline
    done = finished(run.pipeline, recipe)
    if recipe.lora:
        save_lora(run.pipeline.transformer, recipe.lora, folder / "adapter")
    else:
        done.to(torch.float16).save_pretrained(folder / "model")  # half the size; computed in float32 once loaded
        done.to(torch.float32)
        if (vocabulary := run.vocabulary()) is not None:
            vocabulary.save(folder / "model")
    write_report(folder, recipe)
    return done


def measure_model(recipe: ModelRecipe) -> tuple[float, ...]:
    """Seconds of one step of each stage on this machine, with the recipe's own weights and data. Raises what a run
    would raise at its start."""
    pipeline, recipe = start_pipeline(recipe)
    with tempfile.TemporaryDirectory() as folder:
        return measure_steps(ModelRun(pipeline, recipe, Path(folder)).task(), recipe, Path(folder))


@dataclass
class ModelRun:
    """What the loop asks for. pipeline: of the parts in training. opened: sources by name and what they depend on."""

    pipeline: ACEPipeline
    recipe: ModelRecipe
    folder: Path
    opened: dict[tuple[str, str], Records] = field(default_factory=dict)

    def task(self) -> Task:
        for stage in self.recipe.stages:  # data that is not there is found now, not after the first stage
            self.mixture(stage)
        return Task(
            self.module(),
            self.dataset,
            self.collate,
            lambda model, batch: model(batch),
            self.operations,
            {
                "text_encoder.table": self.recipe.memory_lr_scale,
                "text_encoder.halves": self.recipe.memory_lr_scale,
                "text_encoder.names": self.recipe.memory_lr_scale,
                "text_encoder.": self.recipe.text_lr_scale,
            },
            self.preview,
            self.rebuild,
        )

    def module(self) -> Denoiser:
        """What is trained, with its adapter."""
        pipeline, recipe = self.pipeline, self.recipe
        pipeline.register_to_config(budget=self.geometry(recipe.stages[-1]).budget)
        if recipe.lora:
            add_lora(pipeline.transformer, recipe.lora)
        if recipe.gradient_checkpointing:
            pipeline.transformer.enable_gradient_checkpointing()
        return Denoiser(pipeline.transformer, pipeline.text_encoder, pipeline.tokenizer, pipeline.vae, recipe)

    def rebuild(self) -> nn.Module:
        """The same anew, where the first one was sharded."""
        self.pipeline, _ = start_pipeline(self.recipe)
        return self.module()

    def geometry(self, stage: TrainingStage) -> Geometry:
        factor = scale_factor(self.pipeline.vae)
        cell_px = factor * self.pipeline.transformer.sizes.patch_size
        budget = stage.sequence_length or (self.recipe.size_px // cell_px) ** 2
        return Geometry(budget, cell_px, factor, self.recipe.enlarge, self.recipe.mask_by_area)

    def mixture(self, stage: TrainingStage) -> Mixture:
        sources = self.recipe.data or WORLD
        return Mixture(sources, [self.records(source, stage) for source in sources], stage, self.recipe.seed)

    def records(self, source: DataSource, stage: TrainingStage) -> Records:
        key = source.name, f"{stage.tasks} {stage.pack} {stage.level}" if source.kind == "world" else ""
        if key not in self.opened:
            self.opened[key] = open_records(source, self.recipe.size_px, stage)
        return self.opened[key]

    def vocabulary(self) -> Vocabulary | None:
        """What the model can draw from words: what the world teaches, else what it knew before."""
        worlds = [records.world for records in self.opened.values() if isinstance(records, WorldRecords)]
        if worlds:
            return vocabulary_of(worlds[-1].library)
        return find_model(self.recipe.init).vocabulary if self.recipe.init else None

    def dataset(self, stage: TrainingStage) -> Dataset:
        return Samples(self.mixture(stage), self.geometry(stage), self.recipe.text_dropout, stage.max_images)

    def collate(self, items: tuple[Item, ...]) -> Batch:
        return make_batch(items, self.pipeline.tokenizer, self.recipe.max_text_tokens, self.recipe.spell_quoted)

    def operations(self, batch: Batch) -> int:
        sizes = self.pipeline.transformer.sizes
        cell = self.geometry(self.recipe.stages[0]).cell_px ** 2
        total = 0
        for frames, target, texts in zip(batch.frames, batch.targets, batch.texts, strict=True):
            lengths = [batch.pictures[n].shape[1] * batch.pictures[n].shape[2] // cell for n in (target, *frames)]
            words = [batch.tokens.lengths[n] for n in texts]
            total += step_cost(sizes, lengths, words).total + text_cost(sizes, words)
        return total

    def preview(self, step: int) -> Path:
        path = self.folder / "previews" / f"{step:08d}.png"
        return draw_previews(finished(self.pipeline, self.recipe), self.mixture(self.recipe.stages[-1]), path)


def finished(pipeline: ACEPipeline, recipe: ModelRecipe) -> ACEPipeline:
    """The pipeline as it would be saved and loaded again: weights rounded to float16, computed in float32.

    With a lora the base model keeps its precision: only the adapter is saved."""

    def rounded(module: Any) -> Any:
        own = copy.deepcopy(module).eval().requires_grad_(False)
        return own if recipe.lora else own.half().float()

    made = ACEPipeline(
        transformer=rounded(pipeline.transformer),
        vae=rounded(pipeline.vae),
        text_encoder=rounded(pipeline.text_encoder),
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler,
        **{k: v for k, v in pipeline.config.items() if k in _SETTINGS},
    )
    made.set_progress_bar_config(disable=True)
    return made
