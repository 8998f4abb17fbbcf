"""What an item is: its own embedding, its content, its neighbours in the graph, added up.

Content are the mean embedding of each sparse or bag feature, and a linear map of all numbers.

Neighbours are those of LightGCN (He et al., SIGIR 2020): the mean of their embeddings, one hop, no weights but a scale
that is learned. An item that training has not met has no embedding, and is known by its content and its neighbours.

U items, M neighbours in all, D width.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, PoolingType

from embeddings.batch import Known
from embeddings.catalogue import ITEM, NEIGHBOURS, Catalogue, Shape, content_table
from embeddings.tables import item_table

BLOCK_ITEMS = 65_536
"""Items whose vectors are made at a time."""


class ItemTower(nn.Module):
    """Items as `Catalogue.lookup` gives them → v_UD."""

    def __init__(self, shape: Shape, dim: int, device: torch.device, *, unit: bool = False) -> None:
        """Tables are made on `device`.

        Args:
            shape: of the catalogue.
            dim: D.
            device: of the tables.
            unit: whether vectors have length 1.
        """
        super().__init__()
        self.unit = unit
        self.neighbours = shape.neighbours
        keys = [ITEM, NEIGHBOURS] if self.neighbours else [ITEM]
        self.sparse_arch = EmbeddingCollection(tables=[item_table(shape.items, dim, keys)], device=device)
        if self.neighbours:
            self.neighbour_scale = nn.Parameter(torch.ones(()))
        self.content = list(shape.content)
        if self.content:
            self.content_arch = EmbeddingBagCollection(
                tables=[
                    EmbeddingBagConfig(
                        name=content_table(name),
                        num_embeddings=rows,
                        embedding_dim=dim,
                        feature_names=[name],
                        pooling=PoolingType.SUM,
                        init_fn=nn.init.zeros_,
                    )
                    for name, rows in shape.content.items()
                ],
                device=device,
            )
        self.numbers = nn.Linear(shape.numbers, dim, bias=False) if shape.numbers else None
        if self.numbers is not None:
            nn.init.zeros_(self.numbers.weight)  # as the tables of content

    def forward(self, known: Known) -> Tensor:
        """v_UD."""
        items = known.ids
        embedded = self.sparse_arch(items)
        # Row 0 is no embedding: an item that has none is its content and its neighbours.
        v_UD = embedded[ITEM].values() * (items[ITEM].values() > 0).unsqueeze(1)
        if self.content:
            lengths = items.lengths().view(len(items.keys()), -1)
            pooled = self.content_arch(items).to_dict()
            for name in self.content:
                length_U1 = lengths[items.keys().index(name)].clamp(min=1).unsqueeze(1)
                v_UD = v_UD + pooled[name] / length_U1
        if self.numbers is not None:
            assert known.numbers is not None
            v_UD = v_UD + self.numbers(known.numbers)
        if self.neighbours:
            near = embedded[NEIGHBOURS]
            item_M = torch.arange(len(v_UD), device=v_UD.device).repeat_interleave(near.lengths())
            near_MD = near.values() * (items[NEIGHBOURS].values() > 0).unsqueeze(1)
            sum_UD = torch.zeros_like(v_UD).index_add(0, item_M, near_MD)
            v_UD = v_UD + self.neighbour_scale * sum_UD / near.lengths().clamp(min=1).unsqueeze(1)
        return normalize(v_UD, dim=1) if self.unit else v_UD


def item_vectors(tower: nn.Module, catalogue: Catalogue) -> Tensor:
    """The vectors of the whole catalogue, made block by block; float32 [I + 1, D], zeros for index 0.

    Args:
        tower: what `Catalogue.lookup` gives → v_UD; its tables are local.
        catalogue: I items.
    """
    blocks = [
        tower(catalogue.lookup(np.arange(first, min(first + BLOCK_ITEMS, catalogue.items + 1))))
        for first in range(1, catalogue.items + 1, BLOCK_ITEMS)
    ]
    return torch.cat([torch.zeros_like(blocks[0][:1]), *blocks])
