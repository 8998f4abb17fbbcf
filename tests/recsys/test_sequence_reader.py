"""Readers of histories: every step once, whatever the ranks; candidates, links and noise as they are asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embeddings.batch import Batch
from embeddings.catalogue import Catalogue
from embeddings.histories import Links
from features.graph import Config as GraphConfig
from recsys.data import Place
from recsys.sequences import Candidates, NextItemReader, SequenceReader
from tests.batches import assert_equal, catalogue, flat, looked_up

ITEMS, COLD, BATCH, WORLDS, WORKERS = 300, 30, 7, (1, 2, 3), (0, 1, 2)
"""The last COLD items are never met."""
KINDS = {
    "whole": Candidates(None),
    "uniform": Candidates(40),
    "in_batch": Candidates(40, in_batch=True),
    "one_each": Candidates(None, one_each=True),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_world = pytest.mark.parametrize("world", WORLDS)


def windows_of(items: list[list[int]]) -> pl.DataFrame:
    """Steps of window i are 1000 i, 1000 i + 1, … and what was done is their remainder by 5."""
    times = [[1000 * row + step for step in range(len(window))] for row, window in enumerate(items)]
    return pl.DataFrame(
        {"items": items, "timestamps": times, "actions": [[time % 5 for time in row] for row in times]},
        schema={"items": pl.List(pl.Int32), "timestamps": pl.List(pl.Int64), "actions": pl.List(pl.Int16)},
    )


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 windows; window i begins with items that spell i, so that it is known again."""
    rng = np.random.default_rng(0)
    items = [[1 + i % 10, 1 + i // 10, *(1 + 40 * rng.random(rng.integers(0, 9)) ** 2)] for i in range(101)]
    path = tmp_path_factory.mktemp("windows") / "train.parquet"
    windows_of([[int(item) for item in row] for row in items]).write_parquet(path)
    return path


PLAIN = catalogue(ITEMS + COLD, [list(range(1, ITEMS + 1))])


def linked(path: Path, **more: Any) -> Catalogue:
    """With a graph of the file's windows; items that these do not hold are cold."""
    met = pl.read_parquet(path)["items"].to_list()
    return catalogue(ITEMS + COLD, met, graph=GraphConfig(shrinkage=1.0), recency=0.5, **more)


def reader(
    path: Path, kind: str = "whole", rank: int = 0, world: int = 1, *, known: Catalogue = PLAIN, **more: Any
) -> SequenceReader:
    settings = {"seed": 5, "workers": 0} | more
    return SequenceReader(path, known, BATCH, candidates=KINDS[kind], place=Place(rank, world), **settings)


def items_of(batch: Batch) -> np.ndarray:
    """The items that a batch without noise speaks of: [U]."""
    assert batch.items is not None
    return batch.items["item"].values().numpy()


def sequences_of(batch: Batch) -> dict[str, np.ndarray]:
    """With items in the place of their places."""
    assert batch.sequences is not None
    found = {name: tensor.numpy() for name, tensor in batch.sequences.items()}
    if batch.labels is not None:
        found["next_item"] = batch.labels["next_item"].numpy()
    items = items_of(batch)
    found["history"] = items[found["history"]]
    found["candidates"] = items[found["candidates"]] if "candidates" in found else items
    for name in {"next_item", "negatives", "link_candidates"} & found.keys():
        assert (found[name] >= 0).all()
        found[name] = found["candidates"][found[name]]
    return found


def rows_of(batch: Batch) -> list[list[list[int]]]:
    """(history, targets, times, times asked at, actions) of each row."""
    found = sequences_of(batch)
    columns = ("history", "next_item", "timestamps", "asked", "actions")
    edges = np.cumsum(found["lengths"])[:-1]
    return [
        [part.tolist() for part in row] for row in zip(*(np.split(found[name], edges) for name in columns), strict=True)
    ]


@every_kind
@every_world
def test_windows_come_once_an_epoch_with_the_next_items_as_targets(windows: Path, world: int, kind: str):
    rows = [
        row for rank in range(world) for batch in reader(windows, kind, rank, world).epoch(0) for row in rows_of(batch)
    ]
    expected = [
        [items[:-1], items[1:], times[:-1], times[1:], actions[:-1]]
        for items, times, actions in pl.read_parquet(windows).iter_rows()
    ]
    assert sorted(rows) == sorted(expected)
    assert rows != expected


@every_kind
@pytest.mark.parametrize("world", WORLDS[1:])
def test_the_ranks_parts_are_the_batch_of_one_rank(windows: Path, world: int, kind: str):
    whole = list(reader(windows, kind).epoch(3))
    parts = [list(reader(windows, kind, rank, world).epoch(3)) for rank in range(world)]
    for batch, *of_ranks in zip(whole, *parts, strict=True):
        assert rows_of(batch) == [row for part in of_ranks for row in rows_of(part)]
        alone, together = sequences_of(batch), [sequences_of(part) for part in of_ranks]
        if kind == "one_each":
            negatives = np.concatenate([part["negatives"] for part in together])
            assert negatives.tolist() == alone["negatives"].tolist()
        if kind in ("whole", "in_batch"):
            for part in together:
                for name in {"candidates", "bias"} & alone.keys():
                    np.testing.assert_array_equal(part[name], alone[name])
        assert batch.share is not None
        before = 0
        for part in of_ranks:
            assert part.share is not None
            assert part.share.tokens_before == before
            assert (part.share.step, part.share.rows) == (batch.share.step, batch.share.rows)
            assert part.share.targets == part.share.tokens == len(alone["history"])
            before += len(part.sequences["history"])
        assert before == batch.share.tokens


def test_all_that_training_meets_is_looked_up_once(windows: Path):
    first, *others = reader(windows).epoch(0)
    assert items_of(first).tolist() == list(range(1, ITEMS + 1))
    assert not {"candidates", "bias", "negatives"} & (first.sequences or {}).keys()
    assert all(batch.items is first.items for batch in others)


@every_kind
def test_what_training_never_meets_is_nobodys_negative(windows: Path, kind: str):
    known = linked(windows)
    assert 30 < known.trained.sum() < 50
    found = np.concatenate([items_of(batch) for batch in reader(windows, kind, known=known).epoch(0)])
    assert set(found) == set(np.flatnonzero(known.trained))


@every_kind
def test_ranks_look_up_as_many_items_where_these_have_bags(windows: Path, kind: str):
    described = catalogue(ITEMS + COLD, [list(range(1, ITEMS + 1))], content={"tags": [[1, 2]] * (ITEMS + COLD)})
    ours, plain = (
        [list(reader(windows, kind, rank, 3, known=known).epoch(0)) for rank in range(3)]
        for known in (described, PLAIN)
    )
    uneven = 0
    for padded, bare in zip(zip(*ours, strict=True), zip(*plain, strict=True), strict=True):
        counts = [len(items_of(batch)) for batch in bare]
        uneven += len(set(counts)) > 1
        for one, other in zip(padded, bare, strict=True):
            assert looked_up(one.known)["item"] == [
                *looked_up(other.known)["item"],
                *[[0]] * (max(counts) - len(items_of(other))),
            ]
            one.items = other.items
        assert_equal(list(padded), list(bare))
    assert (uneven > 0) == (kind != "whole")


def test_uniform_negatives_are_those_of_all_ranks_and_targets_of_others_are_none(windows: Path):
    drawn: list[list[tuple[int, ...]]] = [[], []]
    for rank, found in enumerate(drawn):
        for batch in reader(windows, "uniform", rank, 2).epoch(0):
            sequences = sequences_of(batch)
            sample, others = np.split(sequences["candidates"], [len(sequences["bias"])])
            found.append(tuple(sample.tolist()))
            assert set(others) == {*sequences["next_item"]} - {*sample}
            assert len(np.unique(sequences["candidates"])) == len(sequences["candidates"])
            np.testing.assert_allclose(sequences["bias"], -np.log(1 - (1 - 1 / ITEMS) ** 40), rtol=1e-5)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == len(drawn[0])
    # Of 15 · 40 draws of 300, the chance of one item to be in none is 0.13.
    assert 0.8 < len({item for negatives in drawn[0] for item in negatives}) / ITEMS < 0.95


def test_in_batch_negatives_are_corrected_by_how_often_they_are_targets(windows: Path):
    rows = pl.read_parquet(windows)["items"].to_list()
    targets = np.concatenate([row[1:] for row in rows])
    for mine, uniform in zip(reader(windows, "in_batch").epoch(0), reader(windows, "uniform").epoch(0), strict=True):
        found, plain = sequences_of(mine), sequences_of(uniform)
        drawn = plain["candidates"][: len(plain["bias"])]
        assert set(found["candidates"]) == {*drawn, *found["next_item"]}
        for item, bias in zip(found["candidates"], found["bias"], strict=True):
            missed = (1 - 1 / ITEMS) ** 40 * (1 - (targets == item).mean()) ** len(found["next_item"])
            assert bias == pytest.approx(-np.log(1 - missed), rel=1e-4, abs=1e-6)


def test_the_one_negative_of_a_step_is_not_in_its_window(windows: Path):
    batches = list(reader(windows, "one_each").epoch(0))
    negatives = []
    for batch in batches:
        found = sequences_of(batch)
        edges = np.cumsum(found["lengths"])[:-1]
        assert set(found["candidates"]) == {*found["next_item"], *found["negatives"]}
        for (history, following, *_), of_window in zip(
            rows_of(batch), np.split(found["negatives"], edges), strict=True
        ):
            assert not {*history, *following} & set(of_window)
        negatives += found["negatives"].tolist()
    assert len(set(negatives)) > ITEMS / 2


def dense(links: Links, columns: int) -> np.ndarray:
    """[N, columns]."""
    found = np.zeros((len(links.offsets) - 1, columns), dtype=np.float32)
    found[np.repeat(np.arange(len(found)), np.diff(links.offsets)), links.candidates] = links.values
    return found


@every_kind
@pytest.mark.parametrize("rank", [0, 1])
def test_links_are_those_of_steps_with_candidates(windows: Path, kind: str, rank: int):
    known = linked(windows)
    walk, rows = known.walk(), pl.read_parquet(windows)["items"].to_list()
    assert walk is not None
    some = 0
    for batch in reader(windows, kind, rank, 2, known=known).epoch(0):
        assert batch.sequences is not None
        mine = [rows[times[0] // 1000] for _, _, times, *_ in rows_of(batch)]
        expected = dense(walk.of_windows(*flat(mine), np.arange(known.items + 1)), known.items + 1)
        found = {name: batch.sequences[name].numpy() for name in ("link_offsets", "link_candidates", "link_values")}
        candidates = sequences_of(batch)["candidates"]
        ours = dense(Links(*found.values()), len(candidates))
        assert len(ours) == len(batch.sequences["history"])
        np.testing.assert_array_equal(ours, expected[:, candidates])
        some += len(found["link_values"])
    assert some > 500


@pytest.mark.parametrize("kind", ["whole", "in_batch"])
def test_items_are_taken_for_new_ones_on_all_ranks_alike(windows: Path, kind: str):
    known = linked(windows, neighbours=4)
    trained = int(known.trained.sum())
    noisy = [reader(windows, kind, rank, 2, known=known, cold=0.3, neighbours=2) for rank in range(2)]
    calm = [reader(windows, kind, rank, 2, known=known) for rank in range(2)]
    shares, fates = [], set()
    for steps in zip(*(r.epoch(0) for r in (*noisy, *calm)), strict=True):
        fate: dict[int, tuple[int, list[int]]] = {}
        for ours, theirs in zip(steps[:2], steps[2:], strict=True):
            rows, lookups = items_of(theirs), looked_up(ours.known)
            for item, row, near in zip(rows, items_of(ours), lookups["neighbours"], strict=True):
                assert row in (0, item)
                assert len(near) <= 2
                assert item == 0 or fate.setdefault(item, (row, near)) == (row, near)
        if kind == "whole":
            assert len(fate) == trained
            shares.append(np.mean([row == 0 for row, _ in fate.values()]))
        fates.add(tuple(item for item, (row, _) in fate.items() if row == 0))
    assert len(fates) == len(noisy[0])
    if kind == "whole":
        error = (0.3 * 0.7 / trained / len(shares)) ** 0.5
        assert abs(np.mean(shares) - 0.3) < 4 * error


def test_order_depends_on_seed_and_epoch_alone(windows: Path):
    def order(seed: int, epoch: int):
        return [rows_of(batch) for batch in reader(windows, seed=seed).epoch(epoch)]

    assert order(5, 0) == order(5, 0)
    assert order(5, 0) != order(5, 1)
    assert order(5, 0) != order(6, 0)


def test_histories_of_a_batch_are_of_like_length(windows: Path):
    whole = np.var(pl.read_parquet(windows)["items"].list.len().to_numpy())
    lengths = [sequences_of(batch)["lengths"] for batch in reader(windows).epoch(0)]
    assert np.mean([np.var(of_batch) for of_batch in lengths]) < 0.1 * whole
    longest = [int(of_batch.max()) for of_batch in lengths]
    assert longest != sorted(longest)


def test_steps_are_numbered_through_the_epochs(windows: Path):
    mine = reader(windows)
    steps = [batch.share.step for epoch in range(2) for batch in mine.epoch(epoch) if batch.share is not None]
    assert steps == list(range(2 * len(mine)))


@pytest.fixture(scope="module")
def makers(windows: Path) -> dict[str, Callable[..., SequenceReader]]:
    """Kind → a reader with links and noise."""
    known = linked(windows, neighbours=4)

    def maker(kind: str) -> Callable[..., SequenceReader]:
        return lambda *place, **more: reader(windows, kind, *place, known=known, cold=0.2, neighbours=2, **more)

    return {kind: maker(kind) for kind in KINDS}


@pytest.mark.usefixtures("no_thread_is_left")
@pytest.mark.parametrize("workers", WORKERS)
@every_kind
def test_an_epoch_goes_on_where_it_stopped(makers: dict[str, Callable[..., SequenceReader]], kind: str, workers: int):
    for rank in range(2):
        whole = list(makers[kind](rank, 2).epoch(2))
        for done in (0, 1, 8, 14):
            assert_equal(list(makers[kind](rank, 2, workers=workers).epoch(2, done)), whole[done:])
        assert not list(makers[kind](rank, 2, workers=workers).epoch(2, len(whole)))


@pytest.mark.usefixtures("no_thread_is_left")
@pytest.mark.parametrize("workers", WORKERS)
def test_who_stops_early_leaves_no_thread(makers: dict[str, Callable[..., SequenceReader]], workers: int):
    mine = makers["uniform"](workers=workers)
    whole = list(mine.epoch(0))
    for _ in mine.epoch(0):
        break
    closed = mine.epoch(0)
    next(closed)
    closed.close()  # pyright: ignore[reportAttributeAccessIssue]
    forgotten = mine.epoch(0)
    next(forgotten)
    del forgotten
    assert_equal(list(mine.epoch(0)), whole)


@every_world
def test_questions_are_spread_over_the_file_and_asked_once(windows: Path, tmp_path: Path, world: int):
    path, known = tmp_path / "valid.parquet", linked(windows)
    rows = windows_of([[1 + i % 5] * (1 + i % 3) for i in range(100)])
    rows.with_columns(
        item_index=pl.Series(range(1, 101), dtype=pl.Int32), timestamp=pl.Series(range(100)) * 1000 + 500
    ).write_parquet(path)
    walk, asked = known.walk(), []
    assert walk is not None
    for rank in range(world):
        for batch, past, target_B in NextItemReader(path, known, BATCH, 25, Place(rank, world)):
            found = sequences_of(batch)
            assert batch.items is known.whole.ids
            assert batch.labels is None
            assert batch.sequences is not None
            assert past.lengths_B.tolist() == found["lengths"].tolist() == [1 + (i - 1) % 3 for i in target_B]
            assert (
                found["history"].tolist() == past.items_N.tolist() == [1 + (i - 1) % 5 for i in target_B[past.rows_N]]
            )
            last_B = np.cumsum(past.lengths_B) - 1
            assert found["asked"][last_B].tolist() == [(i - 1) * 1000 + 500 for i in target_B]
            links = Links(*(batch.sequences[f"link_{name}"].numpy() for name in ("offsets", "candidates", "values")))
            expected = dense(walk.of_histories(past, np.arange(known.items + 1)), known.items + 1)
            np.testing.assert_array_equal(dense(links, known.items), expected[:, 1:])
            assert len(links.values)
            asked += target_B.tolist()
    assert len(asked) == len(set(asked)) == 25
    assert (min(asked), max(asked)) == (1, 100)
