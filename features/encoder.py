"""The features of an example: fitted on the training part, then computed by the same expressions offline and online.

An example asks about one user and one item at one time. What depends on the item alone or the user alone is computed
once per row of their tables and gathered by index; what depends on the moment is computed from the request frame,
which `features.fold` fills from a log and `features.moment` from a store.

Request frame columns: `user_index, item_index` (int32), `timestamp` (ms), two columns for each counter,
`user_last_timestamp` (ms or null), `history` (List(Int32), item indices), `history_actions`, `history_gaps`, and the
context columns of the log.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from pydantic import ValidationError

from features._arrow import list_series, mapped_frame
from features.errors import InputError
from features.labels import Task
from features.manifest import fingerprint, write_json
from features.placing import Feature, Place, params_of, placed, resolve, transform_of
from features.schema import WEIGHTS, FeatureSpec, Schema
from features.slices import gather_slices
from features.transforms._fitting import Fitting

Counted = Callable[[str, int], pl.Series]
"""(column of the request frame, least count) → its values in the order in which they reached that count in training."""


@dataclass(frozen=True)
class Encoder:
    """Fitted features. `items` and `users` have row i for index i, row 0 for what is not in the vocabulary."""

    schema: Schema
    states: dict[str, dict[str, Any]]
    items: pl.DataFrame
    """`index`, the item features, and columns that features of the moment or the history read, as `item.<column>` and
    `history.<feature>`."""
    users: pl.DataFrame
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(
        cls,
        specs: tuple[FeatureSpec, ...],
        label: str,
        items: pl.DataFrame,
        users: pl.DataFrame,
        requests: pl.DataFrame,
        counted: Counted | None = None,
        tasks: tuple[Task, ...] = (),
    ) -> Self:
        """Fit every transform on the training part.

        Args:
            specs: the declared features.
            label: name of the label column.
            items: the item table with `item_id` and `index` 0, 1, …; row 0 is null but for its index.
            users: the user table likewise, with `user_id`.
            requests: the request frame of the training examples, or of an even sample of them.
            counted: values of a column over all of them, where `requests` is a sample.
            tasks: what is predicted beside the label.

        Raises:
            InputError: a source is missing, a transform does not suit its feature, or features that share a table do
                not agree on its shape; says which and why.
        """
        readable = {name: dtype for name, dtype in requests.schema.items() if name not in ("user_index", "item_index")}
        features = resolve(specs, items.schema, users.schema, readable)
        beside = _beside(features)
        states, resolved = _fit(features, items, users, requests, counted)
        try:
            schema = Schema(
                features=tuple(resolved[spec.name] for spec in specs),
                label=label,
                tasks=tuple(task.fitted(requests) for task in tasks),
                items=items.height - 1,
                users=users.height - 1,
                fitted=fingerprint(states, items["item_id"].to_list(), users["user_id"].to_list()),
            )
        except ValidationError as error:
            raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return cls(
            schema,
            states,
            _static(features, states, items, "item", beside),
            _static(features, states, users, "user", beside),
        )

    @classmethod
    def rehearse(
        cls, specs: tuple[FeatureSpec, ...], items: pl.DataFrame, users: pl.DataFrame, requests: pl.DataFrame
    ) -> None:
        """Try on a few requests whether the features suit the data; what is learned from so few is not looked at.

        Raises:
            InputError: as `fit`, but for what depends on the values of all of them.
        """
        readable = {name: dtype for name, dtype in requests.schema.items() if name not in ("user_index", "item_index")}
        features = resolve(specs, items.schema, users.schema, readable)
        # A decomposition takes long, and asks only that there are words.
        for feature in features:
            dtype = {"item": items, "user": users}.get(feature.place, requests).schema.get(feature.source)
            if feature.spec.transform == "text" and dtype != pl.String:
                raise InputError(f"feature {feature.spec.name}: '{feature.source}' is {dtype}, not text; name another")
        quick = [feature for feature in features if feature.spec.transform != "text"]
        _fit(quick, items, users, requests, None)

    def encode(self, requests: pl.DataFrame) -> pl.DataFrame:
        """All features of a request frame, one column a feature in the schema's order; B rows in, B rows out.

        Dense columns are Float32, sparse ones Int32, bags List(Int32), vectors Array(Float32); a weighted bag is
        followed by its weights, List(Float32).
        """
        work = self._work(tuple(requests.schema.items()))
        item_index, user_index = requests["item_index"], requests["user_index"]
        columns: dict[str, pl.Series] = {}
        if work.item:
            columns |= {series.name: series for series in self.items.select(work.item)[item_index]}
        if work.user:
            columns |= {series.name: series for series in self.users.select(work.user)[user_index]}
        moment = requests
        if work.beside_item:
            moment = moment.with_columns(self.items.select(work.beside_item)[item_index])
        if work.beside_user:
            moment = moment.with_columns(self.users.select(work.beside_user)[user_index])
        if work.moment:
            columns |= {series.name: series for series in moment.select(work.moment)}
        for name in work.history:
            columns[name] = _flattened(*self._of_items(name), requests["history"]).alias(name)
        if work.features:
            encoded = pl.DataFrame([columns[name] for name in work.feature_inputs])
            columns |= {series.name: series for series in encoded.select(work.features)}
        return pl.DataFrame([columns[name] for name in work.order])

    def outcomes(self, requests: pl.DataFrame) -> list[pl.Series]:
        """What happened: `label`, and a column for each other task, NaN where it is not known; float32."""
        others = requests.select(task.outcome for task in self.schema.tasks).get_columns()
        return [requests["label"], *others]

    def _of_items(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A history feature's values of all items, end to end, and where each item's begin."""
        if name not in self._cache:
            column = self.items[f"history.{name}"]
            if not isinstance(column.dtype, pl.List):
                column = column.reshape((-1, 1)).arr.to_list()
            self._cache[name] = column.explode(empty_as_null=False).to_numpy(), _offsets(column)
        return self._cache[name]

    @cached_property
    def placed(self) -> list[Feature]:
        """Every feature, with where it is computed and from what; those made of others come after them."""
        return [_fitted(spec, self) for spec in self.schema.features]

    @property
    def requested(self) -> tuple[str, ...]:
        """Columns of the request frame that are read, beside `user_index` and `item_index`."""
        return self._work(None).requested

    def _work(self, columns: tuple[tuple[str, pl.DataType], ...] | None) -> "_Work":
        """What to do for a request frame of these columns, thought out once for each set of them."""
        if columns not in self._cache:
            self._cache[columns] = _Work.of(self, None if columns is None else dict(columns))
        return self._cache[columns]

    def save(self, directory: Path) -> None:
        """Write to a directory that exists."""
        write_json(directory / "schema.json", self.schema.model_dump(mode="json"))
        write_json(directory / "transforms.json", self.states)
        self.items.write_ipc(directory / "item_features.arrow")
        self.users.write_ipc(directory / "user_features.arrow")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote; the tables are memory-mapped."""
        return cls(
            load_schema(directory),
            json.loads((directory / "transforms.json").read_text(encoding="utf-8")),
            mapped_frame(directory / "item_features.arrow"),
            mapped_frame(directory / "user_features.arrow"),
        )


def _fit(
    features: list[Feature], items: pl.DataFrame, users: pl.DataFrame, requests: pl.DataFrame, counted: Counted | None
) -> tuple[dict[str, dict[str, Any]], dict[str, FeatureSpec]]:
    """What each transform learns, and each feature with its rows or width."""
    moment = _gathered(requests, items, users, _beside(features))
    highest = {"item.index": items.height - 1, "user.index": users.height - 1, "request.history": items.height - 1}
    resolved: dict[str, FeatureSpec] = {}
    states: dict[str, dict[str, Any]] = {}
    # Features of features come last: they are fitted on the others' columns.
    for feature in sorted(features, key=lambda feature: feature.place == "feature"):
        spec = feature.spec
        column = spec.source.split(".")[1]
        if feature.place == "feature":
            # They learn nothing from values: a frame without rows tells the types.
            frame = pl.DataFrame(schema={name: pl.Int32 for name in feature.inputs})
        elif feature.place == "moment":
            frame = moment
        else:
            frame = (users if feature.place == "user" else items).slice(1)
        known = None
        if counted is not None and spec.source.startswith("request.") and feature.place == "moment":
            known = _counted(counted, column)
        fitting = Fitting(frame, feature.source, highest.get(spec.source), known)
        try:
            states[spec.name] = feature.module.fit(fitting, feature.params)
        except InputError as error:
            raise InputError(f"feature {spec.name}: {error}") from None
        update: dict[str, Any] = {}
        if spec.kind in ("sparse", "bag"):
            update["rows"] = feature.module.rows(feature.params, states[spec.name])
        elif spec.kind == "vector":
            update["width"] = feature.module.width(feature.params, states[spec.name])
        resolved[spec.name] = spec.model_copy(update=update)
    return states, resolved


@dataclass(frozen=True)
class _Work:
    """What `encode` does, by name and expression."""

    item: list[str]
    user: list[str]
    beside_item: list[str]
    beside_user: list[str]
    moment: list[pl.Expr]
    history: list[str]
    feature_inputs: list[str]
    features: list[pl.Expr]
    order: list[str]
    requested: tuple[str, ...]

    @classmethod
    def of(cls, encoder: Encoder, columns: dict[str, pl.DataType] | None) -> Self:
        specs = encoder.schema.features
        # Which columns the tables had is known from where their features were put.
        features = encoder.placed
        beside = _beside(features)
        tables = {**encoder.items.schema, **encoder.users.schema}
        given: dict[str, pl.DataType] = {**(columns or {}), **{name: tables[name] for name in beside}}
        moment = [feature for feature in features if feature.place == "moment"]
        combined = [feature for feature in features if feature.place == "feature"]

        def named(place: Place) -> list[str]:
            found = [feature for feature in features if feature.place == place]
            weights = [feature.spec.name + WEIGHTS for feature in found if feature.weights is not None]
            return [*(feature.spec.name for feature in found), *weights]

        expressions: list[pl.Expr] = []
        if columns is not None:
            for feature in moment:
                expressions.append(feature.expr(given, encoder.states[feature.spec.name]))
                if feature.weights is not None:
                    expressions.append(_weights(feature))
        return cls(
            item=named("item"),
            user=named("user"),
            beside_item=[name for name in beside if name.startswith("item.")],
            beside_user=[name for name in beside if name.startswith("user.")],
            moment=expressions,
            history=named("history"),
            feature_inputs=list(dict.fromkeys(name for feature in combined for name in feature.inputs)),
            features=[
                feature.expr(dict.fromkeys(feature.inputs, pl.Int32()), encoder.states[feature.spec.name])
                for feature in combined
            ],
            order=[
                name
                for spec in specs
                for name in ((spec.name,) if spec.weights is None else (spec.name, spec.name + WEIGHTS))
            ],
            requested=tuple(sorted({name for feature in features for name in feature.requested})),
        )


def load_schema(directory: Path) -> Schema:
    """The resolved schema that a directory of examples or a bundle was made with."""
    return Schema.model_validate_json((directory / "schema.json").read_text(encoding="utf-8"))


def _fitted(spec: FeatureSpec, encoder: Encoder) -> Feature:
    """The same for a fitted feature, whose columns are known to be there."""
    entity = spec.source.split(".")[0]
    table = {"item": encoder.items, "user": encoder.users}.get(entity)
    computed = table is not None and spec.name in table.columns
    module = transform_of(spec)
    params = params_of(spec, module)
    return placed(spec, module, params, static=computed)


def _beside(features: list[Feature]) -> list[str]:
    """Columns of the item and user tables that features of the moment read, as `item.<column>`."""
    names = (name for feature in features if feature.place == "moment" for name in feature.inputs)
    return sorted({name for name in names if name.startswith(("item.", "user."))})


def _gathered(requests: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame, beside: list[str]) -> pl.DataFrame:
    for name in beside:
        entity, column = name.split(".")
        table, index = (items, "item_index") if entity == "item" else (users, "user_index")
        requests = requests.with_columns(table[column][requests[index]].alias(name))
    return requests


def _static(
    features: list[Feature], states: dict[str, dict[str, Any]], table: pl.DataFrame, entity: str, beside: list[str]
) -> pl.DataFrame:
    expressions = [pl.col("index")]
    for feature in features:
        if feature.place == entity:
            expressions.append(feature.expr(table.schema, states[feature.spec.name]))
            if feature.weights is not None:
                expressions.append(_weights(feature))
        elif feature.place == "history" and entity == "item":
            one = feature.expr(table.schema, states[feature.spec.name])
            expressions.append(one.alias(f"history.{feature.spec.name}"))
    prefix = f"{entity}."
    expressions += [pl.col(name.removeprefix(prefix)).alias(name) for name in beside if name.startswith(prefix)]
    made = table.select(expressions).rechunk()
    for feature in features:
        if feature.place == entity and feature.weights is not None:
            _check_weights(feature, made)
    return made


def _weights(feature: Feature) -> pl.Expr:
    weights = pl.col(str(feature.weights)).cast(pl.List(pl.Float32)).fill_null([])
    last = feature.module.tail(feature.params) if hasattr(feature.module, "tail") else None
    weights = weights if last is None else weights.list.tail(last)
    return weights.list.eval(pl.element().fill_null(0.0)).alias(feature.spec.name + WEIGHTS)


def _check_weights(feature: Feature, made: pl.DataFrame) -> None:
    bag, weights = made[feature.spec.name], made[feature.spec.name + WEIGHTS]
    wrong = (bag.list.len() != weights.list.len()).arg_true()
    if len(wrong):
        raise InputError(
            f"feature {feature.spec.name}: {feature.spec.weights} has {weights.list.len()[wrong[0]]} weights for "
            f"{bag.list.len()[wrong[0]]} ids at index {wrong[0]}; give each id one"
        )


def _flattened(values: np.ndarray, edge: np.ndarray, history: pl.Series) -> pl.Series:
    """For each history the values of its items, one after the other; List(Int32)."""
    items = history.explode(empty_as_null=False).to_numpy()
    chosen, offsets = gather_slices(values, edge[items], edge[items + 1])
    return list_series(chosen, offsets[_offsets(history)])


def _offsets(lists: pl.Series) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lists.list.len().to_numpy(), dtype=np.int64)])


def _counted(counted: Counted, column: str) -> Callable[[int], pl.Series]:
    return lambda least: counted(column, least)
