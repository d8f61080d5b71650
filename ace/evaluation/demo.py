"""`ace demo`: fifteen kinds of task and a conversation of three turns, made by a model from inputs it has never seen.

Inputs come from the held-out side of the procedural world: things that training drew, in scenes and words that it never
saw, decided by the seed alone. Nothing is left out for how it turned out; each answer stands beside the true one, the
nearest first. In the conversation every turn goes on from the model's own answers. Everything runs in packed passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.data.sample import EditSample
from ace.data.world import SpriteLibrary, World
from ace.data.world.sprites import SHIPPED_PACK
from ace.evaluation.panels import Panel, draw_conversation, draw_grid, draw_page

if TYPE_CHECKING:
    from ace.inference.pipeline import ACEPipeline, RequestState

# task -> what the card says
DEMO_TASKS: dict[str, str] = {
    "text_guided_generation/text_to_image": "text to image",
    "semantic_editing/background": "background",
    "semantic_editing/time_of_day": "time of day",
    "element_editing/object_add": "add an object",
    "element_editing/object_remove": "remove an object",
    "element_editing/object_replace": "replace an object",
    "semantic_editing/style": "style",
    "semantic_editing/face": "face attribute",
    "semantic_editing/pose": "pose",
    "element_editing/text_add": "write text",
    "repainting/text_guided_inpainting": "inpainting by words (inside the line)",
    "repainting/outpainting": "outpainting (inside the line)",
    "low_level_analysis/segmentation": "segmentation",
    "controllable_generation/doodle": "doodle to picture",
    "layer_editing/fusion": "two layers into one",
}
COLUMNS = 2
NUM_TURNS = 3


@dataclass(frozen=True)
class DemoPlan:
    """What will be asked. samples: one per entry of `DEMO_TASKS`; conversation: of `NUM_TURNS` turns, from a
    picture."""

    samples: tuple[EditSample, ...]
    conversation: EditSample


@dataclass(frozen=True)
class Demo:
    """What came out. turns: (instruction, answer) of the conversation that began with `first`."""

    panels: tuple[Panel, ...]
    first: Image.Image
    turns: tuple[tuple[str, Image.Image], ...]
    seed: int
    num_inference_steps: int


def plan_demo(seed: int, size_px: int) -> DemoPlan:
    """Held-out inputs of a seed; of the conversations the first that has three turns and begins with a picture.

    size_px: side of the pictures."""
    world = World(size_px, "held_out", SpriteLibrary(SHIPPED_PACK), seen_only=True)
    first = seed * 1000
    samples = tuple(world.sample(first + number, task) for number, task in enumerate(DEMO_TASKS))
    number = first
    while True:
        conversation = world.sample(number, "multi_turn/chain")
        if conversation.provenance["turns"] == NUM_TURNS and conversation.request.history[0].unit.images:
            return DemoPlan(samples, conversation)
        number += 1


def make_demo(
    pipeline: ACEPipeline,
    plan: DemoPlan,
    seed: int,
    steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Demo:
    """Run the model. steps: None = the model's default. progress: told (done, total)."""
    from ace.diffusion import seeded_generator  # torch, only when a model runs
    from ace.inference.pipeline import Request

    done = 0

    def run(units: Sequence[LongContextConditionUnit]) -> tuple[list[Image.Image], list[RequestState]]:
        nonlocal done
        states = pipeline.prepare(
            [Request(unit, num_inference_steps=steps, generator=seeded_generator(seed)) for unit in units]
        )
        total = states[0].num_steps * (len(plan.samples) + NUM_TURNS)
        while running := [state for state in states if not state.done]:
            pipeline.step(running)
            done += len(running)
            if progress is not None:
                progress(done, total)
        return pipeline.decode(states), states

    rounds = [*plan.conversation.request.history, Turn(plan.conversation.request.current, plan.conversation.target)]
    (*results, answer), states = run(
        [*(sample.request for sample in plan.samples), LongContextConditionUnit(rounds[0].unit)]
    )
    turns = [Turn(rounds[0].unit, answer)]
    for number in range(1, NUM_TURNS):
        own = {id(rounds[n].answer): turns[n].answer for n in range(number)}
        unit = rounds[number].unit
        unit = replace(unit, images=tuple(own.get(id(image), image) for image in unit.images))
        (answer,), _ = run([LongContextConditionUnit(unit, tuple(turns))])
        turns.append(Turn(unit, answer))
    panels = [
        replace(panel_of(sample, result, title), truth=sample.target)
        for sample, result, title in zip(plan.samples, results, DEMO_TASKS.values(), strict=True)
    ]
    left = [error_left(sample, result) for sample, result in zip(plan.samples, results, strict=True)]
    order = sorted(range(len(panels)), key=left.__getitem__)
    conversation = tuple((turn.unit.instruction, turn.answer) for turn in turns)
    shown = tuple(panels[number] for number in order)
    return Demo(shown, rounds[0].unit.images[0], conversation, seed, states[0].num_steps)


def error_left(sample: EditSample, answer: Image.Image) -> float:
    """How much of the way to the true answer is left: its root mean square error over that of the image as it was, or,
    from words alone, of one flat picture in the right mean colour. 0 = the true answer, 1 = nothing gained."""

    def pixels(image: Image.Image) -> np.ndarray:
        same = image.convert("RGB").resize(sample.target.size, Image.Resampling.LANCZOS)
        return np.asarray(same, np.float64)

    truth, source = pixels(sample.target), sample.request.source_index
    before = truth.mean((0, 1)) if source is None else pixels(sample.request.frames()[source].image)
    rms = [float(np.sqrt(np.mean((one - truth) ** 2))) for one in (pixels(answer), before)]
    return rms[0] / max(rms[1], 1.0)


def draw_demo(demo: Demo, model_name: str) -> Image.Image:
    """The page."""
    grid = draw_grid(demo.panels, COLUMNS)
    strip = draw_conversation(
        "a conversation: every turn goes on from the answer before it", demo.first, demo.turns, grid.width
    )
    return draw_page(
        f"What {model_name} does with inputs it has never seen",
        "held-out scenes, none left out; sorted by how near the model came to the true answer, the nearest first",
        [grid, strip],
        f"{model_name}, seed {demo.seed}, {demo.num_inference_steps} denoising steps. "
        f"Other inputs: make demo SEED={demo.seed + 1}",
    )


def draw_samples(tasks: Sequence[str], count: int, seed: int, size_px: int, split: str) -> Image.Image:
    """Samples of the world with their true answers, a row per task. split: "train" or "held_out"."""
    world = World(size_px, "held_out" if split == "held_out" else "train")
    panels = []
    for task in tasks:
        samples = (world.sample(seed + number, task) for number in range(count))
        panels += [panel_of(sample, sample.target, task) for sample in samples]
    side = f"{split.replace('_', ' ')} side, seeds {seed} to {seed + count - 1}, {size_px} px"
    return draw_page(
        "The procedural world",
        "left of the arrow the request, right of it the true answer",
        [draw_grid(panels, count)],
        side,
    )


def panel_of(sample: EditSample, result: Image.Image, title: str) -> Panel:
    """A sample's request with a result (the true answer, or a model's)."""
    unit: ConditionUnit = sample.request.current
    frames = sample.request.frames()
    return Panel(title, unit.instruction, tuple(f.image for f in frames), tuple(f.mask for f in frames), result)
