"""Where each declared feature is computed, and from what: once an item, once a person, or for every example."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import polars as pl
from pydantic import ValidationError

from features import registry
from features.errors import InputError
from features.schema import RETRIEVED, FeatureSpec

Place = Literal["item", "user", "history", "moment", "feature"]
"""Where a feature is computed: once an item, a user, an item of the history, an example; or from other features."""


@dataclass(frozen=True)
class Feature:
    """A declared feature with its transform, and the columns that it reads where it is computed."""

    spec: FeatureSpec
    module: ModuleType
    params: Any
    place: Place
    source: str
    inputs: tuple[str, ...]

    def expr(self, schema: Mapping[str, pl.DataType], state: dict[str, Any]) -> pl.Expr:
        """Its expression over a frame of that schema."""
        return self.module.expr(self.source, schema[self.source], self.params, state).alias(self.spec.name)

    @property
    def weights(self) -> str | None:
        """Column of the weights, where the feature is computed."""
        return None if self.spec.weights is None else self.spec.weights.split(".")[1]

    @property
    def requested(self) -> set[str]:
        """Columns of the request frame that it reads."""
        if self.place == "history":
            return {"history"}
        if self.place != "moment":
            return set()
        own = {name for name in self.inputs if not name.startswith(("item.", "user."))}
        return own if self.weights is None else own | {self.weights}


def resolve(
    specs: tuple[FeatureSpec, ...],
    items: Mapping[str, pl.DataType],
    users: Mapping[str, pl.DataType],
    requests: Mapping[str, pl.DataType],
) -> list[Feature]:
    """Find each feature's transform, parameters and columns, given the types of all there are.

    Raises:
        InputError: one of them does not fit; says which and why.
    """
    found_by = {name.removeprefix(RETRIEVED): of for name, of in requests.items() if name.startswith(RETRIEVED)}
    tables = {"item": items, "user": users, "request": requests, "history": items, "retrieved": found_by}
    names = {spec.name: spec for spec in specs}
    found: list[Feature] = []
    for spec in specs:
        feature = _feature(spec, tables)
        entity, column = spec.source.split(".")
        if entity == "feature":
            for name in feature.inputs:
                if name not in names or names[name].kind != "sparse" or names[name].source.startswith("feature."):
                    sparse = [other.name for other in specs if other.kind == "sparse"]
                    raise InputError(
                        f"feature {spec.name}: '{name}' is no sparse feature that is computed from the data "
                        f"(found: {', '.join(sparse)}); cross others"
                    )
            found.append(feature)
            continue
        if column not in tables[entity]:
            known = ", ".join(tables[entity])
            raise InputError(
                f"feature {spec.name}: {entity} has no column '{column}' (found: {known}); change its source"
            )
        if spec.source == "request.history" and spec.transform != "index":
            raise InputError(f"feature {spec.name}: request.history holds indices of items; use transform = 'index'")
        if feature.place == "moment":
            for name in feature.inputs:
                if name in requests:
                    continue
                table, _, beside = name.partition(".")
                if beside not in tables.get(table, {}) or table == "request":
                    raise InputError(
                        f"feature {spec.name}: no column '{name}' beside {spec.source} "
                        f"(found: {', '.join(requests)}, item.…, user.…); change its params"
                    )
        dtype = tables[entity][column]
        is_list = isinstance(dtype, pl.List)
        if spec.kind in ("sparse", "dense", "bag") and is_list != (spec.kind == "bag") and entity != "history":
            raise InputError(
                f"feature {spec.name}: {spec.source} is {dtype}, which does not make a {spec.kind} "
                "feature; use kind = 'bag' for lists and only for them"
            )
        if entity == "history" and spec.kind != "bag":
            raise InputError(f"feature {spec.name}: a history has many items; use kind = 'bag'")
        if feature.weights is not None:
            weights = tables[entity].get(feature.weights)
            if not isinstance(weights, pl.List) or not weights.inner.is_numeric():
                raise InputError(
                    f"feature {spec.name}: weights = '{spec.weights}' is {weights or 'missing'}, not a list of numbers"
                )
        found.append(feature)
    return found


def _feature(spec: FeatureSpec, tables: Mapping[str, Mapping[str, pl.DataType]]) -> Feature:
    module = transform_of(spec)
    params = params_of(spec, module)
    entity, column = spec.source.split(".")
    static = entity in ("item", "user") and all(name in tables[entity] for name in _inputs(module, column, params))
    # A source that is missing is told of by its own name.
    static = static or (entity in ("item", "user") and column not in tables[entity])
    return placed(spec, module, params, static=static)


def placed(spec: FeatureSpec, module: ModuleType, params: Any, *, static: bool) -> Feature:
    """A feature whose columns are known to be there; `static`: whether its table alone has them."""
    entity, column = spec.source.split(".")
    if entity == "feature":
        return Feature(spec, module, params, "feature", column, _inputs(module, column, params))
    if entity == "history":
        return Feature(spec, module, params, "history", column, (column,))
    if static:
        place: Place = "item" if entity == "item" else "user"
        return Feature(spec, module, params, place, column, _inputs(module, column, params))
    source = column if entity == "request" else spec.source
    return Feature(spec, module, params, "moment", source, _inputs(module, source, params))


def _inputs(module: ModuleType, source: str, params: Any) -> tuple[str, ...]:
    return module.inputs(source, params) if hasattr(module, "inputs") else (source,)


def of_request(spec: FeatureSpec) -> bool:
    """Whether its declaration says that it is the same for all candidates of a request.

    What is counted, or read beside other columns, may be the person's alone all the same.
    """
    entity, column = spec.source.split(".")
    if hasattr(transform_of(spec), "inputs"):
        return False
    return entity in ("user", "history") or (
        entity == "request" and (column == "timestamp" or column.startswith("history"))
    )


def transform_of(spec: FeatureSpec) -> ModuleType:
    """The transform that a feature names."""
    module = registry.load("features.transforms", spec.transform, f"features.{spec.name}.transform")
    if spec.kind not in module.YIELDS:
        raise InputError(
            f"feature {spec.name}: transform '{spec.transform}' yields {' or '.join(module.YIELDS)}, not {spec.kind}; "
            "change kind or transform"
        )
    return module


def params_of(spec: FeatureSpec, module: ModuleType) -> Any:
    """The checked parameters of a feature's transform."""
    try:
        return module.Params(**spec.params)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"feature {spec.name}: params.{name} = {first['input']!r}: {first['msg']}; "
            f"transform '{spec.transform}' takes {', '.join(_names(module))}"
        ) from None


def _names(module: ModuleType) -> list[str]:
    return [field.alias or name for name, field in module.Params.model_fields.items()]
