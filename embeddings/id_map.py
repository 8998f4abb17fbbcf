"""Which row of a table each of unboundedly many ids has: the frequent ones one of their own, the others a shared one.

A TorchRec managed collision module with TorchRec's eviction policies, in another layout than its
`MCHManagedCollisionModule`, which gives each rank one map of its own: what is evicted then depends on the number of
ranks, what has come since the last eviction is not saved, and a checkpoint can only be loaded by a divisor of the
ranks that wrote it. Here the ids are cut into a fixed number of buckets, each of which has its own rows, its own
candidates and its own evictions. A rank holds whole buckets, and all that is kept is a tensor with one entry a row, cut
like the table itself; so that neither evictions nor checkpoints depend on how many ranks there are.

The last row of each bucket is shared by the ids that have none. An id that gets a row begins at the weights of the
shared one, which stood for it until then.

N ids, B buckets on this rank, R rows of a bucket.
"""

import torch
from torch import Tensor
from torchrec import JaggedTensor
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionModule,
    MCHEvictionPolicy,
)

from features.transforms.hashing import UNBOUNDED

EMPTY = UNBOUNDED
"""Stands for an id where there is none; ids are 0 … UNBOUNDED - 1."""

POLICIES = {"lfu": LFU_EvictionPolicy, "lru": LRU_EvictionPolicy, "distance_lfu": DistanceLFU_EvictionPolicy}


def bucket_of(id_N: Tensor, buckets: int) -> Tensor:
    """The bucket of each id, as TorchRec sends them to ranks: equal ranges of ids; int64 [N]."""
    return id_N // -(-UNBOUNDED // buckets)


def rows_of(
    id_N: Tensor, sorted_id: Tensor, sorted_row: Tensor, buckets: int, rows_of_bucket: int, first_row: int = 0
) -> Tensor:
    """The row of the whole table that each id has, or the shared one of its bucket; int64 [N].

    Args:
        id_N: ids.
        sorted_id: ids that have rows, ascending, then EMPTY at least once: shared rows have no id.
        sorted_row: their rows, counted from `first_row`.
        buckets: of the whole table.
        rows_of_bucket: R.
        first_row: where the rows begin that `sorted_row` counts.
    """
    place_N = torch.searchsorted(sorted_id, id_N)
    shared_N = (bucket_of(id_N, buckets) + 1) * rows_of_bucket - 1
    return torch.where(sorted_id[place_N] == id_N, sorted_row[place_N] + first_row, shared_N)


