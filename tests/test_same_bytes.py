"""The promise: one request, the same bytes, alone or in any company.

Requests of all kinds, drawn from a seed, are made in five ways: alone, in pairs, by the server's engine with up to 16
at once that join and leave at any step, beside neighbours that are cancelled half way, and in one list. Latents and PNG
files are compared byte by byte.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.conversation.edit import Job, Made, Settings, make
from ace.conversation.recipe import encode
from ace.diffusion import seeded_generator
from ace.errors import StoppedError
from ace.inference.accelerate import FAST, fast_by_name
from ace.inference.pipeline import ACEPipeline
from ace.plus.canvas import Reference
from ace.plus.pipeline import ACEPlusPipeline, PlusRequest
from ace.server.engine import Engine
from ace.server.settings import Limits
from ace.weights.sources import find_model, load_pipeline
from tests.random_flux import SMALL_FFT, random_plus

MODEL = find_model("ace-tiny")
WORDS = ("a red apple", "make it blue", "add a hat to the cat", "remove the background, keep all else as it is")
PATIENCE_S = 900


def picture(draw: random.Random, sides: Sequence[int] = (24, 40, 64, 90, 128)) -> Image.Image:
    width, height = draw.choice(sides), draw.choice(sides)
    cells = np.random.default_rng(draw.randrange(2**31)).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def half_mask(draw: random.Random, image: Image.Image) -> Image.Image:
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (0, 0, draw.randint(1, image.width), draw.randint(1, image.height)))
    return mask


def draw_job(number: int) -> Job:
    """Any kind of request: no to three images, masks, rounds before it with and without kept latents, sizes, guidance."""
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


def content(made: Made) -> tuple[bytes, bytes]:
    """The bytes that must not change."""
    assert made.latents is not None
    return made.latents.tobytes(), encode(made.image, "PNG")


@dataclass
class Small:
    """The small model in one precision, with every job's own bytes as made alone."""

    pipeline: ACEPipeline
    alone: dict[int, tuple[bytes, bytes]]

    def make(self, numbers: Sequence[int]) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
        made = make(self.pipeline, MODEL, [draw_job(number) for number in numbers])
        yield from zip(numbers, map(content, made), strict=True)


def in_pairs(small: Small, order: list[int]) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    for first in range(0, len(order), 2):
        yield from small.make(order[first : first + 2])


def in_lists(small: Small, order: list[int]) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    for first in range(0, len(order), 100):
        yield from small.make(order[first : first + 100])


def by_the_engine(
    small: Small, order: list[int], cancelling: bool = False
) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    """Up to 16 at once. cancelling: beside as many neighbours, each of them cancelled after one of its steps."""
    limits = Limits(max_running=16, max_waiting=4 * len(order), max_waiting_per_client=4 * len(order))
    engine = Engine(small.pipeline, MODEL, limits)
    engine.start()
    tickets, victims = [], []
    try:
        for number in order:
            if cancelling:
                victim = Job(draw_job(number).unit, Settings(seed=1, num_inference_steps=4))
                own: list = []
                own += engine.submit(
                    [victim], "leaves", num_previews=1, on_preview=lambda *_, own=own: engine.cancel(own)
                )
                victims += own
            tickets.append((number, engine.submit([draw_job(number)], f"client {number % 3}")[0]))
        for number, ticket in tickets:
            yield number, content(ticket.result.result(timeout=PATIENCE_S))
        assert max(ticket.most_together for _, ticket in tickets) > 1
        for victim in victims:
            with pytest.raises(StoppedError, match="cancelled after"):
                victim.result.result(timeout=PATIENCE_S)
    finally:
        engine.stop()


def beside_cancelled_ones(small: Small, order: list[int]) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    yield from by_the_engine(small, order, cancelling=True)


WAYS: tuple[Callable[[Small, list[int]], Iterator[tuple[int, tuple[bytes, bytes]]]], ...] = (
    in_pairs,
    by_the_engine,
    beside_cancelled_ones,
    in_lists,
)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def small(request) -> Small:
    pipeline = load_pipeline(MODEL, device="cpu", dtype=request.param)
    pipeline.set_progress_bar_config(disable=True)
    return Small(pipeline, {})


def check(small: Small, count: int, way: Callable[[Small, list[int]], Iterator]) -> None:
    for number in range(count):
        if number not in small.alone:
            small.alone.update(small.make([number]))
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
    small.pipeline.fast = fast_by_name(name)
    try:
        alone = [made for number in range(4) for made in small.make([number])]
        assert list(small.make(range(4))) == alone
    finally:
        small.pipeline.fast = None


def test_without_exact_requests_share_their_passes_and_agree_up_to_rounding(small):
    jobs = [draw_job(number) for number in range(4)]
    exact = make(small.pipeline, MODEL, jobs)
    rows = []
    handle = small.pipeline.transformer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[1])))
    small.pipeline.exact = False
    try:
        packed = make(small.pipeline, MODEL, jobs)
    finally:
        small.pipeline.exact = None
        handle.remove()
    assert rows[0] == 4
    tolerance = 1e-4 if small.pipeline.dtype == torch.float32 else 0.2
    for ours, other in zip(packed, exact, strict=True):
        assert np.abs(ours.latents - other.latents).max() <= tolerance * np.abs(other.latents).max()
    assert all("batch_size" not in made.recipe.settings for made in exact)
    assert all(made.recipe.settings["batch_size"] == 4 for made in packed)


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
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
