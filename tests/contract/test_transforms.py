"""The contract of a transform, over every file of `features/transforms`: a new one is covered by being there.

    python -m pytest tests/contract/test_transforms.py

A transform is tried on every column of one wide frame that it accepts for a kind that it yields; at least one for each.
"""

from types import ModuleType
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_series_equal
from pydantic import ValidationError

from features import registry
from features.errors import InputError
from features.manifest import read_json, write_json
from features.transforms._fitting import Fitting

KINDS = {"dense": pl.Float32(), "sparse": pl.Int32(), "bag": pl.List(pl.Int32())}
ROWS = 40


def frame() -> pl.DataFrame:
    """Columns of every type that a log may have, each with nulls; `index` and `history` hold vocabulary indices."""
    return pl.DataFrame(
        {
            "timestamp": [1_700_000_000_000 + 5_000_000 * i for i in range(ROWS)],
            "last": [None if i % 7 == 0 else 1_700_000_000_000 + 3_000_000 * i for i in range(ROWS)],
            "count": [None if i == 3 else i % 5 for i in range(ROWS)],
            "total": [None if i == 4 else i for i in range(ROWS)],
            "number": [None if i == 5 else float("nan") if i == 6 else i / 3 - 4 for i in range(ROWS)],
            "flag": [None if i == 7 else i % 2 == 0 for i in range(ROWS)],
            "word": [None if i == 8 else f"w{i % 6}" for i in range(ROWS)],
            "words": [None if i == 9 else [f"w{j}" for j in range(i % 4)] for i in range(ROWS)],
            "numbers": [None if i == 2 else [j % 3 for j in range(i % 5)] for i in range(ROWS)],
            "index": pl.Series([None if i == 1 else i for i in range(ROWS)], dtype=pl.Int32),
            "history": pl.Series(
                [None if i == 6 else list(range(i % 4)) for i in range(ROWS)], dtype=pl.List(pl.Int32)
            ),
        }
    )


def parameters(module: ModuleType) -> Any:
    """Its defaults; a parameter without one is a column, as `per` of `rate` is."""
    required = [name for name, field in module.Params.model_fields.items() if field.is_required()]
    return module.Params(**dict.fromkeys(required, "total"))


def fitted(module: ModuleType, data: pl.DataFrame, column: str) -> Any:
    """The state after fitting on a column, or None where the transform refuses it."""
    highest = ROWS - 1 if column in ("index", "history") else None
    try:
        return module.fit(Fitting(data, column, highest), parameters(module))
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert column in refusal, f"the message does not name the column: {refusal}"
    return None


@pytest.fixture(params=registry.known("features.transforms"))
def module(request: pytest.FixtureRequest) -> ModuleType:
    return registry.load("features.transforms", request.param, "transform")


def test_says_what_it_is(module: ModuleType) -> None:
    assert module.__doc__
    assert module.YIELDS
    assert set(module.YIELDS) <= set(KINDS)
    for name in ["Params", "fit", "expr"] + ["rows"] * (set(module.YIELDS) != {"dense"}):
        assert getattr(module, name).__doc__, name
    with pytest.raises(ValidationError, match="Extra inputs"):
        module.Params(**parameters(module).model_dump(), no_such_parameter=1)


def test_yields_what_it_says_for_whatever_it_accepts(module: ModuleType, tmp_path: Any) -> None:
    data, params, tried = frame(), parameters(module), set()
    for column, dtype in data.schema.items():
        kinds = [kind for kind in module.YIELDS if (kind == "bag") == isinstance(dtype, pl.List)]
        state = fitted(module, data, column) if kinds else None
        if state is None:
            continue
        tried.update(kinds)
        write_json(tmp_path / "state.json", state)
        state = read_json(tmp_path / "state.json")  # as a bundle carries it

        def apply(rows: pl.DataFrame, column: str = column, state: Any = state) -> pl.Series:
            return rows.select(module.expr(column, rows.schema[column], params, state).alias("x"))["x"]

        whole = apply(data)
        assert len(whole) == ROWS
        for kind in kinds:
            assert whole.dtype == KINDS[kind], (column, kind)
        flat = whole.explode(empty_as_null=False) if isinstance(whole.dtype, pl.List) else whole
        assert whole.null_count() == flat.null_count() == 0, column
        if flat.dtype == pl.Int32:
            assert flat.is_between(0, module.rows(params, state) - 1).all(), column
        else:
            assert flat.is_finite().all(), column
        for row in range(ROWS):
            assert_series_equal(apply(data[row : row + 1]), whole[row : row + 1], check_exact=True)
        assert len(apply(data.clear())) == 0
        assert apply(data.clear(1)).null_count() == 0
        if not isinstance(dtype, pl.List):  # a request that lacks a context column brings it with the type Null
            empty = data.head(2).with_columns(pl.lit(None).alias(column))
            assert apply(empty).null_count() == 0
            assert apply(empty).dtype == whole.dtype
    assert tried == set(module.YIELDS), f"no column here suits {set(module.YIELDS) - tried}; add one to frame()"


def test_refuses_what_it_cannot_use(module: ModuleType) -> None:
    """A type that no transform was made for is refused by name, or taken without nulls."""
    dates = frame().select(pl.from_epoch("timestamp", time_unit="ms").alias("when"), total=1)
    state = fitted(module, dates, "when")
    if state is not None:
        made = dates.select(module.expr("when", dates.schema["when"], parameters(module), state))
        assert made.to_series().null_count() == 0
