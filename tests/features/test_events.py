"""What enters the canonical tables, and what is said of the rest."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import InputError
from features.events import MAX_TIMESTAMP_MS, Part, RawLog, Validator, ValidLog, in_one_part, validate

T = 1_700_000_000_000


def raw(*rows: dict[str, Any], **tables: Any) -> RawLog:
    """A log of rows, each a valid event but for what it says of itself."""
    whole = [{"user_id": 1, "item_id": 1, "timestamp": T + i} | row for i, row in enumerate(rows)]
    return RawLog(
        parts=in_one_part(pl.DataFrame(whole, infer_schema_length=None, strict=False), "log.csv"),
        source="log.csv",
        **tables,
    )


def in_one(events: pl.DataFrame) -> RawLog:
    return RawLog(parts=in_one_part(events, "a"), source="a")


def reasons(log: ValidLog) -> list[str]:
    return log.quarantine["reason"].to_list()


def test_every_bad_row_is_kept_with_its_reason() -> None:
    log = validate(
        raw(
            {"user_id": "a", "item_id": "x", "timestamp": str(T), "value": "1", "propensity": "1"},
            {"user_id": None, "item_id": "x", "timestamp": str(T)},
            {"user_id": "a", "item_id": "", "timestamp": str(T)},
            {"user_id": "a", "item_id": "x", "timestamp": None},
            {"user_id": "a", "item_id": "x", "timestamp": "yesterday"},
            {"user_id": "a", "item_id": "x", "timestamp": "-1"},
            {"user_id": "a", "item_id": "x", "timestamp": str(MAX_TIMESTAMP_MS + 1)},
            {"user_id": "a", "item_id": "x", "timestamp": str(T), "value": "good"},
            {"user_id": "a", "item_id": "x", "timestamp": str(T), "value": "inf"},
            {"user_id": "a", "item_id": "x", "timestamp": str(T), "propensity": "0"},
            {"user_id": "a", "item_id": "x", "timestamp": str(T), "value": "1", "propensity": "1"},
            {"user_id": "a", "item_id": "x", "timestamp": str(T), "value": "2", "propensity": "1"},
        )
    )
    assert reasons(log) == [
        "user_id: missing",
        "item_id: missing",
        "timestamp: missing",
        "timestamp: not Int64",
        "timestamp: negative",
        "timestamp: after the year 2100",
        "value: not Float64",
        "value: not finite",
        "propensity: outside (0, 1]",
        "row: repeats an earlier one",
    ]
    assert log.quarantine["timestamp"][3] == "yesterday"
    assert log.events["value"].to_list() == [1, 2]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "user_id": st.sampled_from([None, "a", "b", ""]),
                "timestamp": st.sampled_from([None, "x", str(T), str(T + 1), "-5"]),
                "value": st.sampled_from([None, "1", "nan", "?"]),
            }
        )
    )
)
def test_counts_add_up_and_order_is_stable(rows: list[dict[str, Any]]) -> None:
    rows = [{"user_id": "first", "item_id": "x", "timestamp": str(T), "value": "1"}, *rows]
    whole = raw(*({"item_id": str(i)} | row for i, row in enumerate(rows)))
    log = validate(whole)
    assert log.events.height + log.quarantine.height == len(rows)
    assert log.events["row"].to_list() == list(range(log.events.height))
    keys = [(time, int(item) if item != "x" else 0) for time, item in log.events.select("timestamp", "item_id").rows()]
    assert keys == sorted(keys)


def test_ids_keep_their_form() -> None:
    log = validate(raw({"user_id": "007"}, {"user_id": "7"}))
    assert log.users["user_id"].to_list() == ["007", "7"]
    assert validate(raw({"user_id": 7})).users["user_id"].dtype == pl.Int64


def test_nested_context_can_be_compared_and_quarantined() -> None:
    log = validate(raw({"tags": [1]}, {"tags": [1], "timestamp": T}, {"tags": [2], "timestamp": T}))
    assert reasons(log) == ["row: repeats an earlier one"]
    assert log.quarantine["tags"][0] == '{"tags":[1]}'


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (in_one(pl.DataFrame({"user_id": [1], "item_id": [1]})), "a: column 'timestamp' is missing"),
        (in_one(pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [T]}).clear()), "a: the log has no rows"),
        (raw({"user_id": 1.5}), "column 'user_id' is Float64; ids are integers or text"),
        (raw({"timestamp": "2024-01-01"}), "no value of column 'timestamp' is Int64 (first: '2024-01-01')"),
        (raw({"timestamp": None}), "none of 1 rows is valid (first: timestamp: missing)"),
        (raw({"timestamp": T // 1000}), 'which is seconds, not milliseconds; set dataset.time_unit = "s"'),
        (raw({"timestamp": T * 1000}), 'finer than milliseconds; set dataset.time_unit = "us"'),
        (raw({}, items=pl.DataFrame({"id": [1]})), "the item table has no column 'item_id'"),
        (raw({}, items=pl.DataFrame({"item_id": ["1", "x"]})), "the item table has item_id = 'x'"),
        (raw({}, users=pl.DataFrame({"user_id": [1, None]})), "the user table has user_id = None"),
    ],
)
def test_what_is_wrong_with_the_whole_is_one_line(log: RawLog, message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(log)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_items_are_those_met_then_those_only_described() -> None:
    described = pl.DataFrame({"item_id": [5, 2, 5], "title": ["five", "two", "again"]})
    log = validate(raw({"item_id": 9}, {"item_id": 2}, {"item_id": 3}, items=described))
    assert log.items.rows() == [(9, None), (2, "two"), (3, None), (5, "five")]


def test_positions_need_no_clock() -> None:
    log = validate(raw({"timestamp": 0}, {"timestamp": 1}, has_clock=False))
    assert log.events["timestamp"].to_list() == [0, 1]


def test_a_clock_that_jumped_is_told_from_a_long_log() -> None:
    hour, minute = 3_600_000, 60_000
    time = [T + i * minute for i in range(2000)]
    bad = [0, T - 400 * 24 * hour, T + 3_000 * 24 * hour]
    frame = pl.DataFrame({"user_id": 1, "item_id": range(2003), "timestamp": [*time, *bad]})
    log = validate(in_one(frame))
    assert log.events.height == 2000
    assert reasons(log) == ["timestamp: the clock jumped"] * 3
    even = pl.DataFrame({"user_id": 1, "item_id": range(2000), "timestamp": [T + i * 24 * hour for i in range(2000)]})
    assert validate(in_one(even)).quarantine.is_empty()


def test_parts_follow_each_other() -> None:
    def part(*times: int, **more: Any) -> Part:
        frame = pl.DataFrame({"user_id": 1, "item_id": range(len(times)), "timestamp": times} | more)
        return Part(name=f"part of {times[0]}", read=lambda: frame)

    log = validate(RawLog(parts=(part(T, T + 5), part(T + 5, T + 4, T + 9)), source="a"))
    assert log.events["timestamp"].to_list() == [T, T + 5, T + 5, T + 9]
    assert log.events["row"].to_list() == [0, 1, 2, 3]
    assert reasons(log) == ["timestamp: earlier than the part before"]
    with pytest.raises(InputError, match=f"part of {T + 5}: has the columns device, item_id, timestamp, user_id, but"):
        validate(RawLog(parts=(part(T), part(T + 5, device="x")), source="a"))
    with pytest.raises(InputError, match=f"part of {T + 5}: column 'user_id' is String, and Int64 in the parts before"):
        validate(RawLog(parts=(part(T), part(T + 5, user_id="x")), source="a"))


def test_unknown_ids_can_be_refused() -> None:
    known = {"item_id": pl.Series([2]), "user_id": pl.Series([1])}
    good, refused = Validator(raw(), known=known).part(raw({"item_id": 2}, {"item_id": 3}, {"user_id": 4}).parts[0])
    assert good["item_id"].to_list() == [2]
    assert refused["reason"].to_list() == ["item_id: not in the item table", "item_id: not in the item table"]
