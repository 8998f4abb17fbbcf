"""The features of an example: fitted on the training part, then computed by the same expressions offline and online.

An example asks about one user and one item at one time. What depends on the item alone or the user alone is computed
once per row of their tables and gathered by index; what depends on the moment is computed from the request frame,
which `features.temporal` fills from a log and the recommender fills from its store.

Request frame columns: `user_index, item_index` (int32), `timestamp` (ms), `user_events, user_positives, item_events,
item_positives` (int64 counts before now), `user_last_timestamp` (ms or null), `history` (List(Int32), item indices),
and the context columns of the log.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import polars as pl
from pydantic import ValidationError

from features import registry
from features._arrow import mapped_frame
from features.errors import InputError
from features.manifest import fingerprint, write_json
from features.schema import FeatureSpec, Schema
from features.transforms._fitting import Fitting


@dataclass(frozen=True)
class Encoder:
    """Fitted features. `items` and `users` have row i for index i, row 0 for what is not in the vocabulary."""

    schema: Schema
    states: dict[str, dict[str, Any]]
    items: pl.DataFrame
    users: pl.DataFrame
    _expressions: dict[tuple[tuple[str, pl.DataType], ...], list[pl.Expr]] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(
        cls,
        specs: tuple[FeatureSpec, ...],
        label: str,
        items: pl.DataFrame,
        users: pl.DataFrame,
        requests: pl.DataFrame,
    ) -> Self:
        """Fit every transform on the training part.

        Args:
            specs: the declared features.
            label: name of the label column.
            items: the item table with `item_id` and `index` 0, 1, …; row 0 is null but for its index.
            users: the user table likewise, with `user_id`.
            requests: the request frame of the training examples.

        Raises:
            InputError: a source is missing, a transform does not suit its feature, or features that share a table do
                not agree on its shape; says which and why.
        """
        frames = {"item": items, "user": users, "request": requests}
        highest = {"item.index": items.height - 1, "user.index": users.height - 1, "request.history": items.height - 1}
        resolved: list[FeatureSpec] = []
        states: dict[str, dict[str, Any]] = {}
        for spec in specs:
            entity, column = spec.source.split(".")
            if column not in frames[entity].columns:
                raise InputError(
                    f"feature {spec.name}: {entity} has no column '{column}' "
                    f"(found: {', '.join(frames[entity].columns)}); change its source"
                )
            module = _transform(spec)
            known = frames[entity] if entity == "request" else frames[entity].slice(1)
            fitting = Fitting(known, column, highest.get(spec.source))
            if isinstance(fitting.dtype, pl.List) != (spec.kind == "bag"):
                raise InputError(
                    f"feature {spec.name}: {spec.source} is {fitting.dtype}, which does not make a {spec.kind} "
                    "feature; use kind = 'bag' for lists and only for them"
                )
            params = _params(spec, module)
            try:
                states[spec.name] = module.fit(fitting, params)
            except InputError as error:
                raise InputError(f"feature {spec.name}: {error}") from None
            rows = None if spec.kind == "dense" else module.rows(params, states[spec.name])
            resolved.append(spec.model_copy(update={"rows": rows}))
        try:
            schema = Schema(
                features=tuple(resolved),
                label=label,
                items=items.height - 1,
                users=users.height - 1,
                fitted=fingerprint(states, items["item_id"].to_list(), users["user_id"].to_list()),
            )
        except ValidationError as error:
            raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return cls(
            schema, states, cls._static(schema, states, items, "item"), cls._static(schema, states, users, "user")
        )

    @staticmethod
    def _static(schema: Schema, states: dict[str, dict[str, Any]], table: pl.DataFrame, entity: str) -> pl.DataFrame:
        specs = [spec for spec in schema.features if spec.source.startswith(f"{entity}.")]
        return table.select("index", *(_expr(spec, table, states[spec.name]) for spec in specs)).rechunk()

    def encode(self, requests: pl.DataFrame) -> pl.DataFrame:
        """All features of a request frame, one column a feature in the schema's order; B rows in, B rows out.

        Dense columns are Float32, sparse ones Int32, bags List(Int32).
        """
        moment = requests.select(self._moment(requests))
        columns = {
            **{series.name: series for series in moment},
            **{series.name: series for series in self.items[requests["item_index"]]},
            **{series.name: series for series in self.users[requests["user_index"]]},
        }
        return pl.DataFrame([columns[spec.name] for spec in self.schema.features])

    def _moment(self, requests: pl.DataFrame) -> list[pl.Expr]:
        """The expressions of the request's features, built once for each set of columns."""
        columns = tuple(requests.schema.items())
        if columns not in self._expressions:
            self._expressions[columns] = [
                _expr(spec, requests, self.states[spec.name])
                for spec in self.schema.features
                if spec.source.startswith("request.")
            ]
        return self._expressions[columns]

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


def load_schema(directory: Path) -> Schema:
    """The resolved schema that a directory of examples or a bundle was made with."""
    return Schema.model_validate_json((directory / "schema.json").read_text(encoding="utf-8"))


def _transform(spec: FeatureSpec) -> ModuleType:
    module = registry.load("features.transforms", spec.transform, f"features.{spec.name}.transform")
    if spec.kind not in module.YIELDS:
        raise InputError(
            f"feature {spec.name}: transform '{spec.transform}' yields {' or '.join(module.YIELDS)}, not {spec.kind}; "
            "change kind or transform"
        )
    return module


def _params(spec: FeatureSpec, module: ModuleType) -> Any:
    try:
        return module.Params(**spec.params)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"feature {spec.name}: params.{field} = {first['input']!r}: {first['msg']}; "
            f"transform '{spec.transform}' takes {', '.join(module.Params.model_fields)}"
        ) from None


def _expr(spec: FeatureSpec, frame: pl.DataFrame, state: dict[str, Any]) -> pl.Expr:
    module = _transform(spec)
    column = spec.source.split(".")[1]
    return module.expr(column, frame.schema[column], _params(spec, module), state).alias(spec.name)
