"""Every form against tables that are whole: losses of ten steps, and the weights after them."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from embeddings import init, optim, sharding
from embeddings.constraints import COLUMN_FORMS, SEQUENCE_FORMS, TableConfig
from features.errors import InputError
from recsys import distributed

CPU, META = torch.device("cpu"), torch.device("meta")
ROWS = {"first": 37, "second": 23}
FEATURES = {"first": ["a", "b"], "second": ["c"]}
DIM, PIECE, BATCH, STEPS, SEED = 16, 8, 12, 10, 3
HIERARCHICAL = ("table_row_wise", "table_column_wise", "grid_shard")
TOLERANCE = {"sgd": 2.4e-7, "adagrad": 1e-6, "rowwise_adagrad": 1e-6, "adamw": 1e-6}
"""Of losses, relative: two units in the last place; an accumulator's root makes more of a sum's order."""
OF_MEANS = 2e-6
"""The same for bags pooled by their mean: TorchRec divides by their length + 1e-6 where rows are cut."""


@dataclass(frozen=True)
class Case:
    kind: str
    form: str
    optimizer: str
    """Of the tables; of a data_parallel one, the dense optimizer."""

    def __str__(self) -> str:
        return f"{self.kind}-{self.form}-{self.optimizer}"


def cases(world: int) -> list[Case]:
    """What runs on so many ranks; four are two hosts."""
    every = get_args(sharding.Form)
    forms = {"sums": HIERARCHICAL} if world == 4 else {"sums": every, "sequences": SEQUENCE_FORMS}
    means = [
        Case("means", form, "sgd") for form in every if form != "grid_shard" and (world < 4 or form in HIERARCHICAL)
    ]
    found = [
        Case(kind, form, optimizer)
        for kind, of_kind in forms.items()
        for form in of_kind
        for optimizer in ("sgd", "adagrad", "rowwise_adagrad")
        if optimizer != "rowwise_adagrad" or form not in COLUMN_FORMS
    ]
    return found + means + ([] if world == 4 else [Case(kind, "data_parallel", "adamw") for kind in forms])


class Model(nn.Module):
    """Tables of one kind and a weight for each feature, which the dense optimizer trains."""

    def __init__(self, kind: str, device: torch.device) -> None:
        super().__init__()
        common = [
            {"name": name, "num_embeddings": rows, "embedding_dim": DIM, "feature_names": FEATURES[name]}
            for name, rows in ROWS.items()
        ]
        self.pooled = kind != "sequences"
        if self.pooled:
            poolings = (PoolingType.MEAN if kind == "means" else PoolingType.SUM, PoolingType.SUM)
            tables = [EmbeddingBagConfig(**table, pooling=pool) for table, pool in zip(common, poolings, strict=True)]
            self.tables = EmbeddingBagCollection(tables=tables, device=device)
        else:
            self.tables = EmbeddingCollection(tables=[EmbeddingConfig(**table) for table in common], device=device)
        self.weight_F = nn.Parameter(torch.ones(3))

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        """A sum of squares over what the rank has."""
        found = self.tables(ids)
        x_FND = [found[name] if self.pooled else found[name].values() for name in "abc"]
        return sum(
            (weight * x_ND - 0.1 * (place + 1)).square().sum()
            for place, (weight, x_ND) in enumerate(zip(self.weight_F, x_FND, strict=True))
        )  # pyright: ignore[reportReturnType]


def batch(step: int, rank: int, world: int) -> KeyedJaggedTensor:
    """A rank's share of a global batch; some rows have no ids, some ids come twice."""
    draw = torch.Generator().manual_seed(step)
    lengths_FB = torch.randint(0, 4, (3, BATCH), generator=draw)
    values = [
        [torch.randint(0, ROWS["second" if f == 2 else "first"], (int(n),), generator=draw) for n in lengths_B]
        for f, lengths_B in enumerate(lengths_FB)
    ]
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    return KeyedJaggedTensor(
        keys=list("abc"),
        values=torch.cat([ids for row in values for ids in row[mine]]),
        lengths=lengths_FB[:, mine].flatten(),
    )


