import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from embeddings.batch import Batch
from features.errors import InputError
from features.schema import FeatureSpec, Schema
from recsys import data
from recsys.data import NextItemReader, Place, RankingReader, SequenceReader, batches

ITEMS, BATCH, WORLDS, WORKERS = 50, 7, (1, 2, 3), (0, 1, 2)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 windows; window i begins with items that spell i, so that it is known again."""
    rng = np.random.default_rng(0)
    items = [[1 + i % 10, 1 + i // 10, *rng.integers(1, ITEMS + 1, rng.integers(0, 9))] for i in range(101)]
    path = tmp_path_factory.mktemp("windows") / "train.parquet"
    pl.DataFrame({"items": items}, schema={"items": pl.List(pl.Int32)}).write_parquet(path)
    return path


def sequence_reader(
    path: Path, rank: int = 0, world: int = 1, *, seed: int = 5, negatives: int | None = None, workers: int = 1
) -> SequenceReader:
    return SequenceReader(path, ITEMS, BATCH, seed, negatives, Place(rank, world), workers)


def rows_of(batch) -> list[tuple[list[int], list[int]]]:
    """(history, targets as item indices) of each row."""
    history = batch.sequences["history"]
    lengths = history.lengths().tolist()
    targets = batch.sequences["candidates"].values()[batch.labels["next_item"]]
    return [
        (items.tolist(), following.tolist())
        for items, following in zip(history.values().split(lengths), targets.split(lengths), strict=True)
    ]


@pytest.mark.parametrize("negatives", [None, 4], ids=["full", "sampled"])
@pytest.mark.parametrize("world", WORLDS)
def test_windows_come_once_an_epoch_with_the_next_items_as_targets(windows: Path, world: int, negatives: int | None):
    rows = [
        row
        for rank in range(world)
        for batch in sequence_reader(windows, rank, world, negatives=negatives).epoch(0)
        for row in rows_of(batch)
    ]
    assert all(history[1:] == following[:-1] for history, following in rows)
    found = sorted([*history, following[-1]] for history, following in rows)
    assert found == sorted(pl.read_parquet(windows)["items"].to_list())


@pytest.mark.parametrize("world", WORLDS[1:])
def test_the_ranks_parts_are_the_batch_of_one_rank(windows: Path, world: int):
    whole = list(sequence_reader(windows).epoch(3))
    parts = [list(sequence_reader(windows, rank, world).epoch(3)) for rank in range(world)]
    for batch, *of_ranks in zip(whole, *parts, strict=True):
        assert rows_of(batch) == [row for part in of_ranks for row in rows_of(part)]
        before = 0
        for part in of_ranks:
            assert part.share.tokens_before == before
            assert (part.share.step, part.share.rows) == (batch.share.step, batch.share.rows)
            assert part.share.targets == part.share.tokens == len(batch.sequences["history"].values())
            before += len(part.sequences["history"].values())
        assert before == batch.share.tokens


def test_all_ranks_share_a_steps_negatives_and_no_two_steps_do(windows: Path):
    drawn = [
        [batch.sequences["candidates"].values()[-20:].tolist() for batch in reader.epoch(0)]
        for reader in (sequence_reader(windows, rank, 2, negatives=20) for rank in range(2))
    ]
    assert drawn[0] == drawn[1]
    assert len({tuple(negatives) for negatives in drawn[0]}) == len(drawn[0])
    assert {item for negatives in drawn[0] for item in negatives} == set(range(1, ITEMS + 1))


def test_order_depends_on_seed_and_epoch_alone(windows: Path):
    def order(seed: int, epoch: int):
        return [rows_of(batch) for batch in sequence_reader(windows, seed=seed).epoch(epoch)]

    assert order(5, 0) == order(5, 0)
    assert order(5, 0) != order(5, 1)
    assert order(5, 0) != order(6, 0)


def test_steps_are_numbered_through_the_epochs(windows: Path):
    reader = sequence_reader(windows)
    steps = [batch.share.step for epoch in range(2) for batch in reader.epoch(epoch)]
    assert steps == list(range(2 * len(reader)))


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
    columns = (ids, lengths, batch.dense[:, 0], batch.labels["click"])
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


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


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


def tensors(batch: Batch) -> list[torch.Tensor]:
    """All that a batch holds."""
    jagged = [tensor for kjt in (batch.sparse, batch.sequences) if kjt for tensor in (kjt.values(), kjt.lengths())]
    plain = [tensor for tensor in (batch.dense, batch.weights) if tensor is not None]
    return [*jagged, *plain, *(batch.labels or {}).values()]


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.share == other.share
        assert [t.dtype for t in tensors(one)] == [t.dtype for t in tensors(other)]
        assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.mark.usefixtures("pool_rows", "no_thread_is_left")
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("world", WORLDS)
def test_an_epoch_goes_on_where_it_stopped(windows: Path, world: int, workers: int):
    for rank in range(world):
        for make in (
            lambda workers, rank=rank: ranking_reader(Memory(), rank, world, workers=workers),
            lambda workers, rank=rank: sequence_reader(windows, rank, world, negatives=4, workers=workers),
        ):
            whole = list(make(0).epoch(2))
            for done in (0, 1, 4, 7, 8, 14):
                assert_equal(list(make(workers).epoch(2, done)), whole[done:])
            assert not list(make(workers).epoch(2, len(whole)))


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
def test_who_stops_early_leaves_no_thread(windows: Path, workers: int):
    for reader in (ranking_reader(Memory(), workers=workers), sequence_reader(windows, workers=workers)):
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
def test_questions_are_spread_over_the_file_and_asked_once(tmp_path: Path, world: int):
    path = tmp_path / "valid.parquet"
    rows = np.arange(100)
    pl.DataFrame(
        {"items": [[1 + i % 5] * (1 + i % 3) for i in rows], "item_index": rows},
        schema={"items": pl.List(pl.Int32), "item_index": pl.Int32},
    ).write_parquet(path)
    asked = []
    for rank in range(world):
        for batch, history_N, lengths_B, target_B in NextItemReader(path, ITEMS, BATCH, 25, Place(rank, world)):
            assert batch.sequences["history"].values().tolist() == history_N.tolist()
            assert batch.sequences["candidates"].values().tolist() == list(range(1, ITEMS + 1))
            assert lengths_B.tolist() == [1 + i % 3 for i in target_B]
            asked += target_B.tolist()
    assert len(asked) == len(set(asked)) == 25
    assert (min(asked), max(asked)) == (0, 99)
