"""What the co-interaction graph says of every step of a history: one hop from its items, recent ones weighing more.

The value of item i at step t is Σ recencyˢ · similarity(the item s steps back, i), as item-based collaborative
filtering scores, from what people do and, if asked for, from what items are. A history in training has itself helped
to make the graph; what it added to an edge is taken off again where it is asked about, so that a step sees what other
windows have done, and nothing of what follows it in its own.

B histories, N steps, I items of the catalogue, M pairs of a step and a candidate.
"""

from typing import Any

import numpy as np
from numba import njit

from embeddings.histories import Histories, Links
from features.graph import Graph

_FLOOR = 1e-3
"""A value that has faded below this is forgotten, which bounds what long histories cost."""

_NOTHING = 1e-4
"""A weight that rounding has left of an edge that only the history itself had made."""

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}


class Walk:
    """A graph, ready to be asked. Keeps buffers of 16 bytes an item; not thread-safe."""

    def __init__(self, graph: Graph, recency: float) -> None:
        """`recency`: weight of a step relative to the one after it."""
        self.graph, self.recency = graph, np.float32(recency)
        items = len(graph.counts)
        self._value_I = np.zeros(items, dtype=np.float32)
        self._touched = np.zeros(items, dtype=np.int32)
        self._local_I = np.full(items, -1, dtype=np.int32)
        self._capacity = 1 << 16

    def of_windows(self, values: np.ndarray, lengths: np.ndarray, place_I: np.ndarray) -> Links:
        """A row for each step of training windows but their last, without what the window itself added to the graph.

        Args:
            values: items of the windows, one after the other; int64.
            lengths: of the windows; int64.
            place_I: of each item among the candidates, −1 for none; int64 [I + 1].
        """
        return self._walk(values, lengths, place_I, training=True)

    def of_histories(self, histories: Histories, place_I: np.ndarray) -> Links:
        """A row for each history, as of its last step; `place_I` as above."""
        return self._walk(histories.items_N, histories.lengths_B, place_I, training=False)

    def _walk(self, values: np.ndarray, lengths: np.ndarray, place_I: np.ndarray, *, training: bool) -> Links:
        graph, config = self.graph, self.graph.config
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        rows = int(offsets[-1]) - len(lengths) if training else len(lengths)
        while True:
            row_offsets = np.zeros(rows + 1, dtype=np.int64)
            candidates = np.empty(self._capacity, dtype=np.int64)
            found = np.empty(self._capacity, dtype=np.float32)
            needed = _walk(
                (graph.offsets, graph.items, graph.weights, graph.content, graph.counts),
                (
                    *(np.float32(config.shrinkage), config.gap, np.float32(config.decay), config.directed),
                    *(self.recency, config.neighbours),
                ),
                (values, offsets, place_I, training),
                (self._value_I, self._touched, self._local_I),
                (row_offsets, candidates, found),
            )
            if needed <= self._capacity:
                return Links(row_offsets, candidates[:needed], found[:needed])
            self._capacity = 2 * needed


@njit(**_OPTIONS)
def _walk(graph: Any, settings: Any, asked: Any, buffers: Any, out: Any) -> int:
    """Fill `out`; how many pairs there are, more than it has room for if it has to be done again."""
    edge_offsets, edge_items, edge_weights, edge_content, counts = graph
    shrinkage, gap, decay, directed, recency, most = settings
    values, offsets, place_I, training = asked
    value_I, touched, local_I = buffers
    row_offsets, candidates, found = out
    pairs, row = 0, 0
    for history in range(len(offsets) - 1):
        begin, end = offsets[history], offsets[history + 1]
        own, own_count = _own(values[begin:end], gap, decay, directed, local_I, training)
        steps = end - begin - 1 if training else end - begin
        alive = 0
        for step in range(steps):
            kept = 0
            for k in range(alive):
                item = touched[k]
                value_I[item] *= recency
                if value_I[item] < _FLOOR:
                    value_I[item] = 0.0
                else:
                    touched[kept] = item
                    kept += 1
            alive = kept
            here = values[begin + step]
            mine = local_I[here]
            count = counts[here] - (own_count[mine] if training else 0.0)
            least, last = _least(graph, here, shrinkage, most)
            for edge in range(edge_offsets[here], edge_offsets[here + 1]):
                item = edge_items[edge]
                weight, other = edge_weights[edge], counts[item]
                if training and local_I[item] >= 0:
                    weight -= own[mine, local_I[item]]
                    other -= own_count[local_I[item]]
                near = edge_content[edge]
                if weight >= _NOTHING:
                    near += weight / (np.sqrt(count * other) + shrinkage)
                if near == 0.0:
                    continue
                # Of a row that was cut, an edge may be there by what the window added, and would tell by that.
                if training and local_I[item] >= 0 and (near < least or (near == least and item > last)):
                    continue
                if value_I[item] == 0.0:
                    touched[alive] = item
                    alive += 1
                value_I[item] += near
            if training or step == steps - 1:
                for k in range(alive):
                    place = place_I[touched[k]]
                    if place >= 0:
                        if pairs < len(candidates):
                            candidates[pairs] = place
                            found[pairs] = value_I[touched[k]]
                        pairs += 1
                row += 1
                row_offsets[row] = pairs
        if steps <= 0 and not training:
            row += 1
            row_offsets[row] = pairs
        for k in range(alive):
            value_I[touched[k]] = 0.0
        if training:
            for place in range(begin, end):
                local_I[values[place]] = -1
    return pairs


@njit(**_OPTIONS)
def _least(graph: Any, item: int, shrinkage: float, most: int) -> tuple[Any, int]:
    """The weakest edge of an item that has as many as are kept: its similarity, and where it leads.

    0 and beyond the last item where there are fewer. Of equal edges those to lower items are kept.
    """
    offsets, items, weights, content, counts = graph
    last = offsets[item + 1] - 1
    if offsets[item + 1] - offsets[item] < most:
        return np.float32(0.0), len(counts)
    near = content[last]
    if weights[last] > 0.0:
        near += weights[last] / (np.sqrt(counts[item] * counts[items[last]]) + shrinkage)
    return near, items[last]


@njit(**_OPTIONS)
def _own(
    items: np.ndarray, gap: int, decay: float, directed: bool, local_I: np.ndarray, training: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What a history added to the edges between its items, and to their counts; numbers its items in `local_I`."""
    if not training:
        return np.zeros((1, 1), dtype=np.float32), np.zeros(1, dtype=np.float32)
    distinct = 0
    for item in items:
        if local_I[item] < 0:
            local_I[item] = distinct
            distinct += 1
    own = np.zeros((distinct, distinct), dtype=np.float32)
    count = np.zeros(distinct, dtype=np.float32)
    for later in range(len(items)):
        b = local_I[items[later]]
        count[b] += 1
        for earlier in range(max(0, later - gap), later):
            a = local_I[items[earlier]]
            if a != b:
                weight = decay ** (later - earlier - 1)
                own[a, b] += weight
                if not directed:
                    own[b, a] += weight
    return own, count
