"""Schema → TorchRec table configs: one table for each name, however many features share it.

Weights start at zero here; `embeddings.init` fills them once it is known which rank holds what.
"""

from pydantic import Field
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, PoolingType

from embeddings import precision
from embeddings.collisions import ManagedTable
from features.schema import Schema


class Config(precision.Config):
    """The section [tables]."""

    managed: dict[str, ManagedTable] = Field(default_factory=dict)
    """Table whose ids have no bound → how its rows are given to them."""


def bag_tables(schema: Schema) -> list[EmbeddingBagConfig]:
    """Tables of the pooled features; bags are pooled by their mean, so that length carries no weight of its own.

    The tables themselves sum, and the batch has the weights that make the sum a mean: see `ranking_batch`. TorchRec's
    own means are wrong where a plan has tables of one collection cut by rows beside others that are whole.
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


def item_table(items: int, dim: int, features: list[str]) -> EmbeddingConfig:
    """The retriever's table: a row an item, row 0 for what is not in the vocabulary."""
    return EmbeddingConfig(
        name="item", num_embeddings=items + 1, embedding_dim=dim, feature_names=features, init_fn=nn.init.zeros_
    )
