"""Readers: example Parquet → this rank's part of each global batch.

The order is drawn from (seed, epoch) and the global batches do not depend on the number of ranks: each rank takes a
contiguous part of every one. All rows are used; batches differ in size by at most one row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from embeddings.batch import Batch, Share, jagged, ranking_batch, sequence_batch
from features.errors import InputError
from features.schema import Schema
from features.temporal import gather_slices

POOL_BATCHES = 50
"""Histories are sorted by length among so many batches at a time: little padding, and still a random order."""


_ORDER, _NEGATIVES = 1, 2
"""Tell the random streams of one seed apart."""


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


def batches(rows: np.ndarray, batch_size: int, world: int) -> list[np.ndarray]:
    """Cut rows into nearly equal global batches of at most `batch_size`, none with fewer rows than ranks.

    Raises:
        InputError: there are fewer rows than ranks.
    """
    if len(rows) < world:
        raise InputError(f"{len(rows)} examples cannot feed {world} processes; lower launch.nproc or use a longer log")
    return np.array_split(rows, min(-(-len(rows) // batch_size), len(rows) // world))


class SequenceReader:
    """Windows of histories for the retriever; the whole file is held as two flat arrays, 4 bytes an event."""

    def __init__(self, path: Path, items: int, batch_size: int, seed: int, negatives: int | None, place: Place) -> None:
        """`negatives`: how many items to sample for a batch; None scores every step against the whole catalogue."""
        values, lengths = jagged(pl.read_parquet(path, columns=["items"])["items"])
        self.values, self.lengths = values, lengths
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.items, self.batch_size, self.seed, self.negatives, self.place = items, batch_size, seed, negatives, place
        self.catalogue = np.arange(1, items + 1)

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return len(batches(self.lengths, self.batch_size, self.place.world))

    @property
    def rows(self) -> int:
        """Windows in an epoch."""
        return len(self.lengths)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch: histories without their last item, targets without their first."""
        rng = np.random.default_rng((self.seed, _ORDER, number))
        order = rng.permutation(len(self.lengths))
        pools = np.array_split(order, -(-len(order) // (self.batch_size * POOL_BATCHES)))
        order = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        cut = batches(order, self.batch_size, self.place.world)
        for index, choice in enumerate(rng.permutation(len(cut))):
            yield self._batch(cut[choice], number * len(cut) + index)

    def _batch(self, rows: np.ndarray, step: int) -> Batch:
        part = self.place.part(rows)
        steps = self.lengths[rows] - 1
        before, tokens = int(steps[: part.start].sum()), int(steps.sum())
        mine = rows[part]
        start, end = self.offsets[mine], self.offsets[mine + 1]
        history, offsets = gather_slices(self.values, start, end - 1)
        following, _ = gather_slices(self.values, start + 1, end)
        candidates, targets = self._candidates(following, step)
        share = Share(step=step, rows=len(rows), targets=tokens, tokens_before=before, tokens=tokens)
        return sequence_batch(history, np.diff(offsets), candidates, targets, share)

    def _candidates(self, following: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        if self.negatives is None:
            return self.catalogue, following - 1
        drawn = np.random.default_rng((self.seed, _NEGATIVES, step)).integers(1, self.items + 1, size=self.negatives)
        distinct, place = np.unique(following, return_inverse=True)
        return np.concatenate([distinct, drawn]), place


class NextItemReader:
    """Questions with one right item each: histories and targets of a validation part, in the file's order."""

    def __init__(self, path: Path, items: int, batch_size: int, limit: int, place: Place) -> None:
        """`limit`: at most so many questions, spread evenly over the file."""
        table = pl.read_parquet(path, columns=["items", "item_index"])
        if table.height > limit:
            table = table[np.linspace(0, table.height - 1, limit).astype(np.int64)]
        self.table, self.batch_size, self.place = table, batch_size, place
        self.catalogue = np.arange(1, items + 1)

    @property
    def rows(self) -> int:
        """Questions."""
        return self.table.height

    def __iter__(self) -> Iterator[tuple[Batch, np.ndarray, np.ndarray, np.ndarray]]:
        """(batch, history items [N], lengths [B], target item [B]) of this rank's part of each global batch."""
        for rows in batches(np.arange(self.table.height), self.batch_size, self.place.world):
            mine = self.table[rows[self.place.part(rows)]]
            history, lengths = jagged(mine["items"])
            yield sequence_batch(history, lengths, self.catalogue), history, lengths, mine["item_index"].to_numpy()


class RankingReader:
    """Encoded examples for the ranker; the whole file is held as Arrow columns."""

    def __init__(self, path: Path, schema: Schema, batch_size: int, seed: int, place: Place) -> None:
        columns = [feature.name for feature in schema.features]
        self.examples = pl.read_parquet(path, columns=["user_code", "label", *columns]).rechunk()
        self.schema, self.batch_size, self.seed, self.place = schema, batch_size, seed, place

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return len(batches(np.arange(self.rows), self.batch_size, self.place.world))

    @property
    def rows(self) -> int:
        """Examples in an epoch."""
        return self.examples.height

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch, shuffled, in equal parts for all ranks: see `Place.equal_part`."""
        order = np.random.default_rng((self.seed, _ORDER, number)).permutation(self.rows)
        cut = batches(order, self.batch_size, self.place.world)
        for index, rows in enumerate(cut):
            mine, weights = self.place.equal_part(rows)
            share = Share(step=number * len(cut) + index, rows=len(rows), targets=len(rows), tokens_before=0, tokens=0)
            yield ranking_batch(self.examples[mine], self.schema, share, weights)

    def in_order(self) -> Iterator[Batch]:
        """The batches in the file's order."""
        for rows in batches(np.arange(self.rows), self.batch_size, self.place.world):
            share = Share(step=0, rows=len(rows), targets=len(rows), tokens_before=0, tokens=0)
            yield ranking_batch(self.examples[rows[self.place.part(rows)]], self.schema, share)
