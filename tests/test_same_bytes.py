"""The promise: one request, the same bytes, alone or in any company.

Requests of all kinds, drawn from a seed, are made in five ways: alone, in pairs, with up to 16 at once that join
and leave at any step as in the server's engine, beside neighbours that are cancelled half way, and in one list. Latents
and PNG files are compared byte by byte. The engine itself: `server/test_engine.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from PIL import Image

from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.conversation.job import Job, Made, Settings
from ace.conversation.recipe import encode
from ace.conversation.run import conclude
from ace.diffusion import seeded_generator
from ace.families.ace import AceFamily
from ace.inference.accelerate import FAST, fast_by_name
from ace.plus.canvas import Reference
from ace.plus.pipeline import ACEPlusPipeline, PlusRequest
from ace.weights.sources import find_model, load_pipeline
from tests.random_flux import SMALL_FFT, random_plus

MODEL = find_model("ace-tiny")
WORDS = ("a red apple", "make it blue", "add a hat to the cat", "remove the background, keep all else as it is")


def picture(draw: random.Random, sides: Sequence[int] = (24, 40, 64, 90, 128)) -> Image.Image:
    width, height = draw.choice(sides), draw.choice(sides)
    cells = np.random.default_rng(draw.randrange(2**31)).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def half_mask(draw: random.Random, image: Image.Image) -> Image.Image:
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (0, 0, draw.randint(1, image.width), draw.randint(1, image.height)))
    return mask


def draw_job(number: int) -> Job:
    """Any kind of request: images, masks, rounds with and without kept latents, sizes, guidance."""
    draw = random.Random(number)
    photos = tuple(picture(draw) for _ in range(draw.randint(0, 3)))
    names = [f"like {{image{n or ''}}}" for n in range(len(photos))]
    words = " and ".join([*draw.sample(WORDS, draw.randint(1, len(WORDS))), *names])
    masks = (half_mask(draw, photos[0]), *(None,) * (len(photos) - 1)) if photos and draw.random() < 0.5 else ()
    rounds = []
    for _ in range(draw.choice((0, 0, 0, 1, 2))):
        answer, latents = picture(draw), None
        if draw.random() < 0.5:
            answer = answer.resize((128, 128))
            latents = np.random.default_rng(number).standard_normal((16, 16, 16), dtype=np.float32)
        rounds.append(Turn(ConditionUnit(draw.choice(WORDS)), answer, latents))
    settings = Settings(
        seed=number,
        num_inference_steps=draw.choice((1, 1, 2, 3, 4)),
        guidance_scale=draw.choice((None, 1.0, 2.5)),
        guidance_rescale=draw.choice((None, 0.0)),
        negative_instruction=draw.choice(("", "", "dark and blurred")),
        size=None if photos else draw.choice((None, (64, 96))),
    )
    return Job(LongContextConditionUnit(ConditionUnit(words, photos, masks), tuple(rounds)), settings)


Content = tuple[bytes, bytes]


def content(made: Made) -> Content:
    """The bytes that must not change."""
    assert made.latents is not None
    return made.latents.tobytes(), encode(made.image, "PNG")


Way = Callable[["Small", list[int]], Iterable[tuple[int, Content]]]


@dataclass
class Small:
    """The small model in one precision, with every job's own bytes as made alone."""

    family: AceFamily
    alone: dict[int, Content] = field(default_factory=dict)

    def make(self, numbers: Sequence[int]) -> list[Made]:
        """All of them in one list."""
        jobs = [draw_job(number) for number in numbers]
        states = self.family.prepare(jobs)
        while running := [state for state in states if not state.done]:
            self.family.step(running)
        return [conclude(self.family, *pair) for pair in zip(jobs, self.family.finish(states), strict=True)]

    def joining(self, numbers: Sequence[int], leaving: bool) -> Iterator[tuple[int, Content]]:
        """As the server's engine: one joins before every step, up to 16 at once, finished ones leave.

        leaving: every other one brings a neighbour that is cancelled after one or two steps."""
        waiting, running, passing = list(numbers), {}, []
        while waiting or running:
            if waiting and len(running) < 16:
                job = draw_job(number := waiting.pop(0))
                (running[number],) = self.family.prepare([job])
                if leaving and number % 2:
                    neighbour = replace(job, settings=Settings(seed=number + 1, num_inference_steps=4))
                    passing += self.family.prepare([neighbour])
            passing = [state for state in passing if state.step_index < 2]
            self.family.step([*passing[:1], *running.values(), *passing[1:]])
            done = {number: state for number, state in running.items() if state.done}
            for (number, state), answer in zip(done.items(), self.family.finish(list(done.values())), strict=True):
                yield number, content(conclude(self.family, state.job, answer))
                del running[number]


def in_pairs(small: Small, order: list[int]) -> Iterator[tuple[int, Content]]:
    for first in range(0, len(order), 2):
        pair = order[first : first + 2]
        yield from zip(pair, map(content, small.make(pair)), strict=True)


def in_lists(small: Small, order: list[int]) -> Iterator[tuple[int, Content]]:
    for first in range(0, len(order), 100):
        some = order[first : first + 100]
        yield from zip(some, map(content, small.make(some)), strict=True)


def joining_and_leaving(small: Small, order: list[int]) -> Iterator[tuple[int, Content]]:
    return small.joining(order, leaving=False)


def beside_cancelled_ones(small: Small, order: list[int]) -> Iterator[tuple[int, Content]]:
    return small.joining(order, leaving=True)


