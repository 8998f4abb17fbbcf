"""The lane to the model: one thread answers what waits, in order, and says no early where that would take too long.

A `Recommender` is not thread-safe, and a request is a few milliseconds of computing: a second thread would only make
both slower. The event loop stays free for refusals, health and metrics. What is found waiting is answered together
where that is faster for everybody: see `Config.batch`.
"""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from features.settings import Settings


class Config(Settings):
    """The section [serve.lane]."""

    deadline_ms: float = Field(default=200.0, gt=0)
    """A request that was not answered by then gets what is popular; the header X-Deadline-Ms lowers it."""
    wait_ms: float = Field(default=50.0, gt=0)
    """A request that would wait longer for the model is refused with 503: those that are accepted stay fast."""
    batch: int = Field(default=4, ge=1)
    """The most feeds that are computed together, of those that wait: most of what a call costs is the same for any
    number. Nobody is waited for. 1: one by one."""
    shadows: int = Field(default=16, ge=0)
    """The most shadow requests that wait for a moment without others; further ones are dropped."""


class Overloaded(Exception):
    """The lane would take too long."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"{retry_after_s:.3f} s of work are waiting")
        self.retry_after_s = retry_after_s


class TooLate(Exception):
    """The deadline has passed, or would before the answer."""


@dataclass(eq=False)
class _Job:
    kind: str
    together: Callable[[Sequence[Any]], Sequence[Any]]
    argument: Any
    due: float
    """When the answer is worth nothing any more, by the monotonic clock, s."""
    entered: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[tuple[Any, float]]


@dataclass
class Depth:
    """What the lane is like now."""

    waiting: int
    wait_s: float
    """How long a request that comes now would wait."""


@dataclass
class _State:
    waiting: deque[_Job] = field(default_factory=deque["_Job"])
    kinds: Counter[str] = field(default_factory=Counter[str])
    shadows: deque[Callable[[], None]] = field(default_factory=deque[Callable[[], None]])
    running: tuple[float, float] | None = None
    """When what runs now began, and how long it is expected to take, s."""
    closed: bool = False


class Lane:
    """A queue of bounded time, and the thread that empties it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._state = _State()
        self._cost_s: dict[str, float] = {}
        """By kind: how long one takes; a moving average."""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="lane", daemon=True)
        self._thread.start()

    async def run(
        self, kind: str, together: Callable[[Sequence[Any]], Sequence[Any]], argument: Any, due: float
    ) -> tuple[Any, float]:
        """Wait for the turn of `argument`, and for its answer.

        Args:
            kind: what work it is, for the estimate of its time.
            together: answers several arguments at once, in their order; jobs that have the same one may share a call.
            argument: what is asked.
            due: deadline by the monotonic clock, s.

        Returns:
            The answer, and how long it waited, s.

        Raises:
            Overloaded: too much is waiting.
            TooLate: the deadline would pass before the answer.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        job = _Job(kind, together, argument, due, now, loop, loop.create_future())
        with self._changed:
            wait = self._wait_s(now)
            if wait * 1000 > self.config.wait_ms:
                raise Overloaded(wait)
            if now + wait + self._cost_s.get(kind, 0.0) > due and wait > 0:
                raise TooLate
            self._state.waiting.append(job)
            self._state.kinds[kind] += 1
            self._changed.notify()
        timer = loop.call_at(loop.time() + max(0.0, due - now), self._expire, job)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._withdraw(job)
            raise
        finally:
            timer.cancel()

    async def call(self, kind: str, function: Callable[[], Any], due: float) -> Any:
        """Wait for the turn of one call; as `run`."""
        answer, _ = await self.run(kind, lambda _: [function()], None, due)
        return answer

    def later(self, function: Callable[[], None]) -> bool:
        """Call this when nothing waits; False where too many such calls wait already."""
        with self._changed:
            if len(self._state.shadows) >= self.config.shadows:
                return False
            self._state.shadows.append(function)
            self._changed.notify()
        return True

    def depth(self) -> Depth:
        """What the lane is like now."""
        with self._changed:
            return Depth(len(self._state.waiting), self._wait_s(time.monotonic()))

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._changed:
            self._state.closed = True
            self._changed.notify()
        self._thread.join()

    def _wait_s(self, now: float) -> float:
        """How long a job that comes now would wait; nothing where nothing is before it, whatever the last one took."""
        wait = sum(count * self._cost_s.get(kind, 0.0) for kind, count in self._state.kinds.items())
        if self._state.running is not None:
            began, expected = self._state.running
            # What takes longer than expected is expected to go on for as long as it already has.
            wait += abs(began + expected - now)
        return wait

    def _expire(self, job: _Job) -> None:
        if job.future.done():
            return
        job.future.set_exception(TooLate())
        self._withdraw(job)

    def _withdraw(self, job: _Job) -> None:
        """Nobody waits for its answer any more."""
        with self._changed:
            if job in self._state.waiting:
                self._state.waiting.remove(job)
                self._state.kinds[job.kind] -= 1

    def _work(self) -> None:
        while (jobs := self._next()) is not None:
            if callable(jobs):
                jobs()
                with self._changed:
                    self._state.running = None
                continue
            began = time.monotonic()
            answers = _answers(jobs)
            ended = time.monotonic()
            with self._changed:
                self._state.running = None
                kind, each = jobs[0].kind, (ended - began) / len(jobs)
                known = self._cost_s.get(kind, each)
                self._cost_s[kind] = known + 0.1 * (each - known)
            for job, answer in zip(jobs, answers, strict=True):
                job.loop.call_soon_threadsafe(_tell, job, answer, began - job.entered)

    def _next(self) -> list[_Job] | Callable[[], None] | None:
        """What to do next: jobs that are answered together, a shadow where there are none, None at the end."""
        state = self._state
        with self._changed:
            while not state.waiting and not state.shadows and not state.closed:
                self._changed.wait()
            now = time.monotonic()
            if state.waiting:
                jobs = [state.waiting.popleft()]
                while state.waiting and len(jobs) < self.config.batch and state.waiting[0].together == jobs[0].together:
                    jobs.append(state.waiting.popleft())
                state.kinds[jobs[0].kind] -= len(jobs)
                state.running = (now, len(jobs) * self._cost_s.get(jobs[0].kind, 0.0))
                return jobs
            if state.shadows and not state.closed:
                state.running = (now, 0.0)
                return state.shadows.popleft()
            return None


def _answers(jobs: list[_Job]) -> Sequence[Any]:
    """The answer of each job, or the exception that it is."""
    try:
        return jobs[0].together([job.argument for job in jobs])
    except Exception as error:
        if len(jobs) == 1:
            return [error]
        # One of them is wrong, and the others must not be.
        return [_answers([job])[0] for job in jobs]


def _tell(job: _Job, answer: Any, waited_s: float) -> None:
    if job.future.done():
        return
    if isinstance(answer, Exception):
        job.future.set_exception(answer)
    else:
        job.future.set_result((answer, waited_s))
