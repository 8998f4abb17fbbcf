"""Readers: what `prepare` wrote → this rank's part of each global batch.

The order is drawn from (seed, epoch) and the global batches do not depend on the number of ranks: each rank takes a
contiguous part of every one. All rows are used; batches differ in size by at most one row. Nothing that a reader yields
depends on its workers, and an epoch begun at a later batch is the rest of the whole one.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import numpy as np
import polars as pl
import torch

from embeddings.batch import Batch, Columns, Share
from features.errors import InputError
from features.schema import Schema

POOL_ROWS = 1_000_000
"""Examples are shuffled among at most so many at a time: what is held is bounded, whatever the length of the log."""

AHEAD = 4
"""Batches that are made before they are asked for, at most."""

ORDER, NEGATIVES, BLOCKS = 1, 2, 3
"""Tell the random streams of one seed apart."""

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Which rank reads, of how many."""

    rank: int = 0
    world: int = 1

    def part(self, rows: np.ndarray) -> slice:
        """This rank's part of a global batch."""
        return slice(self.rank * len(rows) // self.world, (self.rank + 1) * len(rows) // self.world)

    def equal_part(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """This rank's part, as long as every other's, and its weights; None: all 1.

        A part that is a row short repeats its first with weight 0. The gradient of a row-wise EmbeddingBagCollection
        travels in an all-gather, which gloo has for equal parts only.
        """
        mine = rows[self.part(rows)]
        missing = -(-len(rows) // self.world) - len(mine)
        if not len(rows) % self.world:
            return mine, None
        return np.concatenate([mine, mine[:missing]]), np.repeat([1.0, 0.0], [len(mine), missing])


def cuts(rows: int, batch_size: int, world: int) -> np.ndarray:
    """Where nearly equal global batches of at most `batch_size` rows begin, none with fewer rows than ranks.

    Returns:
        int64 [batches + 1]; the last is `rows`.

    Raises:
        InputError: there are fewer rows than ranks.
    """
    if rows < world:
        raise InputError(f"{rows} examples cannot feed {world} processes; lower launch.nproc or use a longer log")
    count = min(-(-rows // batch_size), rows // world)
    size, longer = divmod(rows, count)
    number = np.arange(count + 1)
    return number * size + np.minimum(number, longer)


def batches(rows: np.ndarray, batch_size: int, world: int) -> list[np.ndarray]:
    """Rows cut into global batches: see `cuts`."""
    return np.split(rows, cuts(len(rows), batch_size, world)[1:-1])


def ahead(make: Callable[[Executor | None], Iterator[T]], workers: int) -> Iterator[T]:
    """What `make(readers)` yields, in its order, made in a background thread up to AHEAD before it is asked for.

    An error of a thread is raised here; closing this iterator ends all threads.

    Args:
        make: given threads to read with; None: there are none.
        workers: how many of them; 0: everything is done in the calling thread.
    """
    if not workers:
        yield from make(None)
        return
    readers, maker = ThreadPoolExecutor(workers), ThreadPoolExecutor(1)
    items = make(readers)
    end: Any = object()
    try:
        pending = deque(maker.submit(next, items, end) for _ in range(AHEAD))
        while (item := pending.popleft().result()) is not end:
            pending.append(maker.submit(next, items, end))
            yield item
    finally:
        # First the readers, whose cancelled work frees the maker that waits for it.
        for threads in (readers, maker):
            threads.shutdown(wait=False, cancel_futures=True)
        for threads in (readers, maker):
            threads.shutdown()


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the device of training; on a GPU the next is copied, from page-locked memory, while one is used."""
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)

    def begin(batch: Batch) -> Batch:
        with torch.cuda.stream(copying):
            return batch.pin_memory().to(device, non_blocking=True)

    following = next(batches, None)
    coming = None if following is None else begin(following)
    while coming is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(copying)
        coming.record_stream(current)
        batch, following = coming, next(batches, None)
        coming = None if following is None else begin(following)
        yield batch


class Blocks(Protocol):
    """Encoded examples in blocks of a bounded size, as `features.examples.PartExamples`."""

    @property
    def schema(self) -> Schema:
        """What an example holds."""
        ...

    @property
    def rows(self) -> np.ndarray:
        """Examples in each block; int64."""
        ...

    def read(self, number: int) -> pl.DataFrame:
        """The features, `user_code` and `label` of one block, always the same; any thread may call it."""
        ...


def _rows(lists: np.ndarray, together: int) -> np.ndarray:
    """The rows of some lists."""
    return lists if together == 1 else (lists[:, None] * together + np.arange(together)).ravel()


class RankingReader:
    """Encoded examples for the ranker.

    An epoch draws the order of the blocks and takes them in pools of at most POOL_ROWS; each pool is shuffled, and the
    batches are cut from pool after pool, some across the border of two. At most two pools are held: the one that is cut
    and the next one's blocks, read meanwhile; or, while blocks are put together, these and the whole. Beside them are
    a block in each worker's hands and AHEAD batches. A part that is one pool stays in memory from its first epoch on.
    """

    def __init__(
        self, examples: Blocks, batch_size: int, seed: int, place: Place, workers: int = 1, together: int = 1
    ) -> None:
        """Read nothing yet.

        Args:
            examples: of one part.
            batch_size: examples of a global batch.
            seed: of the order.
            place: which rank reads, of how many.
            workers: threads that read and encode blocks; one more makes batches. 0: all is done in the calling thread.
            together: so many examples that follow each other are a list, which stays whole: lists are shuffled, and
                batches are cut between them. A block has whole lists.
        """
        self.examples, self.seed, self.place, self.workers = examples, seed, place, workers
        self.batch_lists, self.together = max(1, batch_size // together), together
        self.schema = examples.schema
        self._whole: Columns | None = None

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return len(self._cuts) - 1

    @property
    def rows(self) -> int:
        """Examples in an epoch."""
        return self._lists * self.together

    @cached_property
    def _lists(self) -> int:
        return int(self.examples.rows.sum()) // self.together

    @cached_property
    def _cuts(self) -> np.ndarray:
        return cuts(self._lists, self.batch_lists, self.place.world)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `start` on, shuffled, in equal parts for all ranks: see `Place.equal_part`.

        Pools of which no batch is wanted are not read.
        """
        return ahead(lambda readers: self._epoch(number, start, readers), self.workers)

    def in_order(self) -> Iterator[tuple[Batch, np.ndarray]]:
        """The batches in the order of the log, block by block, and `user_code` of their rows."""
        return ahead(self._in_order, self.workers)

    def _epoch(self, number: int, start: int, readers: Executor | None) -> Iterator[Batch]:
        def shuffled(pool: int, rows: int) -> np.ndarray:
            return np.random.default_rng((self.seed, ORDER, number, pool)).permutation(rows)

        for index, rows, mine, weights in self._parts(
            self._pools(number), shuffled, self.place.equal_part, start, readers
        ):
            share = Share(step=number * len(self) + index, rows=rows, targets=rows, tokens_before=0, tokens=0)
            yield mine.batch(share, weights, self.together)

    def _in_order(self, readers: Executor | None) -> Iterator[tuple[Batch, np.ndarray]]:
        blocks = [np.array([block]) for block in range(len(self.examples.rows))]
        for _, rows, mine, _ in self._parts(
            blocks, lambda _, rows: np.arange(rows), lambda rows: (rows[self.place.part(rows)], None), 0, readers
        ):
            assert mine.user is not None
            share = Share(step=0, rows=rows, targets=rows, tokens_before=0, tokens=0)
            yield mine.batch(share, together=self.together), mine.user

    def _pools(self, epoch: int) -> list[np.ndarray]:
        """Numbers of the blocks that are shuffled together."""
        drawn = np.random.default_rng((self.seed, BLOCKS, epoch)).permutation(len(self.examples.rows))
        pools: list[list[int]] = []
        held = 0
        for block, rows in zip(drawn.tolist(), self.examples.rows[drawn].tolist(), strict=True):
            if not pools or held + rows > POOL_ROWS:
                pools.append([])
                held = 0
            pools[-1].append(block)
            held += rows
        return [np.sort(pool) for pool in pools]

    def _parts(
        self,
        pools: list[np.ndarray],
        order: Callable[[int, int], np.ndarray],
        part: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]],
        start: int,
        readers: Executor | None,
    ) -> Iterator[tuple[int, int, Columns, np.ndarray | None]]:
        """(number, rows, this rank's part of them, its weights) of each global batch from `start` on.

        Args:
            pools: blocks that are held together.
            order: (number, lists) of a pool → the order of its lists.
            part: lists of a global batch → this rank's, and their weights.
            start: the first batch.
            readers: threads that read.
        """
        edges, together = self._cuts, self.together
        ends = np.cumsum([self.examples.rows[pool].sum() for pool in pools]) // together
        first = int(np.searchsorted(ends, edges[start], side="right"))
        reads = self._reads(pools, first, readers)
        rest: list[Columns] = []
        for number in range(first, len(pools)):
            pool = Columns.join([*rest, *(read() for read in reads)])
            if len(pools) == 1:
                self._whole = pool
            reads = self._reads(pools, number + 1, readers)
            before, lists = sum(columns.rows for columns in rest) // together, pool.rows // together
            ordered = np.concatenate([np.arange(before), before + order(number, lists - before)])
            begin = int(ends[number]) - lists
            last = int(np.searchsorted(edges, ends[number], side="right")) - 1
            for index in range(start, last):
                batch = ordered[edges[index] - begin : edges[index + 1] - begin]
                mine, weights = part(batch)
                weights = None if weights is None else np.repeat(weights, together)
                yield index, len(batch) * together, pool.take(_rows(mine, together)), weights
            start = max(start, last)
            rest = [pool.take(_rows(ordered[edges[start] - begin :], together))]
            del pool  # before the next one is put together

    def _reads(self, pools: list[np.ndarray], number: int, readers: Executor | None) -> list[Callable[[], Columns]]:
        """What gives the blocks of a pool, begun where there are readers; nothing behind the last one."""
        if number >= len(pools):
            return []
        whole = self._whole
        if len(pools) == 1 and whole is not None:
            return [lambda: whole]
        if readers is None:
            return [partial(self._read, int(block)) for block in pools[number]]
        return [readers.submit(self._read, int(block)).result for block in pools[number]]

    def _read(self, block: int) -> Columns:
        return Columns.of(self.examples.read(block), self.schema)
