"""The search of a tree, compiled: down to the best paths, then through their leaves. See `recsys.index.tree`.

Nodes are numbered level by level, so that the children of a node, and the leaves of a path, follow each other. Nothing
here allocates by the number of items, nodes or paths: only by the beam and how many children a node has.

B queries, D width, C candidates (children of the nodes of a beam), k answers, N items of all queries' lists.
"""

from typing import Any

import numpy as np
from numba import njit

# Sums may be taken in any order, which lets them use vector registers.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}


@njit(**_OPTIONS)
def search(
    query_BD,
    beam,
    budget,
    path_weight,
    levels,
    room,
    first,
    leaves,
    means,
    vectors,
    items,
    places,
    candidates_BC,
    candidate_scores_BC,
    candidates_B,
    extras_N,
    extras_B1,
    bonus_N,
    excluded_N,
    excluded_B1,
    items_Bk,
    scores_Bk,
    scored_B,
):
    """Fill the last three arrays; see `Tree.search`.

    Args:
        query_BD: float32.
        beam: nodes of a level whose children are looked at.
        budget: leaves to look at, at least.
        path_weight: of a path's score in the scores of its leaves.
        levels: levels of nodes below the root.
        room: candidates that a level may have, at most.
        first: where the children of each node begin.
        leaves: where the leaves of each path begin.
        means: vector of each node.
        vectors: of each leaf.
        items: of each leaf.
        places: leaf of each item, −1: none.
        candidates_BC: paths to choose from, where another scorer has led there; empty: descend here.
        candidate_scores_BC: their scores.
        candidates_B: how many there are.
        extras_N: items to look at in any case.
        extras_B1: where each query's begin; empty: no query has any.
        bonus_N: what is added to their scores.
        excluded_N: items to pass over.
        excluded_B1: where each query's begin; empty: no query has any.
        items_Bk: int64.
        scores_Bk: float32.
        scored_B: int64.
    """
    k = items_Bk.shape[1]
    own_nodes, own_scores = np.empty(room, np.int64), np.empty(room, np.float32)
    kept = np.empty(min(beam, room), np.int64)
    best, negated = np.empty(k, np.int64), np.empty(k, np.float32)
    nothing, no_bonus = np.empty(0, np.int64), np.empty(0, np.float32)
    for b in range(len(query_BD)):
        query = query_BD[b]
        nodes, scores = own_nodes, own_scores
        if len(candidates_B):
            nodes, scores, count = candidates_BC[b], candidate_scores_BC[b], candidates_B[b]
        else:
            count = _descend(query, beam, levels, first, means, nodes, scores, kept)
        excluded, extras, bonus = nothing, nothing, no_bonus
        if len(excluded_B1):
            excluded = excluded_N[excluded_B1[b] : excluded_B1[b + 1]].copy()
            _sort(excluded, excluded.copy())
        if len(extras_B1):
            begin, end = extras_B1[b], extras_B1[b + 1]
            extras, bonus = _summed(extras_N[begin:end], bonus_N[begin:end])
        enough = max(budget, k + len(excluded))
        chosen, scored_B[b] = _choose(nodes, scores, count, leaves, enough)
        paths, path_scores = nodes[count - chosen : count], scores[count - chosen : count]
        if path_weight == 0:
            path_scores[:] = 0
        else:
            path_scores *= np.float32(path_weight)

        sorted_paths, sorted_scores = paths, path_scores
        if len(extras) and path_weight != 0:
            sorted_paths, sorted_scores = paths.copy(), path_scores.copy()
            _sort(sorted_paths, sorted_scores)
        held = 0
        for i in range(len(extras)):
            item = extras[i]
            if item <= 0 or item >= len(places) or places[item] < 0 or _has(excluded, item):
                continue
            leaf = places[item]
            score = _dot(query, vectors, leaf) + bonus[i]
            if path_weight != 0:
                path = _below(leaves, leaf + 1) - 1
                at = _below(sorted_paths, path)
                reached = at < chosen and sorted_paths[at] == path
                score += sorted_scores[at] if reached else path_scores[0]
            held = _offer(negated, best, held, -score, leaf)
            scored_B[b] += 1
        for i in range(chosen - 1, -1, -1):
            for leaf in range(leaves[paths[i]], leaves[paths[i] + 1]):
                score = _dot(query, vectors, leaf) + path_scores[i]
                if held < k or -score < negated[0]:
                    item = items[leaf]
                    if not _has(extras, item) and not _has(excluded, item):
                        held = _offer(negated, best, held, -score, leaf)
        _sort(negated[:held], best[:held])
        for i in range(held):
            items_Bk[b, i] = items[best[i]]
            scores_Bk[b, i] = -negated[i]


