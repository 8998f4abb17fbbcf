"""Histories that a retriever is asked about, and the batch that they become.

B users, N history steps in all, U items that a batch speaks of, C candidates, S of them sampled, M links of steps and
candidates.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
import torch

from embeddings.batch import Batch, Known, Share, jagged
from features.slices import gather_slices


@dataclass(frozen=True, eq=False)
class Histories:
    """Past interactions of B users, user after user, oldest first, N in all; a user may have none."""

    items_N: np.ndarray
    """int64: item indices, none of them 0."""
    lengths_B: np.ndarray
    """int64"""
    timestamps_N: np.ndarray
    """int64, ms; positions where a log has no times."""
    actions_N: np.ndarray
    """int16: codes; −1 where the log has no action."""
    asked_B: np.ndarray
    """int64, ms: when what follows is asked for."""

    @classmethod
    def of(cls, table: pl.DataFrame) -> Self:
        """From columns `items`, `timestamps`, `actions`, `timestamp`; a row a user."""
        items, lengths = jagged(table["items"])
        times, actions = jagged(table["timestamps"])[0], jagged(table["actions"])[0]
        return cls(items.astype(np.int64), lengths, times, actions, table["timestamp"].to_numpy())

    @property
    def rows_N(self) -> np.ndarray:
        """The user of each step."""
        return np.repeat(np.arange(len(self.lengths_B)), self.lengths_B)

    @property
    def steps_back_N(self) -> np.ndarray:
        """How many steps each one lies before its user's last: 0 for the last."""
        return np.repeat(np.cumsum(self.lengths_B), self.lengths_B) - 1 - np.arange(len(self.items_N))

    @property
    def asked_N(self) -> np.ndarray:
        """When what follows each step is asked for: the time of the next step, or of the request; int64, ms."""
        following_N = np.empty(len(self.items_N), dtype=np.int64)
        following_N[:-1] = self.timestamps_N[1:]
        some = self.lengths_B > 0
        following_N[np.cumsum(self.lengths_B)[some] - 1] = self.asked_B[some]
        return following_N

    def last(self, count: int) -> "Histories":
        """At most the last `count` steps of each user."""
        if self.lengths_B.max(initial=0) <= count:
            return self
        kept = self.steps_back_N < count
        lengths_B = np.minimum(self.lengths_B, count)
        return Histories(self.items_N[kept], lengths_B, self.timestamps_N[kept], self.actions_N[kept], self.asked_B)

    def users(self, chosen: np.ndarray) -> "Histories":
        """Some of the users, in their order.

        Args:
            chosen: bool [B] or int64.
        """
        end = np.cumsum(self.lengths_B)[chosen]
        lengths = self.lengths_B[chosen]
        columns = (self.items_N, self.timestamps_N, self.actions_N)
        items, times, actions = (gather_slices(column, end - lengths, end)[0] for column in columns)
        return Histories(items, lengths, times, actions, self.asked_B[chosen])


@dataclass(frozen=True, eq=False)
class Links:
    """Numbers that a graph gives to some pairs of a step and a candidate: sparse rows, N steps, M entries."""

    offsets: np.ndarray
    """int64 [N + 1]"""
    candidates: np.ndarray
    """int64 [M]: places among the candidates, none twice in a row."""
    values: np.ndarray
    """float32 [M]"""


def retrieval_batch(
    histories: Histories,
    items: Known,
    places_N: np.ndarray,
    candidates_C: np.ndarray | None = None,
    targets_N: np.ndarray | None = None,
    bias_S: np.ndarray | None = None,
    negatives_N: np.ndarray | None = None,
    links: Links | None = None,
    share: Share | None = None,
) -> Batch:
    """Histories, and the candidates that every step of them is scored against.

    `sequences` has `history` (int64 [N], places among the items), `lengths` (int64 [B]), `timestamps` and `asked`
    (int64 [N], ms), `actions` (int64 [N]); `candidates` (int64 [C], places among the items), unless all U items are
    candidates in their order; `bias` (float32 [S]) where the first S candidates are a sample, and the others targets
    alone; `negatives` (int64 [N]) where each step has one of its own; and where there are links, `link_offsets`
    (int64 [N + 1]), `link_candidates` (int64 [M]) and `link_values` (float32 [M]).

    Args:
        histories: N steps.
        items: what is known of U items.
        places_N: int64: where the item of each step is among them.
        candidates_C: int64: where the candidates are among them. None: they are all items.
        targets_N: place among the candidates of the item that follows each step.
        bias_S: what the loss adds to the scores of the first S candidates where they are not the target; float32. None:
            nothing is added, and all candidates are meant.
        negatives_N: place among the candidates of each step's own negative.
        links: of steps and candidates.
        share: place in the global batch.
    """
    sequences = {
        "history": places_N,
        "lengths": histories.lengths_B,
        "timestamps": histories.timestamps_N,
        "asked": histories.asked_N,
        "actions": histories.actions_N,
    }
    if candidates_C is not None:
        sequences["candidates"] = candidates_C
    if negatives_N is not None:
        sequences["negatives"] = negatives_N
    if links is not None:
        sequences["link_offsets"] = links.offsets
    tensors = {name: torch.from_numpy(values.astype(np.int64)) for name, values in sequences.items()}
    if bias_S is not None:
        tensors["bias"] = torch.from_numpy(bias_S)
    if links is not None:
        # By far the largest: not copied.
        tensors["link_candidates"] = torch.from_numpy(links.candidates)
        tensors["link_values"] = torch.from_numpy(links.values)
    labels = {"next_item": torch.from_numpy(targets_N.astype(np.int64))} if targets_N is not None else None
    return Batch(items=items.ids, item_numbers=items.numbers, sequences=tensors, labels=labels, share=share)
