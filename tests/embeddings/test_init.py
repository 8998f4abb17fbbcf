from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec import EmbeddingBagCollection, EmbeddingCollection

from embeddings import init, optim, sharding
from embeddings.constraints import SEQUENCE_FORMS
from embeddings.tables import bag_tables, item_table
from features.schema import FeatureSpec, Schema
from recsys import distributed

BLOCK, ROWS, DIM = 8, 37, 256
"""Blocks so short that every shard of 37 rows cuts through one; columns enough for two shards (TorchRec: 128 each)."""

SEED = 4
SCHEMA = Schema(
    features=(
        FeatureSpec(name="genre", kind="bag", source="item.genre", transform="lookup", rows=ROWS, dim=DIM),
        FeatureSpec(name="city", kind="sparse", source="user.city", transform="lookup", rows=ROWS, dim=DIM),
    ),
    label="like",
    items=ROWS - 1,
    users=1,
)


class Tables(nn.Module):
    """Tables of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        meta = torch.device("meta")
        self.bags = EmbeddingBagCollection(tables=bag_tables(SCHEMA), device=meta)
        self.items = EmbeddingCollection(tables=[item_table(SCHEMA.items, DIM, ["history"])], device=meta)


def save_initial_weights(out: Path) -> None:
    """Shard, initialise, and put the whole tables together again, for every form; every rank calls it."""
    init.BLOCK_ROWS = BLOCK
    for form in SEQUENCE_FORMS:
        model = Tables()
        optim.fuse(sharding.table_parameters(model), optim.Config())
        sharded = sharding.shard(model, sharding.Config(forms=(form,)), torch.device("cpu"), batch_size=4)
        init.initialise_tables(sharded, SEED)
        whole: dict[str, torch.Tensor] = {}
        for name, weight in sharded.state_dict().items():
            assert isinstance(weight, ShardedTensor)
            whole[name] = torch.full((ROWS, DIM), torch.nan)
            weight.gather(dst=0, out=whole[name] if distributed.is_first() else None)
            cuts = {tuple(shard.shard_sizes) for shard in weight.metadata().shards_metadata}
            whole[f"{name} is cut"] = torch.tensor(cuts != {(ROWS, DIM)})
        if distributed.is_first():
            torch.save(whole, out / f"{form}.pt")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], dict[str, torch.Tensor]]:
    """(processes, form) → name → whole table."""
    found = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for processes in (1, 2):
        out = tmp_path_factory.mktemp(f"processes{processes}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(init, "BLOCK_ROWS", BLOCK)
            distributed.launch(save_initial_weights, distributed.Config(nproc=processes), out)
        for form in SEQUENCE_FORMS:
            found[processes, form] = torch.load(out / f"{form}.pt", weights_only=True)
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("form", SEQUENCE_FORMS)
@pytest.mark.parametrize("processes", [1, 2])
def test_every_cut_starts_from_the_same_weights(weights, processes: int, form: str):
    found = {name: table for name, table in weights[processes, form].items() if not name.endswith("is cut")}
    assert len(found) == 3
    for name, table in found.items():
        blocks = [init.block_weights(name, block, min(BLOCK, ROWS - BLOCK * block), DIM, SEED) for block in range(5)]
        assert torch.equal(table, torch.cat(blocks))


def test_the_forms_do_cut(weights):
    for form in ("row_wise", "column_wise"):
        assert all(cut for name, cut in weights[2, form].items() if name.endswith("is cut"))


def test_blocks_are_independent_and_of_unit_length():
    def block(table: str, number: int, seed: int) -> torch.Tensor:
        return init.block_weights(table, number, 4096, DIM, seed)

    first = block("item", 0, 0)
    assert torch.equal(first, block("item", 0, 0))
    for other in (block("user", 0, 0), block("item", 1, 0), block("item", 0, 1)):
        assert abs(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]) < 0.01
    assert first.square().sum(dim=1).mean().item() == pytest.approx(1.0, rel=0.01)
