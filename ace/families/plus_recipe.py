"""What the recipe of an ACE++ picture says beside the request, and the model that it names, found again.

Settings of a recipe: `family`; the canvas (`edits`, `repainting_scale`, `max_seq_length`, `canvas_cells`, `places`,
`fits`, `control`); the weights (`adapters` as JSON with names, hashes and strengths, `transformer` if another file
stood in, `quantize` and `quantize_text` if in fewer bits); `tile_px` of the autoencoder; `batch_size`.

Not here: the record itself (`recipe.py`), opening the job that a recipe describes (`plus_edit.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ace.conversation.recipe import Environment, Recipe, Setting
from ace.errors import InputError, ModelNotFoundError
from ace.plus.models import PLUS_MODELS
from ace.plus.sources import PlusFiles, find_plus
from ace.weights.adapters import match_adapters

if TYPE_CHECKING:
    from ace.families.plus_edit import PlusJob
    from ace.plus.pipeline import ACEPlusPipeline, PlusState

FAMILY = "ace-plus"
_OF_THE_WEIGHTS = ("transformer", "quantize", "quantize_text", "tile_px")


def recipe_of(
    pipeline: ACEPlusPipeline, model: PlusFiles, job: PlusJob, state: PlusState, batch_size: int = 1
) -> Recipe:
    """The recipe of a finished state. batch_size: how many requests were made together with it, itself included."""
    device = pipeline._execution_device.type
    return Recipe(
        model=model.name,
        model_sha256=model.sha256,
        instruction=job.instruction,
        seed=job.settings.seed,
        num_inference_steps=state.num_steps,
        guidance_scale=state.guidance_scale,
        guidance_rescale=0.0,
        size_px=state.canvas.output_size,
        images=job.images,
        masks=(job.mask_file, *[None] * (len(job.images) - 1)) if job.mask_file is not None else (),
        settings=_request_settings(job, state, pipeline)
        | _weight_settings(model, pipeline)
        | _batch(1 if pipeline.exact else batch_size),
        environment=Environment.here(device=device, dtype=str(pipeline.transformer.dtype).removeprefix("torch.")),
    )


def _request_settings(job: PlusJob, state: PlusState, pipeline: ACEPlusPipeline) -> dict[str, Setting]:
    settings: dict[str, Setting] = {
        "family": FAMILY,
        "edits": job.source is not None,
        "repainting_scale": float(state.request.repainting_scale or 0.0),
        "max_seq_length": int(job.settings.max_seq_length or pipeline.config.max_seq_length),
        "canvas_cells": state.canvas.num_cells,
        "places": ",".join(reference.place for reference in job.references),
        "fits": ",".join("align" if r.fit == "align" else f"keep={r.rate:g}" for r in job.references),
    }
    return settings if job.settings.control is None else {**settings, "control": job.settings.control}


def _weight_settings(model: PlusFiles, pipeline: ACEPlusPipeline) -> dict[str, Setting]:
    settings: dict[str, Setting] = {
        "transformer": model.transformer.name if model.other_transformer else "",
        "quantize": pipeline.quantization,
        "quantize_text": pipeline.text_quantization,
        "tile_px": pipeline.vae.tile_sample_min_size if pipeline.vae.use_tiling else 0,
    }
    if model.adapters:
        settings["adapters"] = json.dumps(
            [{"name": a.name, "sha256": a.sha256, "weight": a.strength} for a in model.adapters]
        )
    return {name: value for name, value in settings.items() if value}


def _batch(size: int) -> dict[str, Setting]:
    return {"batch_size": size} if size > 1 else {}  # neighbours may change a last bit


def is_plus_recipe(recipe: Recipe) -> bool:
    """Whether a recipe was made by an ACE++ model."""
    return recipe.settings.get("family") == FAMILY


def plus_files_of_recipe(
    recipe: Recipe, model: str | None = None, loras: Sequence[Path] = (), transformer: Path | None = None
) -> PlusFiles:
    """The model that a recipe names, or another, with the adapters and the transformer that it had.

    loras: where its adapters are now, found by hash; those that have a name are found by it. Raises InputError, naming
    what is missing."""
    other = str(recipe.settings.get("transformer", ""))
    if other and transformer is None:
        raise InputError(f"the picture was made with the weights of {other}: name the file with --transformer")
    adapters = _adapters_again(recipe, loras)
    try:
        return find_plus(model or recipe.model, adapters, None if transformer is None else str(transformer))
    except ModelNotFoundError as error:
        if model is not None:
            raise
        raise ModelNotFoundError(f"the picture was made by {recipe.model}; {error}, and name it with --model") from None


def _adapters_again(recipe: Recipe, given: Sequence[Path]) -> list[tuple[str, float]]:
    """The adapters beside the model's own, in their order."""
    try:
        recorded = json.loads(str(recipe.settings.get("adapters", "[]")))
        others = [one for one in recorded if one["name"] not in PLUS_MODELS]
    except (ValueError, KeyError, TypeError):
        raise InputError("the recipe's adapters cannot be read: it was changed since") from None
    matched = iter(match_adapters(json.dumps(others) if others else "", given))
    found = []
    for one in recorded:
        if one["name"] in PLUS_MODELS:
            found.append((one["name"], float(one["weight"])))
        else:
            choice = next(matched)
            found.append((str(choice.path), choice.weight))
    return found[1:] if recorded and recorded[0]["name"] == recipe.model else found


def changed_settings(then: Recipe, now: Recipe) -> list[str]:
    """How the weights of a picture made again were held otherwise than in the recipe, a line each."""
    return [
        f"{name}: {then.settings.get(name, 'none')} then, {now.settings.get(name, 'none')} now"
        for name in _OF_THE_WEIGHTS
        if then.settings.get(name) != now.settings.get(name)
    ]
