"""Schema → TorchRec table configs: one table for each name, however many features share it.

Weights start at zero here; `embeddings.init` fills them once it is known which rank holds what.
"""

from collections.abc import Collection

from pydantic import Field
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, KeyedTensor, PoolingType

from embeddings import precision
from embeddings.collisions import ManagedTable
from features.schema import Schema


class Config(precision.Config):
    """The section [tables]."""

    managed: dict[str, ManagedTable] = Field(default_factory=dict)
    """Table whose ids have no bound → how its rows are given to them."""


def bag_tables(schema: Schema) -> list[EmbeddingBagConfig]:
    """Tables of the pooled features; they sum, and `means` makes means of that.

    TorchRec's own means are wrong where a plan has tables of one collection cut by rows beside others that are whole.
    """
    tables: dict[str, EmbeddingBagConfig] = {}
    for feature in schema.embedded:
        assert feature.rows is not None, f"{feature.name} has not been fitted"
        if feature.table_name in tables:
            tables[feature.table_name].feature_names.append(feature.name)
            continue
        tables[feature.table_name] = EmbeddingBagConfig(
            name=feature.table_name,
            num_embeddings=feature.rows,
            embedding_dim=feature.dim,
            feature_names=[feature.name],
            pooling=PoolingType.SUM,
            init_fn=nn.init.zeros_,
        )
    return list(tables.values())


def means(pooled: KeyedTensor, features: KeyedJaggedTensor, bags: Collection[str]) -> dict[str, Tensor]:
    """Sums over bags as means, so that a bag's length carries no weight of its own; feature → float32 [B, D].

    Args:
        pooled: what a collection of `bag_tables` answers to `features`.
        features: where they have weights, these make the sums means already: see `embeddings.batch.ranking_batch`.
        bags: features that may have more ids than one.
    """
    found = pooled.to_dict()
    if features.weights_or_none() is not None:
        return found
    length_FB1 = features.lengths().view(len(features.keys()), -1, 1).clamp(min=1)
    for place, name in enumerate(features.keys()):
        if name in bags:
            found[name] = found[name] / length_FB1[place]
    return found


def item_table(items: int, dim: int, features: list[str]) -> EmbeddingConfig:
    """The retriever's table: a row an item, row 0 for what is not in the vocabulary."""
    return EmbeddingConfig(
        name="item", num_embeddings=items + 1, embedding_dim=dim, feature_names=features, init_fn=nn.init.zeros_
    )
