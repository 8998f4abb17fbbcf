"""Readers for the retriever: windows of histories to train on, and questions with one right item each.

As those of `recsys.data`, they draw the order from (seed, epoch), cut global batches that do not depend on the number
of ranks, and yield the same whatever their workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from embeddings.batch import Batch, Known, Share, jagged
from embeddings.catalogue import Catalogue, Noise
from embeddings.histories import Histories, retrieval_batch
from features.slices import gather_slices
from recsys.data import NEGATIVES, ORDER, Place, ahead, batches, cuts

POOL_BATCHES = 50
"""Histories are sorted by length among so many batches at a time: little padding, and still a random order."""


@dataclass(frozen=True)
class Candidates:
    """What every step of a batch is scored against."""

    uniform: int | None
    """Items drawn from those that training meets, all as likely; None: all of these, and nothing is drawn."""
    in_batch: bool = False
    """Whether a step is also scored against the targets of the other steps of its rank."""
    one_each: bool = False
    """Whether each step has a single negative of its own, in place of all that."""


class SequenceReader:
    """Windows of histories; the whole file is held as flat arrays, 18 bytes an event."""

    def __init__(
        self,
        path: Path,
        catalogue: Catalogue,
        batch_size: int,
        seed: int,
        candidates: Candidates,
        place: Place,
        workers: int = 1,
        cold: float = 0.0,
        neighbours: int = 0,
    ) -> None:
        """Read the file.

        Args:
            path: windows.
            catalogue: what is known of items.
            batch_size: windows of a global batch.
            seed: of order, negatives and noise.
            candidates: what steps are scored against.
            place: which rank reads, of how many.
            workers: 0: batches are made in the calling thread; otherwise by one in the background.
            cold: share of items that are taken for items never met.
            neighbours: how many of an item's neighbours are drawn; 0: all.
        """
        table = pl.read_parquet(path, columns=["items", "timestamps", "actions"])
        values, self.lengths = jagged(table["items"])
        self.values = values.astype(np.int64)
        self.times, self.actions = jagged(table["timestamps"])[0], jagged(table["actions"])[0]
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.catalogue, self.walk, self.candidates = catalogue, catalogue.walk(), candidates
        self.batch_size, self.seed, self.place, self.workers = batch_size, seed, place, workers
        self.cold, self.neighbours = cold, neighbours
        # What training never meets is nobody's negative: it would only learn that new items are wrong.
        self.trained = np.flatnonzero(catalogue.trained)
        self._place_I = np.full(catalogue.items + 1, -1, dtype=np.int64)

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return len(cuts(len(self.lengths), self.batch_size, self.place.world)) - 1

    @property
    def rows(self) -> int:
        """Windows in an epoch."""
        return len(self.lengths)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `start` on: histories without their last item, targets without their first."""
        return ahead(lambda _: self._epoch(number, start), self.workers)

    def _epoch(self, number: int, start: int) -> Iterator[Batch]:
        rng = np.random.default_rng((self.seed, ORDER, number))
        order = rng.permutation(len(self.lengths))
        pools = np.array_split(order, -(-len(order) // (self.batch_size * POOL_BATCHES)))
        order = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        cut = batches(order, self.batch_size, self.place.world)
        choices = rng.permutation(len(cut))
        for index in range(start, len(cut)):
            yield self._batch(cut[choices[index]], number * len(cut) + index)

    def _batch(self, rows: np.ndarray, step: int) -> Batch:
        part = self.place.part(rows)
        steps = self.lengths[rows] - 1
        before, tokens = int(steps[: part.start].sum()), int(steps.sum())
        share = Share(step=step, rows=len(rows), targets=tokens, tokens_before=before, tokens=tokens)
        mine = rows[part]
        start, end = self.offsets[mine], self.offsets[mine + 1]
        items, offsets = gather_slices(self.values, start, end - 1)
        times, actions = (gather_slices(column, start, end - 1)[0] for column in (self.times, self.actions))
        histories = Histories(items, np.diff(offsets), times, actions, asked_B=self.times[end - 1])
        following, _ = gather_slices(self.values, start + 1, end)
        chosen = self._chosen(rows, items, following, share)
        place_I = self._place_I
        place_I[chosen.items_U] = np.arange(len(chosen.items_U))
        places_N, targets_N = place_I[items], place_I[following]
        negatives_N = None if chosen.negatives_N is None else place_I[chosen.negatives_N]
        links = None
        if self.walk is not None:
            place_I[chosen.items_U[chosen.candidates :]] = -1  # items of histories alone are no candidates
            links = self.walk.of_windows(gather_slices(self.values, start, end)[0], end - start, place_I)
        place_I[chosen.items_U] = -1
        return retrieval_batch(
            histories,
            self._lookup(chosen, step),
            places_N,
            None if chosen.whole else np.arange(chosen.candidates),
            targets_N,
            bias_S=chosen.bias_S,
            negatives_N=negatives_N,
            links=links,
            share=share,
        )

    @cached_property
    def _whole(self) -> Known:
        """Of all that training meets."""
        return self.catalogue.lookup(self.trained)

    def _lookup(self, chosen: "_Chosen", step: int) -> Known:
        if chosen.whole and not self.cold and not self.neighbours:
            return self._whole
        items_U = np.pad(chosen.items_U, (0, max(0, chosen.most - len(chosen.items_U))))
        return self.catalogue.lookup(items_U, Noise(step, self.seed, self.cold, self.neighbours))

    def _chosen(self, rows: np.ndarray, items: np.ndarray, following: np.ndarray, share: Share) -> "_Chosen":
        """Candidates, then the items that stand in histories alone."""
        total = len(self.trained)
        if self.candidates.one_each:
            drawn = self._one_each(rows, share)
            negatives = drawn[share.tokens_before : share.tokens_before + len(following)]
            candidates = np.unique(np.concatenate([following, negatives]))
            most = self._most(rows, drawn[:0], drawn)
            return _Chosen(_with_others(candidates, items), len(candidates), most, None, negatives, whole=False)
        if self.candidates.uniform is None:
            return _Chosen(self.trained, total, total, None, None, whole=True)
        draws = self.candidates.uniform
        drawn = self.trained[np.random.default_rng((self.seed, NEGATIVES, share.step)).integers(total, size=draws)]
        if self.candidates.in_batch:
            # Of the whole global batch, so that the loss does not depend on the number of ranks.
            everywhere = gather_slices(self.values, self.offsets[rows] + 1, self.offsets[rows + 1])[0]
            candidates = np.unique(np.concatenate([everywhere, drawn]))
            missed = draws * np.log1p(-1 / total) + share.targets * np.log1p(-self._chance_I[candidates])
            bias_S = -np.log(-np.expm1(missed))
            most = self._most(rows, candidates)
        else:
            sample = np.unique(drawn)
            candidates = _with_others(sample, following)
            bias_S = np.full(len(sample), -np.log(-np.expm1(draws * np.log1p(-1 / total))))
            most = self._most(rows, sample)
        items_U, bias_S = _with_others(candidates, items), bias_S.astype(np.float32)
        return _Chosen(items_U, len(candidates), most, bias_S, None, whole=False)

    def _most(self, rows: np.ndarray, common: np.ndarray, negatives: np.ndarray | None = None) -> int:
        """How many items the rank looks up that has most, where their number matters; 0 where it does not.

        Args:
            rows: windows of the global batch.
            common: distinct items that every rank looks up.
            negatives: of each step of the global batch, which its rank looks up.
        """
        world = self.place.world
        if world == 1 or not self.catalogue.content:
            return 0
        rank = np.repeat(np.arange(world), np.diff(np.arange(world + 1) * len(rows) // world))
        found, _ = gather_slices(self.values, self.offsets[rows], self.offsets[rows + 1])
        rank_of = np.repeat(rank, self.lengths[rows])
        if negatives is not None:
            found = np.concatenate([found, negatives])
            rank_of = np.concatenate([rank_of, np.repeat(rank, self.lengths[rows] - 1)])
        own = ~np.isin(found, common)
        distinct = np.unique(rank_of[own] * (self.catalogue.items + 1) + found[own])
        return len(common) + int(np.bincount(distinct // (self.catalogue.items + 1), minlength=world).max())

    def _one_each(self, rows: np.ndarray, share: Share) -> np.ndarray:
        """For each step of the global batch an item that its window does not hold, as far as a few draws find one."""
        rng = np.random.default_rng((self.seed, NEGATIVES, share.step))
        window = np.repeat(rows, self.lengths[rows] - 1)
        held = np.repeat(rows, self.lengths[rows])
        keys = (
            held * (self.catalogue.items + 1)
            + gather_slices(self.values, self.offsets[rows], self.offsets[rows + 1])[0]
        )
        drawn = self.trained[rng.integers(len(self.trained), size=len(window))]
        for _ in range(4):
            again = np.flatnonzero(np.isin(window * (self.catalogue.items + 1) + drawn, keys))
            drawn[again] = self.trained[rng.integers(len(self.trained), size=len(again))]
        return drawn

    @cached_property
    def _chance_I(self) -> np.ndarray:
        """Share of each item in the targets; float64 [I + 1], at most one half."""
        first = np.zeros(len(self.values), dtype=bool)
        first[self.offsets[:-1]] = True
        counts = np.bincount(self.values[~first], minlength=self.catalogue.items + 1)
        return np.minimum(counts / max(counts.sum(), 1), 0.5)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Items of a batch."""

    items_U: np.ndarray
    """int64: the candidates first."""
    candidates: int
    most: int
    """Of the items of any rank, and so many are looked up, the last of them index 0: a row-wise EmbeddingBagCollection
    wants as many on every rank (see `Place.equal_part`)."""
    bias_S: np.ndarray | None
    """Of the first S candidates; the others are targets alone."""
    negatives_N: np.ndarray | None
    """Items."""
    whole: bool
    """Whether they are all that training meets."""


def _with_others(candidates: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Candidates, and behind them the items that are none."""
    return np.concatenate([candidates, np.setdiff1d(items, candidates)])


class NextItemReader:
    """Questions with one right item each: histories and targets of a validation part, in the file's order."""

    def __init__(self, path: Path, catalogue: Catalogue, batch_size: int, limit: int, place: Place) -> None:
        """`limit`: at most so many questions, spread evenly over the file."""
        table = pl.read_parquet(path, columns=["items", "timestamps", "actions", "timestamp", "item_index"])
        if table.height > limit:
            table = table[np.linspace(0, table.height - 1, limit).astype(np.int64)]
        self.table, self.batch_size, self.place = table, batch_size, place
        self.catalogue, self.walk = catalogue, catalogue.walk()
        self._place_I = np.arange(catalogue.items + 1) - 1

    @property
    def rows(self) -> int:
        """Questions."""
        return self.table.height

    def __iter__(self) -> Iterator[tuple[Batch, Histories, np.ndarray]]:
        """(batch, whose links are of last steps, histories, target item [B]) of this rank's part of each batch."""
        for rows in batches(np.arange(self.table.height), self.batch_size, self.place.world):
            mine = self.table[rows[self.place.part(rows)]]
            histories = Histories.of(mine)
            links = None if self.walk is None else self.walk.of_histories(histories, self._place_I)
            batch = retrieval_batch(histories, self.catalogue.whole, histories.items_N - 1, links=links)
            yield batch, histories, mine["item_index"].to_numpy()
