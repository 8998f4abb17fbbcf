"""Which combinations of forms and kernels the planner tries for models of thousands of tables."""

import itertools
from collections.abc import Iterator

from torchrec.distributed.planner.types import Enumerator, Proposer, ShardingOption, Topology

LIMIT = 64
"""Combinations tried."""


class GroupProposer(Proposer):
    """Proposes one form and kernel for each group, the cheapest first, and stops at the first that fits.

    TorchRec's proposers move table by table; a thousand tables that are alike need no thousand proposals.
    """

    def load(self, search_space: list[ShardingOption], enumerator: Enumerator | None = None) -> None:
        """Sort what each group may be by its estimated time."""
        groups: dict[str, dict[tuple[str, str], list[ShardingOption]]] = {}
        for option in search_space:
            group = option.name.rpartition("_")[0]
            choice = (option.sharding_type, option.compute_kernel)
            groups.setdefault(group, {}).setdefault(choice, []).append(option)

        def cost(options: list[ShardingOption]) -> float:
            return sum(option.total_perf for option in options)

        choices = [sorted(found.values(), key=cost) for found in groups.values()]
        combinations = sorted(itertools.product(*choices), key=lambda chosen: sum(map(cost, chosen)))
        self._left: Iterator[tuple[list[ShardingOption], ...]] = iter(combinations[:LIMIT])

    def propose(self) -> list[ShardingOption] | None:
        """The next combination; None after one that fits, or after the last."""
        chosen = next(self._left, None)
        return None if chosen is None else [option for options in chosen for option in options]

    def feedback(
        self,
        partitionable: bool,
        plan: list[ShardingOption] | None = None,
        perf_rating: float | None = None,
        storage_constraint: Topology | None = None,
    ) -> None:
        """Stop after a combination that fits."""
        if partitionable:
            self._left = iter(())
