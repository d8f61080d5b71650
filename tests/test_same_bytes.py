"""The promise: one request, the same bytes, alone or in any company, and made again from its session.

Messages of all kinds, drawn from a seed and opened as every door opens them, are made in five ways: alone, in pairs,
with up to 16 at once that join and leave at any step as in the server's engine, beside neighbours that are cancelled
half way, and in one list after their session was opened again. Latents and PNG files, recipe included, are compared
byte by byte; then `ace replay` makes each again. The engine itself: `server/test_engine.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ace.cli import app
from ace.conditions.images import open_bytes
from ace.conversation import ChatSession, Job, Made, Mask, Message, Picture, Session, Settings, keep, open_message
from ace.conversation.family import Answer
from ace.conversation.recipe import encode
from ace.conversation.run import conclude
from ace.diffusion import seeded_generator
from ace.families.ace import AceFamily
from ace.inference.accelerate import FAST, fast_by_name
from ace.plus.canvas import Reference
from ace.plus.pipeline import ACEPlusPipeline, PlusRequest
from ace.weights.sources import find_model, load_pipeline
from tests.random_flux import SMALL_FFT, random_plus
from tests.random_models import TINY_LIKE, random_pipeline

WORDS = ("a red apple", "make it blue", "add a hat to the cat", "remove the background, keep all else as it is")


def picture(draw: random.Random, sides: Sequence[int] = (24, 40, 64, 90, 128)) -> Image.Image:
    width, height = draw.choice(sides), draw.choice(sides)
    cells = np.random.default_rng(draw.randrange(2**31)).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def half_mask(draw: random.Random, image: Image.Image) -> Image.Image:
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (0, 0, draw.randint(1, image.width), draw.randint(1, image.height)))
    return mask


def attached(image: Image.Image, name: str) -> Picture:
    return Picture.of_image(open_bytes(encode(image, "PNG")), name)


def draw_message(number: int, nodes: Sequence[str], side_px: int) -> tuple[Message, str | None]:
    """Any kind of message and the node that it follows: images, masks, rounds, sizes, guidance, at most 4 steps.

    side_px: of the model's pictures; most are smaller here, which is quicker."""
    draw = random.Random(number)
    start = draw.choice((None, None, *nodes))
    photos = [picture(draw) for _ in range(draw.choice((0, 0, 1, 2, 3)))]
    names = [f"like {{image{n or ''}}}" for n in range(len(photos))] if start is None else []
    mask = half_mask(draw, photos[0]) if photos and draw.random() < 0.5 else None
    settings = Settings(
        seed=number,
        num_inference_steps=draw.choice((1, 1, 1, 2, 2, 3, 4)),
        guidance_scale=draw.choice((None, 1.0, 2.5)),
        guidance_rescale=draw.choice((None, 0.0)),
        negative_instruction=draw.choice(("", "", "dark and blurred")),
        size=draw.choice((None, *((side_px * w // 4, side_px * h // 4) for w, h in ((2, 2), (2, 3), (3, 2), (4, 1))))),
    )
    message = Message(
        " and ".join([*draw.sample(WORDS, draw.randint(1, len(WORDS))), *names]),
        settings,
        attached(photos[0], "photo") if photos else None,
        tuple(attached(photo, f"reference{n}") for n, photo in enumerate(photos[1:])),
        None if mask is None else Mask(mask),
        max_history=draw.choice((0, 1, 5)),
    )
    return message, start


Content = tuple[bytes, bytes]


def content(made: Made) -> Content:
    """The bytes that must not change."""
    latents = b"" if made.latents is None else made.latents.tobytes()  # merged answers go on from themselves
    return latents, encode(made.image, "PNG", made.recipe)


Way = Callable[["Small", list[int]], Iterable[tuple[int, Content]]]


@dataclass
class Small:
    """A small model in one precision, a session with some conversations, and every request as it is made alone."""

    family: AceFamily
    session: Session
    talks: Sequence[str]
    jobs: dict[int, Job] = field(default_factory=dict)
    alone: dict[int, Made] = field(default_factory=dict)
    kept: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str, dtype: str, folder: Path) -> Small:
        """With a conversation of three rounds and one that begins with a photo and a mask."""
        files = find_model(model)
        pipeline = load_pipeline(files, device="cpu", dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        small = cls(AceFamily(files, pipeline), Session.create(folder), ("0001", "0002", "0003", "0004"))
        photo = picture(random.Random(0))
        quick = Settings(seed=0, num_inference_steps=1)
        masked = Message(WORDS[1], quick, attached(photo, "photo"), mask=Mask(half_mask(random.Random(0), photo)))
        chat = ChatSession(small.session, small.family)
        for message, start in (
            *((Message(text, quick), start) for text, start in zip(WORDS, (None, "0001", "0002"), strict=False)),
            (masked, None),
        ):
            assert list(chat.ask(message, start))
        return small

    def job(self, number: int) -> Job:
        if number not in self.jobs:
            message, start = draw_message(number, self.talks, self.family.model.side_px)
            self.jobs[number] = open_message(self.family, message, self.session, start)
        return self.jobs[number]

    def keep(self, number: int) -> str:
        """The node of the session that the answer is."""
        if number not in self.kept:
            self.kept[number] = keep(self.session, self.alone[number]).id
        return self.kept[number]

    def answers(self, jobs: Sequence[Job]) -> list[Answer]:
        """The model's own, all of them in one list."""
        states = self.family.prepare(jobs)
        while running := [state for state in states if not state.done]:
            self.family.step(running)
        return self.family.finish(states)

    def make(self, jobs: Sequence[Job]) -> list[Made]:
        """All of them in one list."""
        return [conclude(self.family, *pair) for pair in zip(jobs, self.answers(jobs), strict=True)]

    def joining(self, numbers: Sequence[int], leaving: bool) -> Iterator[tuple[int, Content]]:
        """As the server's engine: one joins before every step, up to 16 at once, finished ones leave.

        leaving: every other one brings a neighbour that is cancelled after one or two steps."""
        waiting, running, passing = list(numbers), {}, []
        while waiting or running:
            if waiting and len(running) < 16:
                job = self.job(number := waiting.pop(0))
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
        yield from zip(pair, map(content, small.make([small.job(number) for number in pair])), strict=True)


def in_one_list_after_a_restart(small: Small, order: list[int]) -> Iterator[tuple[int, Content]]:
    chat = ChatSession(Session.open(small.session.folder), small.family)
    jobs = [chat.reopened(small.keep(number)) for number in order]
    yield from zip(order, map(content, small.make(jobs)), strict=True)


def joining_and_leaving(small: Small, order: list[int]) -> Iterator[tuple[int, Content]]:
    return small.joining(order, leaving=False)


def beside_cancelled_ones(small: Small, order: list[int]) -> Iterator[tuple[int, Content]]:
    return small.joining(order, leaving=True)


WAYS: tuple[Way, ...] = (in_pairs, joining_and_leaving, beside_cancelled_ones, in_one_list_after_a_restart)


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "random"
    random_pipeline(TINY_LIKE, num_inference_steps=2).save_pretrained(folder)
    return str(folder)


# without instructions for bfloat16 a processor takes ten times as long for it
IN_BFLOAT16 = () if torch.ops.mkldnn._is_mkldnn_bf16_supported() else pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("ace-tiny", "float32"), id="ace-tiny-float32"),
        pytest.param(("random", "bfloat16"), id="random-bfloat16"),
        pytest.param(("ace-tiny", "bfloat16"), id="ace-tiny-bfloat16", marks=IN_BFLOAT16),
    ],
)
def small(request, random_folder, tmp_path_factory) -> Small:
    model, dtype = request.param
    return Small.of(random_folder if model == "random" else model, dtype, tmp_path_factory.mktemp("talk") / "talk")


def make_alone(small: Small, numbers: Iterable[int]) -> None:
    for number in numbers:
        if number not in small.alone:
            (small.alone[number],) = small.make([small.job(number)])
    assert len({made.image.tobytes() for made in small.alone.values()}) == len(small.alone)


def check(small: Small, numbers: Sequence[int], way: Way) -> None:
    make_alone(small, numbers)
    compared = set()
    for number, made in way(small, random.Random(len(numbers)).sample(numbers, len(numbers))):
        latents, file = content(small.alone[number])
        assert made[0] == latents, f"the latents of request {number} differ"
        assert made[1] == file, f"the file of request {number} differs"
        compared.add(number)
    assert compared == set(numbers)


def check_replay(small: Small, numbers: Sequence[int]) -> None:
    """`ace replay SESSION` of all that was made, in a family of its own that is loaded anew."""
    make_alone(small, numbers)
    for number in numbers:
        small.keep(number)
    dtype = str(small.family.pipeline.transformer.dtype).removeprefix("torch.")
    settings = ("--model", str(small.family.model.folder), "--device", "cpu", "--dtype", dtype)
    replayed = CliRunner().invoke(app, ["replay", str(small.session.folder), "--json", *settings], prog_name="ace")
    rows = json.loads(replayed.stdout)
    assert [row for row in rows if not row["same_bytes"]] == []
    assert {row["node"] for row in rows} == {*small.talks, *small.kept.values()}
    assert replayed.exit_code == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_request_gives_the_same_bytes_in_any_company(small, way):
    check(small, range(24), way)


def test_every_request_is_made_again_from_its_session(small):
    check_replay(small, range(24))


IN_BOTH = pytest.mark.parametrize(
    "small", [("ace-tiny", "float32"), ("random", "bfloat16")], indirect=True, ids="-".join
)


@pytest.mark.slow
@IN_BOTH
@pytest.mark.parametrize("hundred", range(5))
def test_500_requests_give_the_same_bytes_in_any_company(small, hundred):
    for way in WAYS:
        check(small, range(100 * hundred, 100 * (hundred + 1)), way)


@pytest.mark.slow
@IN_BOTH
def test_500_requests_are_made_again_from_their_session(small):
    check_replay(small, range(500))


@pytest.mark.parametrize("name", FAST)
def test_accelerated_requests_too(small, name):
    small.family.pipeline.fast = fast_by_name(name)
    try:
        jobs = [small.job(number) for number in range(3)]
        alone = [content(*small.make([job])) for job in jobs]
        assert [content(made) for made in small.make(jobs)] == alone
    finally:
        small.family.pipeline.fast = None


def test_without_exact_requests_share_their_passes_and_agree_up_to_rounding(small):
    jobs = [small.job(number) for number in range(4)]
    exact, rows, pipeline = small.answers(jobs), [], small.family.pipeline
    handle = pipeline.transformer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[1])))
    pipeline.exact = False
    try:
        packed = small.answers(jobs)
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


@pytest.mark.parametrize(
    ("count", "dtype"),
    [
        (24, "float32"),
        (12, "bfloat16"),
        pytest.param(500, "float32", marks=pytest.mark.slow),
        pytest.param(500, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_ace_plus_requests_give_the_same_bytes_in_any_company(count, dtype):
    plus = Plus(random_plus(SMALL_FFT).to(getattr(torch, dtype)))
    alone = [made for number in range(count) for made in plus.together([number])]
    assert len({latents for _, latents, _ in alone}) == count
    order = random.Random(count).sample(range(count), count)
    pairs = [made for first in range(0, count, 2) for made in plus.together(order[first : first + 2])]
    assert sorted(pairs) == alone
    assert plus.joining(order, leave=False) == alone
    assert plus.joining(order, leave=True) == alone
    assert sorted(plus.together(order)) == alone
