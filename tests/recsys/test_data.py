from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.errors import InputError
from features.schema import FeatureSpec, Schema
from recsys.data import NextItemReader, Place, RankingReader, SequenceReader, batches

ITEMS, BATCH, WORLDS = 50, 7, (1, 2, 3)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 windows; window i begins with items that spell i, so that it is known again."""
    rng = np.random.default_rng(0)
    items = [[1 + i % 10, 1 + i // 10, *rng.integers(1, ITEMS + 1, rng.integers(0, 9))] for i in range(101)]
    path = tmp_path_factory.mktemp("windows") / "train.parquet"
    pl.DataFrame({"items": items}, schema={"items": pl.List(pl.Int32)}).write_parquet(path)
    return path


def sequence_reader(path: Path, rank: int = 0, world: int = 1, *, seed: int = 5, negatives: int | None = None):
    return SequenceReader(path, ITEMS, BATCH, seed, negatives, Place(rank, world))


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


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 examples, told apart by `item_id`."""
    path = tmp_path_factory.mktemp("examples") / "train.parquet"
    row = np.arange(101)
    pl.DataFrame(
        {
            "user_code": row % 9,
            "label": (row % 2).astype(np.float32),
            "item_id": row,
            "history": [list(range(i % 4)) for i in row],
            "price": (row / 2).astype(np.float32),
        },
        schema_overrides={"item_id": pl.Int32, "history": pl.List(pl.Int32)},
    ).write_parquet(path)
    return path


def ranking_rows(batch) -> list[tuple[int, int, float, float]]:
    """(item_id, length of history, price, label) of each row that counts."""
    ids, lengths = batch.sparse["item_id"].values(), batch.sparse["history"].lengths()
    columns = (ids, lengths, batch.dense[:, 0], batch.labels["click"])
    rows = zip(*(column.tolist() for column in columns), strict=True)
    weights = np.ones(len(ids)) if batch.weights is None else batch.weights.numpy()
    assert set(weights) <= {0.0, 1.0}
    return [row for row, weight in zip(rows, weights, strict=True) if weight]


@pytest.mark.parametrize("world", WORLDS)
def test_examples_come_once_an_epoch_in_equal_parts(examples: Path, world: int):
    readers = [RankingReader(examples, SCHEMA, BATCH, 0, Place(rank, world)) for rank in range(world)]
    whole = list(RankingReader(examples, SCHEMA, BATCH, 0, Place()).epoch(1))
    parts = list(zip(*(reader.epoch(1) for reader in readers), strict=True))
    rows = [[row for part in step for row in ranking_rows(part)] for step in parts]
    assert rows == [ranking_rows(batch) for batch in whole]
    flat = [row for step in rows for row in step]
    assert sorted(flat) == [(i, i % 4, i / 2, i % 2) for i in range(101)]
    assert flat != sorted(flat)
    for step, batch in zip(parts, whole, strict=True):
        assert {part.share.rows for part in step} == {len(ranking_rows(batch))}
        assert len({len(part.dense) for part in step}) == 1


@pytest.mark.parametrize("world", WORLDS)
def test_in_order_is_the_files_order(examples: Path, world: int):
    steps = zip(
        *(RankingReader(examples, SCHEMA, BATCH, 0, Place(r, world)).in_order() for r in range(world)), strict=True
    )
    assert [row[0] for step in steps for part in step for row in ranking_rows(part)] == list(range(101))


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
