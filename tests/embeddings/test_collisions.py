"""Managed tables, sharded: the same on any number of ranks, through checkpoints, and in what answers requests.

Four processes are started once; groups of them train, save and load, and the tests look at what they left.
Sums over ranks are in another order than over one; what is looked up id by id is equal bit by bit.
"""

import multiprocessing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward as fuse
from torch.multiprocessing.spawn import start_processes
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from embeddings import collision_sharding, collisions
from embeddings.batch import Columns
from embeddings.id_map import EMPTY, IdMap, bucket_of
from embeddings.init import block_weights
from features.encoder import Encoder
from features.errors import InputError
from features.schema import FeatureSpec, Schema
from features.transforms.hashing import UNBOUNDED
from recsys.console import quiet

CPU, META = torch.device("cpu"), torch.device("meta")
ROWS, BATCH, STEPS, WORLDS = 24, 12, 22, (1, 2, 3)
"""Evictions come after 4, 3 and 5 steps: a checkpoint after 22 or 11 lies between two of every table."""

BUCKETS = 12
MANAGED = {
    "user": collisions.ManagedTable(rows=8 * BUCKETS, policy="lfu", eviction_interval=4, buckets=BUCKETS),
    "word": collisions.ManagedTable(rows=4 * BUCKETS, eviction_interval=3, buckets=BUCKETS),
    "item": collisions.ManagedTable(rows=3 * BUCKETS, policy="lru", eviction_interval=5, buckets=BUCKETS),
}
POOLS = {
    table: torch.randint(0, UNBOUNDED, (size,), generator=torch.Generator().manual_seed(size))
    for table, size in (("user", 150), ("word", 90), ("item", 80), ("plain", 10))
}
POOLS["plain"] %= ROWS
FEATURES = {"word": "word", "genre": "plain", "user": "user", "title": "word", "past": "item"}
"""Feature → table; in another order than the tables, and among them are some that no table of a collection reads."""


class Model(nn.Module):
    """Both kinds of collection."""

    def __init__(self, pooling: PoolingType, device: torch.device) -> None:
        super().__init__()

        def common(table: str, dim: int, features: list[str]) -> dict[str, Any]:
            managed = MANAGED.get(table)
            size = ROWS if managed is None else managed.buckets * managed.rows_of_bucket
            names = {"name": table, "feature_names": features, "init_fn": nn.init.zeros_}
            return {**names, "num_embeddings": size, "embedding_dim": dim}

        self.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(**common("user", 8, ["user"]), pooling=pooling),
                EmbeddingBagConfig(**common("plain", 4, ["genre"]), pooling=pooling),
                EmbeddingBagConfig(**common("word", 16, ["title", "word"]), pooling=pooling),
            ],
            is_weighted=pooling == PoolingType.SUM,
            device=device,
        )
        self.sequences = EmbeddingCollection(tables=[EmbeddingConfig(**common("item", 8, ["past"]))], device=device)
        self.over = nn.Linear(8 + 4 + 16 + 16 + 8, 1)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Vectors by feature, and what is made of them."""
        found = self.bags(features).to_dict()
        past = self.sequences(features)["past"].to_padded_dense(4).sum(dim=1)
        pooled_BD = torch.cat([*(found[name] for name in ("user", "genre", "word", "title")), past], dim=1)
        return {**found, "past": past, "y": self.over(pooled_BD).squeeze(1)}


class RowWise(EmbeddingBagCollectionSharder):
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return ["row_wise"]


def sharded(pooling: PoolingType, *, managed: bool = True) -> DistributedModelParallel:
    """A new model; the same weights for every number of ranks."""
    torch.manual_seed(0)
    model = Model(pooling, META)
    if managed:
        collisions.manage(model, MANAGED)
    fuse(RowWiseAdagrad, [*model.bags.parameters(), *model.sequences.parameters()], {"lr": 0.3, "eps": 1e-8})
    bags, sequences = RowWise(), EmbeddingCollectionSharder()
    sharders: Any = [bags, sequences, *collision_sharding.sharders(bags, sequences)]
    rows = ParameterConstraints(sharding_types=["row_wise"])
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=dist.get_world_size(), compute_device="cpu"),
        constraints=dict.fromkeys(FEATURES.values(), rows) | collision_sharding.constraints(model),
    )
    group = dist.group.WORLD
    assert group is not None
    plan = planner.collective_plan(model, sharders, group)
    made = DistributedModelParallel(model, device=CPU, plan=plan, sharders=sharders)
    for name, weight in made.state_dict().items():
        if isinstance(weight, ShardedTensor) and name.endswith(".weight"):
            whole = block_weights(name.split(".")[-2], 0, *weight.size(), seed=1)
            for shard in weight.local_shards():
                first = shard.metadata.shard_offsets[0]
                shard.tensor.detach().copy_(whole[first : first + len(shard.tensor)])
    return made


def batch(step: int, pooling: PoolingType, *, whole: bool = False) -> tuple[KeyedJaggedTensor, Tensor]:
    """This rank's part of a global batch in which some ids are much more frequent than others."""
    seeds = torch.Generator().manual_seed(step)
    mine = slice(None) if whole else slice(*(BATCH * (dist.get_rank() + i) // dist.get_world_size() for i in (0, 1)))
    values, lengths = [], []
    for feature, table in FEATURES.items():
        for row in range(BATCH):
            count = 1 if feature in ("user", "genre") else int(torch.randint(0, 4, (), generator=seeds))
            # What is frequent changes, slowly.
            place = (len(POOLS[table]) * torch.rand(count, generator=seeds) ** 3 + step).long() % len(POOLS[table])
            if row in range(BATCH)[mine]:
                values.append(POOLS[table][place])
                lengths.append(count)
    weights_N = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(1)) if _weighted(pooling) else None
    label_B = torch.rand(BATCH, generator=seeds)[mine]
    return (
        KeyedJaggedTensor(
            keys=list(FEATURES), values=torch.cat(values), lengths=torch.tensor(lengths), weights=weights_N
        ),
        label_B,
    )


def _weighted(pooling: PoolingType) -> bool:
    return pooling == PoolingType.SUM


def train(model: DistributedModelParallel, steps: range, pooling: PoolingType = PoolingType.MEAN) -> list[float]:
    """Losses of the global batches."""
    dense = torch.optim.SGD(model.module.over.parameters(), lr=0.1)  # pyright: ignore
    model.train()
    losses = []
    for step in steps:
        features, label_B = batch(step, pooling)
        loss = (model(features)["y"] - label_B).square().sum() / BATCH
        dense.zero_grad()
        (loss * dist.get_world_size()).backward()
        dense.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item())
    return losses