# without instructions for it, a processor takes a hundred times as long
BFLOAT16 = pytest.param("bfloat16", marks=() if torch.ops.mkldnn._is_mkldnn_bf16_supported() else pytest.mark.slow)
WAYS: tuple[Way, ...] = (in_pairs, joining_and_leaving, beside_cancelled_ones, in_lists)


@pytest.fixture(scope="module", params=["float32", BFLOAT16])
def small(request) -> Small:
    pipeline = load_pipeline(MODEL, device="cpu", dtype=request.param)
    pipeline.set_progress_bar_config(disable=True)
    return Small(AceFamily(MODEL, pipeline))


def check(small: Small, count: int, way: Way) -> None:
    for number in range(count):
        if number not in small.alone:
            small.alone[number] = content(*small.make([number]))
    order = random.Random(count).sample(range(count), count)
    compared = 0
    for number, made in way(small, order):
        assert made[0] == small.alone[number][0], f"the latents of request {number} differ"
        assert made[1] == small.alone[number][1], f"the file of request {number} differs"
        compared += 1
    assert compared == count
    assert len({latents for latents, _ in small.alone.values()}) == len(small.alone)


@pytest.mark.parametrize("way", WAYS)
def test_a_request_gives_the_same_bytes_in_any_company(small, way):
    check(small, 24, way)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_500_requests_give_the_same_bytes_in_any_company(small, way):
    check(small, 500, way)


@pytest.mark.parametrize("name", FAST)
def test_accelerated_requests_too(small, name):
    small.family.pipeline.fast = fast_by_name(name)
    try:
        alone = [content(*small.make([number])) for number in range(3)]
        assert [content(made) for made in small.make(range(3))] == alone
    finally:
        small.family.pipeline.fast = None


def test_without_exact_requests_share_their_passes_and_agree_up_to_rounding(small):
    exact, rows, pipeline = small.make(range(4)), [], small.family.pipeline
    handle = pipeline.transformer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[1])))
    pipeline.exact = False
    try:
        packed = small.make(range(4))
    finally:
        pipeline.exact = None
        handle.remove()
    assert rows[0] == 4
    tolerance = 1e-4 if pipeline.transformer.dtype == torch.float32 else 0.2
    for ours, other in zip(packed, exact, strict=True):
        assert np.abs(ours.latents - other.latents).max() <= tolerance * np.abs(other.latents).max()


def draw_plus(number: int) -> PlusRequest:
    """Any kind of ACE++ request; a quarter of the canvases have a size in common."""
    draw = random.Random(number)
    photo = picture(draw, (48, 64)) if draw.random() < 0.7 else None
    return PlusRequest(
        draw.choice(WORDS),
        photo,
        half_mask(draw, photo) if photo is not None and draw.random() < 0.5 else None,
        tuple(Reference(picture(draw, (32, 48))) for _ in range(draw.choice((0, 0, 1)))),
        size=(64, 48),
        num_inference_steps=draw.choice((1, 2, 3, 4)),
        guidance_scale=draw.choice((50.0, 4.0)),
        max_seq_length=64,
        generator=seeded_generator(number),
    )


class Plus:
    """Ways to make ACE++ requests: (number, latents, PNG) each."""

    def __init__(self, pipeline: ACEPlusPipeline) -> None:
        self.pipeline = pipeline

    def finish(self, number: int, state) -> tuple[int, bytes, bytes]:
        image = self.pipeline.finish(state, self.pipeline.decode_canvas(state))
        return number, state.latents.numpy().tobytes(), encode(image, "PNG")

    def together(self, numbers: Sequence[int]) -> list[tuple[int, bytes, bytes]]:
        states = self.pipeline.prepare([draw_plus(number) for number in numbers])
        while running := [state for state in states if not state.done]:
            self.pipeline.step(*running)
        return [self.finish(number, state) for number, state in zip(numbers, states, strict=True)]

    def joining(self, numbers: Sequence[int], leave: bool) -> list[tuple[int, bytes, bytes]]:
        """Up to 16 at once, one joins before every step. leave: every third one has a neighbour that stops early."""
        waiting, running, made = list(numbers), {}, []
        passing: list = []
        while waiting or running:
            if waiting and len(running) < 16:
                number = waiting.pop(0)
                (running[number],) = self.pipeline.prepare([draw_plus(number)])
                if leave and number % 3 == 0:
                    passing = self.pipeline.prepare([draw_plus(number + 3)])
            self.pipeline.step(*running.values(), *(state for state in passing if not state.done))
            passing = []
            for number in [number for number, state in running.items() if state.done]:
                made.append(self.finish(number, running.pop(number)))
        return sorted(made)


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16])
@pytest.mark.parametrize("count", [24, pytest.param(500, marks=pytest.mark.slow)])
def test_ace_plus_requests_give_the_same_bytes_in_any_company(dtype, count):
    plus = Plus(random_plus(SMALL_FFT).to(getattr(torch, dtype)))
    alone = [made for number in range(count) for made in plus.together([number])]
    assert len({latents for _, latents, _ in alone}) == count
    order = random.Random(count).sample(range(count), count)
    pairs = [made for first in range(0, count, 2) for made in plus.together(order[first : first + 2])]
    assert sorted(pairs) == alone
    assert plus.joining(order, leave=False) == alone
    assert plus.joining(order, leave=True) == alone
    assert sorted(plus.together(order)) == alone
