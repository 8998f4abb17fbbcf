"""An index that looks at the items at the ends of the best paths only.

Every item has a path of codes (`embeddings.semantic_ids`), and so a place in a tree: a node for each beginning of a
path that some item has. A query goes down it, keeping at each level the best nodes alone (a beam); the items of the
best paths are then compared with it exactly. The cost grows with beam × branching and with the items that are looked
at, not with the catalogue. What it gains, and what it misses, is measured by `benchmarks/bench_index.py`.

A node's vector is the mean of its items'. It needs no codebooks, is right for items that came later, and finds the
items with an eighth to a third less to look at than the sum of the codes along the path.

B queries, D width, I items, M of them in the index (leaves), L levels, K codes of a level, P nodes of the beam, C
candidates, k answers.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from features.errors import InputError
from recsys.index import kernels
from recsys.index.protocol import Extras, Found, Lists


class NodeScorer(Protocol):
    """Something that has been learned about the queries of a batch, in the place of dot products with nodes."""

    def __call__(self, level: int, paths_BPl: np.ndarray, scores_BP: np.ndarray) -> np.ndarray:
        """Score all children of the nodes of the beam, whether they exist or not.

        Args:
            level: of the children, from 0; they are codes of this level's codebook.
            paths_BPl: the nodes; int64, `level` codes each. A query that has fewer than others has any nodes behind
                them, whose scores nobody reads.
            scores_BP: what this scorer gave for them; float32.

        Returns:
            float32 [B, P, K], greater is better, comparable between all children of a query.
        """
        ...


@dataclass(frozen=True, eq=False)
class Tree:
    """Arrays in memory, or of files that several processes share."""

    sizes: np.ndarray
    """int64 [L], codes of each level"""
    codes: np.ndarray
    """int64 [nodes, L], the path to each node, zeros behind; level after level, the root first, each level in order"""
    means: np.ndarray
    """float32 [nodes, D], the mean of the vectors below each node"""
    first: np.ndarray
    """int64 [nodes above the last level + 1], the first child of each node, and the end"""
    leaves: np.ndarray
    """int64 [paths + 1], the first leaf of each node of the last level, and the end"""
    vectors: np.ndarray
    """float32 [M, D], path after path"""
    items: np.ndarray
    """int64 [M]"""
    places: np.ndarray
    """int64 [I + 1], the leaf of each item; −1: none"""

    @classmethod
    def build(cls, vectors: np.ndarray, codes: np.ndarray, sizes: tuple[int, ...]) -> "Tree":
        """Sort items by their paths; 10⁶ items × 64 take about a second, and a copy of the vectors.

        Args:
            vectors: float32 [I + 1, D]; row 0 is no item.
            codes: int64 [I + 1, L]; an item whose first code is negative is not in the index.
            sizes: codes of each level.

        Raises:
            InputError: a code is greater than its level has, or vectors and codes do not fit each other.
        """
        if codes.shape != (len(vectors), len(sizes)):
            raise InputError(
                f"codes are {codes.shape}, which does not fit {len(vectors)} vectors and {len(sizes)} levels; "
                f"give one row for each item, one column for each level"
            )
        indexed = codes[:, 0] >= 0
        indexed[0] = False
        items = np.flatnonzero(indexed)
        if not len(items):
            raise InputError("codes give no item a path; give at least one item")
        above = codes[items].max(axis=0) >= sizes
        if above.any() or (codes[items] < 0).any():
            level = int(above.argmax())
            raise InputError(
                f"codes of level {level} reach {codes[items, level].max()}, and sizes[{level}] = {sizes[level]}; "
                "give the sizes of the codebooks that made the codes, and whole paths"
            )
        key = np.zeros(len(items), np.int64)
        assert np.prod(np.array(sizes, dtype=float)) < 2**63, "paths have no numbers of 64 bits"
        for level, size in enumerate(sizes):
            key = key * size + codes[items, level]
        order = np.argsort(key, kind="stable")
        items, key = items[order], key[order]
        places = np.full(len(vectors), -1)
        places[items] = np.arange(len(items))
        leaf_vectors = np.ascontiguousarray(vectors[items], dtype=np.float32)

        # From the last level to the root: where the nodes of each begin in the one below, their paths and sums.
        path_codes = codes[items]
        begins: list[np.ndarray] = []
        nodes: list[np.ndarray] = []
        sums, counts = leaf_vectors, np.ones(len(items), np.int64)
        means: list[np.ndarray] = []
        for level in range(len(sizes), -1, -1):
            if level < len(sizes):
                key //= sizes[level]
            begin = np.flatnonzero(np.diff(key, prepend=-1))
            begins.append(np.append(begin, len(key)))
            key, path_codes = key[begin], path_codes[begin]
            nodes.append(np.where(np.arange(len(sizes)) < level, path_codes, 0))
            sums, counts = np.add.reduceat(sums, begin), np.add.reduceat(counts, begin)
            means.append(sums / counts[:, None].astype(np.float32))
        begins, nodes, means = begins[::-1], nodes[::-1], means[::-1]
        starts = np.cumsum([1] + [len(level) for level in nodes[1:]])
        first = [begin[:-1] + start for begin, start in zip(begins[:-1], starts, strict=False)]
        tree = cls(
            sizes=np.array(sizes),
            codes=np.concatenate(nodes),
            means=np.concatenate(means),
            first=np.append(np.concatenate(first), starts[-1]),
            leaves=begins[-1],
            vectors=leaf_vectors,
            items=items,
            places=places,
        )
        for field in fields(tree):
            # As arrays of files are, so that the kernel is compiled for one kind alone.
            getattr(tree, field.name).flags.writeable = False
        return tree

    def with_items(self, vectors: np.ndarray, codes: np.ndarray) -> "Tree":
        """A tree of these items and more, numbered behind them; nothing is trained for it.

        Args:
            vectors: float32 [new items, D].
            codes: int64 [new items, L], as the same codebooks give them.

        Raises:
            InputError: see `build`.
        """
        held = self.places >= 0
        all_vectors = np.zeros((len(self.places) + len(vectors), self.vectors.shape[1]), np.float32)
        all_codes = np.full((len(all_vectors), len(self.sizes)), -1)
        paths = self.codes[len(self.first) - 1 :]
        all_vectors[: len(held)][held] = self.vectors[self.places[held]]
        all_codes[: len(held)][held] = np.repeat(paths, np.diff(self.leaves), axis=0)[self.places[held]]
        all_vectors[len(held) :], all_codes[len(held) :] = vectors, codes
        return Tree.build(all_vectors, all_codes, tuple(self.sizes.tolist()))

    def save(self, folder: Path) -> None:
        """A file for each array, `<name>.npy`, in a folder that exists or will."""
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> "Tree":
        """What `save` has written, its files mapped into memory: processes of one machine share the pages.

        Raises:
            InputError: the folder does not hold an index.
        """
        paths = {field.name: folder / f"{field.name}.npy" for field in fields(cls)}
        missing = [path.name for path in paths.values() if not path.exists()]
        if missing:
            raise InputError(f"{folder} holds no index: {missing[0]} is missing; name the folder of one, or export it")
        return cls(**{name: np.asarray(np.load(path, mmap_mode="r")) for name, path in paths.items()})

    def search(
        self,
        query_BD: np.ndarray,
        k: int,
        *,
        extras: Extras | None = None,
        excluded: Lists | None = None,
        scorer: NodeScorer | None = None,
        beam: int = 64,
        budget: int = 8192,
        path_weight: float = 0.0,
    ) -> Found:
        """See `Index.search`; of all items, those are compared that the best paths and `extras` have.

        Args:
            query_BD: float32.
            k: answers to each query; fewer where the paths below the beam have fewer items.
            extras: items that are compared wherever they are, with what to add to their scores.
            excluded: items that are never answers, extras or not.
            scorer: what decides which nodes are best; None: the dot product of query and node.
            beam: nodes of a level whose children are looked at.
            budget: the best paths are taken until they have as many leaves, but k and one for each excluded item in
                any case; whole paths, so that it may be exceeded by less than one.
            path_weight: times the score of its path is added to the score of an item; an extra whose path is not
                among those that were taken counts as in the worst of them.

        Returns:
            What was found; `scored_B` counts leaves and extras, not nodes.
        """
        assert k > 0
        assert beam > 0
        assert query_BD.shape[1] == self.vectors.shape[1], "queries are as wide as items"
        queries = len(query_BD)
        items_Bk, scores_Bk = np.zeros((queries, k), np.int64), np.full((queries, k), -np.inf, np.float32)
        scored_B = np.zeros(queries, np.int64)
        candidates = _NO_CANDIDATES if scorer is None else self._descended(scorer, queries, beam)
        kernels.search(
            *(_fixed(query_BD, np.float32), beam, budget, float(path_weight), len(self.sizes), max(self._rooms(beam))),
            *(self.first, self.leaves, self.means, self.vectors, self.items, self.places),
            *candidates,
            *_NO_EXTRAS if extras is None else (*_list_arrays(extras, queries), _fixed(extras.bonus_N, np.float32)),
            *_NO_LISTS if excluded is None else _list_arrays(excluded, queries),
            *(items_Bk, scores_Bk, scored_B),
        )
        return Found(items_Bk, scores_Bk, scored_B)

    def _descended(self, scorer: NodeScorer, queries: int, beam: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(paths [B, C], their scores [B, C], how many there are [B]) below the nodes that a scorer likes best."""
        nodes_BP, scores_BP = np.zeros((queries, 1), np.int64), np.zeros((queries, 1), np.float32)
        counts_B = np.ones(queries, np.int64)
        for level, room in enumerate(self._rooms(beam)):
            given_BPK = np.asarray(scorer(level, self.codes[nodes_BP][..., :level], scores_BP), np.float32)
            expected = (*nodes_BP.shape, int(self.sizes[level]))
            assert given_BPK.shape == expected, f"scores of level {level} are {given_BPK.shape}, not {expected}"
            nodes_BC, scores_BC = np.zeros((queries, room), np.int64), np.zeros((queries, room), np.float32)
            found_B = np.zeros(queries, np.int64)
            kernels.children(
                *(self.first, self.codes, level, beam, nodes_BP, counts_B, _fixed(given_BPK, np.float32)),
                *(nodes_BC, scores_BC, found_B),
            )
            nodes_BP, scores_BP, counts_B = nodes_BC, scores_BC, found_B
            if level < len(self.sizes) - 1:
                widest = max(1, counts_B.max(initial=0))
                nodes_BP, scores_BP = nodes_BC[:, :widest].copy(), scores_BC[:, :widest].copy()
        return nodes_BP, scores_BP, counts_B

    def _rooms(self, beam: int) -> list[int]:
        """For each level, how many children the nodes of a beam can have at most."""
        return [min(below, min(beam, nodes) * widest) for nodes, widest, below in self._shape]

    @cached_property
    def _shape(self) -> list[tuple[int, int, int]]:
        """Of each level above the last: nodes, the most children that one of them has, nodes of the level below."""
        shape: list[tuple[int, int, int]] = []
        begin, end = 0, 1
        for _ in self.sizes:
            children = np.diff(self.first[begin : end + 1])
            shape.append((end - begin, int(children.max()), int(children.sum())))
            begin, end = end, end + int(children.sum())
        return shape


def _fixed(array: np.ndarray, dtype: type) -> np.ndarray:
    """Contiguous and not to be written, so that the kernel is compiled for one kind of array alone."""
    fixed = np.ascontiguousarray(array, dtype).view()
    fixed.flags.writeable = False
    return fixed


def _list_arrays(lists: Lists, queries: int) -> tuple[np.ndarray, np.ndarray]:
    assert len(lists.offsets_B1) == queries + 1, "every query has a list, if only an empty one"
    assert lists.offsets_B1[-1] == len(lists.items_N)
    return _fixed(lists.items_N, np.int64), _fixed(lists.offsets_B1, np.int64)


_NO_CANDIDATES = np.empty((0, 0), np.int64), np.empty((0, 0), np.float32), np.empty(0, np.int64)
_NO_LISTS = _fixed(np.empty(0), np.int64), _fixed(np.empty(0), np.int64)
_NO_EXTRAS = *_NO_LISTS, _fixed(np.empty(0), np.float32)
