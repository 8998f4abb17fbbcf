"""The contract of a transform, over every file of `features/transforms`: a new one is covered by being there.

    python -m pytest tests/contract/test_transforms.py

A transform is tried on every column of one wide frame that it accepts for a kind that it yields; at least one for each.
Below are the answers of single transforms that are known in advance.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_series_equal
from pydantic import ValidationError

from features import registry
from features.errors import InputError
from features.manifest import read_json, write_json
from features.transforms._fitting import Fitting

KINDS = {"dense": pl.Float32(), "sparse": pl.Int32(), "bag": pl.List(pl.Int32())}
ROWS = 40
SENTENCES = [
    "The cat chased a mouse around the house.",
    "A mouse ran from the cat, and the cat slept.",
    "My dog and the cat share a house.",
    "Shares fell sharply as the stock market opened.",
    "The stock market rose; investors bought shares.",
    "Investors sold stock when the market fell.",
]


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
            "text": [None if i == 11 else "" if i == 12 else f"{SENTENCES[i % 6]} {i}" for i in range(ROWS)],
            "words": [None if i == 9 else [f"w{j}" if j else None for j in range(i % 4)] for i in range(ROWS)],
            "numbers": [None if i == 2 else [j % 3 for j in range(i % 5)] for i in range(ROWS)],
            "ragged": [None if i == 2 else [None, float("nan"), i / 7, -i / 3][: i % 5] for i in range(ROWS)],
            "vector": [None if i == 7 else [i / 3, -i * i, float("nan") if i == 8 else 1.0] for i in range(ROWS)],
            "array": pl.Series([None if i == 9 else [i, 0.1] for i in range(ROWS)], dtype=pl.Array(pl.Float32, 2)),
            "index": pl.Series([None if i == 1 else i for i in range(ROWS)], dtype=pl.Int32),
            "history": pl.Series(
                [None if i == 6 else list(range(i % 4)) for i in range(ROWS)], dtype=pl.List(pl.Int32)
            ),
        }
    )


def parameters(module: ModuleType) -> Any:
    """Its defaults; a parameter without one is a column, as `per` of `rate` is, or columns, as `with` of `cross`."""
    required = {name: field for name, field in module.Params.model_fields.items() if field.is_required()}
    return module.Params(
        **{field.alias or name: "total" if field.annotation is str else ("total",) for name, field in required.items()}
    )


def inputs(module: ModuleType, column: str) -> tuple[str, ...]:
    return module.inputs(column, parameters(module)) if hasattr(module, "inputs") else (column,)


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


def suits(kind: str, dtype: pl.DataType) -> bool:
    """Bags come of lists and only of them; a vector may come of anything."""
    return kind == "vector" or (kind == "bag") == isinstance(dtype, pl.List)


@pytest.fixture(params=registry.known("features.transforms"))
def module(request: pytest.FixtureRequest) -> ModuleType:
    return registry.load("features.transforms", request.param, "transform")


def test_says_what_it_is(module: ModuleType) -> None:
    assert module.__doc__
    assert module.YIELDS
    assert set(module.YIELDS) <= {*KINDS, "vector"}
    names = ["Params", "fit", "expr"]
    names += ["rows"] * bool({"sparse", "bag"} & set(module.YIELDS)) + ["width"] * ("vector" in module.YIELDS)
    names += ["inputs"] * hasattr(module, "inputs")
    for name in names:
        assert getattr(module, name).__doc__, name
    with pytest.raises(ValidationError, match="Extra inputs"):
        module.Params(**parameters(module).model_dump(by_alias=True), no_such_parameter=1)


def test_yields_what_it_says_for_whatever_it_accepts(module: ModuleType, tmp_path: Path) -> None:
    data, params, tried = frame(), parameters(module), set()
    for column, dtype in data.schema.items():
        kinds = [kind for kind in module.YIELDS if suits(kind, dtype)]
        state = fitted(module, data, column) if kinds else None
        if state is None:
            continue
        tried.update(kinds)
        write_json(tmp_path / "state.json", state)
        state = read_json(tmp_path / "state.json")  # as a bundle carries it
        expressions = {kind: module.expr(column, kind, params, state) for kind in {dtype, pl.Null()}}

        def apply(rows: pl.DataFrame, column: str = column, expressions: dict[Any, pl.Expr] = expressions) -> pl.Series:
            return rows.select(expressions[rows.schema[column]].alias("x"))["x"]

        whole = apply(data)
        assert len(whole) == ROWS
        for kind in kinds:
            wanted = pl.Array(pl.Float32, module.width(params, state)) if kind == "vector" else KINDS[kind]
            assert whole.dtype == wanted, (column, kind)
        flat = whole.explode(empty_as_null=False) if whole.dtype.is_nested() else whole
        assert whole.null_count() == flat.null_count() == 0, column
        if flat.dtype == pl.Int32:
            assert flat.is_between(0, module.rows(params, state) - 1).all(), column
        else:
            assert flat.is_finite().all(), column
        for row in range(ROWS):
            assert_series_equal(apply(data[row : row + 1]), whole[row : row + 1], check_exact=True)
        assert_series_equal(apply(data[5:17]), whole[5:17], check_exact=True)
        assert_series_equal(apply(pl.concat([data[:7], data[7:]], rechunk=False)), whole, check_exact=True)
        assert len(apply(data.clear())) == 0
        assert apply(data.clear(1)).null_count() == 0
        assert data.equals(frame()), "it wrote into the frame"
        if "bag" not in kinds:  # a request that lacks a context column brings it with the type Null
            empty = data.head(2).with_columns(pl.lit(None).alias(column))
            assert apply(empty).null_count() == 0
            assert apply(empty).dtype == whole.dtype
    assert tried == set(module.YIELDS), f"no column here suits {set(module.YIELDS) - tried}; add one to frame()"


def test_reads_the_columns_that_it_names_and_no_others(module: ModuleType) -> None:
    data = frame()
    for column, dtype in data.schema.items():
        state = fitted(module, data, column) if any(suits(kind, dtype) for kind in module.YIELDS) else None
        if state is not None:
            read = inputs(module, column)
            assert read[0] == column
            assert set(module.expr(column, dtype, parameters(module), state).meta.root_names()) == set(read)
            assert fitted(module, data.select(list(dict.fromkeys(read))), column) == state
    # What is kept for a value must not depend on another column.
    assert not (getattr(module, "MEMO", False) and hasattr(module, "inputs"))


NUMBERS = st.lists(
    st.one_of(
        st.none(),
        st.floats(allow_nan=True, allow_infinity=True),
        st.integers(-5, 2_000_000).map(float),
        st.integers(1_600_000_000_000, 1_700_000_000_000).map(float),
    ),
    min_size=1,
    max_size=20,
)


TWINS = [
    name
    for name in registry.known("features.transforms")
    if hasattr(registry.load("features.transforms", name, "transform"), "now")
]
"""Those that compute for requests too."""


@pytest.mark.parametrize("name", TWINS)
@settings(max_examples=100, deadline=None)
@given(NUMBERS, NUMBERS)
def test_a_request_gets_the_same_numbers(name: str, values: list[Any], others: list[Any]) -> None:
    """`now` is `expr` for arrays, bit by bit, also for what is missing or no number."""
    module = registry.load("features.transforms", name, "transform")
    column = {"cross": "index", "index": "index", "calendar": "timestamp"}.get(name, "number")
    dtype = frame().schema[column]
    columns = dict.fromkeys(inputs(module, column))
    for number, read in enumerate(columns):
        drawn = values if number == 0 else (others * len(values))[: len(values)]
        if dtype.is_integer():
            limit = 4e12 if column == "timestamp" else 1e9
            drawn = [None if value is None or not abs(value) < limit else int(value) for value in drawn]
        columns[read] = [value or 0 for value in drawn] if name == "cross" else drawn
    given_ = pl.DataFrame({read: pl.Series(drawn, dtype=dtype) for read, drawn in columns.items()})
    params, state = parameters(module), fitted(module, frame(), column)
    wanted = given_.select(module.expr(column, dtype, params, state).alias("x"))["x"]
    arrays = [
        given_[read].to_numpy() if name == "cross" else given_[read].cast(pl.Float64).fill_null(np.nan).to_numpy()
        for read in columns
    ]
    with np.errstate(all="ignore"):
        found = module.now(arrays, params, state)
    assert_series_equal(pl.Series("x", found), wanted, check_exact=True)


def test_refuses_what_it_cannot_use(module: ModuleType) -> None:
    """A type that no transform was made for is refused by name, or taken without nulls."""
    dates = frame().select(pl.from_epoch("timestamp", time_unit="ms").alias("when"), total=1)
    state = fitted(module, dates, "when")
    if state is not None:
        made = dates.select(module.expr("when", dates.schema["when"], parameters(module), state))
        assert made.to_series().null_count() == 0
    records = pl.DataFrame({"record": [{"a": 1}], "records": [[{"a": 1}]], "total": [1]})
    assert fitted(module, records, "record") is None
    assert fitted(module, records, "records") is None


# Known answers.


def load(name: str) -> ModuleType:
    return registry.load("features.transforms", name, "transform")


def apply(name: str, values: Any, column: str = "x", fit_on: Any = None, beside: Any = None, **given: Any) -> list[Any]:
    """What a transform makes of the values of `column`, fitted on them or on others."""
    module = load(name)
    data = pl.DataFrame({column: values, **(beside or {})}, strict=False)
    params = module.Params(**given)
    state = module.fit(Fitting(data if fit_on is None else pl.DataFrame({column: fit_on}), column), params)
    state = json.loads(json.dumps(state))
    return data.select(module.expr(column, data.schema[column], params, state)).to_series().to_list()


def state_of(name: str, values: Any, **given: Any) -> Any:
    module = load(name)
    return module.fit(Fitting(pl.DataFrame({"x": values}), "x"), module.Params(**given))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("quantile", {"buckets": 1}, "greater than or equal to 2"),
        ("quantile", {"buckets": 1025}, "less than or equal to 1024"),
        ("cross", {"with": []}, "at least 1 item"),
        ("cross", {"with": ["b"], "buckets": 0}, "greater than 0"),
        ("cross", {"with": ["b"], "seed": -1}, "greater than or equal to 0"),
        ("cross", {"with_": ["b"]}, "Extra inputs"),
        ("hashing", {"buckets": 2**31}, "less than 2147483647"),
        ("hashing", {"buckets": 7, "unbounded": True}, "not put into buckets = 7"),
        ("lookup", {"min_count": 0}, "greater than or equal to 1"),
        ("text", {"dim": 0}, "greater than or equal to 1"),
        ("text", {"buckets": 1}, "greater than or equal to 2"),
        ("rate", {"per": "t", "strength": 0}, "greater than 0"),
        ("rate", {"per": ""}, "at least 1 character"),
        ("index", {"last": 0}, "greater than 0"),
    ],
)
def test_refuses_parameters_out_of_range(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        load(name).Params(**given)


def test_numeric_takes_what_is_not_finite_for_missing() -> None:
    values = [1.0, 3.0, None, float("nan"), float("inf"), -float("inf")]
    assert apply("numeric", values) == pytest.approx([-(2**-0.5), 2**-0.5, 0, 0, 0, 0])
    assert apply("numeric", values, standardise=False) == [1, 3, 2, 2, 2, 2]
    assert apply("numeric", [0, 8, None], log=True, standardise=False) == pytest.approx([0, np.log(9), np.log(3)])
    assert apply("numeric", [5, 5, None]) == [0, 0, 0]


def test_elapsed_is_the_age_of_an_item_beside_the_request() -> None:
    hour = 3_600_000
    beside = {"timestamp": [10 * hour, 10 * hour, 10 * hour, None]}
    created = [9 * hour, 7 * hour, None, 0]
    module = load("elapsed")
    assert module.inputs("item.created_at", module.Params()) == ("item.created_at", "timestamp")
    # log 2 and log 4: one deviation is half their difference times √2.
    assert apply("elapsed", created, "item.created_at", beside=beside) == pytest.approx([-(2**-0.5), 2**-0.5, 0, 0])


def test_rate_is_pulled_to_the_prior() -> None:
    counts, beside = [10, 0, 1, None, 5], {"total": [10, 10, None, 10, float("inf")]}
    # The prior is 16 / 30: totals count where they are known.
    prior = 16 / 30
    expected = [(10 + 2 * prior) / 12 - prior, (2 * prior) / 12 - prior, 0, 0, 0]
    assert apply("rate", counts, beside=beside, per="total", strength=2) == pytest.approx(expected)


def test_lookup_keeps_the_order_in_which_values_reached_the_count() -> None:
    assert state_of("lookup", ["a", "b", None, "b", "a", "c"]) == {"values": ["a", "b", "c"]}
    assert state_of("lookup", ["a", "b", None, "b", "a", "c"], min_count=2) == {"values": ["b", "a"]}
    assert state_of("lookup", [["a", "b"], None, [], ["b", "a", "c"]], min_count=2) == {"values": ["b", "a"]}
    assert apply("lookup", ["a", "b", None, "b", "a", "c"], min_count=2) == [2, 1, 0, 1, 2, 0]
    assert apply("lookup", [["a", None, "z"], None, []], fit_on=["a"]) == [[1, 0, 0], [], []]


def test_lookup_takes_values_that_were_counted_elsewhere() -> None:
    module, asked = load("lookup"), list[int]()

    def counted(min_count: int) -> pl.Series:
        asked.append(min_count)
        return pl.Series(["z", "y"])

    data = Fitting(pl.DataFrame({"x": ["a"]}), "x", counted=counted)
    assert module.fit(data, module.Params(min_count=7)) == {"values": ["z", "y"]}
    assert asked == [7]


@pytest.mark.parametrize(
    ("values", "requested", "indices"),
    [
        ([7, -3, None], pl.Series([-3, 7, 8, None]), [2, 1, 0, 0]),
        ([7, -3], pl.Series(["-3", "seven", "7"]), [2, 0, 1]),
        ([2**63 + 5, 1], pl.Series([1, 2**63 + 5], dtype=pl.UInt64), [2, 1]),
        ([False, None, True], pl.Series([True, False, None]), [2, 1, 0]),
        (["7", "true"], pl.Series([7, 8]), [1, 0]),
        ([0.5, float("nan"), -0.0], pl.Series([0.0, -0.0, float("nan"), 0.5]), [2, 2, 0, 1]),
        ([None], pl.Series(["a", None]), [0, 0]),
    ],
)
def test_lookup_knows_values_of_any_type(values: list[Any], requested: pl.Series, indices: list[int]) -> None:
    assert apply("lookup", requested, fit_on=values) == indices
    assert apply("lookup", [requested.to_list()], fit_on=[values]) == [indices]
    kept = json.loads(json.dumps(state_of("lookup", values)))["values"]
    known = [value for value in values if value is not None and value == value]
    assert [(type(value), value) for value in kept] == [(type(value), value) for value in known]


VALUES = st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=30)


@given(values=VALUES, more=VALUES, min_count=st.integers(1, 4))
def test_a_vocabulary_only_ever_grows_at_its_end(values: list[Any], more: list[Any], min_count: int) -> None:
    def vocabulary(column: list[Any], dtype: pl.DataType) -> list[int]:
        module = load("lookup")
        data = Fitting(pl.DataFrame({"x": column}, schema={"x": dtype}), "x")
        return module.fit(data, module.Params(min_count=min_count))["values"]

    before, after = vocabulary(values, pl.Int64()), vocabulary(values + more, pl.Int64())
    assert after[: len(before)] == before
    seen = [value for value in values + more if value is not None]
    assert sorted(after) == sorted({value for value in seen if seen.count(value) >= min_count})
    assert vocabulary([values, None, [], more], pl.List(pl.Int64())) == after


def test_hashes_are_the_same_for_ever() -> None:
    assert apply("hashing", [0, 1, -1, None]) == HASHED_NUMBERS
    assert apply("hashing", ["", "a", "ü", None]) == HASHED_TEXTS
    assert apply("hashing", [["a", None, ""], None, []]) == [[HASHED_TEXTS[1], 0, HASHED_TEXTS[0]], [], []]
    many = [f"w{i % 100}" for i in range(1000)]
    one_by_one = {word: apply("hashing", [word])[0] for word in many}
    assert apply("hashing", many) == [one_by_one[word] for word in many]
    assert apply("hashing", [many, many[:3]]) == [[one_by_one[word] for word in row] for row in (many, many[:3])]


HASHED_NUMBERS = [7536, 22466, 43937, 0]
HASHED_TEXTS = [87888, 25572, 88748, 0]


def test_unbounded_hashes_are_ids_of_63_bits() -> None:
    # The first words of SplitMix64 seeded by 0 and by its own constant, as published, without their last bits.
    first, second = 0xE220A8397B1DCDAF >> 1, 0x6E789E6AA1B965F4 >> 1
    made = apply("hashing", [0, 0x9E3779B97F4A7C15 - 2**64, None, -1], unbounded=True)
    assert made[:3] == [first, second, 0]
    assert apply("hashing", [[0, None], None, []], unbounded=True) == [[first, 0], [], []]
    assert apply("hashing", [0], seed=1, unbounded=True) == [second]
    module = load("hashing")
    params = module.Params(unbounded=True)
    rows = module.rows(params, {})
    many = pl.DataFrame({"x": range(100_000)}).select(module.expr("x", pl.Int64(), params, {})).to_series()
    assert many.dtype == pl.Int64
    assert many.n_unique() == 100_000
    assert many.is_between(1, rows - 1).all()
    # As many in each part of the range, within four deviations.
    assert np.abs(np.bincount(many.to_numpy() // (rows // 10 + 1), minlength=10) - 10_000).max() < 4 * 95


@pytest.mark.parametrize("name", ["lookup", "hashing", "quantile"])
def test_null_lists_hide_nothing(name: str) -> None:
    """Arrow lets a null list keep elements behind it, and a slice the elements of other rows."""
    numbers = pa.array([1, 2, 3, 4, 5, None, 7, 8])
    hidden = pa.ListArray.from_arrays(pa.array([0, 2, 5, 5, 8]), numbers, mask=pa.array([False, True, False, False]))
    lists = pl.Series(pl.from_arrow(hidden))
    plain = [[1, 2], None, [], [None, 7, 8]]
    assert apply(name, lists) == apply(name, plain)
    assert apply(name, lists[1:3]) == [[], []]
    assert apply(name, lists[3:], fit_on=[1, 2, 7, 8]) == apply(name, plain[3:], fit_on=[1, 2, 7, 8])


def test_quantiles_cut_a_hundred_numbers_into_tens() -> None:
    assert state_of("quantile", range(100)) == {"edges": [9, 19, 29, 39, 49, 59, 69, 79, 89]}
    assert apply("quantile", list(range(100))) == [i // 10 + 1 for i in range(100)]
    module = load("quantile")
    assert module.rows(module.Params(), state_of("quantile", range(100))) == 11
    outside = [-5, 9.0, 9.5, 1e9, None, float("nan"), float("inf")]
    assert apply("quantile", outside, fit_on=range(100)) == [1, 1, 2, 10, 0, 0, 0]
    gaps = [list(range(50)), None, [], list(range(50, 100))]
    assert state_of("quantile", gaps) == state_of("quantile", range(100))
    assert apply("quantile", [[0, None, 99], None, []], fit_on=gaps) == [[1, 0, 10], [], []]


def test_quantiles_leave_no_bucket_empty() -> None:
    assert state_of("quantile", [0] * 95 + [1, 2, 3, 4, 5]) == {"edges": [0]}
    assert state_of("quantile", [0, 1] * 50 + [7]) == {"edges": [0, 1]}
    assert state_of("quantile", [4, 4, 4]) == {"edges": []}
    assert apply("quantile", [4, 3, 5, None], fit_on=[4, 4, 4]) == [1, 1, 1, 0]
    assert apply("quantile", [1, None], fit_on=pl.Series([None], dtype=pl.Float64)) == [1, 0]
    assert state_of("quantile", [3, 1, 2], buckets=1024) == {"edges": [1, 2]}


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=60), st.integers(2, 12))
def test_quantile_buckets_are_in_order_and_used(values: list[int], buckets: int) -> None:
    made = apply("quantile", values, buckets=buckets)
    assert set(made) == set(range(1, max(made) + 1))
    assert max(made) <= buckets
    assert [bucket for _, bucket in sorted(zip(values, made, strict=True))] == sorted(made)


def crossed(columns: list[list[int | None]], **given: Any) -> list[int]:
    names = [f"c{i}" for i in range(len(columns) - 1)]
    beside = {name: pl.Series(column, dtype=pl.Int32) for name, column in zip(names, columns[1:], strict=True)}
    return apply("cross", pl.Series(columns[0], dtype=pl.Int32), beside=beside, **{"with": names, **given})


def crossed_by_hand(row: tuple[int, ...], buckets: int, seed: int) -> int:
    """SplitMix64 chained over the row in whole numbers of Python."""
    state = seed * 0x9E3779B97F4A7C15 % 2**64
    for index in row:
        state = ((state ^ index) + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return 1 + state % buckets if any(row) else 0


@pytest.mark.parametrize(("buckets", "seed"), [(100_000, 0), (7, 3)])
def test_crosses_are_the_same_for_ever(buckets: int, seed: int) -> None:
    rows = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (3, 2, 1), (1, 2, 3), (2**31 - 1, 5, 0)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    expected = [crossed_by_hand(row, buckets, seed) for row in rows]
    assert crossed(columns, buckets=buckets, seed=seed) == expected
    if buckets == 100_000:
        assert expected == CROSSED


CROSSED = [0, 57825, 68433, 82596, 14725, 29492, 63304]


def test_a_cross_is_unknown_only_if_all_of_it_is() -> None:
    assert crossed([[0, 0, 5, None, None], [0, 5, 0, None, 3]], buckets=1) == [0, 1, 1, 0, 1]
    a, b = np.divmod(np.arange(90_000), 300)
    made = crossed([(a + 1).tolist(), b.tolist()])
    # Of n balls in m boxes, m (1 − e^(−n/m)) boxes are hit.
    assert len(set(made)) == pytest.approx(100_000 * (1 - np.exp(-0.9)), rel=0.01)
    assert made != crossed([(a + 1).tolist(), b.tolist()], seed=1)
    assert made != crossed([b.tolist(), (a + 1).tolist()])


def test_a_cross_needs_encoded_features() -> None:
    module = load("cross")
    data = Fitting(pl.DataFrame({"a": pl.Series([1], dtype=pl.Int32), "b": ["x"]}), "a")
    assert module.inputs("a", module.Params(**{"with": ["b", "c"]})) == ("a", "b", "c")
    with pytest.raises(InputError, match="no sparse feature 'c' to cross a with"):
        module.fit(data, module.Params(**{"with": ["c"]}))
    with pytest.raises(InputError, match="'b' is String, not an index"):
        module.fit(data, module.Params(**{"with": ["b"]}))


def test_vectors_have_unit_length_or_none() -> None:
    vectors = [[3.0, 4.0], None, [0.0, 0.0], [None, -2.0], [float("inf"), 5.0]]
    unit = [[0.6, 0.8], [0, 0], [0, 0], [0, -1], [0, 1]]
    for column in (pl.Series(vectors), pl.Series(vectors, dtype=pl.Array(pl.Float32, 2))):
        assert np.array(apply("vector", column)) == pytest.approx(np.array(unit))
    kept = [[3, 4], [0, 0], [0, 0], [0, -2], [0, 5]]
    assert apply("vector", vectors, normalise=False) == kept
    assert state_of("vector", vectors) == {"width": 2}


def test_vectors_have_one_length() -> None:
    with pytest.raises(InputError, match="length 1, 2, 3; give all the same"):
        state_of("vector", [[1.0, 2.0], [1.0], None, [1.0, 2.0, 3.0], [2.0]])
    with pytest.raises(InputError, match="length 0, 1, 2, 3, 4, …; give"):
        state_of("vector", [[1.0] * i for i in range(9)])
    with pytest.raises(InputError, match="no vector"):
        state_of("vector", pl.Series([None], dtype=pl.List(pl.Float64)))
    with pytest.raises(InputError, match="'x' holds a vector that has not length 2"):
        apply("vector", [[1.0]], fit_on=[[1.0, 2.0]])


def test_texts_with_words_in_common_are_near() -> None:
    made = np.array(
        apply("text", ["The mouse and the cat.", "a house for the cat", "the market fell"], fit_on=SENTENCES)
    )
    near = made @ made.T
    assert np.diag(near) == pytest.approx([1, 1, 1])
    assert near[0, 1] > 0.5 > 0.3 > max(near[0, 2], near[1, 2])


def test_texts_that_say_nothing_are_zero() -> None:
    made = np.array(apply("text", [None, "", "!", "zyzzyva", "the cat"], fit_on=SENTENCES, dim=8))
    assert made.shape == (5, 8)
    assert np.linalg.norm(made, axis=1) == pytest.approx([0, 0, 0, 0, 1])


@pytest.mark.parametrize("texts", [[None], [""], ["one text"], ["the same"] * 3, ["one text", None, "and another"]])
def test_a_small_corpus_has_few_components(texts: list[str | None]) -> None:
    different = {text for text in texts if text}
    state = state_of("text", pl.Series(texts, dtype=pl.String), dim=5)
    assert len(state["components"]) == len(different)
    made = np.array(apply("text", pl.Series(texts, dtype=pl.String), dim=5))
    assert made.shape == (len(texts), 5)
    assert np.linalg.norm(made, axis=1) == pytest.approx([float(bool(text)) for text in texts])
    assert not made[:, len(different) :].any()


IN_ANOTHER_PROCESS = """
import json, runpy, sys
test = runpy.run_path(sys.argv[1])
print(json.dumps(test["everything"]()))
"""


def everything() -> list[Any]:
    """What must be the same in every process."""
    return [
        apply("hashing", [*SENTENCES, *map(str, range(100))]),
        crossed([list(range(10)), list(range(10))]),
        apply("lookup", SENTENCES),
        state_of("text", SENTENCES, dim=4, buckets=64),
        apply("text", SENTENCES),
    ]


def test_answers_do_not_depend_on_the_process() -> None:
    here, root = json.loads(json.dumps(everything())), Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, __file__],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(root)},  # pytest's own is random
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == here
