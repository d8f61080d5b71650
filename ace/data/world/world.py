"""`World`: samples of every task and pictures for the autoencoder, each decided by its seed alone.

Every sample has its own dice, seeded from split, seed and task, so the order of asking and the number of workers change
nothing. The scene does not depend on the resolution. Not here: batches, tensors, files.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

from PIL import Image

from ace.data.sample import FAMILIES, EditSample, family_of
from ace.data.world.chance import Chance, Drawn, Material, Split
from ace.data.world.levels import LEVELS, Level
from ace.data.world.scene import Scene
from ace.data.world.sprites import SpriteLibrary
from ace.data.world.tasks import chain, element, generation, layers, reference, repainting, semantic, signals
from ace.errors import ConfigError

MAKERS: dict[str, Callable[[Chance], EditSample]] = {
    "text_guided_generation/text_to_image": generation.text_to_image,
    **{f"low_level_analysis/{name}": partial(signals.analyse, name=name) for name in FAMILIES["low_level_analysis"]},
    **{
        f"controllable_generation/{name}": partial(signals.control, name=name)
        for name in FAMILIES["controllable_generation"]
    },
    "semantic_editing/style": semantic.style,
    "semantic_editing/face": semantic.face,
    "semantic_editing/background": semantic.background,
    "semantic_editing/time_of_day": semantic.time_of_day,
    "semantic_editing/pose": semantic.pose,
    "semantic_editing/camera": semantic.camera,
    "element_editing/text_add": element.text_add,
    "element_editing/text_remove": element.text_remove,
    "element_editing/object_add": element.object_add,
    "element_editing/object_remove": element.object_remove,
    "element_editing/object_replace": element.object_replace,
    "repainting/inpainting": repainting.inpainting,
    "repainting/text_guided_inpainting": repainting.text_guided_inpainting,
    "repainting/outpainting": repainting.outpainting,
    "layer_editing/decouple": layers.decouple,
    "layer_editing/fusion": layers.fusion,
    "reference_generation/multi_condition": reference.multi_condition,
    "reference_generation/series": reference.series,
    "reference_generation/style_reference": reference.style_reference,
    "reference_generation/face_reference": reference.face_reference,
    "multi_turn/chain": chain.chain,
}


class World:
    """The procedural world at one size and on one side of the split.

    size_px: side of every picture. split: "train" never draws held-out concepts, style or templates; "held_out" uses
    held-out templates and dice throughout, and some held-out concepts and the held-out style (provenance says which).
    library: None = the best pack at hand. level: how much of the world is shown, one of `LEVELS`. free_share: of the
    samples in which things stand off the grid where a picture or a mask places them; None = the level's own. seen_only:
    of the held-out side take seeds and templates, but nothing that training never drew.
    Raises ConfigError for a size below 16 px, an unknown split or level, or a share outside 0 to 1."""

    def __init__(
        self,
        size_px: int = 64,
        split: Split = "train",
        library: SpriteLibrary | None = None,
        level: str = "all",
        free_share: float | None = None,
        seen_only: bool = False,
    ):
        if size_px < 16:
            raise ConfigError(f"size_px is {size_px}: pictures of the world need at least 16 px")
        if split not in ("train", "held_out"):
            raise ConfigError(f"split is {split!r}: use 'train' or 'held_out'")
        if level not in LEVELS:
            raise ConfigError(f"level is {level!r}: use one of {', '.join(LEVELS)}")
        if free_share is not None and not 0 <= free_share <= 1:
            raise ConfigError(f"free_share is {free_share}: use 0 to 1")
        self.size_px = size_px
        self.split: Split = split
        self.library = library if library is not None else SpriteLibrary()
        self.level: Level = LEVELS[level]
        if free_share is not None:
            self.level = replace(self.level, free_share=free_share)
        self._options = (level, free_share, seen_only)
        self._material = Material(self.library)

    def __getstate__(self) -> tuple[int, Split, SpriteLibrary, str, float | None, bool]:
        return self.size_px, self.split, self.library, *self._options

    def __setstate__(self, state: tuple[int, Split, SpriteLibrary, str, float | None, bool]) -> None:
        self.__init__(*state)

    def sample(self, seed: int, task: str | None = None) -> EditSample:
        """The sample of a seed.

        task: None = drawn from the level's tasks. Raises ConfigError for a task that is not in `TASKS`."""
        return self._make(seed, task)[0]

    def drawn(self, seed: int, task: str | None = None) -> tuple[Drawn, ...]:
        """What the answer to the sample of a seed has to draw from names: the scene, and which of its objects."""
        return tuple(self._make(seed, task)[1].drawn)

    def restyled(self, seed: int) -> Scene:
        """The scene of the answer to a seed's sample of style editing."""
        scene = self._make(seed, "semantic_editing/style")[1].restyled
        assert scene is not None
        return scene

    def _make(self, seed: int, task: str | None) -> tuple[EditSample, Chance]:
        if task is None:
            task = self._drawn_task(seed)
        family_of(task)
        if task not in self.tasks:
            raise ConfigError(
                f"the sprite pack in {self.library.pack} has nothing for {task}: build it with `ace data assets`"
            )
        rng = random.Random(f"{self.split}:{seed}:{task}")
        level, _, seen_only = self._options
        chance = Chance(self._material, self.split, rng, self.size_px, self.level, seen_only=seen_only)
        made = MAKERS[task](chance)
        provenance: dict[str, str | int | float] = {
            "source": "world",
            "size_px": self.size_px,
            "split": self.split,
            "seed": seed,
            "num_concepts": len(self.library.concepts),  # packs differ, and with them what a seed draws
            **{f"held_out_{kind}": int(kind in chance.used) for kind in ("concept", "style", "face")},
            "level": level,
            "free_share": self.level.free_share,
            "seen_only": int(seen_only),
            "unseen": int(bool(chance.unseen)),  # something has to be drawn that training never showed
        }
        return replace(made, provenance={**provenance, **made.provenance}), chance

    def picture(self, seed: int) -> Image.Image:
        """Any one picture that the world makes, input or target of any task (RGB)."""
        made = self.sample(seed)
        images = [frame.image for frame in made.request.frames()] + [made.target]
        return random.Random(f"{seed}:picture").choice(images)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that this library can make: those about faces need avatars, those about text a font."""
        without_faces = (
            ()
            if self._material.editable_faces["train"]
            else ("semantic_editing/face", "reference_generation/face_reference")
        )
        without_fonts = () if self.library.fonts else ("element_editing/text_add", "element_editing/text_remove")
        return tuple(task for task in MAKERS if task not in (*without_faces, *without_fonts))

    def _drawn_task(self, seed: int) -> str:
        dice, weights = random.Random(f"{self.split}:{seed}:mixture"), self.level.tasks
        task = dice.choices(list(weights), list(weights.values()))[0]
        return task if task in MAKERS else dice.choice([name for name in self.tasks if name.startswith(f"{task}/")])