@njit(**_OPTIONS)
def children(first, codes, level, beam, kept_BP, kept_B, given_BPK, nodes_BC, scores_BC, counts_B):
    """Fill the last three arrays: the children of each query's nodes, with the scores that they are given by code.

    Only the `beam` best of them are kept, but nodes of the last level, which are all kept, and numbered as paths.
    """
    inner = len(first) - 1
    for b in range(len(kept_BP)):
        nodes, scores, count = nodes_BC[b], scores_BC[b], 0
        for place in range(kept_B[b]):
            node = kept_BP[b, place]
            for child in range(first[node], first[node + 1]):
                nodes[count] = child
                scores[count] = given_BPK[b, place, codes[child, level]]
                count += 1
        if count and nodes[0] >= inner:
            nodes[:count] -= inner
        else:
            count = _keep(nodes, scores, count, beam)
        counts_B[b] = count


@njit(**_OPTIONS)
def _descend(query, beam, levels, first, means, nodes, scores, kept):
    """How many paths begin with the best nodes, and these paths and their scores in `nodes` and `scores`."""
    kept[0] = 0
    parents, count = 1, 0
    for level in range(levels):
        count = 0
        for place in range(parents):
            for child in range(first[kept[place]], first[kept[place] + 1]):
                nodes[count] = child
                scores[count] = _dot(query, means, child)
                count += 1
        if level < levels - 1:
            parents = _keep(nodes, scores, count, beam)
            kept[:parents] = nodes[:parents]
    nodes[:count] -= len(first) - 1
    return count


@njit(**_OPTIONS)
def _keep(nodes, scores, count, beam):
    """How many of the first `count` nodes are kept, `beam` at most: the best, moved to the front."""
    if count <= beam:
        return count
    _heapify(scores, nodes, count)
    for left in range(count, count - beam, -1):
        _pop(scores, nodes, left)
    for i in range(beam):
        nodes[i], scores[i] = nodes[count - 1 - i], scores[count - 1 - i]
    return beam


@njit(**_OPTIONS)
def _choose(paths, scores, count, leaves, enough):
    """Move the best of the first `count` paths to their end, the best last, until they have `enough` leaves.

    Returns:
        How many paths, how many leaves.
    """
    chosen, gathered = 0, 0
    _heapify(scores, paths, count)
    while chosen < count and gathered < enough:
        _pop(scores, paths, count - chosen)
        chosen += 1
        path = paths[count - chosen]
        gathered += leaves[path + 1] - leaves[path]
    return chosen, gathered


@njit(**_OPTIONS)
def _summed(items, bonus):
    """Items in order, each once, and the sum of its bonuses."""
    items, bonus, count = items.copy(), bonus.copy(), 0
    _sort(items, bonus)
    for i in range(len(items)):
        if count and items[count - 1] == items[i]:
            bonus[count - 1] += bonus[i]
        else:
            items[count], bonus[count] = items[i], bonus[i]
            count += 1
    return items[:count], bonus[:count]


@njit(**_OPTIONS)
def _has(ordered, value):
    """Whether a value is among others that are in order."""
    at = _below(ordered, value)
    return at < len(ordered) and ordered[at] == value


@njit(**_OPTIONS)
def _below(ordered, value):
    """How many values of those that are in order are less than this one."""
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@njit(**_OPTIONS)
def _dot(query, table, row):
    total = np.float32(0.0)
    for d in range(len(query)):
        total += query[d] * table[row, d]
    return total


@njit(**_OPTIONS)
def _offer(keys, values, held, key, value):
    """Put a key among the smallest ones, a heap with the greatest on top, if it belongs there; how many it holds."""
    if held == len(keys):
        if key < keys[0]:
            keys[0], values[0] = key, value
            _sink(keys, values, 0, held)
        return held
    at = held
    while at and keys[(at - 1) // 2] < key:
        keys[at], values[at] = keys[(at - 1) // 2], values[(at - 1) // 2]
        at = (at - 1) // 2
    keys[at], values[at] = key, value
    return held + 1


@njit(**_OPTIONS)
def _sort(keys, values):
    """Keys in order, smallest first, each with its value."""
    _heapify(keys, values, len(keys))
    for left in range(len(keys), 0, -1):
        _pop(keys, values, left)


@njit(**_OPTIONS)
def _heapify(keys, values, count):
    """Make a heap of the first `count`, the greatest on top."""
    for at in range(count // 2 - 1, -1, -1):
        _sink(keys, values, at, count)


@njit(**_OPTIONS)
def _pop(keys, values, count):
    """Move the top of a heap of `count` behind the others."""
    last = count - 1
    keys[0], keys[last] = keys[last], keys[0]
    values[0], values[last] = values[last], values[0]
    _sink(keys, values, 0, last)


@njit(**_OPTIONS)
def _sink(keys, values, at, count):
    key, value = keys[at], values[at]
    while 2 * at + 1 < count:
        child = 2 * at + 1
        if child + 1 < count and keys[child] < keys[child + 1]:
            child += 1
        if not key < keys[child]:
            break
        keys[at], values[at] = keys[child], values[child]
        at = child
    keys[at], values[at] = key, value
