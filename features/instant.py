"""The features of a request in less than a millisecond: the numbers of `Encoder.encode`, without building frames.

An expression costs some microseconds a node, which a log of a million rows does not feel and a request of one does.
What is computed once an item or a person is gathered from the encoder's tables; a transform's `now` computes numbers by
NumPy; dictionaries and hashes are remembered value by value, from the expression itself. A test holds all of it equal
to the expressions, bit by bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import polars as pl

from features.encoder import Encoder
from features.moment import Asked, Column, Moment, Ragged
from features.online import Event, StateStore
from features.placing import Feature
from features.schema import WEIGHTS
from features.slices import gather_slices
from features.transforms.hashing import UNBOUNDED

REMEMBERED = 100_000
"""Values of a feature whose index is remembered at most."""


@dataclass(frozen=True)
class Encoded:
    """Encoded examples as arrays: B rows."""

    rows: int
    columns: dict[str, np.ndarray | Ragged]
    """By feature: float32 [B] or [B, width], int32 [B], or lists of int32; of a weighted bag also its weights."""

    def frame(self, types: dict[str, pl.DataType]) -> pl.DataFrame:
        """The same as `Encoder.encode` gives it, for comparison."""
        found: list[pl.Series] = []
        for name, dtype in types.items():
            column = self.columns[name]
            lists = np.split(column.values, column.edge[1:-1]) if isinstance(column, Ragged) else column
            found.append(pl.Series(name, [one.tolist() for one in lists] if self.rows else [], dtype=dtype))
        return pl.DataFrame(found)


class Instant:
    """Encodes requests. Not thread-safe: it remembers."""

    def __init__(self, encoder: Encoder, moment: Moment) -> None:
        self.encoder, self.moment = encoder, moment
        self.features = encoder.placed
        # What is learned comes from JSON, and a list would become an array at every request.
        self._states: dict[str, dict[str, Any]] = {
            feature.spec.name: {
                name: np.array(value) if value.__class__ is list and hasattr(feature.module, "now") else value
                for name, value in encoder.states[feature.spec.name].items()
            }
            for feature in self.features
        }
        self._tables = {
            place: {name: _flat(table[name]) for name in table.columns}
            for place, table in (("item", encoder.items), ("user", encoder.users))
        }
        self._remembered: dict[str, dict[Any, int]] = {feature.spec.name: {} for feature in self.features}

    def encode(
        self,
        asked: Sequence[Asked],
        histories: Sequence[Sequence[Event]],
        item_BR: np.ndarray,
        store: StateStore,
        retrieved: Mapping[str, np.ndarray] | None = None,
    ) -> Encoded:
        """The features of each request and each of its items, request by request; B · R rows.

        Args:
            asked: the requests.
            histories: of each request's person, from the store.
            item_BR: item indices.
            store: where the counters are.
            retrieved: what the retriever says, by the column `retrieved.…`: of the items float64 [B · R], of the
                requests float32 [B, D].
        """
        requests, width = item_BR.shape
        people, pairs = self.moment.columns(asked, histories, item_BR, store)
        for name, column in (retrieved or {}).items():
            (pairs if column.ndim == 1 else people)[name] = column
        item = item_BR.ravel()
        user = np.array([self.moment.user_index.get(one.user_id, 0) for one in asked], dtype=np.int64)
        found: dict[str, np.ndarray | Ragged] = {}
        combined: list[Feature] = []
        for feature in self.features:
            name = feature.spec.name
            names = [name] if feature.weights is None else [name, name + WEIGHTS]
            match feature.place:
                case "item":
                    found |= {each: _gather(self._tables["item"][each], item) for each in names}
                case "user":
                    found |= {each: _spread(_gather(self._tables["user"][each], user), width) for each in names}
                case "history":
                    past = people["history"]
                    assert isinstance(past, Ragged)
                    found[name] = _spread(_nested(self._tables["item"][f"history.{name}"], past), width)
                case "feature":
                    combined.append(feature)
                case "moment":
                    own = all(each in people or each.startswith("user.") for each in feature.inputs)
                    inputs = [self._input(each, people, pairs, user, item, own, width) for each in feature.inputs]
                    made = self._made(feature, inputs)
                    found[name] = _spread(made, width) if own else made
                    if feature.weights is not None:
                        weights = people[feature.weights]
                        assert isinstance(weights, Ragged)
                        last = feature.module.tail(feature.params) if hasattr(feature.module, "tail") else None
                        weights = weights if last is None else weights.last(last)
                        found[name + WEIGHTS] = _spread(Ragged(weights.values.astype(np.float32), weights.edge), width)
        for feature in combined:
            state = self._states[feature.spec.name]
            found[feature.spec.name] = feature.module.now(
                [found[name] for name in feature.inputs], feature.params, state
            )
        return Encoded(requests * width, found)

    def _input(
        self,
        name: str,
        people: dict[str, Column],
        pairs: dict[str, Column],
        user: np.ndarray,
        item: np.ndarray,
        own: bool,
        width: int,
    ) -> Column:
        """A column that a feature of the moment reads, a value a request where all of its columns are the person's."""
        if name in pairs:
            return pairs[name]
        if name.startswith("item."):
            return _gather(self._tables["item"][name], item)
        column = _gather(self._tables["user"][name], user) if name.startswith("user.") else people[name]
        return column if own else _spread(column, width)

    def _made(self, feature: Feature, inputs: list[Column]) -> np.ndarray | Ragged:
        spec, module, params = feature.spec, feature.module, feature.params
        state, first = self._states[spec.name], inputs[0]
        if isinstance(first, Ragged):
            last = module.tail(params) if hasattr(module, "tail") else None
            lists = first if last is None else first.last(last)
            return Ragged(self._values(feature, [lists.values], state), lists.edge)
        if spec.kind == "bag":
            # A context column of lists.
            lists = [[] if one is None else list(one) for one in first]
            edge = np.cumsum([0, *(len(one) for one in lists)])
            return Ragged(self._values(feature, [[value for one in lists for value in one]], state), edge)
        return self._values(feature, inputs, state)

    def _values(self, feature: Feature, inputs: list[Column], state: dict[str, Any]) -> np.ndarray:
        module = feature.module
        if getattr(module, "MEMO", False):
            first = inputs[0]
            assert not isinstance(first, Ragged)
            values: list[Any] = list(first.tolist() if isinstance(first, np.ndarray) else first)
            known = self._remembered[feature.spec.name]
            if len(known) + len(values) > REMEMBERED:
                known.clear()
            # 1, True and 1.0 are one key of a dictionary and three values.
            keys = [(value.__class__.__name__, value) for value in values]
            for key in keys:
                if key not in known:
                    known[key] = self._one(feature, key[1], state)
            return np.array(
                [known[key] for key in keys], dtype=np.int64 if feature.spec.rows == UNBOUNDED else np.int32
            )
        if hasattr(module, "now"):
            return module.now([_number(column) for column in inputs], feature.params, state)
        arrays: list[Any] = list(inputs)
        frame = pl.DataFrame([pl.Series(name, column) for name, column in zip(feature.inputs, arrays, strict=True)])
        return frame.select(feature.expr(frame.schema, state)).to_series().to_numpy()

    def _one(self, feature: Feature, value: Any, state: dict[str, Any]) -> int:
        """The index of one value, by the expression."""
        frame = pl.DataFrame([pl.Series(feature.source, [value], strict=False)])
        return frame.select(
            feature.module.expr(feature.source, frame.schema[feature.source], feature.params, state)
        ).item()


