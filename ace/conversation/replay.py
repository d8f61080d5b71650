"""Making an image again: the job that a recipe or a node describes, and how the two images compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ace.conditions.images import OpenedImage, open_image
from ace.conditions.masks import open_mask, read_mask
from ace.conditions.rules import MOST_PIXELS, ImageRules
from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.conversation.job import Job, Made, Settings, clip_job
from ace.conversation.recipe import FileRef, Recipe, Round, compare, hash_latents
from ace.conversation.session import Session
from ace.errors import InputError
from ace.video.request import ClipRequest


@dataclass(frozen=True)
class Replay:
    """A node made again. largest_difference: of all values, in levels of 255; differences: between then and now, a line
    each."""

    node_id: str
    largest_difference: int
    differences: tuple[str, ...]

    @property
    def same_pixels(self) -> bool:
        """Whether every value is the same."""
        return self.largest_difference == 0


def job_of_recipe(
    recipe: Recipe, files: Mapping[str, Path], latents: Iterable[np.ndarray] = (), *, references_apart: bool = False
) -> Job:
    """The job that a recipe describes. files: SHA-256 → path, as `match_files` finds them; latents: kept ones among
    which those that the recipe names are found by their hash. references_apart: see `Traits`.

    An image that appears twice is one object, so that a round goes on from an answer as it did. Raises InputError if
    something is missing."""
    if "clip" in recipe.settings:
        return job_of_clip_recipe(recipe, files)
    opened: dict[str, OpenedImage] = {}
    kept = {hash_latents(one): one for one in latents}

    def picture(file: FileRef) -> OpenedImage:
        if file.sha256 not in opened:
            opened[file.sha256] = open_image(files[file.sha256], max_pixels=MOST_PIXELS)
        return opened[file.sha256]

    def mask_of(file: FileRef, of: OpenedImage, rules: ImageRules | None) -> Image.Image:
        if recipe.rules.get("masks", 1) < 2:
            return open_mask(files[file.sha256], of, rule=1)
        return read_mask(
            files[file.sha256], of, replace(rules or ImageRules(), max_pixels=MOST_PIXELS), undecided="transparent"
        ).image

    def open_unit(
        instruction: str,
        images: Sequence[FileRef],
        masks: Sequence[FileRef | None],
        rules: ImageRules | None = None,
    ) -> ConditionUnit:
        pictures = [picture(file) for file in images]
        of_size = [
            None if mask is None else mask_of(mask, of, rules) for mask, of in zip(masks, pictures, strict=bool(masks))
        ]
        return ConditionUnit(instruction, tuple(of.image for of in pictures), tuple(of_size))

    def turn(asked: Round) -> Turn:
        if asked.latents is not None and asked.latents not in kept:
            raise InputError(
                "the image went on from latents that its session keeps: name the session's folder, or replay it there"
            )
        unit = open_unit(asked.instruction, asked.images, asked.masks)
        return Turn(unit, picture(asked.answer).image, kept.get(asked.latents or ""))

    turns = tuple(turn(asked) for asked in recipe.history)
    current = open_unit(recipe.instruction, recipe.images, recipe.masks, ImageRules.of_settings(recipe.settings))
    whole = LongContextConditionUnit(current, turns, len(turns))
    edited = recipe.images[0] if recipe.images else recipe.history[-1].answer if recipe.history else None
    if references_apart and recipe.settings.get("edits") is False:
        edited = None
    source = None if edited is None else opened[edited.sha256]
    return Job(whole, Settings.of_recipe(recipe), source, recipe.images, recipe.masks, recipe.history)


def job_of_clip_recipe(recipe: Recipe, files: Mapping[str, Path]) -> Job:
    """The job of a clip. files: as for `job_of_recipe`. Raises InputError."""
    request = ClipRequest.of_options(str(recipe.settings["clip"]), [files[file.sha256] for file in recipe.images])
    return clip_job(recipe.instruction, Settings.of_recipe(recipe), request, recipe.images)


def job_of_node(session: Session, node_id: str, model_sha256: str) -> Job:
    """The job that made a node, opened from its session. model_sha256: of the model that will make it.

    Raises SessionError."""
    node = session.node(node_id)
    asked = node.recipe
    *turns, last = session.history(node_id, model_sha256=model_sha256)
    turns = turns[len(turns) - len(asked.history) :] if asked.history else []
    if asked.format_version == 1:
        if asked.settings.get("latents") != "kept":
            turns = [replace(turn, latents=None) for turn in turns]
    else:
        turns = [
            replace(turn, latents=None) if of.latents is None else turn
            for turn, of in zip(turns, asked.history, strict=True)
        ]
    source = session.source(node_id)
    unit = last.unit
    if source is not None and unit.images and source.image is not unit.images[0]:
        unit = replace(unit, images=(source.image, *unit.images[1:]))  # one object, so that it stays the edited one
    if asked.settings.get("edits") is False:
        source = None
    return Job(
        unit=LongContextConditionUnit(unit, tuple(turns), len(turns)),
        settings=Settings.of_recipe(asked),
        source=source,
        images=asked.images,
        masks=asked.masks,
        rounds=asked.history,
        parents=node.parents,
    )


def compare_with_node(session: Session, node_id: str, made: Made) -> Replay:
    """A node's answer beside the image that was made again from its job. Raises SessionError."""
    session.answer(node_id)  # raises SessionError if the file is not the one that was written
    node, medium = session.node(node_id), made.medium
    remade = medium.encode(made.content, medium.node_format)
    differences = compare(node.recipe, made.recipe.environment, model_sha256=made.recipe.model_sha256)
    return Replay(node_id, medium.largest_difference(node.answer_path.read_bytes(), remade), differences)
