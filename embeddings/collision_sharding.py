"""Managed collections on several ranks: what TorchRec's planner and DistributedModelParallel are given for them.

    collision_sharding.constraints(model), collision_sharding.sharders(BagSharder(), EmbeddingCollectionSharder())

R rows, D columns of a rank's shard, N rows that change hands.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embedding import (
    ManagedCollisionEmbeddingCollectionSharder,
    ShardedManagedCollisionEmbeddingCollection,
)
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.types import ModuleSharder, ParameterSharding, ShardingEnv
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import ManagedCollisionCollection


def constraints(model: nn.Module) -> dict[str, ParameterConstraints]:
    """What the planner may do with the managed tables of a model: by rows, in the memory of the device."""
    return {
        table: ParameterConstraints(sharding_types=["row_wise"], compute_kernels=["fused"])
        for module in model.modules()
        if isinstance(module, ManagedCollisionCollection)
        for table in module._table_to_features
    }


def sharders(
    bags: EmbeddingBagCollectionSharder, sequences: EmbeddingCollectionSharder
) -> list[ModuleSharder[nn.Module]]:
    """Sharders of managed collections, given those of what is in them."""
    return [
        cast("ModuleSharder[nn.Module]", BagSharder(bags)),
        cast("ModuleSharder[nn.Module]", SequenceSharder(sequences)),
    ]


class _Restart:
    """What becomes of rows that are given to another id.

    TorchRec's own way calls an operator that fbgemm lacks on CPU, resets the state of row-wise Adagrad alone, and draws
    weights without telling for which row.
    """

    def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
        """Weights begin at those of the shared row, the optimizer's state at zero."""
        module = cast("Any", self)
        for table, row_N in evictions_per_table.items():
            if row_N is None:
                continue
            kernel, place = module._table_to_tbe_and_index[table]
            size = module._managed_collision_collection._managed_collision_modules[table].rows_of_bucket
            weight_RD = kernel.split_embedding_weights()[int(place)]
            weight_RD[row_N] = weight_RD[(row_N // size + 1) * size - 1]
            states = kernel.split_optimizer_states()
            for state in states[int(place)] if states else ():
                state[row_N] = 0


class ShardedBags(_Restart, ShardedManagedCollisionEmbeddingBagCollection):
    """A managed EmbeddingBagCollection on several ranks."""


class ShardedSequences(_Restart, ShardedManagedCollisionEmbeddingCollection):
    """A managed EmbeddingCollection on several ranks."""


class BagSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """Makes `ShardedBags`."""

    def shard(
        self,
        module: ManagedCollisionEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedBags:
        """The module as this rank holds it."""
        assert device is not None
        bags = cast("EmbeddingBagCollectionSharder", self._e_sharder)
        return ShardedBags(module, params, bags, self._mc_sharder, env, device)


class SequenceSharder(ManagedCollisionEmbeddingCollectionSharder):
    """Makes `ShardedSequences`."""

    def shard(
        self,
        module: ManagedCollisionEmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedSequences:
        """The module as this rank holds it."""
        assert device is not None
        sequences = cast("EmbeddingCollectionSharder", self._e_sharder)
        return ShardedSequences(module, params, sequences, self._mc_sharder, env, device)