def _flat(column: pl.Series) -> np.ndarray | Ragged:
    """A column of a table of features as arrays; numbers beside features with NaN for null."""
    if isinstance(column.dtype, pl.List):
        edge = np.concatenate([[0], np.cumsum(column.list.len().fill_null(0).to_numpy(), dtype=np.int64)])
        return Ragged(column.explode(empty_as_null=False).drop_nulls().to_numpy(), edge)
    if column.dtype.is_numeric() and column.null_count():
        return column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return column.to_numpy()


def _gather(column: np.ndarray | Ragged, rows: np.ndarray) -> np.ndarray | Ragged:
    if isinstance(column, Ragged):
        return Ragged(*gather_slices(column.values, column.edge[rows], column.edge[rows + 1]))
    return column[rows]


def _nested(column: np.ndarray | Ragged, lists: Ragged) -> Ragged:
    """For each list of rows the values of its rows, one after the other."""
    if not isinstance(column, Ragged):
        return Ragged(column[lists.values], lists.edge)
    chosen, offsets = gather_slices(column.values, column.edge[lists.values], column.edge[lists.values + 1])
    return Ragged(chosen, offsets[lists.edge])


def _spread(column: Any, times: int) -> Any:
    """Each value so many times."""
    if times == 1:
        return column
    if isinstance(column, Ragged):
        return column.repeated(times)
    if isinstance(column, list):
        return [value for value in cast("list[Any]", column) for _ in range(times)]
    return np.repeat(np.asarray(column), times, axis=0)


def _number(column: Column) -> np.ndarray:
    """Values as float64, NaN for what is no number."""
    if isinstance(column, np.ndarray):
        return column if column.dtype == np.int32 else column.astype(np.float64, copy=False)
    assert not isinstance(column, Ragged)
    return np.array([_float(value) for value in column], dtype=np.float64)


def _float(value: Any) -> float:
    try:
        return np.nan if value is None else float(value)
    except (TypeError, ValueError):
        return np.nan
