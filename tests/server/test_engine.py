"""The engine: who is stepped with whom, and that it makes no difference to anybody."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
from PIL import Image

from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.conversation.edit import Job, Settings, prepare_jobs
from ace.errors import BusyError, ConfigError, ShapeError, StoppedError
from ace.server.engine import Engine
from ace.server.line import FairLine, estimate
from ace.server.settings import Limits
from tests.server.running import picture, random_engine, wait_until


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = random_engine()
    engine.start()
    yield engine
    engine.stop()


def words(text: str = "a red apple", *, steps: int = 4, seed: int = 0, **settings: object) -> Job:
    unit = LongContextConditionUnit(ConditionUnit(text))
    return Job(unit, Settings(seed=seed, num_inference_steps=steps, **settings))


def mixed_jobs() -> list[Job]:
    """All kinds: sizes, 0 to 3 images, a mask, history, guidance on and off, steps."""
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 30, 40))
    photos = [picture(seed=1), picture(48, 64, seed=2), picture(64, 32, seed=3)]
    edit = ConditionUnit("make it blue", (photos[0],), (mask,))
    several = ConditionUnit("put {image1} beside {image2} in {image}", tuple(photos))
    first = Turn(ConditionUnit("a cat", (photos[1],)), photos[0])
    talk = LongContextConditionUnit(ConditionUnit("and a hat"), (first, Turn(ConditionUnit("bigger"), photos[2])))
    settings = Settings(seed=5, num_inference_steps=3)
    return [
        words("a cat", steps=5, seed=1, guidance_scale=1.0),
        words("a dog, small", steps=2, seed=2, size=(32, 48)),
        Job(LongContextConditionUnit(edit), settings),
        Job(LongContextConditionUnit(several), Settings(seed=6, num_inference_steps=4, guidance_scale=6.0)),
        Job(talk, Settings(seed=7, num_inference_steps=6, negative_instruction="blurred")),
    ]


def latents_of(engine: Engine, job: Job) -> np.ndarray:
    (ticket,) = engine.submit([job], "somebody")
    latents = ticket.result.result(timeout=120).latents
    assert latents is not None
    return latents


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    assert one.tobytes() == other.tobytes()


def test_the_same_request_gives_the_same_latents_alone_and_in_any_mix(engine):
    jobs = mixed_jobs()
    alone = [latents_of(engine, job) for job in jobs]
    draw = random.Random(0)
    for _ in range(3):  # in any order, beside copies of themselves, joining whenever they are prepared
        order = [*draw.sample(range(len(jobs)), len(jobs)), draw.randrange(len(jobs))]
        tickets = [(n, engine.submit([jobs[n]], f"client {n}")[0]) for n in order]
        for number, ticket in tickets:
            assert_same(alone[number], ticket.result.result(timeout=120).latents)
        assert max(ticket.most_together for _, ticket in tickets) > 1


def test_a_short_request_joins_a_long_one_at_any_step_and_is_done_before_it(engine):
    long, short = words(steps=40, seed=3), words("a cat", steps=2, seed=4)
    alone = latents_of(engine, long), latents_of(engine, short)
    joined = []

    def join(*_: object) -> None:  # called by the engine's thread, between two steps of the long one
        joined.extend(engine.submit([short], "another"))

    (ticket,) = engine.submit([long], "somebody", num_previews=1, on_preview=join)
    together = ticket.result.result(timeout=120)
    assert joined[0].ended_at < ticket.ended_at and joined[0].most_together == 2
    assert_same(alone[0], together.latents)
    assert_same(alone[1], joined[0].result.result().latents)
    assert "batch_size" not in together.recipe.settings  # none shared a pass with it, so none could change it


def test_a_request_that_fails_inside_the_model_fails_alone(engine):
    wrong = Turn(ConditionUnit("a cat"), picture(), latents=np.zeros((7, 8, 8), dtype=np.float32))
    bad = Job(LongContextConditionUnit(ConditionUnit("a hat"), (wrong,)), Settings(seed=0, num_inference_steps=2))
    expected = latents_of(engine, words())
    good = [engine.submit([words()], "somebody")[0]]
    refused = engine.submit([bad], "somebody")[0]
    good.append(engine.submit([words()], "somebody")[0])
    with pytest.raises(ShapeError, match="channels"):
        refused.result.result(timeout=120)
    for ticket in good:
        assert_same(expected, ticket.result.result(timeout=120).latents)


def test_a_cancelled_request_leaves_before_the_next_step(engine):
    (ticket,) = engine.submit([words(steps=1000)], "somebody")
    wait_until(lambda: ticket.steps_done > 3)
    engine.cancel([ticket])
    done = ticket.steps_done
    with pytest.raises(StoppedError, match="cancelled"):
        ticket.result.result(timeout=120)
    assert ticket.steps_done <= done + 1 and ticket.status == "cancelled"
    wait_until(lambda: engine.num_running == 0)
    before = engine.num_steps
    latents_of(engine, words(steps=2))
    assert engine.num_steps == before + 2  # nothing else is stepped any more


def test_a_full_line_refuses_and_says_when_to_come_back():
    engine = random_engine(Limits(max_waiting=3, max_waiting_per_client=2, max_running=1))
    engine.start()
    gate = threading.Event()
    try:
        (running,) = engine.submit([words()], "first", num_previews=1, on_preview=lambda *_: gate.wait(120))
        wait_until(lambda: engine.num_waiting == 0)
        engine.submit([words(), words(seed=1)], "first")
        with pytest.raises(BusyError, match="of your pictures are waiting") as own:
            engine.submit([words()], "first")
        engine.submit([words()], "second")
        with pytest.raises(BusyError, match="busy") as shared:
            engine.submit([words()], "second")
        assert own.value.retry_after_s >= 1 and shared.value.retry_after_s >= 1
        with pytest.raises(ConfigError, match="several requests"):
            engine.submit([words()] * 3, "third")
        gate.set()
        running.result.result(timeout=120)
        wait_until(lambda: engine.num_waiting == 0)
        latents_of(engine, words())
    finally:
        gate.set()
        engine.stop()


def test_too_dear_a_request_is_refused_before_anything_runs():
    engine = random_engine(Limits(max_operations=1e12))
    with pytest.raises(ConfigError, match="fewer steps"):
        engine.submit([words(steps=1000, size=(640, 640))], "somebody")
    small = random_engine(Limits(max_running_bytes=1000))
    with pytest.raises(ConfigError, match="memory"):
        small.submit([words()], "somebody")


def test_a_request_without_room_in_memory_waits_until_there_is():
    probe = random_engine()
    engine = random_engine(Limits(max_running_bytes=int(estimate(words(), probe.pipeline).num_bytes * 2.5)))
    engine.start()
    tickets = [engine.submit([words(seed=n)], "somebody")[0] for n in range(6)]
    for ticket in tickets:
        ticket.result.result(timeout=120)
    assert max(ticket.most_together for ticket in tickets) == 2
    engine.stop()


def test_stopping_finishes_what_was_accepted_or_says_that_it_did_not():
    engine = random_engine()
    engine.start()
    quick = engine.submit([words()], "somebody")[0]
    engine.stop(timeout_s=60)
    assert quick.result.result(timeout=1).image.size == (64, 64)
    with pytest.raises(StoppedError, match="shutting down"):
        engine.submit([words()], "somebody")

    engine = random_engine(Limits(max_running=1))
    engine.start()
    long, waiting = (engine.submit([words(steps=1000)], "somebody")[0] for _ in range(2))
    wait_until(lambda: long.steps_done > 1)
    engine.stop()
    for ticket in (long, waiting):
        with pytest.raises(StoppedError, match="stopped before"):
            ticket.result.result(timeout=1)


def test_the_time_left_is_told(engine):
    told = []
    (ticket,) = engine.submit(
        [words(steps=30)], "somebody", num_previews=3, on_preview=lambda *_: told.append(engine.eta_s(ticket))
    )
    ticket.result.result(timeout=120)
    assert len(told) == 3 and min(told) > 0
    assert engine.eta_s(ticket) == 0


def test_the_estimate_counts_the_tokens_that_are_computed(engine):
    for job in mixed_jobs():
        cost = estimate(job, engine.pipeline)
        (state,) = prepare_jobs(engine.pipeline, [job])
        side = engine.pipeline.geometry.cell_px
        target = (state.inputs.size[0] // side) * (state.inputs.size[1] // side)
        shown = sum(frame.shape[1] // side * (frame.shape[2] // side) for frame in state.inputs.frames)
        assert (cost.num_target_tokens, cost.image_tokens) == (target, shown)
        assert cost.num_steps == state.num_steps and cost.num_branches == len(state.branches)


# The line


def test_clients_take_turns_by_work_and_not_by_requests():
    line: FairLine[str] = FairLine()
    for number in range(6):
        line.put(f"busy {number}", "busy", 10)
    line.put("dear", "other", 30)
    line.put("dear too", "other", 30)
    order = [line.take() for _ in range(len(line))]
    assert order == ["busy 0", "dear", "busy 1", "busy 2", "busy 3", "dear too", "busy 4", "busy 5"]


def test_a_client_that_paused_gets_no_credit_for_it():
    line: FairLine[str] = FairLine()
    for number in range(10):
        line.put(f"busy {number}", "busy", 10)
    for _ in range(5):
        line.take()
    for number in range(3):
        line.put(f"late {number}", "late", 10)
    assert [line.take() for _ in range(4)] == ["late 0", "busy 5", "late 1", "busy 6"]


def test_whoever_leaves_the_line_is_gone():
    line: FairLine[str] = FairLine()
    line.put("one", "a", 1)
    assert line.leave("one") and not line.leave("one") and line.first() is None
    with pytest.raises(IndexError, match="nobody"):
        line.take()
