"""Next-item retrieval by two towers: the mean of the history through an MLP, and the item; scored by their cosine.

Covington et al., RecSys 2016; Yi et al., RecSys 2019, whose normalised towers and temperature these are. Order in a
history counts for nothing. C candidates, N history steps in all, I items of the catalogue, D width.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from embeddings.batch import Batch
from embeddings.catalogue import Catalogue, Shape
from features.settings import Settings
from recsys.modules.history_mean import HistoryMean
from recsys.modules.item_tower import ItemTower, item_vectors
from recsys.modules.link import Link
from recsys.modules.tower import Tower

ROLE: Literal["retriever"] = "retriever"


class Config(Settings):
    """The section [retriever.model]."""

    dim: int = Field(default=64, gt=0)
    """Width of item and user vectors."""
    user_layers: tuple[PositiveInt, ...] = (128,)
    """Hidden layers of the user's MLP; none: a user is the mean of the history."""
    item_layers: tuple[PositiveInt, ...] = ()
    """Hidden layers of the item's MLP; none: an item is its id and what is known of it, added up."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of the history's mean that is dropped in training."""
    temperature: float = Field(default=0.07, gt=0)
    """Scores are cosines divided by this."""


class TwoTower(nn.Module):
    """Users after each step, and items, each by a tower of its own; both know the item's vector."""

    def __init__(self, config: Config, shape: Shape, device: torch.device) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.item_tower = ItemTower(shape, config.dim, device)
        self.history = HistoryMean(config.dropout)
        self.user_arch = Tower(config.dim, config.user_layers)
        self.item_arch = Tower(config.dim, config.item_layers)
        self.link = Link() if shape.links else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`user_ND`: the user after each step; `candidates_CD`: the batch's candidates; `link_M`: what links add."""
        assert batch.sequences is not None
        v_UD = self.item_tower(batch.known)
        step_ND = v_UD.index_select(0, batch.sequences["history"])
        mean_ND = self.history(step_ND, batch.sequences["lengths"], batch.share)
        if "candidates" in batch.sequences:
            v_UD = v_UD.index_select(0, batch.sequences["candidates"])
        outputs = {"user_ND": self.user_arch(mean_ND) / self.temperature, "candidates_CD": self.item_arch(v_UD)}
        if self.link is not None and "link_values" in batch.sequences:
            outputs["link_M"] = self.link(batch.sequences["link_values"])
        return outputs

    def item_vectors(self, catalogue: Catalogue) -> Tensor:
        """[I + 1, D]: row i for item index i, zeros for 0; for a model whose tables are local."""
        return item_vectors(nn.Sequential(self.item_tower, self.item_arch), catalogue)


def build(config: Config, shape: Shape, device: torch.device) -> TwoTower:
    """The model for a catalogue of that shape; tables on `device`, which is meta for a model that is to be sharded."""
    return TwoTower(config, shape, device)
