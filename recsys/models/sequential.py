"""Next-item retrieval by attention over the history: SASRec, its descendants, and HSTU, by choice of block.

SASRec: Kang & McAuley, ICDM 2018, arXiv:1808.09781; HSTU: Zhai et al., ICML 2024, arXiv:2402.17152.
C candidates, N history steps in all, I items of the catalogue, D width.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from embeddings.batch import Batch
from embeddings.catalogue import Catalogue, Shape
from recsys.modules import encoder
from recsys.modules.encoder import Encoder
from recsys.modules.item_tower import ItemTower, item_vectors
from recsys.modules.link import Link

ROLE: Literal["retriever"] = "retriever"


class Config(encoder.Config):
    """The section [retriever.model]."""

    dim: int = Field(default=64, gt=0)
    """Width of item and user vectors."""
    temperature: float | None = Field(default=None, gt=0)
    """Scores are cosines divided by this; None: they are dot products."""

    @model_validator(mode="after")
    def _check_dim(self) -> "Config":
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} is not a multiple of heads = {self.heads}; change one")
        return self


class Sequential(nn.Module):
    """Item vectors through causal blocks; a step's output is scored against item vectors."""

    def __init__(self, config: Config, shape: Shape, device: torch.device) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.item_tower = ItemTower(shape, config.dim, device, unit=config.temperature is not None)
        self.encoder = Encoder(config, config.dim)
        self.link = Link() if shape.links else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`user_ND`: the user after each step; `candidates_CD`: the batch's candidates; `link_M`: what links add."""
        assert batch.sequences is not None
        v_UD = self.item_tower(batch.known)
        user_ND = self.encoder(v_UD.index_select(0, batch.sequences["history"]), batch.sequences, batch.share)
        if self.temperature is not None:
            user_ND = normalize(user_ND, dim=1) / self.temperature
        outputs = {"user_ND": user_ND, "candidates_CD": v_UD}
        if "candidates" in batch.sequences:
            outputs["candidates_CD"] = v_UD.index_select(0, batch.sequences["candidates"])
        if self.link is not None and "link_values" in batch.sequences:
            outputs["link_M"] = self.link(batch.sequences["link_values"])
        return outputs

    def item_vectors(self, catalogue: Catalogue) -> Tensor:
        """[I + 1, D]: row i for item index i, zeros for 0; for a model whose tables are local."""
        return item_vectors(self.item_tower, catalogue)


def build(config: Config, shape: Shape, device: torch.device) -> Sequential:
    """The model for a catalogue of that shape; tables on `device`, which is meta for a model that is to be sharded."""
    return Sequential(config, shape, device)
