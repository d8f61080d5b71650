"""Global batches: under the budget, in order, nothing lost, and the same from any place and for any number of
processes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ace.training.config import TrainingStage
from ace.training.stream import CHUNK, GlobalBatch, choose, deal, global_batches, own_numbers
from tests.training.toy import Numbers

TOKENS = TrainingStage("a", lr=1.0, batch_tokens=24, steps=10)
COUNT = TrainingStage("a", lr=1.0, batch_size=6, steps=10)


@dataclass
class Alone:
    """What the stream asks of accelerate in a run of one process."""

    num_processes: int = 1
    process_index: int = 0
    device: str = "cpu"


def batches(stage: TrainingStage, count: int, position: int = 0, dataset: Numbers | None = None) -> list[GlobalBatch]:
    stream = global_batches(dataset or Numbers(), stage, position, 0, Alone())  # type: ignore[arg-type]
    return list(itertools.islice(stream, count))


def numbers(batch: GlobalBatch) -> list[int]:
    return [item.number for part in batch.parts for item in part]


def test_a_budget_is_never_exceeded_and_no_sample_lost():
    found = batches(TOKENS, 20)
    assert all(sum(i.tokens for part in b.parts for i in part) == b.tokens <= 24 for b in found)
    assert all(b.tokens > 24 - 5 for b in found), "no sample has more than five tokens, so no gap is larger"
    assert list(itertools.chain(*map(numbers, found))) == list(range(found[-1].position))


def test_a_stream_goes_on_from_any_batch_as_if_it_had_never_stopped():
    for stage in (TOKENS, COUNT):
        whole = batches(stage, 12)
        for stop in (1, 5, 11):
            again = batches(stage, 12 - stop, whole[stop - 1].position)
            assert [numbers(b) for b in again] == [numbers(b) for b in whole[stop:]]


def test_pieces_keep_to_their_own_budget():
    found = batches(TrainingStage("a", lr=1.0, batch_tokens=24, steps=1, micro_tokens=7), 10)
    assert all(len(part) == 1 or sum(item.tokens for item in part) <= 7 for b in found for part in b.parts)
    assert [numbers(b) for b in found] == [numbers(b) for b in batches(TOKENS, 10)]


def test_broken_samples_are_replaced_by_the_next_ones():
    found = batches(COUNT, 3, dataset=Numbers(broken=(2, 3, 9)))
    assert [numbers(b) for b in found] == [[0, 1, 4, 5, 6, 7], [8, 10, 11, 12, 13, 14], [15, 16, 17, 18, 19, 20]]
    assert [[s.number for s in b.skipped] for b in found] == [[2, 3], [9], []]


def test_a_sample_larger_than_the_whole_batch_is_left_out_by_name():
    (batch,) = batches(TrainingStage("a", lr=1.0, batch_tokens=4, steps=1), 1)
    later = batches(TrainingStage("a", lr=1.0, batch_tokens=4, steps=1), 12)
    assert batch.tokens <= 4
    assert any("5 tokens, the whole batch has 4" in s.reason for b in later for s in b.skipped)


LENGTHS = [(number, (3, 5, 1, 0, 4, 2, 9, 2, 2)[number % 9]) for number in range(90)]  # 0: could not be made


def test_choosing_by_tokens_takes_the_longest_run_that_fits_and_leaves_out_what_never_fits():
    stage = TrainingStage("a", lr=1.0, batch_tokens=8, steps=1)
    first, second, third = itertools.islice(choose(iter(LENGTHS), stage), 3)
    assert (first.chosen, first.missed, first.position) == (((0, 3), (1, 5)), (), 2)
    assert (second.chosen, second.missed, second.position) == (((2, 1), (4, 4), (5, 2)), ((3, 0),), 6)
    assert (third.chosen[0], third.missed) == ((7, 2), ((6, 9),))


def test_choosing_by_count_reads_no_sample_that_the_batch_does_not_need():
    stage = TrainingStage("a", lr=1.0, batch_size=3, steps=1)
    lengths = iter(LENGTHS)
    choice = next(choose(lengths, stage))
    assert [number for number, _ in choice.chosen] == [0, 1, 2]
    assert next(lengths) == LENGTHS[3]


def test_choosing_goes_on_from_any_position_as_if_it_had_never_stopped():
    for stage in (
        TrainingStage("a", lr=1.0, batch_tokens=8, steps=1),
        TrainingStage("a", lr=1.0, batch_size=4, steps=1),
    ):
        whole = list(itertools.islice(choose(iter(LENGTHS), stage), 10))
        for number, choice in enumerate(whole[:-1], 1):
            assert next(choose(iter(LENGTHS[choice.position :]), stage)) == whole[number]


def test_every_process_gets_its_own_samples_in_as_many_pieces_as_the_others():
    choice = next(choose(iter(LENGTHS), TrainingStage("a", lr=1.0, batch_tokens=17, steps=1)))
    for processes in (1, 2, 3, 8):
        dealt = deal(choice, processes, micro_tokens=5)
        assert len({len(own) for own in dealt}) == 1
        counts = [sum(number % processes == rank for number, _ in choice.chosen) for rank in range(processes)]
        assert [sum(own) for own in dealt] == counts


def test_the_processes_together_make_every_sample_once_from_any_position():
    for processes, position in ((1, 0), (3, 7), (4, 16)):
        made = [next(own_numbers(position, rank, processes)) for rank in range(processes)]
        assert sorted(itertools.chain(*made)) == list(range(position, position + processes * CHUNK))
        assert all(number % processes == rank for rank, own in enumerate(made) for number in own)
