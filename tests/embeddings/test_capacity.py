"""What clusters hold: sizes worked out by hand, a packing whose smallest cluster is known, what would make it fit."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import Storage
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from embeddings import capacity, clusters, optim, sharding
from embeddings.constraints import COLUMN_FORMS
from embeddings.estimates import Estimates, tiers
from embeddings.explain import explain
from features.errors import InputError
from recsys import cli, plan

ROOT = Path(__file__).parent.parent.parent
SCALE = ROOT / "configs" / "scale" / "ten_trillion.toml"


@pytest.mark.parametrize(
    ("kernel", "device", "optimizer", "expected"),
    [
        ("fused", "cuda", RowWiseAdagrad, Storage(hbm=64_000 * 2 + 1000 * 4, ddr=0)),
        ("fused", "cpu", torch.optim.Adagrad, Storage(hbm=0, ddr=64_000 * 2 + 64_000 * 4)),
        ("fused", "cuda", None, Storage(hbm=64_000 * 2, ddr=0)),
        ("dense", "cpu", None, Storage(hbm=0, ddr=64_000 * 2 + 3 * 64_000 * 4)),
        ("fused_uvm", "cuda", torch.optim.SGD, Storage(hbm=0, ddr=64_000 * 2)),
        ("fused_uvm_caching", "cuda", RowWiseAdagrad, Storage(hbm=100 * (128 + 16) + 4000, ddr=64_000 * 2 + 4000)),
        ("key_value", "cuda", RowWiseAdagrad, Storage(hbm=96 * (128 + 16) + 4000, ddr=0, ssd=128_000 + 8000)),
        ("ssd_virtual_table", "cuda", RowWiseAdagrad, Storage(hbm=96 * (128 + 16), ddr=0, ssd=128_000 + 8000 + 4000)),
        ("dram_virtual_table", "cuda", RowWiseAdagrad, Storage(hbm=96 * (128 + 16), ddr=128_000 + 8000 + 4000)),
    ],
)
def test_a_table_in_half_precision_takes(kernel: str, device: str, optimizer: type | None, expected: Storage):
    assert tiers(kernel, device, 1000, 64, 2, optimizer, 0.1) == expected


def model(count: int, rows: int, dim: int, optimizer: str = "rowwise_adagrad") -> nn.Module:
    """Pooled tables in float32."""
    tables = [
        EmbeddingBagConfig(num_embeddings=rows, embedding_dim=dim, name=f"t{place}", feature_names=[f"f{place}"])
        for place in range(count)
    ]
    found = nn.ModuleDict({"bags": EmbeddingBagCollection(tables=tables, device=torch.device("meta"))})
    optim.fuse(sharding.table_parameters(found), optim.Config.model_validate({"sparse": optimizer}))
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_estimates_are_torchrecs_where_those_are_right(device: str):
    """Whole rows of float32 in device memory under row-wise Adagrad; of pieces, it has cut the state as well."""
    config = sharding.Config(forms=("table_wise", "row_wise", "table_row_wise"))
    cluster, tables = sharding.topology(config, 4, 2, device), model(2, 1001, 64)
    limits = sharding.constraints(tables, config, torch.device(device))
    for limit in limits.values():
        limit.compute_kernels = ["fused"]
    ours = EmbeddingEnumerator(cluster, 8, limits, Estimates(cluster, limits)).enumerate(tables, sharding.sharders())
    theirs = EmbeddingEnumerator(cluster, 8, limits).enumerate(tables, sharding.sharders())
    assert len(ours) == len(theirs) == 6
    for own, reference in zip(ours, theirs, strict=True):
        for shard, expected in zip(own.shards, reference.shards, strict=True):
            assert shard.perf == expected.perf
            assert shard.storage is not None
            assert expected.storage is not None
            # Theirs rounds the state of a shard up to whole bytes.
            assert shard.storage.ddr == pytest.approx(expected.storage.ddr, abs=2)
            assert shard.storage.hbm == pytest.approx(expected.storage.hbm, abs=2)


def cluster(hbm_gb: float, sparse: str = "sgd", ssd_gb: float = 1, **changes: object) -> capacity.Config:
    """Ten tables of a gigabyte each on ranks of their own; a batch of one, so that tables are all there is."""
    tree = {
        "batch_size": 1,
        "optimizer": {"sparse": sparse},
        "cluster": {
            "world_size": 8,
            "local_world_size": 1,
            "hbm_gb": hbm_gb,
            "host_gb": 1.1,
            "ssd_gb": ssd_gb,
            "reserve": 0,
        },
        "tables": [{"name": "t", "count": 10, "rows": 1_000_000, "dim": 250 * 2, "forms": ["table_wise"]} | changes],
    }
    return capacity.Config.model_validate(tree)


def test_the_smallest_cluster_is_the_one_of_the_packing():
    # Two and a half to a rank would fill four ranks; two to a rank take five.
    facts = clusters.report(cluster(2.51), 8)
    assert facts["fits"]
    assert facts["parameters"] == 5_000_000_000
    assert facts["bytes"]["hbm"] == pytest.approx(10e9, rel=1e-4)
    assert facts["largest_rank"]["hbm"] == pytest.approx(2e9, rel=1e-4)
    assert facts["balance"]["hbm"] == pytest.approx(1.6, rel=1e-3)
    assert facts["smallest"] == {"world_size": 5, "bound": 4, "refused": [4]}


def test_what_does_not_fit_says_what_is_short():
    facts = clusters.report(cluster(2.51), 3)
    assert not facts["fits"]
    assert facts["short"] == ["hbm"]
    assert facts["largest_rank"]["hbm"] == pytest.approx(4e9, rel=1e-3)
    assert facts["smallest"]["world_size"] == 5


def test_no_cluster_holds_a_table_larger_than_a_rank_nor_what_has_no_tier():
    built = capacity.build(cluster(0.9))
    assert clusters.smallest(cluster(0.9), built, limit=200)["world_size"] is None
    on_ssd = cluster(2.51, "rowwise_adagrad", 0, kernels=["key_value"])
    assert clusters.smallest(on_ssd, capacity.build(on_ssd)) == {"world_size": None, "bound": None, "refused": []}


def test_groups_move_to_the_next_tier_when_the_first_is_full():
    config = cluster(0.6, kernels=["fused", "fused_uvm"], count=2)
    placement = capacity.place(config, capacity.build(config), 2)
    assert placement is not None
    assert {option.compute_kernel for option in placement.options} == {"fused_uvm"}
    assert placement.used["ddr"].tolist() == [1e9, 1e9]
    roomy = cluster(1.2, kernels=["fused", "fused_uvm"], count=2)
    placement = capacity.place(roomy, capacity.build(roomy), 2)
    assert placement is not None
    assert {option.compute_kernel for option in placement.options} == {"fused"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--cluster.hbm", "80"], r"unknown key cluster\.hbm; did you mean 'hbm_gb'\?"),
        (["--cluster.world_size", "12"], r"world_size = 12 is not a multiple of local_world_size = 8"),
        (["--optimizer.sparse", "sgd"], r"tables\.cross\.kernels has a key-value store, which .* 'sgd' cannot"),
    ],
)
def test_a_mistake_in_a_cluster_is_named_with_its_fix(overrides: list[str], says: str):
    with pytest.raises(InputError, match=says):
        plan.load(SCALE, overrides)


def test_ten_trillion_parameters_are_planned(capsys: pytest.CaptureFixture[str]):
    cli.main(["plan", str(SCALE), "--world-size", "64", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] >= 10**13
    assert facts["world_size"] == 64
    assert facts["fits"]
    assert facts["seconds"] < 60
    assert all(facts["bytes"][tier] > 0 for tier in ("hbm", "ddr", "ssd"))
    assert facts["bytes"]["ssd"] > 9e12 * 2
    assert facts["smallest"]["bound"] <= facts["smallest"]["world_size"] <= 64
    for tier, room in facts["usable_per_rank"].items():
        assert facts["largest_rank"][tier] <= room


def test_reasons_and_remedies():
    # Of three tables of 40 kB two lie on one of two ranks.
    tables, config = model(3, 1000, 8, "sgd"), sharding.Config(forms=("table_wise",), host_gb=100e-6)
    facts = explain(tables, config, "sgd", 2, 2, "cpu", 2)
    assert facts["fits"]
    assert {table["why"] for table in facts["tables"]} == {"only choice of sharding.forms"}
    assert sorted(len(table["ranks"]) for table in facts["tables"]) == [1, 1, 1]
    assert max(rank["ddr"] for rank in facts["ranks"]) == pytest.approx(64_000, rel=0.01)

    tight = config.model_copy(update={"host_gb": 50e-6})
    facts = explain(tables, tight, "sgd", 2, 2, "cpu", 2)
    assert not facts["fits"]
    remedies = facts["remedies"]
    assert remedies["world_size"] == 4
    assert remedies["memory"]["field"] == "sharding.host_gb"
    assert 64e-6 < remedies["memory"]["value"] < 66e-6
    assert set(remedies["forms"].values()) <= {"row_wise", "table_row_wise", *COLUMN_FORMS}
    freed = sharding.Config.model_validate({"host_gb": 50e-6, "forms": ["table_wise"], "tables": remedies["forms"]})
    assert explain(tables, freed, "sgd", 2, 2, "cpu", 2)["fits"]

    both = config.model_copy(update={"forms": ("table_wise", "row_wise")})
    alternatives = [table["alternatives"] for table in explain(tables, both, "sgd", 2, 2, "cpu", 2)["tables"]]
    assert all(other["factor"] >= 1 for found in alternatives for other in found)
