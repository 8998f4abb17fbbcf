"""Counters and histories against a loop that anyone can check, however the log is cut and whenever it is saved."""

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from features.counters import BUILT_IN, DECAY_UNIT, Counter, CounterTable
from features.fold import Plan, State
from features.moment import Asked, Described, Moment, Ragged
from features.online import Event, MemoryStore

ITEMS = pl.DataFrame(
    {"item_id": [f"i{n}" for n in range(5)], "kinds": [["a"], ["a", "b"], [], None, ["b", "c", "b"]], "year": range(5)}
)
USERS = pl.DataFrame({"user_id": [0, 1, 2], "country": ["x", None, "y"]})
COUNTERS = (
    Counter(name="day", by=("item",), window="24h", resolution="6h"),
    Counter(name="taste", by=("user", "item.kinds"), half_life="12h", resolution="4h"),
    Counter(name="local", by=("item", "user.country"), window="3h", resolution="1h"),
    Counter(name="kind", by=("item.kinds",)),
    Counter(name="pair", by=("user", "item")),
)
READ = [name for counter in (*BUILT_IN, *COUNTERS) for name in counter.columns]
PLAN = Plan.of(COUNTERS, ["request.history_gaps", "request.history_actions", *READ], 3, 0, 0)
ACTIONS = ["see", "do"]

LOGS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 6), st.booleans(), st.booleans(), st.integers(0, 30)), max_size=40
)
"""(user, item, interaction, positive, hours / 3 since the row before) of each row; users and items past the tables."""


def log(rows: list[tuple[int, int, bool, bool, int]]) -> pl.DataFrame:
    hours = np.cumsum([row[4] for row in rows])
    return pl.DataFrame(
        {
            "row": pl.Series(range(len(rows)), dtype=pl.Int64),
            "user_id": pl.Series([row[0] for row in rows], dtype=pl.Int64),
            "item_id": pl.Series([f"i{row[1]}" for row in rows], dtype=pl.String),
            "timestamp": pl.Series((1_700_000_000_000 + hours * 1_200_000).astype(np.int64), dtype=pl.Int64),
            "action": pl.Series([ACTIONS[row[2]] for row in rows], dtype=pl.String),
            "interaction": pl.Series([row[2] for row in rows], dtype=pl.Boolean),
            "positive": pl.Series([row[3] for row in rows], dtype=pl.Boolean),
        }
    )


def attributes(axis: str, row: dict[str, Any]) -> list[Any]:
    name, _, column = axis.partition(".")
    if not column:
        return [row[f"{name}_id"]]
    table = {"user": USERS, "item": ITEMS}[name]
    found = table.filter(pl.col(f"{name}_id") == row[f"{name}_id"])[column].to_list()
    values = found[0] if found else None
    return [] if values is None else list(dict.fromkeys(values if isinstance(values, list) else [values]))


