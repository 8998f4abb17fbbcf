"""Batches, and the only code that turns Arrow columns into KeyedJaggedTensors.

B batch, F dense features, N ids in all (jagged).
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from features.schema import Schema


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


@dataclass(eq=False)
class Batch(Pipelineable):
    """One rank's part of a global batch; what a model does not use is None."""

    sparse: KeyedJaggedTensor | None = None
    """Pooled features, keys in the schema's order, stride B."""
    sequences: KeyedJaggedTensor | None = None
    """Features that stay sequences: `history` (time-ordered), `candidates`; stride B."""
    dense: Tensor | None = None
    """float32 [B, F], columns in the schema's order; None where it has none."""
    labels: dict[str, Tensor] | None = None
    """Task → float32 [B], or for sequences int64 [N]: the place of each step's target among the candidates."""
    weights: Tensor | None = None
    """float32 [B]; None: all 1."""
    share: Share | None = None
    """Place in the global batch; None outside of training."""

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


def ranking_batch(
    examples: pl.DataFrame, schema: Schema, share: Share | None = None, weights: np.ndarray | None = None
) -> Batch:
    """Encoded examples (`features.encoder`), with `label` where it is known, as a batch of B rows."""
    lengths, values = [], []
    for feature in schema.embedded:
        flat, length = jagged(examples[feature.name])
        values.append(flat)
        lengths.append(length)
    sparse = KeyedJaggedTensor(
        keys=[feature.name for feature in schema.embedded],
        values=torch.from_numpy(np.concatenate(values).astype(np.int64)),
        lengths=torch.from_numpy(np.concatenate(lengths).astype(np.int64)),
    )
    columns = [examples[feature.name].to_numpy() for feature in schema.dense]
    dense = torch.from_numpy(np.stack(columns, axis=1, dtype=np.float32)) if columns else None
    label = examples["label"].to_numpy().astype(np.float32) if "label" in examples.columns else None
    labels = None if label is None else {schema.label: torch.from_numpy(label)}
    return Batch(
        sparse=sparse,
        dense=dense,
        labels=labels,
        weights=None if weights is None else torch.from_numpy(weights.astype(np.float32)),
        share=share,
    )


def sequence_batch(
    items_N: np.ndarray,
    lengths_B: np.ndarray,
    candidates: np.ndarray | None = None,
    targets_N: np.ndarray | None = None,
    share: Share | None = None,
) -> Batch:
    """Histories, and the candidates that every step of them is scored against.

    Args:
        items_N: item indices, oldest first, user after user.
        lengths_B: history lengths.
        candidates: item indices to look up once for the whole batch; they travel with its first row. None: none.
        targets_N: place among the candidates of the item that follows each step.
        share: place in the global batch.
    """
    candidates = np.empty(0, dtype=np.int64) if candidates is None else candidates
    with_first = np.zeros_like(lengths_B)
    with_first[0] = len(candidates)
    sequences = KeyedJaggedTensor(
        keys=["history", "candidates"],
        values=torch.from_numpy(np.concatenate([items_N, candidates]).astype(np.int64)),
        lengths=torch.from_numpy(np.concatenate([lengths_B, with_first]).astype(np.int64)),
    )
    labels = {"next_item": torch.from_numpy(targets_N.astype(np.int64))} if targets_N is not None else None
    return Batch(sequences=sequences, labels=labels, share=share)


def jagged(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """(values [N], lengths [B]) of a List column, or of a scalar one as lists of one; no copy of the values."""
    assert not column.null_count(), f"{column.name} has nulls, which are no ids; encoded examples have none"
    if not isinstance(column.dtype, pl.List):
        return column.to_numpy(), np.ones(len(column), dtype=np.int64)
    array = column.rechunk().to_arrow()
    offsets = array.offsets.to_numpy()
    return array.values.to_numpy()[offsets[0] : offsets[-1]], np.diff(offsets)
