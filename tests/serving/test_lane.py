"""The lane to the model, with work of a known length: order, batches, deadlines, overload and recovery, shadows."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from serving.lane import Config, Lane, Overloaded, TooLate

MS = 0.001


def config(**values: float) -> Config:
    return Config.model_validate({"deadline_ms": 10_000, "wait_ms": 10_000, **values})


class Work:
    """Sleeps, and remembers what was asked together."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []

    def __call__(self, arguments: Sequence[int]) -> list[int]:
        self.batches.append(list(arguments))
        if -1 in arguments:
            raise ValueError("a negative one")
        time.sleep(self.seconds)
        return [10 * argument for argument in arguments]


@pytest.fixture
def lanes() -> Iterator[list[Lane]]:
    opened: list[Lane] = []
    yield opened
    for lane in opened:
        lane.close()


def in_time(seconds: float) -> float:
    return time.monotonic() + seconds


async def one_after_the_other(lane: Lane, work: Work, count: int, due: float) -> list[object]:
    """Requests that come while the first is answered."""
    asked = [asyncio.create_task(lane.run("work", work, 0, due))]
    await asyncio.sleep(work.seconds / 4)
    asked += [asyncio.create_task(lane.run("work", work, place, due)) for place in range(1, count)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return [answer if isinstance(answer, BaseException) else answer[0] for answer in answers]


def test_what_waits_is_answered_together_in_order_and_nobody_is_waited_for(lanes: list[Lane]) -> None:
    lanes.append(lane := Lane(config(batch=4)))
    work = Work(20 * MS)
    answers = asyncio.run(one_after_the_other(lane, work, 8, in_time(10)))
    assert answers == [0, 10, 20, 30, 40, 50, 60, 70]
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_one_that_is_wrong_does_not_spoil_those_beside_it(lanes: list[Lane]) -> None:
    lanes.append(lane := Lane(config(batch=3)))
    work = Work(20 * MS)

    async def ask() -> list[object]:
        asked = [asyncio.create_task(lane.run("work", work, 0, in_time(10)))]
        await asyncio.sleep(5 * MS)
        asked += [asyncio.create_task(lane.run("work", work, place, in_time(10))) for place in (1, -1, 2)]
        return await asyncio.gather(*asked, return_exceptions=True)

    _, first, wrong, second = asyncio.run(ask())
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert (first[0], second[0]) == (10, 20)
    assert isinstance(wrong, ValueError)


def test_one_whose_deadline_passes_is_told_then_and_is_not_computed(lanes: list[Lane]) -> None:
    lanes.append(lane := Lane(config(batch=1)))
    work = Work(200 * MS)

    async def ask() -> tuple[float, Exception | None]:
        first = asyncio.create_task(lane.run("work", work, 0, in_time(10)))
        await asyncio.sleep(10 * MS)
        began = time.monotonic()
        with pytest.raises(TooLate):
            await lane.run("work", work, 1, in_time(40 * MS))
        waited = time.monotonic() - began
        await first
        return waited, None

    waited, _ = asyncio.run(ask())
    assert 30 * MS < waited < 150 * MS
    assert work.batches == [[0]]


def test_more_than_can_be_answered_soon_is_refused_at_once_and_later_all_is_well_again(lanes: list[Lane]) -> None:
    lanes.append(lane := Lane(config(batch=1, wait_ms=100)))
    work = Work(20 * MS)

    async def ask() -> None:
        for _ in range(5):  # So that the lane knows what one takes.
            await lane.run("work", work, 0, in_time(10))
        began = time.monotonic()
        tasks = [asyncio.create_task(lane.run("work", work, place, in_time(10))) for place in range(50)]
        await asyncio.sleep(10 * MS)
        refused = [task.exception() for task in tasks if task.done() and task.exception()]
        assert time.monotonic() - began < 90 * MS
        assert 40 <= len(refused) <= 47
        assert all(isinstance(error, Overloaded) and error.retry_after_s > 0.09 for error in refused)
        waits = [answer[1] for answer in await asyncio.gather(*tasks, return_exceptions=True) if type(answer) is tuple]
        assert max(waits) < 200 * MS
        assert lane.depth().waiting == 0
        assert (await lane.run("work", work, 7, in_time(10)))[0] == 70

    asyncio.run(ask())


def test_work_that_never_seems_to_end_refuses_others_until_it_does(lanes: list[Lane]) -> None:
    lanes.append(lane := Lane(config(batch=1, wait_ms=50)))
    release = threading.Event()

    def stuck() -> str:
        release.wait(10)
        return "done"

    async def ask() -> None:
        for _ in range(3):
            await lane.call("read", lambda: None, in_time(10))
        first = asyncio.create_task(lane.call("read", stuck, in_time(10)))
        await asyncio.sleep(120 * MS)
        with pytest.raises(Overloaded):
            await lane.call("read", lambda: None, in_time(10))
        release.set()
        assert await first == "done"
        assert await lane.call("read", lambda: "again", in_time(10)) == "again"

    asyncio.run(ask())


def test_shadows_wait_until_nobody_else_does_and_are_dropped_first(lanes: list[Lane]) -> None:
    lanes.append(lane := Lane(config(batch=1, shadows=2)))
    work, seen = Work(20 * MS), list[str]()

    async def ask() -> list[bool]:
        first = asyncio.create_task(lane.run("work", work, 0, in_time(10)))
        await asyncio.sleep(5 * MS)
        taken = [lane.later(lambda: seen.append(f"shadow after {len(work.batches)}")) for _ in range(3)]
        await asyncio.gather(first, *(lane.run("work", work, place, in_time(10)) for place in range(1, 4)))
        await asyncio.sleep(20 * MS)
        return taken

    assert asyncio.run(ask()) == [True, True, False]
    assert seen == ["shadow after 4"] * 2


def test_the_event_loop_is_free_while_the_lane_works(lanes: list[Lane]) -> None:
    lanes.append(lane := Lane(config()))

    async def ask() -> float:
        slow = asyncio.create_task(lane.call("work", lambda: time.sleep(200 * MS), in_time(10)))
        await asyncio.sleep(10 * MS)
        began = time.monotonic()
        lane.depth()
        await asyncio.sleep(0)
        waited = time.monotonic() - began
        await slow
        return waited

    assert asyncio.run(ask()) < 50 * MS
