"""One training step of the transformer on samples of every task (ACE, sections 2.2 and 4).

The autoencoder is frozen. The small model's text encoder, the first layers of a pretrained BERT with its word
embeddings frozen and the ten image names as tokens of their own, is trained along; T5 is not.

Not here: what a run starts from (`start.py`) and ends in (`model.py`), batches, ACE++ (`plus.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ace.diffusion import add_noise, diffusion_losses
from ace.diffusion.flow import flow_losses, flow_noise, sample_sigma
from ace.inference.latents import Autoencoder, encode_pictures, scale_factor
from ace.model.frames import encode_all, joined, num_tokens
from ace.model.lexicon import LexiconEncoder
from ace.model.text import encode, encode_texts
from ace.model.tokens import RequestFrames, condition_patches, make_layout, pack_latents, patchify
from ace.model.transformer import ACETransformer
from ace.training.batches import Batch
from ace.training.cache import FeatureCache, picture_content
from ace.training.config import ModelRecipe

KEEP_CHANGED = 0.7  # chance by which a token that changes comes before one that does not
CHANGED = 0.5  # mean difference of two latents, in standard deviations, from which a cell counts as changed


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
        if isinstance(text_encoder, LexiconEncoder):
            text_encoder.train()  # it has no dropout; in training it pads words to the batch's longest text only
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
            request = RequestFrames(
                size=(inputs.size[1] // factor, inputs.size[0] // factor),
                texts=tuple(states[t] for t in texts),
                target_mask=inputs.target_mask,
                images=images,
                image_masks=inputs.frame_masks,
                source=None if inputs.source is None else images[inputs.source],
            )
            if inputs.source is not None and not self.transformer.sizes.source_as_frame:
                request = request.without_source(inputs.source)
            requests.append(request)
        clean = [latents[t] for t in batch.targets]
        sigmas, noise = [], []
        for place, (number, own) in enumerate(zip(batch.numbers, clean, strict=True)):
            generator = torch.Generator().manual_seed((self.recipe.seed << 32) + number)
            sigmas.append(self._level(generator))
            noise.append(torch.randn(own.shape, generator=generator).to(device))
            if self.recipe.kept_tokens:
                requests[place] = dataclasses.replace(
                    requests[place], kept=self._kept(own, requests[place].source, generator)
                )
        return self._losses(requests, clean, noise, torch.tensor(sigmas, device=device))

    def _level(self, generator: torch.Generator) -> float:
        """How far a sample is on its way to noise, in (0, 1]."""
        if self.recipe.noise_share and float(torch.rand((), generator=generator)) < self.recipe.noise_share:
            return 1.0
        return sample_sigma(generator, self.recipe.timestep_sampling == "logit_normal")

    def _kept(self, clean: Tensor, source: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """The target's tokens that count, those that change first; None = all of them."""
        weights = cell_weights(clean, source, self.transformer.sizes.patch_size, 2.0).cpu()
        if len(weights) <= self.recipe.kept_tokens:
            return None
        order = torch.rand(len(weights), generator=generator) + KEEP_CHANGED * (weights - 1)
        return order.topk(self.recipe.kept_tokens).indices.sort().values

    def _losses(self, requests: list[RequestFrames], clean: list[Tensor], noise: list[Tensor], level: Tensor) -> Tensor:
        """level: (B,) in (0, 1), how far each sample is on its way to noise."""
        recipe, sizes = self.recipe, self.transformer.sizes
        has_rows = bool(sizes.memory_blocks)
        before = None
        lengths: list[int] = []
        if sizes.frames_once:
            frames = encode_all(self.transformer, requests)
            lengths, before = [num_tokens(own) for own in frames], joined(frames)
            requests = [request.alone() for request in requests]
        layout = make_layout(requests, sizes.patch_size, sizes.head_dim, (), sizes.rotary, has_rows, lengths).to(
            level.device
        )
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
        predicted = self.transformer(patches, timestep, layout, texts=texts, before=before)
        if sizes.learned_sigma:  # features are (row, column, channel); the channels' second half is not trained
            kept = predicted.unflatten(-1, (sizes.patch_size**2, sizes.out_channels))[..., : sizes.latent_channels]
            predicted = kept.transpose(1, 2).flatten(1)  # as `patchify`: (channel, row, column)
        elif sizes.patch_size > 1:
            predicted = predicted.unflatten(-1, (sizes.patch_size**2, -1)).transpose(1, 2).flatten(1)
        cells, noise_cells = (
            torch.cat([_computed(patchify(x, sizes.patch_size), r) for x, r in zip(xs, requests, strict=True)])
            for xs in (clean, noise)
        )
        rows = [
            _computed(cell_weights(c, r.source, sizes.patch_size, recipe.change_weight), r)
            for r, c in zip(requests, clean, strict=True)
        ]
        lengths, weights = [len(own) for own in rows], torch.cat(rows)
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


def _computed(rows: Tensor, request: RequestFrames) -> Tensor:
    """Of one row per token of a target, those of the tokens that are computed."""
    return rows if request.kept is None else rows[request.kept.to(rows.device)]


def cell_weights(target: Tensor, source: Tensor | None, patch_size: int, change_weight: float) -> Tensor:
    """Weight in the loss of every cell of a target, (cells,): up to `change_weight` where it differs from the edited
    image, 1 where it is copied, so that what is asked counts for more than what stays.

    target, source: latents (C, h, w); all ones without a source, or with one of another size."""
    cells = patchify(target, patch_size)
    if source is None or source.shape != target.shape:
        return torch.ones(len(cells), device=cells.device)
    differs = (cells - patchify(source, patch_size)).abs().mean(dim=1).float()
    return 1 + (change_weight - 1) * (differs / CHANGED).clamp(max=1)
