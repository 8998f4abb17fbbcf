import threading
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pytest

from features.errors import InputError
from features.schema import FeatureSpec, Schema
from recsys import data
from recsys.data import Place, RankingReader, batches
from tests.batches import assert_equal

BATCH, WORLDS, WORKERS = 7, (1, 2, 3), (0, 1, 2)


@pytest.mark.parametrize("rows", [1, 6, 7, 8, 99])
def test_batches_are_of_nearly_equal_size(rows: int):
    sizes = [len(batch) for batch in batches(np.arange(rows), BATCH, 1)]
    assert sum(sizes) == rows
    assert max(sizes) <= BATCH
    assert max(sizes) - min(sizes) <= 1


def test_fewer_rows_than_processes_are_refused():
    with pytest.raises(InputError, match="2 examples cannot feed 3 processes"):
        batches(np.arange(2), BATCH, 3)


SCHEMA = Schema(
    features=(
        FeatureSpec(name="item_id", kind="sparse", source="item.index", transform="index", rows=200),
        FeatureSpec(name="history", kind="bag", source="request.history", transform="index", rows=200),
        FeatureSpec(name="price", kind="dense", source="item.price", transform="numeric"),
    ),
    label="click",
    items=199,
    users=9,
)


@dataclass
class Memory:
    """101 examples, told apart by `item_id`, in blocks of different sizes."""

    sizes: tuple[int, ...] = (30, 25, 1, 20, 25)
    broken: int | None = None
    """A block that cannot be read."""
    schema: Schema = SCHEMA
    read_blocks: list[int] = field(default_factory=list)

    @property
    def rows(self) -> np.ndarray:
        return np.array(self.sizes)

    def read(self, number: int) -> pl.DataFrame:
        self.read_blocks.append(number)
        if number == self.broken:
            raise OSError(f"block {number} is broken")
        row = np.arange(sum(self.sizes[:number]), sum(self.sizes[: number + 1]))
        return pl.DataFrame(
            {
                "user_code": row % 9,
                "label": (row % 2).astype(np.float32),
                "item_id": row,
                "history": [list(range(i % 4)) for i in row],
                "price": (row / 2).astype(np.float32),
            },
            schema_overrides={"item_id": pl.Int32, "history": pl.List(pl.Int32)},
        )


def example(i: int) -> tuple[int, int, float, float]:
    """As `ranking_rows` says it."""
    return i, i % 4, i / 2, i % 2


def ranking_reader(source: Memory, rank: int = 0, world: int = 1, *, seed: int = 0, workers: int = 1) -> RankingReader:
    return RankingReader(source, BATCH, seed, Place(rank, world), workers)


def ranking_rows(batch) -> list[tuple[int, int, float, float]]:
    """(item_id, length of history, price, label) of each row that counts."""
    ids, lengths = batch.sparse["item_id"].values(), batch.sparse["history"].lengths()
    columns = (ids, lengths, batch.dense[:, 0], batch.labels["outcomes"][:, 0])
    rows = zip(*(column.tolist() for column in columns), strict=True)
    weights = np.ones(len(ids)) if batch.weights is None else batch.weights.numpy()
    assert set(weights) <= {0.0, 1.0}
    return [row for row, weight in zip(rows, weights, strict=True) if weight]


@pytest.fixture(params=[1000, 50, 10], ids=["one pool", "several pools", "a pool a block"])
def pool_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(data, "POOL_ROWS", request.param)
    return request.param


@pytest.fixture
def several_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "POOL_ROWS", 50)


@pytest.mark.usefixtures("pool_rows")
@pytest.mark.parametrize("world", WORLDS)
def test_examples_come_once_an_epoch_in_equal_parts(world: int):
    readers = [ranking_reader(Memory(), rank, world) for rank in range(world)]
    whole = list(ranking_reader(Memory()).epoch(1))
    parts = list(zip(*(reader.epoch(1) for reader in readers), strict=True))
    rows = [[row for part in step for row in ranking_rows(part)] for step in parts]
    assert rows == [ranking_rows(batch) for batch in whole]
    assert len(rows) == len(readers[0]) == 15
    assert {len(step) for step in rows} == {6, 7}
    flat = [row for step in rows for row in step]
    assert sorted(flat) == [example(i) for i in range(101)]
    assert flat != sorted(flat)
    for step, (part, *others) in enumerate(parts):
        assert all(other.share == part.share for other in others)
        assert (part.share.step, part.share.rows) == (15 + step, len(rows[step]))
        assert {len(other.dense) for other in others} <= {len(part.dense)}


@pytest.mark.usefixtures("pool_rows")
def test_the_examples_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int):
        return [ranking_rows(batch) for batch in ranking_reader(Memory(), seed=seed).epoch(epoch)]

    assert order(5, 0) == order(5, 0)
    assert order(5, 0) != order(5, 1)
    assert order(5, 0) != order(6, 0)


def test_all_blocks_are_shuffled_together_if_they_fit_and_are_read_once():
    source = Memory()
    reader = ranking_reader(source)
    first = [row[0] for batch in reader.epoch(0) for row in ranking_rows(batch)]
    # The halves of the epoch are drawn from all blocks alike: 50 of 101 rows, give or take four deviations.
    assert abs(sum(row < 50 for row in first[:50]) - 25) < 4 * 2.5
    assert len(list(reader.epoch(1))) == len(reader)
    assert sorted(source.read_blocks) == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("several_pools")