def state(model: DistributedModelParallel) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": model.fused_optimizer.state_dict()}


def restore(model: DistributedModelParallel, path: Path) -> None:
    """In place, as training does."""
    load(state(model), checkpoint_id=path)


def one_by_one(pooling: PoolingType = PoolingType.MEAN) -> KeyedJaggedTensor:
    """Every id of every pool, and as many that never came, in a row of its own."""
    asked = {table: torch.cat([pool, pool ^ 1 if table != "plain" else pool]) for table, pool in POOLS.items()}
    rows = max(len(ids) for ids in asked.values())
    values = [asked[table] for table in FEATURES.values()]
    lengths = [torch.arange(rows) < len(ids) for ids in values]
    ids = torch.cat(values)
    weights = torch.ones(len(ids)) if _weighted(pooling) else None
    return KeyedJaggedTensor(list(FEATURES), ids, lengths=torch.cat(lengths).long(), weights=weights)


@torch.no_grad()
def looked_up(model: nn.Module, pooling: PoolingType = PoolingType.MEAN) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.eval()(one_by_one(pooling)).items()}


def local(model: DistributedModelParallel) -> dict[str, Tensor]:
    """Everything that this rank keeps, copied."""
    found: dict[str, Tensor] = {}
    for part, values in state(model).items():
        for name, value in values.items() if part == "model" else values["state"].items():
            for key, each in value.items() if isinstance(value, dict) else {"": value}.items():
                shards = each.local_shards() if isinstance(each, ShardedTensor) else ()
                tensors = [shard.tensor for shard in shards] if isinstance(each, ShardedTensor) else [each]
                found |= {f"{part} {name} {key} {n}": tensor.detach().clone() for n, tensor in enumerate(tensors)}
    return found


def maps(model: nn.Module) -> dict[str, IdMap]:
    return {name.split(".")[-1]: module for name, module in model.named_modules() if isinstance(module, IdMap)}


# What the processes do.


