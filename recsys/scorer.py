"""What every retriever does, learned or counted: score the catalogue for histories.

B users, I items of the catalogue; column 0 stands for what is not in the vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from embeddings.batch import Batch
from embeddings.catalogue import Catalogue
from embeddings.histories import Histories, retrieval_batch
from recsys.index.protocol import Extras, Found, Lists
from recsys.index.tree import Tree
from recsys.losses import Links
from recsys.models.hierarchical import Hierarchical
from recsys.modules.path_scorer import Level


class Scorer(Protocol):
    """A retriever."""

    def scores(self, histories: Histories) -> np.ndarray:
        """float32 [B, I + 1], higher is better, finite; the caller leaves out column 0 and what was seen."""
        ...


@dataclass(frozen=True)
class Asked:
    """Histories as a trained retriever has read them; B of them, none empty."""

    batch: Batch
    outputs: dict[str, Tensor]
    user_BD: Tensor
    links: Links | None
    """Of the last steps, with the whole catalogue; what they add is in their logits."""


class LearnedScorer:
    """A trained retriever: what it makes of histories, scored against every item."""

    def __init__(self, model: nn.Module, catalogue: Catalogue, max_history: int) -> None:
        """`max_history`: steps that the model sees."""
        self.model, self.catalogue, self.max_history = model, catalogue, max_history
        self.walk = catalogue.walk()
        self._place_I = np.arange(catalogue.items + 1)

    @cached_property
    def item_vectors_ID(self) -> Tensor:
        """The whole catalogue; row 0 is no item."""
        with torch.inference_mode():
            return self.model.item_vectors(self.catalogue)  # pyright: ignore[reportCallIssue]

    def ask(self, histories: Histories) -> Asked:
        """Read histories, none of them empty."""
        recent = histories.last(self.max_history)
        items_U, places_N = np.unique(recent.items_N, return_inverse=True)
        links = None if self.walk is None else self.walk.of_histories(recent, self._place_I)
        batch = retrieval_batch(
            recent, self.catalogue.lookup(items_U), places_N, np.empty(0, dtype=np.int64), links=links
        )
        outputs = self.model(batch)
        last_B = torch.from_numpy(np.cumsum(recent.lengths_B) - 1)
        return Asked(batch, outputs, outputs["user_ND"][last_B], Links.of(batch, outputs))

    @torch.inference_mode()
    def scores(self, histories: Histories) -> np.ndarray:
        """float32 [B, I + 1]; users without history get zeros."""
        score_BI = torch.zeros(len(histories.lengths_B), len(self.item_vectors_ID))
        known = np.flatnonzero(histories.lengths_B)
        if len(known):
            asked = self.ask(histories.users(known))
            found_KI = asked.user_BD @ self.item_vectors_ID.T
            if asked.links is not None:
                asked.links.add_to(found_KI)
            score_BI[torch.from_numpy(known)] = found_KI
        return score_BI.numpy()

    @torch.inference_mode()
    def user_vectors(self, histories: Histories) -> np.ndarray:
        """What is made of each history, zeros of an empty one; float32 [B, D]."""
        user_BD = torch.zeros(len(histories.lengths_B), self.item_vectors_ID.shape[1])
        known = np.flatnonzero(histories.lengths_B)
        if len(known):
            user_BD[torch.from_numpy(known)] = self.ask(histories.users(known)).user_BD
        return user_BD.numpy()

    @torch.inference_mode()
    def graph_scores(self, histories: Histories, items_BR: np.ndarray) -> np.ndarray:
        """What the graph adds to the scores of some items of each history, 0 where it says nothing; float32 [B, R]."""
        if self.walk is None:
            return np.zeros(items_BR.shape, dtype=np.float32)
        links = self.walk.of_histories(histories.last(self.max_history), self._place_I)
        added_M = self.model.link(torch.from_numpy(links.values)).numpy()  # pyright: ignore[reportCallIssue]
        row_M = np.repeat(np.arange(len(items_BR)), np.diff(links.offsets))
        key_M = row_M * len(self._place_I) + links.candidates
        order_M = np.argsort(key_M)
        key_BR = np.arange(len(items_BR))[:, None] * len(self._place_I) + items_BR
        place_BR = np.searchsorted(key_M, key_BR, sorter=order_M).clip(max=max(len(key_M) - 1, 0))
        if not len(key_M):
            return np.zeros(items_BR.shape, dtype=np.float32)
        nearest_BR = order_M[place_BR]
        return np.where(key_M[nearest_BR] == key_BR, added_M[nearest_BR], np.float32(0))


class TreeSearcher:
    """A hierarchical retriever with the tree of its items: the best of them, without a look at most."""

    def __init__(self, scorer: LearnedScorer, tree: Tree, beam: int, budget: int, path_weight: float) -> None:
        """See `Tree.search`."""
        assert isinstance(scorer.model, Hierarchical)
        self.scorer, self.model, self.tree = scorer, scorer.model, tree
        self.beam, self.budget, self.path_weight = beam, budget, path_weight

    @cached_property
    def levels(self) -> list[Level]:
        """The hierarchy's codes, as the path scorer wants them."""
        with torch.inference_mode():
            return self.model.levels()

    @torch.inference_mode()
    def search(self, histories: Histories, k: int, excluded: Lists) -> Found:
        """The best `k` items of each history, none of which is empty."""
        asked = self.scorer.ask(histories)
        nodes = self.model.node_scores(asked.outputs, asked.batch, self.levels)
        extras = None
        if asked.links is not None:
            links = asked.links
            extras = Extras(links.candidate_M.numpy(), links.offsets_N1.numpy(), links.logit_M.numpy())
        return self.tree.search(
            asked.user_BD.numpy(),
            k,
            extras=extras,
            excluded=excluded,
            scorer=nodes,
            beam=self.beam,
            budget=self.budget,
            path_weight=self.path_weight,
        )
