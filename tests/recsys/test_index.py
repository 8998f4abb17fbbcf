"""A tree that looks at everything answers as exhaustive search does; one that does not keeps its promises."""

from pathlib import Path

import numpy as np
import pytest
import torch

from embeddings.semantic_ids import ResidualQuantizer
from features.errors import InputError
from recsys.index.flat import Flat
from recsys.index.protocol import Extras, Found, Index, Lists
from recsys.index.tree import Tree

DIM, ITEMS, SIZES, K = 16, 3000, (8, 6, 4), 20
ALL = 10**6
RNG = np.random.default_rng(3)


def vectors_of(items: int) -> np.ndarray:
    """float32 [items + 1, D] in 50 clusters."""
    centres = RNG.standard_normal((50, DIM))
    vectors = centres[RNG.integers(0, 50, items + 1)] + 0.3 * RNG.standard_normal((items + 1, DIM))
    # Whatever stands in row 0, and it would be the best of all.
    vectors[0] = 100
    return vectors.astype(np.float32)


VECTORS = vectors_of(ITEMS)
QUERIES = np.abs(VECTORS[RNG.integers(1, ITEMS, 40)] + 0.3 * RNG.standard_normal((40, DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def quantizer() -> ResidualQuantizer:
    quantizer = ResidualQuantizer(SIZES, DIM)
    quantizer.fit(torch.from_numpy(VECTORS[1:]), seed=0)
    return quantizer


@pytest.fixture(scope="module")
def codes(quantizer: ResidualQuantizer) -> np.ndarray:
    return quantizer.assign(torch.from_numpy(VECTORS)).numpy()


@pytest.fixture(scope="module")
def tree(codes: np.ndarray) -> Tree:
    return Tree.build(VECTORS, codes, SIZES)


def lists(lengths: np.ndarray) -> Lists:
    """Random items; some are no items."""
    offsets = np.append(0, np.cumsum(lengths))
    return Lists(RNG.integers(-3, ITEMS + 10, offsets[-1]), offsets)


EXCLUDED = lists(RNG.integers(0, 200, len(QUERIES)))
_SOME = lists(RNG.integers(0, 30, len(QUERIES)))
EXTRAS = Extras(_SOME.items_N, _SOME.offsets_B1, RNG.uniform(0, 5, len(_SOME.items_N)).astype(np.float32))


def by_hand(scores_BI: np.ndarray, k: int, extras: Extras | None, excluded: Lists | None) -> np.ndarray:
    """The k best columns of each row, but the first."""
    scores_BI = scores_BI.astype(np.float64)
    for b, row in enumerate(scores_BI):
        if extras is not None:
            part = slice(extras.offsets_B1[b], extras.offsets_B1[b + 1])
            for item, bonus in zip(extras.items_N[part], extras.bonus_N[part], strict=True):
                if 0 < item < len(row):
                    row[item] += bonus
        if excluded is not None:
            items = excluded.items_N[excluded.offsets_B1[b] : excluded.offsets_B1[b + 1]]
            row[items[(items > 0) & (items < len(row))]] = -np.inf
    scores_BI[:, 0] = -np.inf
    return np.argsort(-scores_BI, axis=1)[:, :k]


def assert_same(found: Found, expected: Found) -> None:
    np.testing.assert_array_equal(found.items_Bk, expected.items_Bk)
    np.testing.assert_allclose(found.scores_Bk, expected.scores_Bk, rtol=1e-5)


@pytest.mark.parametrize("extras", [None, EXTRAS])
@pytest.mark.parametrize("excluded", [None, EXCLUDED])
def test_whole_tree_is_exhaustive(tree: Tree, extras: Extras | None, excluded: Lists | None):
    expected = Flat(VECTORS).search(QUERIES, K, extras=extras, excluded=excluded)
    np.testing.assert_array_equal(expected.items_Bk, by_hand(QUERIES @ VECTORS.T, K, extras, excluded))
    found = tree.search(QUERIES, K, extras=extras, excluded=excluded, beam=ALL, budget=ALL)
    assert_same(found, expected)
    assert (found.scored_B >= ITEMS).all()


def test_queries_of_a_batch_do_not_meet(tree: Tree, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recsys.index.flat._SCORES", 7 * ITEMS)
    indices: list[Index] = [tree, Flat(VECTORS)]
    for index in indices:
        together = index.search(QUERIES, K, extras=EXTRAS, excluded=EXCLUDED)
        for b in range(len(QUERIES)):
            extra, out = (slice(each.offsets_B1[b], each.offsets_B1[b + 1]) for each in (EXTRAS, EXCLUDED))
            alone = index.search(
                QUERIES[b : b + 1],
                K,
                extras=Extras(EXTRAS.items_N[extra], np.array([0, extra.stop - extra.start]), EXTRAS.bonus_N[extra]),
                excluded=Lists(EXCLUDED.items_N[out], np.array([0, out.stop - out.start])),
            )
            np.testing.assert_array_equal(alone.items_Bk[0], together.items_Bk[b])


def test_a_narrow_beam_finds_most_of_the_nearest_in_a_fraction(tree: Tree):
    expected = Flat(VECTORS).search(QUERIES, K).items_Bk
    found = tree.search(QUERIES, K, beam=8, budget=300)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(expected, found.items_Bk, strict=True)])
    assert recall > 0.9
    assert found.scored_B.max() < 0.2 * ITEMS


def test_leaves_of_the_best_paths_until_there_are_enough(tree: Tree):
    """The budget counts; with it at nothing, k and what is excluded count."""
    largest = int(np.diff(tree.leaves).max())
    for enough in (100, 500):
        for found in (
            tree.search(QUERIES, K, beam=ALL, budget=enough),
            tree.search(QUERIES, enough, beam=ALL, budget=1),
        ):
            assert (found.scored_B >= enough).all()
            assert (found.scored_B < enough + largest).all()
    nodes = tree.means[len(tree.first) - 1 :]
    found = tree.search(QUERIES, K, beam=ALL, budget=100)
    sizes = np.diff(tree.leaves)
    path_of_leaf = np.repeat(np.arange(len(sizes)), sizes)
    for b, query in enumerate(QUERIES):
        order = np.argsort(-(nodes @ query))
        count = int(np.searchsorted(np.cumsum(sizes[order]), 100)) + 1
        leaves = np.flatnonzero(np.isin(path_of_leaf, order[:count]))
        best = leaves[np.argsort(-(tree.vectors[leaves] @ query))[:K]]
        np.testing.assert_array_equal(found.items_Bk[b], tree.items[best])


def test_excluded_items_leave_k_others(tree: Tree):
    nearest = Flat(VECTORS).search(QUERIES, 200).items_Bk
    out = Lists(nearest.ravel(), np.arange(len(QUERIES) + 1) * 200)
    found = tree.search(QUERIES, K, excluded=out, budget=1)
    assert (found.items_Bk > 0).all()
    assert not any(np.isin(a, b).any() for a, b in zip(found.items_Bk, nearest, strict=True))


def test_extras_are_found_wherever_they_are(tree: Tree):
    """The farthest items, one of them excluded, one twice."""
    farthest = np.argsort(QUERIES @ VECTORS[1:].T, axis=1)[:, :3] + 1
    listed = np.concatenate([farthest, farthest[:, :1]], axis=1)
    offsets = np.arange(len(QUERIES) + 1) * 4
    bonus = np.tile(np.array([500, 1500, 2000, 500], np.float32), len(QUERIES))
    out = Lists(farthest[:, 1].copy(), np.arange(len(QUERIES) + 1))
    found = tree.search(
        QUERIES, K, extras=Extras(listed.ravel(), offsets, bonus), excluded=out, beam=1, budget=1, path_weight=0.5
    )
    np.testing.assert_array_equal(found.items_Bk[:, :2], farthest[:, [2, 0]])
    assert not (found.items_Bk[:, 2:] == farthest[:, [1]]).any()


@pytest.mark.parametrize("learned", [False, True])
def test_path_scores_count_for_leaves_and_extras(tree: Tree, codes: np.ndarray, learned: bool):
    """A scorer, here of random numbers for each node, takes the place of dot products with nodes."""
    draw = np.random.default_rng(4)
    tables = [draw.standard_normal((len(QUERIES), *SIZES[: level + 1])).astype(np.float32) for level in range(3)]

    def scorer(level: int, paths_BPl: np.ndarray, scores_BP: np.ndarray) -> np.ndarray:
        rows = np.arange(len(QUERIES))[:, None]
        if level:
            given = tables[level - 1][(rows, *np.moveaxis(paths_BPl, 2, 0))]
            np.testing.assert_array_equal(scores_BP[scores_BP != 0], given[scores_BP != 0])
            assert (scores_BP != 0).any(axis=1).all()
        return tables[level][(rows, *np.moveaxis(paths_BPl, 2, 0))]

    if learned:
        path_BI = tables[2][(slice(None), *codes.T)]
    else:
        path = np.searchsorted(tree.leaves, np.maximum(tree.places, 0), side="right") - 1
        path_BI = QUERIES @ tree.means[len(tree.first) - 1 + path].T
    found = tree.search(
        QUERIES,
        K,
        extras=EXTRAS,
        excluded=EXCLUDED,
        scorer=scorer if learned else None,
        beam=ALL,
        budget=ALL,
        path_weight=2.0,
    )
    np.testing.assert_array_equal(found.items_Bk, by_hand(QUERIES @ VECTORS.T + 2 * path_BI, K, EXTRAS, EXCLUDED))


def test_a_scorer_leads_the_beam(tree: Tree, codes: np.ndarray):
    """To the path of one item for each query, which a beam of 1 must then have taken."""
    wanted = np.random.default_rng(5).integers(1, ITEMS, len(QUERIES))

    def scorer(level: int, paths_BPl: np.ndarray, scores_BP: np.ndarray) -> np.ndarray:
        hits = np.arange(SIZES[level]) == codes[wanted, level][:, None, None]
        return np.broadcast_to(hits, (*scores_BP.shape, SIZES[level])) + scores_BP[..., None]

    found = tree.search(QUERIES, 1000, scorer=scorer, beam=1, budget=1)
    taken = np.array([(codes[:, :2] == codes[item, :2]).all(axis=1)[1:].sum() for item in wanted])
    np.testing.assert_array_equal(found.scored_B, taken)
    assert all(item in row for item, row in zip(wanted, found.items_Bk, strict=True))
    ends = np.isneginf(found.scores_Bk)
    np.testing.assert_array_equal(found.items_Bk == 0, ends)
    np.testing.assert_array_equal((~ends).sum(axis=1), taken)


def test_saved_tree_is_mapped_and_the_same(tree: Tree, tmp_path: Path):
    tree.save(tmp_path / "index")
    loaded = Tree.load(tmp_path / "index")
    assert isinstance(loaded.vectors.base, np.memmap)
    settings = {"extras": EXTRAS, "excluded": EXCLUDED, "beam": 4, "budget": 200}
    found, expected = (each.search(QUERIES, K, **settings) for each in (loaded, tree))
    np.testing.assert_array_equal(found.items_Bk, expected.items_Bk)
    np.testing.assert_array_equal(found.scores_Bk, expected.scores_Bk)
    (tmp_path / "index" / "leaves.npy").unlink()
    with pytest.raises(InputError, match=r"leaves\.npy is missing"):
        Tree.load(tmp_path / "index")


def test_new_items_need_no_training(tree: Tree, quantizer: ResidualQuantizer):
    """They are found where the codebooks put them, and nothing changes for the others."""
    nearest = Flat(VECTORS).search(QUERIES[:5], 1).items_Bk[:, 0]
    new = np.linspace(1.05, 1.1, 5, dtype=np.float32)[:, None] * VECTORS[nearest]
    grown = tree.with_items(new, quantizer.assign(torch.from_numpy(new)).numpy())
    found = grown.search(QUERIES, K, beam=8, budget=300)
    assert all(ITEMS + 1 + b in found.items_Bk[b] for b in range(5))
    whole = Flat(np.concatenate([VECTORS, new]))
    assert_same(grown.search(QUERIES, K, beam=ALL, budget=ALL), whole.search(QUERIES, K))


def test_items_without_a_path_are_not_in_the_index(codes: np.ndarray):
    some = codes.copy()
    some[1:2000] = -1
    tree = Tree.build(VECTORS, some, SIZES)
    found = tree.search(QUERIES, K, extras=EXTRAS, beam=ALL, budget=ALL)
    assert found.items_Bk.min() >= 2000
    assert len(tree.with_items(QUERIES, codes[1:41]).items) == ITEMS + 1 - 2000 + 40


def test_what_cannot_be_indexed(codes: np.ndarray):
    for wrong, sizes, said in (
        (codes, (8, 5, 4), r"codes of level 1 reach 5, and sizes\[1\] = 5"),
        (codes[:-1], SIZES, "does not fit 3001 vectors and 3 levels"),
        (np.full_like(codes, -1), SIZES, "no item a path"),
    ):
        with pytest.raises(InputError, match=said):
            Tree.build(VECTORS, wrong, sizes)