def initial(name: str) -> Tensor:
    table = name.split(".")[-2]
    return init.block_weights(name, 0, ROWS[table], DIM, SEED)


def config(case: Case, world: int) -> sharding.Config:
    table = TableConfig.model_validate(
        {"form": case.form} | ({"min_partition": PIECE} if case.form in COLUMN_FORMS else {})
    )
    return sharding.Config(tables=dict.fromkeys(ROWS, table), local_world_size=2 if world == 4 else None)


def settings(case: Case) -> optim.Config:
    sparse = "sgd" if case.optimizer == "adamw" else case.optimizer
    return optim.Config.model_validate({"sparse": sparse, "sparse_lr": 0.05, "dense_lr": 0.01})


def train_all(out: Path) -> None:
    """Every case, sharded; every rank calls it."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found = {}
    for case in cases(world):
        model, shards, optimizers = Model(case.kind, META), config(case, world), settings(case)
        sharding.check(shards, optimizers.sparse, model, CPU)
        optim.fuse(sharding.fused_parameters(model, shards), optimizers)
        sharded = sharding.shard(model, shards, CPU, BATCH)
        init.initialise_tables(sharded, SEED)
        optimizer = optim.combine(sharded, optimizers)
        losses = []
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = sharded(batch(step, rank, world)) / BATCH
            (loss * world).backward()
            optimizer.step()
            losses.append(loss.detach())
        weights: dict[str, Tensor] = {}
        for name, weight in sharded.state_dict().items():
            if isinstance(weight, ShardedTensor):
                whole = torch.empty(weight.size()) if rank == 0 else None
                weight.gather(dst=0, out=whole)
                weight = whole
            if rank == 0:
                weights[name] = weight
        losses = distributed.total(torch.stack(losses))
        found[str(case)] = {"losses": losses, "weights": weights, "plan": sharding.describe(sharded)}
    if rank == 0:
        torch.save(found, out / "found.pt")


def reference(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """The same on one whole model by torch's own optimizers."""
    model = Model(case.kind, CPU)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name != "weight_F":
                weight.copy_(initial(name))
    tables, dense = sharding.table_parameters(model), [model.weight_F]
    if case.optimizer == "adamw":
        optimizers = []
        dense += tables
    else:
        kinds = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rowwise_adagrad": RowWiseAdagrad}
        eps = {} if case.optimizer == "sgd" else {"eps": 1e-8}
        optimizers = [kinds[case.optimizer](tables, lr=0.05, **eps)]
    optimizers.append(torch.optim.AdamW(dense, lr=0.01, eps=1e-8, weight_decay=0))
    losses = []
    for step in range(STEPS):
        loss = model(batch(step, 0, 1)) / BATCH
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), dict(model.state_dict())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict]]:
    """Ranks → case → losses, weights and plan."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = {}
    for world in (2, 3, 4):
        out = tmp_path_factory.mktemp(f"ranks{world}")
        distributed.launch(train_all, distributed.Config(nproc=world), out)
        results[world] = torch.load(out / "found.pt", weights_only=False)
    torch.set_num_threads(threads)
    return results


@pytest.mark.parametrize(("world", "case"), [(world, case) for world in (2, 3, 4) for case in cases(world)], ids=str)
def test_a_form_changes_the_layout_alone(found, world: int, case: Case):
    result, (losses, weights) = found[world][str(case)], reference(case)
    tolerance = OF_MEANS if case.kind == "means" else TOLERANCE[case.optimizer]
    torch.testing.assert_close(result["losses"], losses, rtol=tolerance, atol=0)
    assert result["weights"].keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(result["weights"][name], weight, rtol=1e-5, atol=1e-6)
    plan = result["plan"]["tables"]
    assert {table["form"] for table in plan.values()} == {case.form}


def test_columns_and_rows_are_cut(found):
    ranks = {
        case.form: {tuple(table["ranks"]) for table in found[4][str(case)]["plan"]["tables"].values()}
        for case in cases(4)
        if case.kind == "sums"
    }
    assert ranks["table_row_wise"] == {(0, 1), (2, 3)}
    assert ranks["table_column_wise"] == {(0, 1), (2, 3)}
    assert ranks["grid_shard"] == {(0, 1, 2, 3)}


def tables(names: tuple[str, ...] = ("first", "second")) -> nn.Module:
    """Pooled and sequence tables side by side; the pooled ones by their mean."""
    bags = [EmbeddingBagConfig(num_embeddings=9, embedding_dim=8, name="bag", feature_names=["x"])]
    bags[0].pooling = PoolingType.MEAN
    sequences = [EmbeddingConfig(num_embeddings=9, embedding_dim=8, name=name, feature_names=[name]) for name in names]
    return nn.ModuleDict(
        {
            "bags": EmbeddingBagCollection(tables=bags, device=META),
            "sequences": EmbeddingCollection(tables=sequences, device=META),
        }
    )


@pytest.mark.parametrize(
    ("section", "optimizer", "says"),
    [
        (
            {"tables": {"first": "table_row_wise"}},
            "sgd",
            r"tables\.first\.form = 'table_row_wise': 'first' is a sequence",
        ),
        ({"forms": ["grid_shard"]}, "sgd", r"sharding\.forms = 'grid_shard': 'bag' is pooled by the mean"),
        (
            {"tables": {"first": "column_wise"}},
            "rowwise_adagrad",
            r"tables\.first\.form allows column_wise .* one number",
        ),
        (
            {"forms": ["row_wise", "column_wise"]},
            "rowwise_adagrad",
            r"sharding\.forms allows column_wise for table 'bag'",
        ),
        (
            {"tables": {"first": "data_parallel"}},
            "sgd",
            r"either all data_parallel or none.* name all of first, second",
        ),
        ({"tables": {"bag": {"kernel": "key_value"}}}, "sgd", r"tables\.bag\.kernel = 'key_value' needs a GPU"),
    ],
)
def test_what_cannot_be_had_is_refused_before_training(section: dict, optimizer: str, says: str):
    with pytest.raises(InputError, match=says) as caught:
        sharding.check(sharding.Config.model_validate(section), optimizer, tables(), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_columns_may_be_cut_under_optimizers_that_look_at_single_weights(optimizer: str):
    config = sharding.Config.model_validate({"tables": {"first": "column_wise", "bag": "table_column_wise"}})
    sharding.check(config, optimizer, tables(), CPU)


def test_a_store_on_ssd_is_trained_by_the_optimizers_that_it_has():
    config = sharding.Config.model_validate({"tables": {"bag": {"kernel": "key_value"}}})
    sharding.check(config, "rowwise_adagrad", tables(), torch.device("cuda"))
    with pytest.raises(InputError, match=r"key_value' cannot be trained by optimizer.sparse = 'sgd'"):
        sharding.check(config, "sgd", tables(), torch.device("cuda"))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"form": "data_parallel", "kernel": "fused"}, "data_parallel table is whole"),
        ({"cache_load_factor": 0.1}, "needs a kernel with a cache"),
        ({"kernel": "ssd_virtual_table", "form": "table_wise"}, "can be cut by rows alone"),
    ],
)
def test_settings_of_a_table_that_contradict_each_other(table: dict, says: str):
    with pytest.raises(ValueError, match=says):
        TableConfig.model_validate(table)


def test_hosts_must_be_equal():
    with pytest.raises(InputError, match=r"local_world_size = 3 does not divide 4 ranks"):
        sharding.local_size(sharding.Config(local_world_size=3), 4)


def test_a_copied_table_is_not_fused_and_not_forgotten():
    model = tables(("first",))
    config = sharding.Config.model_validate({"tables": {"first": "data_parallel"}})
    fused = sharding.fused_parameters(model, config)
    assert [parameter.shape for parameter in fused] == [(9, 8)]
    assert fused[0] is model["bags"].get_parameter("embedding_bags.bag.weight")
    assert len(sharding.table_parameters(model)) == 2


def no_room() -> None:
    config = sharding.Config(host_gb=1e-6)
    with pytest.raises(InputError, match=r"no plan fits the memory of 1 ranks; `recsys plan` says"):
        sharding.shard(tables(), config, CPU, BATCH)


def test_what_does_not_fit_is_refused():
    distributed.launch(no_room, distributed.Config())
