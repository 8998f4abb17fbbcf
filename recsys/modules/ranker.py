"""What all rankers share: the arches of DLRM (Naumov et al., 2019, https://arxiv.org/abs/1906.00091) around a middle.

Features become vectors of one width, ids through pooled tables, all numbers through an MLP; a model makes of them what
it makes of them; an over arch turns that into the tasks' predictions.

What is the person's comes first, for candidates of one request share it: see `recsys.modules.candidates`.

B examples, R requests, F vectors: S that candidates share, C of their own; D their width.
"""

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection

from embeddings.batch import Batch
from embeddings.quantized import StoredBags
from embeddings.tables import bag_tables, means
from features.errors import InputError
from features.placing import of_request
from features.schema import Schema
from features.settings import Settings
from recsys.modules import over_arch, target_attention
from recsys.modules.candidates import Candidates
from recsys.modules.mlp import mlp
from recsys.modules.over_arch import OverArch
from recsys.modules.target_attention import TargetAttention


class Config(Settings):
    """What every section [ranker.model] has."""

    dense_layers: tuple[PositiveInt, ...] = Field(default=(64,), min_length=1)
    """Hidden widths of the dense arch; its last layer has the embeddings' width."""
    attention: target_attention.Config | None = None
    """What the candidate finds in the history, as one more vector; None: there is no such."""
    over: over_arch.Config = over_arch.Config()
    """The over arch."""


class Ranker(nn.Module):
    """`sparse_arch`, `dense_arch` and `vectors`, which a model goes on from to its `over_arch`.

    A base class, not a part: initial weights of a table depend on its name in the model, which is DLRM's.
    """

    over_arch: OverArch

    def __init__(self, config: Config, schema: Schema, device: torch.device) -> None:
        """Tables are made on `device`.

        Args:
            config: of the arches.
            schema: of the examples.
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
        self.shared = [feature.name for feature in schema.embedded if of_request(feature)]
        self.own = [feature.name for feature in schema.embedded if not of_request(feature)]
        self.bags = frozenset(feature.name for feature in schema.embedded if feature.kind == "bag")
        self.features = len(schema.embedded) + bool(schema.dense) + (config.attention is not None)
        self.sparse_arch = EmbeddingBagCollection(tables=bag_tables(schema), is_weighted=schema.weighted, device=device)
        self.attention = None if config.attention is None else TargetAttention(config.attention, schema, device)
        widths = (schema.dense_width, *config.dense_layers, self.dim)
        self.dense_arch = mlp(widths, last_linear=False) if schema.dense else None

    def vectors(self, batch: Batch) -> Tensor:
        """[B, F, D]: what candidates share, the numbers, if there are some, other features, what was attended to."""
        x = self.candidates(batch)
        return x.whole_BFD if isinstance(x, Candidates) else x

    def candidates(self, batch: Batch) -> Tensor | Candidates:
        """The same, in two parts where the candidates of a request are together and tables are stored ones."""
        assert batch.sparse is not None
        tables: nn.Module = self.sparse_arch
        split = batch.together > 1 and 0 < len(self.shared) < self.features
        if isinstance(tables, StoredBags) and split:
            pooled = tables.means(batch.sparse, self.bags, self.shared, batch.together)
        else:
            pooled, split = means(self.sparse_arch(batch.sparse), batch.sparse, self.bags), False
        shared, found = [pooled[key] for key in self.shared], [pooled[key] for key in self.own]
        if self.dense_arch is not None:
            assert batch.dense is not None
            found.insert(0, self.dense_arch(batch.dense))
        if self.attention is not None:
            found.append(self.attention(batch.sparse, batch.together))
        if not split:
            return torch.stack([*shared, *found], dim=1)
        return Candidates(torch.stack(shared, dim=1), torch.cat(found, dim=1).unflatten(1, (-1, self.dim)))

    def auxiliary(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """This rank's share of what is added to the loss."""
        return self.over_arch.balance_loss(outputs, batch)
