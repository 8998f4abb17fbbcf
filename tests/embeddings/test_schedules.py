import itertools
import math

import pytest

from embeddings.schedules import Schedule


def test_a_schedule_rises_falls_and_stays():
    schedule = Schedule(warmup_steps=4, decay="linear", floor=0.5)
    factors = [schedule.factor(step, 8) for step in range(10)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    cosine = [Schedule(decay="cosine").factor(step, 4) for step in range(5)]
    assert cosine == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0])
    assert [Schedule(warmup_steps=2).factor(step, None) for step in (0, 1, 2, 10**9)] == [0.5, 1, 1, 1]
    assert Schedule().factor(0, None) == 1


def test_every_schedule_stays_between_its_floor_and_one():
    for warmup, decay, floor, total in itertools.product((0, 1, 7), ("linear", "cosine"), (0.0, 0.3), (8, 1000)):
        schedule = Schedule(warmup_steps=warmup, decay=decay, floor=floor)
        factors = [schedule.factor(step, total) for step in range(total + 3)]
        assert all(0 <= factor <= 1 for factor in factors)
        after = factors[warmup:]
        assert after == sorted(after, reverse=True)
        assert factors[total] == pytest.approx(floor, abs=1e-12)
