"""Features as vectors of one width: ids through pooled tables, all numbers through an MLP.

The SparseArch and the DenseArch of DLRM (Naumov et al., 2019, https://arxiv.org/abs/1906.00091).

B examples, F vectors, D their width.
"""

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection

from embeddings.batch import Batch
from embeddings.tables import bag_tables, means
from features.errors import InputError
from features.schema import Schema
from recsys.modules.mlp import mlp


class FeatureModel(nn.Module):
    """What rankers begin with: `sparse_arch`, `dense_arch`, and `vectors`, which a model goes on from.

    A base class, not a part: initial weights of a table depend on its name in the model, which is DLRM's.
    """

    def __init__(self, schema: Schema, dense_layers: tuple[int, ...], device: torch.device) -> None:
        """Tables are made on `device`.

        Args:
            schema: of the examples.
            dense_layers: hidden widths of the dense arch; D follows them.
            device: of the tables.

        Raises:
            InputError: there is no embedded feature, or they have more than one width.
        """
        super().__init__()
        dims = sorted({feature.dim for feature in schema.embedded})
        if len(dims) != 1:
            raise InputError(
                f"features interact as vectors of one width, and the sparse and bag features have dim = {dims}; give "
                "all in [[features]] the same"
            )
        self.dim = dims[0]
        self.keys = [feature.name for feature in schema.embedded]
        self.bags = frozenset(feature.name for feature in schema.embedded if feature.kind == "bag")
        self.features = len(self.keys) + bool(schema.dense)
        self.sparse_arch = EmbeddingBagCollection(tables=bag_tables(schema), is_weighted=schema.weighted, device=device)
        widths = (schema.dense_width, *dense_layers, self.dim)
        self.dense_arch = mlp(widths, last_linear=False) if schema.dense else None

    def vectors(self, batch: Batch) -> Tensor:
        """[B, F, D]: the numbers first, if there are some, then the embedded features in the schema's order."""
        assert batch.sparse is not None
        pooled = means(self.sparse_arch(batch.sparse), batch.sparse, self.bags)
        found = [pooled[key] for key in self.keys]
        if self.dense_arch is not None:
            assert batch.dense is not None
            found.insert(0, self.dense_arch(batch.dense))
        return torch.stack(found, dim=1)
