"""One global order for any number of workers."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import DataError, SpecError
from orchestrator.training.order import EvaluationOrder, TrainOrder, accumulation_steps, check_fits, mirrored


def steps(num_images: int, batch_size: int, accumulation: int, world_size: int, start: int = 0):
    """For every step, the micro-batches of all workers."""
    workers = [
        list(TrainOrder(num_images, batch_size, accumulation, 2, seed=3, rank=r, world_size=world_size, start=start))
        for r in range(world_size)
    ]
    count = len(workers[0]) // accumulation
    return [[w[s * accumulation + k] for k in range(accumulation) for w in workers] for s in range(count)]


@given(pieces=st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 2), (2, 3), (4, 3), (12, 1)]), spare=st.integers(0, 23))
def test_a_step_takes_the_same_images_however_it_is_shared(pieces, spare):
    whole = steps(72 + spare, 24, 1, 1)
    shared = steps(72 + spare, 24, *pieces)
    assert len(shared) == len(whole) == 6
    for a, b in zip(whole, shared, strict=True):
        assert sorted(chain(*a)) == sorted(chain(*b))
        assert len({len(micro_batch) for micro_batch in b}) == 1


def test_mixing_pairs_do_not_depend_on_the_sharing():
    def pairs(step):
        return {frozenset(pair) for batch in step for pair in zip(batch, reversed(batch), strict=True)}

    whole = steps(48, 24, 1, 1)
    for accumulation, world_size in [(1, 2), (3, 2), (4, 3)]:
        shared = steps(48, 24, accumulation, world_size)
        assert [pairs(s) for s in shared] == [pairs(s) for s in whole]
    assert mirrored([0, 1, 2, 3]) == [0, 2, 3, 1]
    assert sorted(mirrored([0, 1, 2])) == [0, 1, 2]


def test_epochs_are_complete_and_differ():
    first, second = steps(24, 8, 1, 1)[:3], steps(24, 8, 1, 1)[3:]
    seen = [[i for step in epoch for _, i in step[0]] for epoch in (first, second)]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(24))
    assert seen[0] != seen[1]
    assert {e for step in second for e, _ in step[0]} == {1}
    assert steps(24, 8, 1, 1, start=4) == steps(24, 8, 1, 1)[4:]


@given(num_images=st.integers(0, 50), batch_size=st.integers(1, 9), world_size=st.integers(1, 5))
def test_validation_sees_every_image_once(num_images, batch_size, world_size):
    orders = [EvaluationOrder(num_images, batch_size, r, world_size) for r in range(world_size)]
    batches = [list(order) for order in orders]
    assert sorted(i for worker in batches for batch in worker for _, i in batch) == list(range(num_images))
    assert [len(b) for b in batches] == [len(order) for order in orders]


def test_accumulation():
    assert accumulation_steps(64, None, 1, False) == 1
    assert accumulation_steps(64, None, 4, True) == 1
    assert accumulation_steps(64, 8, 2, True) == 4
    with pytest.raises(SpecError, match="multiple of 24"):
        accumulation_steps(64, 8, 3, False)
    with pytest.raises(SpecError, match="multiple of 8"):
        accumulation_steps(4, None, 8, False)
    with pytest.raises(SpecError, match="3 is odd"):
        accumulation_steps(6, 3, 2, True)
    with pytest.raises(DataError, match="lower it to 5"):
        check_fits(5, 6)
