"""A model's name, or a recipe, → its family. Reads small files only, except where a model is fetched by its address."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ace.conversation.family import Family, Loading, check_loading
from ace.conversation.recipe import Recipe
from ace.errors import ModelNotFoundError
from ace.families.ace import AceFamily
from ace.families.folder import HUB
from ace.families.library import LibraryFamily, is_library
from ace.families.plus import PlusFamily, plus_of_recipe
from ace.families.video import VideoFamily, is_video
from ace.plus.models import PLUS_MODELS, is_plus
from ace.weights.adapters import match_adapters
from ace.weights.sources import DEFAULT_MODEL, NUMBER_TYPES, find_model, known_models


def find_family(name: str | None = None, loading: Loading | None = None) -> Family:
    """The family of a model's name, folder or hub address (`hf://owner/name`); None = `$ACE_MODEL`, else `ace-tiny`.

    Loads nothing; of a hub address small files are fetched. loading: what will be asked of `Family.load`; what the
    family does not take is refused. Raises InputError."""
    loading = loading or Loading()
    name = name or os.environ.get("ACE_MODEL") or DEFAULT_MODEL
    family: Family
    if is_plus(name):
        family = PlusFamily(name, loading.adapters, loading.transformer)
    elif is_video(name):
        family = VideoFamily(name, loading.adapters)
    elif is_library(name):
        family = LibraryFamily(name)
    else:
        family = AceFamily(find_model(name))
    check_loading(family, loading)
    return family


def family_of_recipe(
    recipe: Recipe,
    model: str | None = None,
    adapters: Sequence[Path] = (),
    transformer: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> tuple[Family, Loading]:
    """The model that a recipe names, and how it is loaded so that the image can be made again.

    model: another one. A name in a recipe is somebody else's word: it is followed only to models that have a name of
    their own, that `$ACE_MODEL` names or that are in the hub's cache, never to a folder. Nothing is downloaded of a hub
    address, whoever named it. adapters, transformer: where these files are now.
    Raises InputError, naming what is missing."""
    name = model or _trusted_name(recipe)
    if dtype == "auto" and recipe.environment.dtype in NUMBER_TYPES:
        dtype = recipe.environment.dtype
    loading = Loading(device=device, dtype=dtype, like=recipe)
    if is_plus(name):
        return plus_of_recipe(recipe, name, adapters, transformer), loading
    if is_video(name, download=False):
        found = match_adapters(str(recipe.settings.get("adapters", "")), adapters)
        chosen = tuple(f"{choice.path}:{choice.weight!r}" for choice in found)
        quantize = str(recipe.settings["quantize"]) if "quantize" in recipe.settings else None
        loading = replace(loading, adapters=chosen, quantize=quantize)
        return VideoFamily(name, chosen, download=False), loading
    if is_library(name):
        family = LibraryFamily(name, download=False)
        other = None if transformer is None else str(transformer)
        check_loading(family, replace(loading, adapters=tuple(map(str, adapters)), transformer=other))
        return family, loading
    found = match_adapters(str(recipe.settings.get("adapters", "")), adapters)
    options = tuple(f"{choice.path}:{choice.weight!r}" for choice in found)
    loading = Loading(device=device, dtype=dtype, like=recipe, adapters=options)
    return find_family(name, loading), loading


def _trusted_name(recipe: Recipe) -> str:
    if recipe.model in {known.name for known in known_models()} or recipe.model in PLUS_MODELS:
        return recipe.model
    own = os.environ.get("ACE_MODEL")
    if own and (own == recipe.model or Path(own).expanduser().resolve().name == recipe.model):
        return own
    if recipe.model.startswith(HUB):
        return recipe.model  # followed into the hub's cache and no further
    raise ModelNotFoundError(f"the image was made by {recipe.model!r}, which is no known model: name it with --model")
