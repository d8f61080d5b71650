"""Train ACE++ (arXiv 2501.02487): FLUX.1-Fill on canvases, by LoRA on the published layers or as a whole (FFT, 448
channels), with flow matching.

Canvases go through the model one by one: they are large, all of different sizes, and FLUX has no packed attention. The
loss is over the whole canvas, its reference too, as published. Autoencoder, T5 and CLIP are frozen.

Not here: the canvas (`canvas.py`), layers and names of adapters (`adapters_plus.py`), previews
(`previews_plus.py`), the loop, inference (`ace.plus.pipeline`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from ace.data.sample import EditSample
from ace.diffusion.flow import flow_losses, flow_noise, published_levels, sample_sigma
from ace.errors import ConfigError
from ace.inference.latents import encode_pictures
from ace.plus.inputs import condition_tokens, pack, position_ids
from ace.plus.layouts import FluxSizes, widen
from ace.plus.load import load_plus
from ace.plus.pipeline import ACEPlusPipeline
from ace.plus.sources import find_plus
from ace.training.adapters import add_lora
from ace.training.adapters_plus import PLUS_TARGETS, plain_sizes, read_plus_lora, save_plus_lora
from ace.training.batches import BROKEN
from ace.training.cache import FeatureCache, picture_content
from ace.training.canvas import TrainingCanvas, training_canvas
from ace.training.config import PlusRecipe, TrainingStage
from ace.training.loop import Task, train
from ace.training.previews_plus import canvas_parts, draw_plus_previews
from ace.training.report import write_report
from ace.training.sources import Mixture, Records, open_records
from ace.training.stream import Item, Skipped


@dataclass(frozen=True)
class CanvasItem:
    """A canvas with its words. number: of the sample, for its noise."""

    number: int
    canvas: TrainingCanvas
    text: str


class Canvases(Dataset):
    """Canvases by their number in the run; a sample that cannot be laid out is a `Skipped`."""

    def __init__(self, mixture: Mixture, recipe: PlusRecipe) -> None:
        self.mixture = mixture
        self.recipe = recipe

    def __getitem__(self, number: int) -> Item | Skipped:
        try:
            name, sample = self.mixture[number]
            canvas = lay_out(sample, self.recipe, random.Random(f"{number}:reference"))
        except BROKEN as error:
            reason = " ".join(str(error).split())[:300]
            return Skipped(number, self.mixture.name(number), f"{type(error).__name__}: {reason}")
        content = CanvasItem(number, canvas, sample.request.current.instruction)
        return Item(number, f"{name} {sample.task}", sample.task, canvas.num_tokens, content)


def lay_out(sample: EditSample, recipe: PlusRecipe, rng: random.Random) -> TrainingCanvas:
    """The canvas of a sample; the reference's height is drawn."""
    image, mask, reference = canvas_parts(sample)
    height = sample.target.height
    return training_canvas(
        np.array(sample.target),
        None if image is None else np.array(image),
        None if mask is None else np.array(mask.convert("L")),
        None if reference is None else np.array(reference),
        reference_height=rng.randint(height // 3, height) if reference is not None else 0,
        repainting_scale=recipe.repainting_scale,
        max_sequence=recipe.max_sequence,
        modify_mode=recipe.modify_mode,
    )


class PlusDenoiser(nn.Module):
    """The FLUX transformer; the pipeline's other parts are frozen and kept out of the parameters."""

    def __init__(self, pipeline: ACEPlusPipeline, recipe: PlusRecipe) -> None:
        super().__init__()
        self.transformer = pipeline.transformer
        self._pipeline = (pipeline,)
        self.recipe = recipe
        self.levels = published_levels(torch.Generator().manual_seed(recipe.seed))
        self.latents = FeatureCache(Path(recipe.cache), pipeline.vae, "latents") if recipe.cache else None
        words = f"{recipe.max_text_tokens}"
        self.texts = FeatureCache(Path(recipe.cache), pipeline.text_encoder_2, words) if recipe.cache else None

    def forward(self, batch: tuple[CanvasItem, ...]) -> Tensor:
        """Loss of every canvas, (B,)."""
        return torch.stack([self._loss(item) for item in batch])

    def _loss(self, item: CanvasItem) -> Tensor:
        recipe, device = self.recipe, self.transformer.device
        canvas = item.canvas
        pictures = [canvas.target, canvas.source, *([canvas.change] if recipe.in_channels == 448 else [])]
        clean, *given = (self._encode(picture, device) for picture in pictures)
        generator = torch.Generator().manual_seed((recipe.seed << 32) + item.number)
        if recipe.presampled_timesteps:
            sigma = float(self.levels[1 + int(torch.randint(998, (), generator=generator))])
        else:
            sigma = sample_sigma(generator, logit_normal=True)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        level = torch.tensor([sigma], device=device)
        noisy = flow_noise(clean[None], noise[None], level)[0]
        condition = condition_tokens(given[0], canvas.mask.to(device), given[1] if len(given) == 2 else None)
        text, pooled = self._words(item.text, device)
        _, height, width = clean.shape
        dtype = next(self.transformer.parameters()).dtype
        velocity = self.transformer(
            torch.cat([pack(noisy), condition], dim=1)[None].to(dtype),
            encoder_hidden_states=text[None].to(dtype),
            pooled_projections=pooled[None].to(dtype),
            timestep=level,
            guidance=torch.tensor([recipe.guidance], device=device) if self._guided else None,
            img_ids=position_ids(height, width, device),
            txt_ids=torch.zeros(len(text), 3, device=device),
            return_dict=False,
        )[0]  # (1, T, 64)
        return flow_losses(velocity, pack(clean)[None], pack(noise)[None])[0]

    @property
    def _guided(self) -> bool:
        return self._pipeline[0].transformer.config.guidance_embeds

    @torch.no_grad()
    def _encode(self, picture: Tensor, device: torch.device) -> Tensor:
        content = picture_content(picture) if self.latents else b""
        found = self.latents.get(content) if self.latents else None
        if found is None:
            found = encode_pictures(self._pipeline[0].vae.to(device), [picture])[0]
            if self.latents:
                self.latents.put(content, found)
        return found.to(device)

    @torch.no_grad()
    def _words(self, text: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """T5's features and CLIP's pooled ones; one entry of the cache holds both."""
        found = self.texts.get(text.encode()) if self.texts else None
        pipeline = self._pipeline[0]
        width = pipeline.text_encoder_2.config.d_model
        if found is None:
            for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
                encoder.to(device)
            features, pooled = pipeline.encode_instruction(text)
            found = torch.cat([features.flatten(), pooled.to(features.dtype)])
            if self.texts:
                self.texts.put(text.encode(), found)
        pooled_size = pipeline.text_encoder.config.hidden_size
        return found[:-pooled_size].view(-1, width).to(device), found[-pooled_size:].to(device)


def widen_model(transformer: FluxTransformer2DModel, channels: int) -> None:
    """Give a 384-channel model the change channels of FFT, their weights zero; one that has them stays as it is.

    Raises ConfigError for a model that cannot have that many channels."""
    own = transformer.config.in_channels
    if own == channels:
        return
    if own > channels:
        raise ConfigError(f"the model has {own} input channels, the recipe says {channels}: set in_channels = {own}")
    old = transformer.x_embedder
    new = nn.Linear(channels, old.out_features)
    new.weight = nn.Parameter(widen(old.weight.detach(), channels).contiguous())
    new.bias = nn.Parameter(old.bias.detach().clone())
    transformer.x_embedder = new
    transformer.register_to_config(in_channels=channels)


def train_plus(
    recipe: PlusRecipe, folder: Path, quiet: bool = False, on_warning: Callable[[str], None] = lambda line: None
) -> ACEPlusPipeline:
    """Run the recipe; writes an adapter to `folder/adapter`, or the whole pipeline to `folder/model`, and a report."""
    pipeline = start_plus(recipe)
    run = _PlusRun(pipeline, recipe, folder, plain_sizes(pipeline.transformer))
    train(run.task(), recipe, folder, quiet, on_warning)
    if PartialState().is_main_process:
        _save(run.pipeline, run.sizes, recipe, folder)
        write_report(folder, recipe)
    return run.pipeline


def start_plus(recipe: PlusRecipe) -> ACEPlusPipeline:
    """What is trained, on what does not change: the model of the recipe, widened or with an adapter."""
    torch.manual_seed(recipe.seed)
    dtype = "bfloat16" if torch.cuda.is_available() and recipe.lora else "float32"
    pipeline = load_plus(find_plus(recipe.init), device="cpu", dtype=dtype)
    pipeline.vae.disable_tiling()  # a tile would not see what is beside it
    pipeline.register_to_config(
        max_text_tokens=recipe.max_text_tokens,
        max_seq_length=recipe.max_sequence,
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
    )
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        part.requires_grad_(False)
    widen_model(pipeline.transformer, recipe.in_channels)
    pipeline.transformer.requires_grad_(True)
    if recipe.lora:
        add_lora(pipeline.transformer, recipe.lora, PLUS_TARGETS, lambda *_: read_plus_lora(recipe))
    if recipe.gradient_checkpointing:
        pipeline.transformer.enable_gradient_checkpointing()
    return pipeline


@dataclass
class _PlusRun:
    """What the loop asks for. pipeline: of the parts in training, or of their newest whole copy. sizes: of its
    transformer as it was loaded."""

    pipeline: ACEPlusPipeline
    recipe: PlusRecipe
    folder: Path
    sizes: FluxSizes
    opened: list[Records] = field(default_factory=list)

    def task(self) -> Task:
        recipe, first = self.recipe, self.recipe.stages[0]
        self.opened = [open_records(source, recipe.size_px, first) for source in recipe.data]
        for stage in recipe.stages:  # data that is not there is found now, not after the first stage
            self.mixture(stage)
        weights = sum(p.numel() for p in self.pipeline.transformer.parameters())

        def operations(batch: tuple[CanvasItem, ...]) -> int:
            return sum(2 * weights * (item.canvas.num_tokens + recipe.max_text_tokens) for item in batch)

        return Task(
            PlusDenoiser(self.pipeline, recipe),
            lambda stage: Canvases(self.mixture(stage), recipe),
            lambda items: tuple(item.content for item in items),
            lambda model, batch: model(batch),
            operations,
            preview=self.preview,
            rebuild=self.rebuild,
        )

    def mixture(self, stage: TrainingStage) -> Mixture:
        return Mixture(self.recipe.data, self.opened, stage, self.recipe.seed)

    def preview(self, step: int) -> Path:
        path = self.folder / "previews" / f"{step:08d}.png"
        return draw_plus_previews(self.pipeline, self.recipe, self.sizes, self.mixture(self.recipe.stages[-1]), path)

    def rebuild(self) -> nn.Module:
        """The same anew, where the first one was sharded."""
        self.pipeline = start_plus(self.recipe)
        return PlusDenoiser(self.pipeline, self.recipe)


def _save(pipeline: ACEPlusPipeline, sizes: FluxSizes, recipe: PlusRecipe, folder: Path) -> None:
    if recipe.lora:
        save_plus_lora(pipeline.transformer, recipe.lora, sizes, folder / "adapter")
    else:
        pipeline.save_pretrained(folder / "model")