def trains_and_saves(out: Path) -> None:
    model = sharded(PoolingType.MEAN)
    losses = train(model, range(STEPS))
    save(state(model), checkpoint_id=out / "state")
    whole: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            whole[name] = torch.empty(value.size(), dtype=value.dtype)
            value.gather(dst=0, out=whole[name] if dist.get_rank() == 0 else None, dtype=value.dtype)
    seen = looked_up(model)
    if dist.get_rank() == 0:
        torch.save({"losses": losses, "state": whole, "seen": seen}, out / "result.pt")


def loads(path: Path, out: Path) -> None:
    model = sharded(PoolingType.MEAN)
    restore(model, path)
    seen = looked_up(model)
    if dist.get_rank() == 0:
        torch.save({"seen": seen}, out / "result.pt")


def goes_on(pooling: PoolingType, out: Path) -> None:
    """Straight, or from a checkpoint by other objects: bit by bit the same."""
    straight = sharded(pooling)
    losses = train(straight, range(STEPS), pooling)
    first = sharded(pooling)
    before = train(first, range(STEPS // 2), pooling)
    assert any((each.new_id != EMPTY).any() for each in maps(first).values()), "there is nothing between evictions"
    save(state(first), checkpoint_id=out / "state")
    del first
    torch.manual_seed(9)
    second = sharded(pooling)
    train(second, range(100, 107), pooling)  # whatever it was, it is replaced
    restore(second, out / "state")
    after = train(second, range(STEPS // 2, STEPS), pooling)
    assert losses == before + after
    wanted, found = local(straight), local(second)
    assert wanted.keys() == found.keys()
    assert len(wanted) > 20
    for name, value in wanted.items():
        assert torch.equal(value, found[name]), name


def is_an_ordinary_table(pooling: PoolingType) -> None:
    """With rows for all ids, a managed table is trained as the same table without management is."""
    managed, plain = sharded(pooling), sharded(pooling, managed=False)
    row_of: dict[str, Tensor] = {}
    for table, each in maps(managed).items():
        each.interval = 1000
        # Its rows are given to as many ids of each bucket, in the order of the pool.
        row_of[table] = (bucket_of(POOLS[table], BUCKETS) + 1) * each.rows_of_bucket - 1
        for bucket in range(BUCKETS):
            ids = (bucket_of(POOLS[table], BUCKETS) == bucket).nonzero().flatten()[: each.rows_of_bucket - 1]
            row = bucket * each.rows_of_bucket + torch.arange(len(ids))
            row_of[table][ids] = row
            here = (row >= each.first_row) & (row < each.first_row + len(each.row_id))
            each.row_id[row[here] - each.first_row] = POOLS[table][ids[here]]
    assert all(len(set(rows.tolist())) > 30 for rows in row_of.values())

    def mapped(features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        values = []
        for feature, table in FEATURES.items():
            ids = features[feature].values()
            if table in row_of:
                order = torch.argsort(POOLS[table])
                ids = row_of[table][order[torch.searchsorted(POOLS[table][order], ids)]]
            values.append(ids)
        return KeyedJaggedTensor(
            list(FEATURES), torch.cat(values), lengths=features.lengths(), weights=features.weights_or_none()
        )

    for step in range(4):
        features, _ = batch(step, pooling)
        ours, others = managed(features), plain(mapped(features))
        for name, value in ours.items():
            torch.testing.assert_close(value, others[name], rtol=0, atol=1e-6, msg=lambda text, name=name: name + text)
        ours["y"].sum().backward()
        others["y"].sum().backward()


def begins_again() -> None:
    """A row that is given away has the weights of the shared one of its bucket, and no optimizer state."""
    model = sharded(PoolingType.MEAN)
    train(model, range(3))
    before = {table: each.row_id.clone() for table, each in maps(model).items()}
    features, _ = batch(3, PoolingType.MEAN)
    model.train()
    with torch.no_grad():
        model(features)  # the fourth step: `user` gives rows away, `word` has done so and `item` not yet
    changed = {table: before[table] != each.row_id for table, each in maps(model).items()}
    assert changed["user"].sum() > 3
    assert not changed["word"].any()
    assert not changed["item"].any()
    (weight,) = (value for name, value in model.state_dict().items() if name.endswith("user.weight"))
    weight = weight.local_shards()[0].tensor
    sums = model.fused_optimizer.state_dict()["state"]
    (momentum,) = (s for name, values in sums.items() if "user.weight" in name for s in values.values())
    momentum = momentum.local_shards()[0].tensor
    size = maps(model)["user"].rows_of_bucket
    row = changed["user"].nonzero().flatten()
    shared = (row // size + 1) * size - 1
    assert torch.equal(weight[row], weight[shared])
    assert not momentum[row].any()
    assert momentum[shared].any()


def process(rank: int, out: Path) -> None:
    quiet()
    torch.set_num_threads(1)
    group = [0]

    def together(ranks: int, function: Any, *args: Any) -> None:
        group[0] += 1
        if rank < ranks:
            dist.init_process_group(
                "gloo", init_method=f"file://{out / f'meet{group[0]}'}", rank=rank, world_size=ranks
            )
            function(*args)
            dist.barrier()
            dist.destroy_process_group()

    # All of them first: what TorchRec checks once a process, it checks together.
    together(4, is_an_ordinary_table, PoolingType.MEAN)
    together(2, is_an_ordinary_table, PoolingType.SUM)
    together(2, begins_again)
    for ranks in WORLDS:
        together(ranks, trains_and_saves, out / f"trained{ranks}")
    for ranks in (1, 3, 4):
        together(ranks, loads, out / "trained2" / "state", out / f"loaded{ranks}")
    together(2, goes_on, PoolingType.SUM, out / "resumed2")
    together(1, goes_on, PoolingType.MEAN, out / "resumed1")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collisions")
    for name in ("trained1", "trained2", "trained3", "loaded1", "loaded3", "loaded4", "resumed1", "resumed2"):
        (out / name).mkdir()
    # One process imports the libraries and becomes four: importing takes longer than all that they do.
    multiprocessing.set_forkserver_preload(["embeddings.collision_sharding", "torchrec.distributed.model_parallel"])
    start_processes(process, (out,), nprocs=4, start_method="forkserver")
    return out


def result(results: Path, name: str) -> dict[str, Any]:
    return torch.load(results / name / "result.pt", weights_only=True)


def test_ranks_change_nothing(results: Path):
    one, *others = (result(results, f"trained{ranks}") for ranks in WORLDS)
    assert np.mean(one["losses"][-5:]) < np.mean(one["losses"][:5])
    for other in others:
        np.testing.assert_allclose(other["losses"], one["losses"], atol=2e-6, rtol=0)
        for name, value in one["state"].items():
            torch.testing.assert_close(
                other["state"][name], value, atol=2e-6 if value.is_floating_point() else 0, rtol=0
            )
    for table, section in MANAGED.items():
        (row_id,) = (value for name, value in one["state"].items() if name.endswith(f".{table}.row_id"))
        given = (row_id != EMPTY).view(BUCKETS, -1)
        assert not given[:, -1].any()
        assert given.sum() > 0.5 * BUCKETS * (section.rows_of_bucket - 1)


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_a_checkpoint_of_two_ranks_loads_on_any_number(results: Path, ranks: int):
    saved, loaded = result(results, "trained2")["seen"], result(results, f"loaded{ranks}")["seen"]
    for name, value in saved.items():
        if name != "y":
            assert torch.equal(loaded[name], value), name
    assert len(saved["user"].unique(dim=0)) > 50


def test_what_answers_requests_answers_the_same(results: Path, tmp_path: Path):
    trained = Model(PoolingType.MEAN, CPU)
    collisions.manage(trained, MANAGED)
    wanted = trained.state_dict()
    found = collisions.answering(wanted)
    assert len(wanted) - len(found) == 6 * len(MANAGED)
    load({"model": found}, checkpoint_id=results / "trained2" / "state", no_dist=True)
    unfrozen = looked_up(trained)
    collisions.freeze(trained)
    frozen = looked_up(trained)
    tables = {name for name in wanted if name.endswith(".weight")}
    assert tables == {name for name in trained.state_dict() if name.endswith(".weight")}
    torch.save(trained.state_dict(), tmp_path / "frozen.pt")

    served = Model(PoolingType.MEAN, META)
    collisions.manage(served, MANAGED)
    collisions.freeze(served)
    served.load_state_dict(torch.load(tmp_path / "frozen.pt", mmap=True, weights_only=True), assign=True)
    answered = looked_up(served)
    for name, value in result(results, "trained2")["seen"].items():
        # Sharded by rows, a mean is divided by its length + 1e-6.
        torch.testing.assert_close(unfrozen[name], value, rtol=3e-6, atol=1e-6)
        assert torch.equal(frozen[name], unfrozen[name])
        assert torch.equal(answered[name], frozen[name])
    assert not any(isinstance(module, IdMap) for module in served.modules())


def test_resumed_training_is_bit_identical(results: Path):
    """The processes compare."""
    assert (results / "resumed1" / "state").is_dir()
    assert (results / "resumed2" / "state").is_dir()


# Configuration and ids.


def feature(name: str, kind: Literal["sparse", "bag"] = "sparse", **more: Any) -> FeatureSpec:
    return FeatureSpec(name=name, kind=kind, source=f"request.{name}", transform="hashing", **more)


UNBOUND = {"unbounded": True}


def test_a_model_is_built_for_as_many_rows_as_the_config_says():
    schema = Schema(
        features=(feature("user", rows=UNBOUNDED), feature("genre", rows=7)), label="like", items=1, users=1
    )
    managed = {"user": collisions.ManagedTable(rows=1000, buckets=240)}
    assert [one.rows for one in collisions.resolve(schema, managed).features] == [1200, 7]
    with pytest.raises(InputError, match=r"feature user has unbounded ids, and .* does not name its table user"):
        collisions.resolve(schema, {})
    with pytest.raises(InputError, match=r"feature genre has bounded ids, and .* names its table genre"):
        collisions.resolve(schema, {**managed, "genre": managed["user"]})


@pytest.mark.parametrize(
    ("managed", "features", "forms", "ranks", "message"),
    [
        ({"user": {"rows": 960}}, (feature("user"),), {}, 1, "tables.managed.user names no table of unbounded ids"),
        ({}, (feature("user", params=UNBOUND),), {}, 1, r"say in \[tables.managed.user\] how many rows"),
        (
            {"t": {"rows": 960}},
            (feature("user", params=UNBOUND, table="t"),),
            {"t": "table_wise"},
            1,
            "sharding.tables.t = 'table_wise', but managed tables are row_wise",
        ),
        ({"user": {"rows": 960}}, (feature("user", params=UNBOUND),), {"user": "row_wise"}, 7, "= 240 is not a mult"),
    ],
)
def test_refuses_what_does_not_go_together(managed: Any, features: Any, forms: Any, ranks: int, message: str):
    sections = {table: collisions.ManagedTable(**section) for table, section in managed.items()}
    with pytest.raises(ValueError, match=message):
        collisions.check(sections, features, forms, ranks)


def test_refuses_too_few_rows():
    with pytest.raises(ValidationError, match="rows = 100 in buckets = 240 leave less than 2 rows"):
        collisions.ManagedTable(rows=100)


def test_ids_reach_the_batch_unharmed():
    words = [f"w{i}" for i in range(50)]
    items = pl.DataFrame({"item_id": [None, "a"], "index": pl.Series([0, 1], dtype=pl.Int32), "tags": [None, words]})
    users = pl.DataFrame({"user_id": [None, "u"], "index": pl.Series([0, 1], dtype=pl.Int32)})
    requests = pl.DataFrame(
        {
            "user_index": pl.Series([1] * 50, dtype=pl.Int32),
            "item_index": pl.Series([1, 0] * 25, dtype=pl.Int32),
            "word": words,
        }
    )
    specs = (
        feature("word", params=UNBOUND, table="words"),
        FeatureSpec(name="tags", kind="bag", source="item.tags", transform="hashing", params=UNBOUND, table="words"),
    )
    encoder = Encoder.fit(specs, "like", items, users, requests)
    assert [one.rows for one in encoder.schema.features] == [UNBOUNDED, UNBOUNDED]
    sparse = Columns.of(encoder.encode(requests), encoder.schema).batch().sparse
    assert sparse is not None
    ids = sparse["word"].values()
    assert ids.dtype == torch.int64
    assert torch.equal(sparse["tags"].values(), ids.repeat(25))
    assert sparse["tags"].lengths().tolist() == [50, 0] * 25
    assert 1 <= ids.min() < 2**58
    assert 2**62 < ids.max() < UNBOUNDED
    assert Schema.model_validate_json(encoder.schema.model_dump_json()) == encoder.schema
