"""Rows for ids without a bound: what the policies of TorchRec decide, bucket by bucket, whoever holds the buckets."""

import pytest
import torch
from torch import Tensor
from torchrec import JaggedTensor
from torchrec.modules.mc_modules import MCHManagedCollisionModule

from embeddings.id_map import EMPTY, POLICIES, IdMap, bucket_of
from features.transforms.hashing import UNBOUNDED

CPU = torch.device("cpu")


def id_map(policy: str = "lfu", interval: int = 1, min_count: int = 1, buckets: int = 1, rows: int = 4) -> IdMap:
    """`rows` of each bucket."""
    return IdMap(POLICIES[policy](), interval, min_count, buckets, rows, CPU)


def step(module: torch.nn.Module, ids: Tensor) -> Tensor:
    return module({"t": JaggedTensor(values=ids, lengths=torch.tensor([len(ids)]))})["t"].values()


def kept(module: IdMap) -> dict[int, tuple[int, int]]:
    """Id → how often it came, and when last."""
    columns = (module.row_id.tolist(), module.row_count.tolist(), module.row_step.tolist())
    return {one: (count, last) for one, count, last in zip(*columns, strict=True) if one != EMPTY}


@pytest.mark.parametrize("policy", POLICIES)
def test_keeps_the_ids_that_torchrecs_own_module_keeps(policy: str):
    rows, interval = 20, 7
    ours = id_map(policy, interval, rows=rows)
    own = MCHManagedCollisionModule(rows, CPU, POLICIES[policy](), interval)
    seeds = torch.Generator().manual_seed(5)
    ids = torch.randint(0, UNBOUNDED, (60,), generator=seeds)
    changed = 0
    for number in range(20 * interval):
        # One id a step, so that no two are equally recent; the first step is the longest, for its module sizes a buffer
        # by it.
        which = int(60 * torch.rand((), generator=seeds) ** 2)
        times = 50 if number == 0 else int(torch.randint(1, 50, (), generator=seeds))
        batch = ids[which].repeat(times)
        given, owns = step(ours, batch), step(own, batch)
        assert torch.equal(given == rows - 1, owns == rows - 1)
        changed += ours.evict() is not None
        known = own._mch_sorted_raw_ids != EMPTY
        assert set(kept(ours)) == set(own._mch_sorted_raw_ids[known].tolist())
    assert changed > 15
    assert len(kept(ours)) == rows - 1
    if policy == "lfu":
        counts = dict(zip(own._mch_sorted_raw_ids.tolist(), own._mch_counts.tolist(), strict=True))
        soon = {one: count for one, (count, _) in kept(ours).items()}
        assert soon == {one: counts[one] for one in soon}


@pytest.mark.parametrize("policy", POLICIES)
def test_it_does_not_matter_who_holds_the_buckets(policy: str):
    buckets, size = 6, 5
    whole = id_map(policy, 3, buckets=buckets, rows=size)
    parts = [whole.rebuild_with_output_id_range((start, start + 10), [0, 10, 20, 30]) for start in (0, 10, 20)]
    seeds = torch.Generator().manual_seed(1)
    ids = torch.randint(0, UNBOUNDED, (200,), generator=seeds)
    for _ in range(30):
        batch = ids[(200 * torch.rand(40, generator=seeds) ** 2).long()]
        rows = step(whole, batch)
        holder = bucket_of(batch, buckets) // 2
        for number, part in enumerate(parts):
            # In another order, as they would come from several ranks.
            mine = (holder == number).nonzero().flatten().flip(0)
            assert torch.equal(step(part, batch[mine]), rows[mine])
    for name, value in whole.state_dict().items():
        if name != "_current_iter_tensor":
            assert torch.equal(value, torch.cat([part.state_dict()[name] for part in parts])), name
    assert len(kept(whole)) == buckets * (size - 1)


def test_frequent_ids_find_rows_in_a_flood():
    """The candidates of a bucket are sifted many times before rows are given; those that came often are kept."""
    module = id_map(interval=50, rows=8)
    hot = torch.tensor([10, 20, 30])
    for number in range(50):
        step(module, torch.cat([hot.repeat(3), torch.arange(20) + 1000 + 20 * number]))
    found = kept(module)
    assert all(found[one] == (150, 50) for one in hot.tolist())
    assert len(found) >= 4
    assert int(module.open_slots()) == 7 - len(found)
    assert not (module.new_id != EMPTY).any()


def test_known_answers():
    lfu = id_map("lfu", rows=3)
    step(lfu, torch.tensor([1, 1, 1, 2, 2, 3]))
    assert set(kept(lfu)) == {1, 2}
    step(lfu, torch.tensor([3, 3, 3]))
    assert set(kept(lfu)) == {1, 3}
    assert step(lfu.eval(), torch.tensor([2, 7])).tolist() == [2, 2]  # the shared row
    assert kept(lfu) == {1: (3, 1), 3: (3, 2)}

    lru = id_map("lru", rows=3)
    for batch in ([1, 1, 1], [2], [3]):
        step(lru, torch.tensor(batch))
    assert set(kept(lru)) == {2, 3}

    strict = id_map("lfu", interval=2, min_count=3, rows=4)
    step(strict, torch.tensor([1, 1, 2, 2]))
    step(strict, torch.tensor([1, 2, 3, 3]))
    assert set(kept(strict)) == {1, 2}
    given = strict.evict()
    assert given is not None
    assert sorted(strict.row_id[given].tolist()) == [1, 2]
    assert strict.evict() is None


def test_every_bucket_has_a_shared_row_of_its_own():
    module = id_map(buckets=4, rows=5).eval()
    ids = torch.tensor([0, 1, UNBOUNDED // 4 - 1, UNBOUNDED // 2 + 2, UNBOUNDED - 1])
    assert step(module, ids).tolist() == [4, 4, 4, 14, 19]


def test_a_state_that_is_written_in_place_is_seen():
    """A checkpoint is loaded into the tensors themselves."""
    trained, fresh = id_map(interval=2), id_map(interval=2)
    for batch in ([5, 6, 6], [6, 5, 5], [9, 9]):
        step(trained, torch.tensor(batch))
    step(fresh, torch.tensor([1, 2, 3]))
    for name, value in fresh.state_dict().items():
        value.copy_(trained.state_dict()[name])
    batch = torch.tensor([5, 6, 9, 9])
    assert torch.equal(step(fresh, batch), step(trained, batch))
    assert kept(fresh) == kept(trained)
    assert set(kept(fresh)) == {5, 6, 9}