@pytest.mark.parametrize("workers", WORKERS)
def test_no_more_than_the_next_pool_is_read_ahead(monkeypatch: pytest.MonkeyPatch, workers: int):
    monkeypatch.setattr(data, "AHEAD", 1)
    source = Memory(sizes=(25,) * 8)
    made = 0 if workers == 0 else BATCH
    for batch in ranking_reader(source, workers=workers).epoch(0):
        made += len(ranking_rows(batch))
        assert 25 * len(source.read_blocks) < made + (50 if workers == 0 else 100)
    assert sorted(source.read_blocks) == list(range(8))


def test_batches_are_counted_before_anything_is_read():
    source = Memory(sizes=(10**6,) * 100)
    assert len(RankingReader(source, 1000, 0, Place())) == 100_000
    assert not source.read_blocks


@pytest.mark.usefixtures("pool_rows", "no_thread_is_left")
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("world", WORLDS)
def test_an_epoch_goes_on_where_it_stopped(world: int, workers: int):
    for rank in range(world):
        whole = list(ranking_reader(Memory(), rank, world, workers=0).epoch(2))
        for done in (0, 1, 4, 7, 8, 14):
            assert_equal(list(ranking_reader(Memory(), rank, world, workers=workers).epoch(2, done)), whole[done:])
        assert not list(ranking_reader(Memory(), rank, world, workers=workers).epoch(2, len(whole)))


@pytest.mark.usefixtures("several_pools")
@pytest.mark.parametrize("workers", WORKERS)
def test_pools_that_are_done_are_not_read_again(workers: int):
    source = Memory()
    reader = ranking_reader(source, workers=workers)
    assert list(reader.epoch(0, len(reader) - 1))
    assert 0 < sum(source.sizes[block] for block in source.read_blocks) <= 50


@pytest.mark.usefixtures("several_pools", "no_thread_is_left")
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("broken", range(5))
def test_a_workers_error_is_raised_where_batches_are_asked_for(workers: int, broken: int):
    batches = ranking_reader(Memory(broken=broken), workers=workers).epoch(0)
    with pytest.raises(OSError, match=f"block {broken} is broken"):
        list(batches)
    assert not list(batches)


@pytest.mark.usefixtures("several_pools", "no_thread_is_left")
@pytest.mark.parametrize("workers", WORKERS)
def test_who_stops_early_leaves_no_thread(workers: int):
    reader = ranking_reader(Memory(), workers=workers)
    for _ in reader.epoch(0):
        break
    closed = reader.epoch(0)
    next(closed)
    closed.close()  # pyright: ignore[reportAttributeAccessIssue]
    forgotten = reader.epoch(0)
    next(forgotten)
    del forgotten
    assert len(list(reader.epoch(0))) == len(reader)


@pytest.mark.usefixtures("several_pools", "no_thread_is_left")
def test_closing_does_not_wait_for_blocks_that_no_one_wants():
    closing, held_up = threading.Event(), threading.Event()

    class Slow(Memory):
        def read(self, number: int) -> pl.DataFrame:
            if len(self.read_blocks) == 2:  # the first of the second pool
                held_up.set()
                assert closing.wait(timeout=60)
            return super().read(number)

    source = Slow(sizes=(25,) * 8)
    iterator = ranking_reader(source).epoch(0)
    next(iterator)
    assert held_up.wait(timeout=60)
    timer = threading.Timer(0.1, closing.set)
    timer.start()
    iterator.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(source.read_blocks) == 3
    timer.join()


@pytest.mark.usefixtures("pool_rows")
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("world", WORLDS)
def test_in_order_is_the_logs_order(world: int, workers: int):
    steps = zip(*(ranking_reader(Memory(), r, world, workers=workers).in_order() for r in range(world)), strict=True)
    rows, users = [], []
    for step in steps:
        for batch, user_B in step:
            rows += ranking_rows(batch)
            users += user_B.tolist()
    assert rows == [example(i) for i in range(101)]
    assert users == [i % 9 for i in range(101)]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("workers", WORKERS[:2])
def test_lists_stay_whole(world: int, workers: int):
    """Blocks of whole lists of five: each list comes once an epoch, its examples in their order; parts are equal."""
    examples = Memory(sizes=(30, 25, 5, 40))
    seen: list[np.ndarray] = []
    for rank in range(world):
        reader = RankingReader(examples, 17, 0, Place(rank, world), workers, together=5)
        assert reader.rows == 100
        for batch in reader.epoch(3):
            assert batch.sparse is not None
            assert batch.together == 5
            ids = batch.sparse["item_id"].values().numpy().reshape(-1, 5)
            np.testing.assert_array_equal(ids, ids[:, :1] // 5 * 5 + np.arange(5))
            counted = np.ones(len(ids), dtype=bool)
            if batch.weights is not None:
                weight = batch.weights.numpy().reshape(-1, 5)
                assert (weight == weight[:, :1]).all()
                counted = weight[:, 0] > 0
            seen.append(ids[counted, 0] // 5)
            assert batch.share is not None
            assert batch.share.rows % 5 == 0
            assert batch.share.rows <= max(15, 5 * world + 5)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(20))
    in_order = [user for _, user in RankingReader(examples, 17, 0, Place(), workers, together=5).in_order()]
    np.testing.assert_array_equal(np.concatenate(in_order), np.arange(100) % 9)