def keys(counter: Counter, row: dict[str, Any]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = [()]
    for axis in counter.by:
        found = [(*key, value) for key in found for value in attributes(axis, row)]
    return found


def expected(events: pl.DataFrame) -> list[dict[str, Any]]:
    rows = events.to_dicts()
    found: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        past = [other for other in rows[:place] if other["interaction"]]
        own = [other for other in past if other["user_id"] == row["user_id"]]
        known: dict[str, Any] = {
            "user_last_timestamp": own[-1]["timestamp"] if own else None,
            "history": [other["item_id"] for other in own[-3:]],
            "history_actions": [other["action"] for other in own[-3:]],
            "history_gaps": [row["timestamp"] - other["timestamp"] for other in own[-3:]],
        }
        for counter in PLAN.counters:
            total = [0, 0]
            for other in past:
                shared = len(set(keys(counter, row)) & set(keys(counter, other)))
                step = counter.step_ms or 10**18
                age = row["timestamp"] // step - other["timestamp"] // step
                if shared and age < counter.keep:
                    total[0] += shared * int(counter.weights[age])
                    total[1] += shared * int(counter.weights[age]) * other["positive"]
            unit = 1 if counter.half_life is None else DECAY_UNIT
            known |= {name: value / unit for name, value in zip(counter.columns, total, strict=True)}
        found.append(known)
    return found


def told(frame: pl.DataFrame, state: State) -> list[dict[str, Any]]:
    """A request frame in the words of `expected`."""
    items = state.items.ids.to_list()
    rows = frame.drop("row", "user_code", "item_code", "timestamp", "label").to_dicts()
    for row in rows:
        row["history"] = [items[code] for code in row["history"]]
        row["history_actions"] = [state.actions[code] for code in row["history_actions"]]
    return rows


@settings(max_examples=120, deadline=None)
@given(LOGS, st.lists(st.integers(1, 39), max_size=4), st.booleans())
def test_every_row_knows_what_a_loop_finds(rows: Any, cuts: list[int], saved: bool) -> None:
    """In one part, or in several of any size, with the state saved and loaded between them."""
    events = log(rows)
    state = State.empty(PLAN, USERS, ITEMS)
    frames: list[pl.DataFrame] = []
    edges = sorted({0, *(cut for cut in cuts if cut < events.height), events.height})
    for low, high in pairwise(edges):
        frames.append(state.advance(events[low:high])[1])
        if saved:
            with TemporaryDirectory() as scratch:
                state.save(Path(scratch) / "state")
                state = State.load(Path(scratch) / "state", PLAN, USERS, ITEMS)
    if events.height:
        frame = pl.concat(frames)
        assert told(frame, state) == expected(events)
        first = list(dict.fromkeys(events["item_id"]))
        assert frame["item_code"].to_list() == [first.index(item) for item in events["item_id"]]


@settings(max_examples=60, deadline=None)
@given(LOGS)
def test_a_store_knows_the_same(rows: Any) -> None:
    """Event by event through a store, bit by bit."""
    events = log(rows)
    if not events.height:
        return
    state = State.empty(PLAN, USERS, ITEMS)
    frame = state.advance(events)[1]
    columns = tuple(frame.drop("row", "user_code", "item_code", "label").columns)
    ids = ["", *(f"i{n}" for n in range(7))]
    with TemporaryDirectory() as scratch:
        for table in (USERS.select("user_id", "country"), ITEMS.select("item_id", "kinds")):
            table.write_parquet(Path(scratch) / f"{table.columns[0]}.parquet")
        described = {name: Described.load(Path(scratch) / f"{name}_id.parquet") for name in ("user", "item")}
    now, store = Moment(PLAN, columns, state.actions, ids, {}, described), MemoryStore(retain=5)
    names = {"item_code", *(column for column in columns if column != "timestamp")}
    for row, known in zip(events.iter_rows(named=True), frame.iter_rows(named=True), strict=True):
        asked = Asked(row["user_id"], row["timestamp"])
        item = np.array([[now.item_index[row["item_id"]]]])
        people, pairs = now.columns([asked], [store.history(row["user_id"])], item, store)
        told = people | pairs
        assert set(told) - {"timestamp", "history_recency"} == names - {"item_code"}
        for name in names - {"item_code"}:
            value = told[name]
            online = value.values.tolist() if isinstance(value, Ragged) else value[0]
            offline = known[name]
            if name == "history":
                offline = [now.item_index[state.items.ids[code]] for code in offline]
            assert online == offline or (offline is None and np.isnan(online)), name
        if row["interaction"]:
            event = Event(*(row[name] for name in ("user_id", "item_id", "timestamp", "action")), None, row["positive"])
            store.append([event], [now.increments(event)])


def test_a_snapshot_is_the_table() -> None:
    events = log([(n % 3, n % 5, True, n % 2 == 0, 4) for n in range(60)])
    state = State.empty(PLAN, USERS, ITEMS)
    state.advance(events)
    for table in state.tables:
        again = CounterTable.load(table.counter, table.frame())
        assert_frame_equal(again.frame().sort("key", "bucket"), table.frame().sort("key", "bucket"))
        newest = table.counter.bucket(events["timestamp"].to_numpy())[-1]
        assert table.counter.timeless or table.frame()["bucket"].min() > newest - table.counter.keep


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"by": ["basket"]}, "'basket' is neither user, item, nor a column of theirs"),
        ({"by": ["user", "user"]}, "names the same thing twice"),
        ({"window": "7d", "half_life": "1d"}, "set window or half_life, not both"),
        ({"window": "soon"}, "'soon' is no duration"),
        ({"window": "7d", "resolution": "5d"}, "7d is not a whole number of buckets"),
        ({"resolution": "1h"}, "resolution is for counters with a window or a half_life"),
        ({"window": "10s"}, "buckets of 416 ms are too short"),
        ({"window": "52w", "resolution": "1m"}, "buckets are too many to look back on"),
    ],
)
def test_a_counter_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Counter.model_validate({"name": "c", "by": ["user"]} | fields)
