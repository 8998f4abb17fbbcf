"""Initial table weights that do not depend on the plan: any sharding on any number of ranks starts from the same ones.

A table is filled in blocks of rows, each drawn by a generator of its own, seeded by the name of the table's weight in
the model and the block's number; a rank draws only the blocks that its shards touch.
"""

import hashlib
import math
import re

import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

BLOCK_ROWS = 65_536

_WHOLE = re.compile(r"\.(embedding_bags|embeddings)\.[^.]+\.weight$")
"""What a data-parallel table is called in the state of a sharded model."""


def initialise_tables(model: DistributedModelParallel, seed: int) -> None:
    """Fill every table, sharded or whole on every rank, from N(0, 1/dim), in place."""
    for name, weight in model.state_dict().items():
        if not weight.dtype.is_floating_point:
            continue  # the ids that have the rows of a managed table
        if isinstance(weight, ShardedTensor):
            shards = [
                (shard.tensor, *shard.metadata.shard_offsets, *shard.metadata.shard_sizes)
                for shard in weight.local_shards()
            ]
        elif _WHOLE.search(name):
            shards = [(weight, 0, 0, *weight.shape)]
        else:
            continue
        rows, dim = weight.size()
        for tensor, row, column, height, width in shards:
            for block in range(row // BLOCK_ROWS, -(-(row + height) // BLOCK_ROWS)):
                first = block * BLOCK_ROWS
                drawn = block_weights(name, block, min(BLOCK_ROWS, rows - first), dim, seed)
                low, high = max(row, first), min(row + height, first + len(drawn))
                tensor.detach()[low - row : high - row].copy_(
                    drawn[low - first : high - first, column : column + width]
                )


def block_weights(table: str, block: int, rows: int, dim: int, seed: int) -> torch.Tensor:
    """The initial weights of one block; float32 [rows, dim]."""
    digest = hashlib.blake2b(f"{table}\0{block}\0{seed}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
    return torch.randn(rows, dim, generator=generator) / math.sqrt(dim)
