"""Pictures drawn while ACE++ is trained, by the pipeline of inference and from the weights that it would load: an
adapter is merged into its base for as long as the drawing takes, a whole model is brought to inference's number type.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from diffusers import FluxTransformer2DModel
from peft.tuners.lora import LoraLayer
from PIL import Image

from ace.data.sample import EditSample
from ace.diffusion import seeded_generator
from ace.plus.canvas import Reference
from ace.plus.layouts import FluxAdapter, FluxSizes
from ace.plus.load import find_plus_dtype
from ace.plus.pipeline import ACEPlusPipeline, PlusRequest
from ace.plus.weights import load_adapter
from ace.training.adapters import PEFT_FILE, save_lora
from ace.training.config import PlusRecipe
from ace.training.previews import preview_samples, save_sheet
from ace.training.sources import Mixture


def draw_plus_previews(
    pipeline: ACEPlusPipeline, recipe: PlusRecipe, sizes: FluxSizes, mixture: Mixture, path: Path, count: int = 3
) -> Path:
    """Draw `count` samples of a mixture onto a sheet, with the pipeline in training. sizes: of its transformer."""
    samples = preview_samples(mixture, count)
    with as_in_inference(pipeline, recipe, sizes) as drawing:
        return save_sheet(samples, drawing(requests=plus_requests(samples)).images, path)


def plus_requests(samples: Sequence[EditSample]) -> list[PlusRequest]:
    """What the samples ask for, with the pipeline's own settings."""
    requests = []
    for number, sample in enumerate(samples):
        image, mask, reference = canvas_parts(sample)
        requests.append(
            PlusRequest(
                sample.request.current.instruction,
                image,
                mask,
                () if reference is None else (Reference(reference),),
                size=sample.target.size,
                generator=seeded_generator(number),
            )
        )
    return requests


def canvas_parts(sample: EditSample) -> tuple[Image.Image | None, Image.Image | None, Image.Image | None]:
    """Picture to edit, its mask, reference; None = absent.

    The first picture of a request is edited, the second the reference; the list of ACE++ says itself which is which."""
    unit = sample.request.current
    images = list(zip(unit.images, unit.masks, strict=True))
    image, mask = images.pop(0) if images and sample.provenance.get("has_edit", 1) else (None, None)
    return image, mask, images[0][0] if images else None


@contextmanager
def as_in_inference(pipeline: ACEPlusPipeline, recipe: PlusRecipe, sizes: FluxSizes) -> Iterator[ACEPlusPipeline]:
    """The pipeline as it would be loaded from what the run saves, on the device it is trained on."""
    transformer = pipeline.transformer
    device = transformer.device
    drawing = copy.copy(pipeline)
    drawing.set_progress_bar_config(disable=True)
    if recipe.lora:
        with tempfile.TemporaryDirectory() as folder:
            save_lora(transformer, recipe.lora, Path(folder))
            adapter = load_adapter(Path(folder) / PEFT_FILE, sizes)
        with merged(transformer, adapter):
            yield drawing.to(device)
        return
    dtype = getattr(torch, find_plus_dtype(device.type))
    if transformer.dtype != dtype:
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                setattr(drawing, name, copy.deepcopy(part).to(dtype))
    yield drawing.to(device)


@contextmanager
def merged(transformer: FluxTransformer2DModel, adapter: FluxAdapter) -> Iterator[None]:
    """The base's weights with the adapter in them, as inference loads them; afterwards the very ones from before.

    Those wait in main memory, so that a GPU never holds both."""
    layers = {name: transformer.get_submodule(name.removesuffix(".weight")) for name in adapter.deltas}
    weights = {name: cast(torch.Tensor, cast(LoraLayer, layer).base_layer.weight) for name, layer in layers.items()}
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    kept = {}
    for name, weight in weights.items():
        kept[name] = weight.data.cpu()
        weight.data = adapter.deltas[name].apply(weight.data, 1.0)
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()
        for name, weight in weights.items():
            weight.data = kept[name].to(weight.device)
        for parameter in trained:  # switching adapters off also froze them
            parameter.requires_grad_(True)