class IdMap(ManagedCollisionModule):
    """The rows of the buckets that this rank holds, of a table or of all of it.

    Kept, int64 [rows] each: `row_id`, the id that has the row; `row_count`, how often it came; `row_step`, when last;
    and `new_id, new_count, new_step` of ids without a row since the last eviction, each bucket's in its own R entries.
    """

    row_id: Tensor
    row_count: Tensor
    row_step: Tensor
    new_id: Tensor
    new_count: Tensor
    new_step: Tensor
    _current_iter_tensor: Tensor

    def __init__(
        self,
        policy: MCHEvictionPolicy,
        interval: int,
        min_count: int,
        buckets: int,
        rows_of_bucket: int,
        device: torch.device,
        rows: tuple[int, int] | None = None,
    ) -> None:
        """An empty map.

        Args:
            policy: which ids to keep.
            interval: steps between evictions.
            min_count: how often an id must come between two evictions to be given a row.
            buckets: of the whole table.
            rows_of_bucket: R.
            device: where it is.
            rows: first row and the one after the last, on bounds of buckets; None: all.
        """
        first, end = rows or (0, buckets * rows_of_bucket)
        super().__init__(device, [first, end])
        # Where the cuts between ranks are is TorchRec's to check on loading; here any cut will do.
        del self._output_segments_tensor
        assert first % rows_of_bucket == end % rows_of_bucket == 0, f"rows {first} … {end} cut through a bucket"
        self.policy, self.interval, self.min_count = policy, interval, min_count
        self.total_buckets, self.rows_of_bucket, self.first_row = buckets, rows_of_bucket, first
        for name in ("row", "new"):
            self.register_buffer(f"{name}_id", torch.full((end - first,), EMPTY, device=device))
            self.register_buffer(f"{name}_count", torch.zeros(end - first, dtype=torch.int64, device=device))
            self.register_buffer(f"{name}_step", torch.zeros(end - first, dtype=torch.int64, device=device))
        self._given: list[Tensor] = []
        self._derived: tuple[tuple[int, int], Tensor, Tensor, Tensor] | None = None

    def preprocess(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Ids as they are."""
        return features

    @torch.no_grad()
    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Count the ids of a training step, and at the end of an interval give rows away; the features as they are."""
        if not self.training:
            return features
        self._current_iter_tensor += 1
        step = int(self._current_iter_tensor)
        id_N, count_N = torch.unique(torch.cat([one.values() for one in features.values()]), return_counts=True)
        sorted_id, sorted_row, _ = self._lookup()
        place_N = torch.searchsorted(sorted_id, id_N)
        known_N = sorted_id[place_N] == id_N
        row, new = sorted_row[place_N[known_N]], ~known_N
        self.row_count[row] += count_N[known_N]
        self.row_step[row] = step
        self._remember(id_N[new], count_N[new], torch.full_like(id_N[new], step))
        if step % self.interval == 0:
            self._give_rows(step)
        return features

    @torch.no_grad()
    def remap(
        self,
        features: dict[str, JaggedTensor],
        mutate_miss_lengths: bool = True,
        write_weights: Tensor | None = None,
    ) -> dict[str, JaggedTensor]:
        """Ids → rows of the whole table."""
        sorted_id, sorted_row, _ = self._lookup()
        return {
            name: JaggedTensor(
                values=rows_of(
                    one.values(), sorted_id, sorted_row, self.total_buckets, self.rows_of_bucket, self.first_row
                ),
                lengths=one.lengths(),
                offsets=one.offsets(),
                weights=one.weights_or_none(),
            )
            for name, one in features.items()
        }

    def forward(self, features: dict[str, JaggedTensor], mutate_miss_lengths: bool = True) -> dict[str, JaggedTensor]:
        """Ids → rows of the whole table; counts them in training."""
        return self.remap(self.profile(self.preprocess(features)))

    def evict(self) -> Tensor | None:
        """Rows of the whole table that have another id than when this was last asked; None: none."""
        given, self._given = self._given, []
        return torch.cat(given) + self.first_row if given else None

    def output_size(self) -> int:
        """Rows here."""
        return len(self.row_id)

    def input_size(self) -> int:
        """Ids that there can be."""
        return UNBOUNDED

    def buckets(self) -> int:
        """Buckets of the whole table, which ranks share evenly."""
        return self.total_buckets

    def open_slots(self) -> Tensor:
        """Rows that no id has had yet; int64 [1]."""
        return (self.row_id == EMPTY).sum().reshape(1) - len(self.row_id) // self.rows_of_bucket

    def validate_state(self) -> None:
        """Called after a state was loaded."""
        self._derived = None

    def rebuild_with_output_id_range(
        self, output_id_range: tuple[int, int], output_segments: list[int], device: torch.device | None = None
    ) -> "IdMap":
        """An empty map of some rows of the table, for one rank."""
        return IdMap(
            self.policy,
            self.interval,
            self.min_count,
            self.total_buckets,
            self.rows_of_bucket,
            device or self.device,
            output_id_range,
        )

    def _lookup(self) -> tuple[Tensor, Tensor, Tensor]:
        """(ids ascending, their rows, entries of each bucket that hold a candidate), all of them of this rank.

        They follow from what is kept, and are made again whenever that has been written to, by whomever: checkpoints
        are loaded into the tensors in place.
        """
        state = (self.row_id.data_ptr(), self.row_id._version)
        if self._derived is None or self._derived[0] != state:
            sorted_id, sorted_row = torch.sort(self.row_id, stable=True)
            used_B = (self.new_id.view(-1, self.rows_of_bucket) != EMPTY).sum(dim=1)
            self._derived = state, sorted_id, sorted_row, used_B
        return self._derived[1:]

    def _remember(self, id_N: Tensor, count_N: Tensor, step_N: Tensor) -> None:
        """Write down ids without a row, ascending and distinct, behind those that their buckets have already."""
        size = self.rows_of_bucket
        _, _, used_B = self._lookup()
        bucket_N = bucket_of(id_N, self.total_buckets) - self.first_row // size
        more_B = torch.bincount(bucket_N, minlength=len(used_B))
        full_B = used_B + more_B > size
        for bucket in full_B.nonzero().flatten().tolist():
            here, there = slice(bucket * size, bucket * size + int(used_B[bucket])), bucket_N == bucket
            merged = _merged(
                torch.cat([self.new_id[here], id_N[there]]),
                torch.cat([self.new_count[here], count_N[there]]),
                torch.cat([self.new_step[here], step_N[there]]),
            )
            # Half of the room is left free, so that a flood of ids is sifted now and then, not at every step.
            kept = [column[_best(*merged[1:], self.policy)[: size // 2]] for column in merged]
            self._write(bucket, *kept)
            used_B[bucket] = len(kept[0])
        appended_N = ~full_B[bucket_N]
        id_N, count_N, step_N, bucket_N = (x[appended_N] for x in (id_N, count_N, step_N, bucket_N))
        more_B = torch.where(full_B, 0, more_B)
        nth_N = torch.arange(len(id_N), device=id_N.device) - (more_B.cumsum(0) - more_B)[bucket_N]
        place_N = bucket_N * size + used_B[bucket_N] + nth_N
        self.new_id[place_N], self.new_count[place_N], self.new_step[place_N] = id_N, count_N, step_N
        used_B += more_B

    def _give_rows(self, step: int) -> None:
        """Let the policy choose, in every bucket, among ids that have rows and candidates; the latter are forgotten."""
        size = self.rows_of_bucket
        _, _, used_B = self._lookup()
        for bucket in used_B.nonzero().flatten().tolist():
            here = slice(bucket * size, bucket * size + int(used_B[bucket]))
            id_N, count_N, step_N = _merged(self.new_id[here], self.new_count[here], self.new_step[here])
            often_N = count_N >= self.min_count
            id_N, count_N, step_N = id_N[often_N], count_N[often_N], step_N[often_N]
            order_N = torch.argsort(count_N, descending=True, stable=True)
            rows = slice(bucket * size, (bucket + 1) * size)
            row_count, row_step = self.row_count[rows], self.row_step[rows]
            # All candidates are new to the policy: those with rows have been counted as they came.
            nothing = torch.empty(0, dtype=torch.int64, device=id_N.device)
            place, chosen = self.policy.update_metadata_and_generate_eviction_scores(
                step,
                size,
                order_N,
                count_N[order_N],
                torch.zeros_like(id_N, dtype=torch.bool),
                nothing,
                {"counts": row_count, "last_access_iter": row_step},
                {"last_access_iter": step_N.clone()},
            )
            chosen = order_N[chosen]
            self.row_id[rows][place] = id_N[chosen]
            row_count[place], row_step[place] = count_N[chosen], step_N[chosen]
            self._given.append(place + bucket * size)
            self._write(bucket, nothing, nothing, nothing)
        self._derived = None

    def _write(self, bucket: int, *columns: Tensor) -> None:
        """Replace the candidates of a bucket."""
        start = bucket * self.rows_of_bucket
        for kept, empty, column in zip(
            (self.new_id, self.new_count, self.new_step), (EMPTY, 0, 0), columns, strict=True
        ):
            kept[start : start + len(column)] = column
            kept[start + len(column) : start + self.rows_of_bucket] = empty


def _merged(id_N: Tensor, count_N: Tensor, step_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each id once, ascending, with the sum of its counts and its last step."""
    distinct, which_N = torch.unique(id_N, return_inverse=True)
    count = torch.zeros_like(distinct).index_add_(0, which_N, count_N)
    return distinct, count, torch.zeros_like(distinct).scatter_reduce_(0, which_N, step_N, "amax")


def _best(count_N: Tensor, step_N: Tensor, policy: MCHEvictionPolicy) -> Tensor:
    """The order of candidates, best first: by what the policy goes by, then by the other, then by id."""
    first, second = (step_N, count_N) if isinstance(policy, LRU_EvictionPolicy) else (count_N, step_N)
    order_N = torch.argsort(second, descending=True, stable=True)
    return order_N[torch.argsort(first[order_N], descending=True, stable=True)]
