"""A small model with a fused table that is whole, one that is cut, and one that is not fused; batches and steps."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, data_parallel, row_wise, table_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.keyed import CombinedOptimizer

from embeddings import optim, precision
from recsys import distributed

CPU = torch.device("cpu")
ROWS, DIM, BATCH, STEPS = 30, 8, 16, 12
FORMS = {"whole": table_wise(rank=0), "cut": row_wise(), "everywhere": data_parallel()}
"""Table → its form; the last is not fused."""


class Model(nn.Module):
    """Three tables and a layer on top."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(
                name=name,
                num_embeddings=ROWS,
                embedding_dim=DIM,
                feature_names=[f"{name}_ids"],
                pooling=PoolingType.SUM,
                init_fn=nn.init.zeros_,
            )
            for name in FORMS
        ]
        self.tables = EmbeddingBagCollection(tables=tables, device=device)
        self.layer = nn.Linear(len(FORMS) * DIM, 1)

    def forward(self, bags: KeyedJaggedTensor) -> Tensor:
        """[B]."""
        found = self.tables(bags).to_dict()
        return self.layer(torch.cat([found[f"{name}_ids"] for name in FORMS], dim=1)).squeeze(1)


def initial(name: str, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(name))) / 4


def batch(number: int, rank: int = 0, world: int = 1) -> tuple[KeyedJaggedTensor, Tensor]:
    """A rank's part of a global batch: bags of 0 to 3 ids, and what to predict."""
    draw = torch.Generator().manual_seed(number)
    ids = torch.randint(0, ROWS, (len(FORMS), BATCH, 3), generator=draw)
    lengths = torch.randint(0, 4, (len(FORMS), BATCH), generator=draw)
    target = torch.randn(BATCH, generator=draw)
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    ids, lengths = ids[:, mine], lengths[:, mine]
    bags = KeyedJaggedTensor(
        keys=[f"{name}_ids" for name in FORMS],
        values=ids[torch.arange(3) < lengths[:, :, None]],
        lengths=lengths.flatten(),
    )
    return bags, target[mine]


def sharded(config: optim.Config, tables: precision.Config | None = None) -> DistributedModelParallel:
    """The model with its tables in FORMS."""
    tables = tables or precision.Config()
    model = Model(torch.device("meta"))
    precision.set_precision(model, tables)
    optim.fuse(model.tables.parameters(), config)
    sharder = EmbeddingBagCollectionSharder(fused_params=precision.fused_params(tables))
    plan = construct_module_sharding_plan(model.tables, FORMS, sharder, device_type="cpu")
    wrapped = DistributedModelParallel(
        model,
        device=CPU,
        plan=ShardingPlan({"tables": plan}),
        sharders=[sharder],  # pyright: ignore[reportArgumentType]
    )
    with torch.no_grad():
        for name, value in wrapped.state_dict().items():
            whole = initial(name, value.size())
            if isinstance(value, ShardedTensor):
                for shard in value.local_shards():
                    first, rows = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
                    shard.tensor.copy_(whole[first : first + rows])
            else:
                value.copy_(whole)
    return wrapped


def steps(
    model: DistributedModelParallel, optimizer: CombinedOptimizer, config: optim.Config, numbers: range
) -> Iterator[float]:
    """Train, and tell the norm of the dense gradients of every step."""
    place = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for step in numbers:
        optim.set_rate(optimizer, config, step, STEPS)
        optimizer.zero_grad(set_to_none=True)
        for micro in range(config.accumulate):
            bags, target = batch(step * config.accumulate + micro, *place)
            (model(bags) - target).square().mean().backward()
        norm = optim.clip(optimizer, config).item()
        optimizer.step()
        yield norm


def whole(model: DistributedModelParallel) -> dict[str, Tensor]:
    """All weights, put together; every rank calls it, the first gets them."""
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            found[name] = torch.empty(value.size(), dtype=value.dtype)
            value.gather(dst=0, out=found[name] if distributed.is_first() else None)
        else:
            found[name] = value.detach().clone()
    return found
