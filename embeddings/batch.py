"""Batches, and the only code that turns Arrow columns into KeyedJaggedTensors.

B batch, F dense features, T tasks, N ids in all (jagged), U items, V numbers that describe one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from features.moment import Ragged
from features.schema import WEIGHTS, Schema


@dataclass(frozen=True)
class Share:
    """Which part of a global batch this rank holds, so that results do not depend on the number of ranks."""

    step: int
    """Number of the global batch, from 0."""
    rows: int
    """Rows of the global batch."""
    targets: int
    """Predictions asked for in the global batch."""
    tokens_before: int
    """History tokens in the ranks before this one."""
    tokens: int
    """History tokens in the global batch."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of U items."""

    ids: KeyedJaggedTensor
    """A key each, stride U; see `embeddings.catalogue`."""
    numbers: Tensor | None
    """float32 [U, V]; None where there are none."""


@dataclass(eq=False)
class Batch(Pipelineable):
    """One rank's part of a global batch; what a model does not use is None."""

    sparse: KeyedJaggedTensor | None = None
    """Pooled features, keys in the schema's order, stride B; weights where some bag has them."""
    items: KeyedJaggedTensor | None = None
    """What is known of the U items that `sequences` speaks of, from `embeddings.catalogue`; stride U."""
    item_numbers: Tensor | None = None
    """Likewise, as numbers: float32 [U, V]."""
    sequences: dict[str, Tensor] | None = None
    """Histories, jagged and time-ordered: see `embeddings.histories`."""
    dense: Tensor | None = None
    """float32 [B, F], columns in the schema's order; None where it has none."""
    labels: dict[str, Tensor] | None = None
    """`outcomes`: float32 [B, T], by task, NaN where one is not known; or `next_item`: int64 [N], the place of each
    step's target among the candidates."""
    weights: Tensor | None = None
    """float32 [B]; None: all 1."""
    share: Share | None = None
    """Place in the global batch; None outside of training."""
    together: int = 1
    """So many rows that follow each other are candidates of one request, and of one history."""

    @property
    def known(self) -> Known:
        """What is known of the items of `sequences`."""
        assert self.items is not None
        return Known(self.items, self.item_numbers)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """A copy on `device`."""
        return self._map(lambda value: value.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in page-locked memory."""
        return self._map(lambda value: value.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until `stream` has passed this point."""

        def record(value):
            value.record_stream(stream)
            return value

        self._map(record)

    def _map(self, function) -> Self:
        changed = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                changed[field.name] = {name: function(tensor) for name, tensor in value.items()}
            elif isinstance(value, Tensor | KeyedJaggedTensor):
                changed[field.name] = function(value)
        return replace(self, **changed)


@dataclass(frozen=True, eq=False)
class Columns:
    """Encoded examples as flat arrays, which batches are gathered from; those of bags are jagged."""

    schema: Schema
    rows: int
    """B."""
    ids: list[np.ndarray]
    """Of each embedded feature, row after row; [N], or [B] where each row has one."""
    offsets: list[np.ndarray | None]
    """Where each row's ids begin, and their end; int64 [B + 1]. None: each row has one."""
    weights: list[np.ndarray | None]
    """float32 [N], absolute values that sum to 1 in each row, or to 0. None: those of a mean."""
    dense: np.ndarray | None
    """float32 [B, F]."""
    labels: np.ndarray | None
    """float32 [B, T], in the order of the schema's outcomes; NaN where one is not known."""
    user: np.ndarray | None
    """`user_code`; [B]."""

    @classmethod
    def of(cls, examples: pl.DataFrame, schema: Schema) -> Self:
        """What the encoder made; ids are not copied."""
        ids, offsets, weights = [], [], []
        for feature in schema.embedded:
            flat, edges = _slices(examples[feature.name])
            ids.append(flat)
            offsets.append(edges)
            weights.append(None)
            if feature.weights is not None:
                weight, like = _slices(examples[feature.name + WEIGHTS])
                assert edges is not None
                assert like is not None
                assert np.array_equal(edges, like), f"{feature.name} has other lengths than its weights"
                weights[-1] = _normalised(weight, edges)
        dense = np.empty((examples.height, schema.dense_width), dtype=np.float32) if schema.dense else None
        at = 0
        for feature in schema.dense:
            width = feature.width or 1
            assert dense is not None
            dense[:, at : at + width] = examples[feature.name].to_numpy().reshape(examples.height, width)
            at += width
        return cls(
            schema=schema,
            rows=examples.height,
            ids=ids,
            offsets=offsets,
            weights=weights,
            dense=dense,
            labels=_labels(examples, schema),
            user=examples["user_code"].to_numpy() if "user_code" in examples.columns else None,
        )

    @classmethod
    def of_arrays(cls, rows: int, columns: Mapping[str, np.ndarray | Ragged], schema: Schema) -> Self:
        """The same from `features.instant.Encoded`."""
        ids: list[np.ndarray] = []
        offsets: list[np.ndarray | None] = []
        weights: list[np.ndarray | None] = []
        for feature in schema.embedded:
            column = columns[feature.name]
            ragged = isinstance(column, Ragged)
            ids.append(column.values if ragged else column)
            offsets.append(column.edge if ragged else None)
            weight = columns[feature.name + WEIGHTS] if feature.weights is not None else None
            weights.append(_normalised(weight.values, weight.edge) if isinstance(weight, Ragged) else None)
        dense = np.empty((rows, schema.dense_width), dtype=np.float32) if schema.dense else None
        at = 0
        for feature in schema.dense:
            width = feature.width or 1
            column = columns[feature.name]
            assert dense is not None
            assert isinstance(column, np.ndarray)
            dense[:, at : at + width] = column.reshape(rows, width)
            at += width
        return cls(schema, rows, ids, offsets, weights, dense, None, None)

    @classmethod
    def join(cls, parts: "list[Columns]") -> "Columns":
        """Parts of one schema and with the same columns, one after the other."""
        if len(parts) == 1:
            return parts[0]
        features = range(len(parts[0].ids))
        return cls(
            schema=parts[0].schema,
            rows=sum(part.rows for part in parts),
            ids=[np.concatenate([part.ids[i] for part in parts]) for i in features],
            offsets=[_end_to_end([part.offsets[i] for part in parts]) for i in features],
            weights=[_joined([part.weights[i] for part in parts]) for i in features],
            dense=_joined([part.dense for part in parts]),
            labels=_joined([part.labels for part in parts]),
            user=_joined([part.user for part in parts]),
        )

    def take(self, rows: np.ndarray) -> "Columns":
        """Copies of some rows, in their order."""
        ids, offsets, weights = [], [], []
        for flat, edges, weight in zip(self.ids, self.offsets, self.weights, strict=True):
            places, to = (rows, None) if edges is None else _inside(edges.take(rows), edges.take(rows + 1))
            ids.append(flat.take(places))
            offsets.append(to)
            weights.append(None if weight is None else weight.take(places))
        dense, labels, user = (
            None if x is None else x.take(rows, axis=0) for x in (self.dense, self.labels, self.user)
        )
        return Columns(self.schema, len(rows), ids, offsets, weights, dense, labels, user)

    def batch(self, share: Share | None = None, weights: np.ndarray | None = None, together: int = 1) -> Batch:
        """All rows as a batch.

        Args:
            share: place in the global batch.
            weights: of the rows; None: all 1.
            together: see `Batch`.
        """
        lengths = np.ones((len(self.ids), self.rows), dtype=np.int64)
        for length, edges in zip(lengths, self.offsets, strict=True):
            if edges is not None:
                np.subtract(edges[1:], edges[:-1], out=length)
        sparse = KeyedJaggedTensor(
            keys=[feature.name for feature in self.schema.embedded],
            values=torch.from_numpy(np.concatenate(self.ids, dtype=np.int64)),
            lengths=torch.from_numpy(lengths.ravel()),
            weights=torch.from_numpy(self._pooling(lengths)) if self.schema.weighted else None,
        )
        return Batch(
            sparse=sparse,
            dense=None if self.dense is None else torch.from_numpy(self.dense),
            labels=None if self.labels is None else {"outcomes": torch.from_numpy(self.labels)},
            weights=None if weights is None else torch.from_numpy(weights.astype(np.float32)),
            share=share,
            together=together,
        )

    def _pooling(self, lengths: np.ndarray) -> np.ndarray:
        """What each id counts for in a sum that is the (weighted) mean of its bag; float32 [N]."""
        found: list[np.ndarray] = []
        for flat, edges, weight, length in zip(self.ids, self.offsets, self.weights, lengths, strict=True):
            if edges is None:
                weight = np.ones(len(flat), dtype=np.float32)
            elif weight is None:
                weight = np.repeat(1 / np.maximum(length, 1, dtype=np.float32), length)
            found.append(weight)
        return np.concatenate(found)


def ranking_batch(
    examples: pl.DataFrame, schema: Schema, share: Share | None = None, weights: np.ndarray | None = None
) -> Batch:
    """Encoded examples (`features.encoder`), with `label` where it is known, as a batch of B rows.

    Where some bag of the schema is weighted, the ids of all keys have weights, such that a sum over a bag is its mean:
    a bag's own, divided by the sum of their absolute values, or 0 where that is 0; elsewhere 1 / length.
    """
    return Columns.of(examples, schema).batch(share, weights)


def _labels(examples: pl.DataFrame, schema: Schema) -> np.ndarray | None:
    """float32 [B, T]; None where nothing is known of what happened."""
    if "label" not in examples.columns:
        return None
    columns = [examples["label"], *(examples[task.column] for task in schema.tasks)]
    return np.stack([column.to_numpy() for column in columns], axis=1, dtype=np.float32)


def jagged(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """(values [N], lengths [B]) of a List column, or of a scalar one as lists of one; no copy of the values."""
    values, offsets = _slices(column)
    return values, np.ones(len(column), dtype=np.int64) if offsets is None else np.diff(offsets)


def _slices(column: pl.Series) -> tuple[np.ndarray, np.ndarray | None]:
    """(values [N], offsets int64 [B + 1]) of a List column, (values [B], None) of a scalar one; without a copy."""
    assert not column.null_count(), f"{column.name} has nulls, which are no ids; encoded examples have none"
    if not isinstance(column.dtype, pl.List):
        return column.to_numpy(), None
    array = column.rechunk().to_arrow()
    offsets = array.offsets.to_numpy()
    values = array.values.to_numpy()[offsets[0] : offsets[-1]]
    return values, offsets - offsets[0] if offsets[0] else offsets


def _inside(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places in the slices start … end, one slice after the other [N], and their offsets [B + 1]; int64."""
    offsets = np.zeros(len(start) + 1, dtype=np.int64)
    np.cumsum(end - start, out=offsets[1:])
    places = np.arange(offsets[-1])
    places += np.repeat(start - offsets[:-1], end - start)
    return places, offsets


def _normalised(weights_N: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Weights divided by the sum of their absolute values in each row, 0 where that is 0; float32."""
    lengths = np.diff(offsets)
    sums = np.ones(len(lengths), dtype=np.float32)
    some = lengths > 0
    # Empty rows have no place in `reduceat`; between the starts of the others lie those rows alone.
    if some.any():
        sums[some] = np.add.reduceat(np.abs(weights_N), offsets[:-1][some])
    sums[sums == 0] = 1
    return np.asarray(weights_N / np.repeat(sums, lengths), dtype=np.float32)


def _end_to_end(offsets: list[np.ndarray | None]) -> np.ndarray | None:
    """Offsets of jagged arrays that are put one after the other."""
    known = [edges for edges in offsets if edges is not None]
    if not known:
        return None
    shifts = np.cumsum([0, *(edges[-1] for edges in known)])
    return np.concatenate([[0], *(edges[1:] + shift for edges, shift in zip(known, shifts[:-1], strict=True))])


def _joined(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    known = [array for array in arrays if array is not None]
    return np.concatenate(known) if known else None
