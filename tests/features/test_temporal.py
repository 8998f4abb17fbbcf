"""Splits with known answers, and the timeline against a loop that anyone can check."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.temporal import Timeline, by_time, gather_slices, leave_one_out, ragged


def log(users: str, interactions: str = "") -> pl.DataFrame:
    """One row a letter; 'x' in `interactions` marks an interaction, nothing marks them all."""
    marks = [mark == "x" for mark in interactions] or [True] * len(users)
    return pl.DataFrame({"user_id": list(users), "interaction": marks})


@pytest.mark.parametrize(
    ("users", "interactions", "parts"),
    [
        ("aaaa", "", "0012"),
        ("aa", "", "00"),  # too short to be split
        ("abababb", "", "0010212"),
        ("aaaaaaa", "x.x.x..", "0112222"),  # what is only shown goes with the next interaction, or the last
        ("aaaaa", "..x.x", "00000"),
        ("aaab", "xxx.", "0120"),
    ],
)
def test_leave_one_out(users: str, interactions: str, parts: str) -> None:
    assert leave_one_out(log(users, interactions)).to_list() == [int(part) for part in parts]


@pytest.mark.parametrize(
    ("times", "parts"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "0000001122"),
        ([0, 1, 2, 3, 4, 4, 4, 7, 8, 9], "0000111122"),  # an instant is not parted: the cut moves down
        ([0, 1, 2, 3, 4, 5, 6, 7, 7, 7], "0000001222"),
        ([0, 0, 0, 0, 5, 5, 5, 5, 5, 5], "0000222222"),
    ],
)
def test_by_time(times: list[int], parts: str) -> None:
    split = by_time(pl.DataFrame({"timestamp": times}), valid=0.2, test=0.2)
    assert split.to_list() == [int(part) for part in parts]


LOGS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans(), st.integers(0, 2)), max_size=25)
"""(entity, item, positive, time since the event before) of each row; 0 is a tie."""


@settings(max_examples=150, deadline=None)
@given(
    LOGS,
    st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 26)), max_size=10),
    st.integers(1, 4),
    st.lists(st.booleans(), min_size=25, max_size=25),
)
def test_timeline_is_what_a_loop_finds(
    rows: list[tuple[int, int, bool, int]], questions: list[tuple[int, int]], last: int, kept: list[bool]
) -> None:
    """Rows that are no interactions leave gaps; an unknown entity and a row past the end may be asked for."""
    times = np.cumsum([row[3] for row in rows]).astype(int).tolist()
    events = [(i, e, item, positive, times[i]) for i, (e, item, positive, _) in enumerate(rows) if kept[i]]
    columns = {
        "row": pl.Int64,
        "entity": pl.Int64,
        "item_index": pl.Int32,
        "positive": pl.Boolean,
        "timestamp": pl.Int64,
    }
    frame = pl.DataFrame(events, schema=columns, orient="row")
    timeline = Timeline.build(frame["entity"].to_numpy(), frame)
    entity = np.array([e for e, _ in questions], dtype=np.int64)
    row = np.array([r for _, r in questions], dtype=np.int64)

    before = [[event for event in events if event[1] == e and event[0] < r] for e, r in questions]
    counts, positives = timeline.counts(entity, row)
    assert counts.tolist() == [len(past) for past in before]
    assert positives.tolist() == [sum(event[3] for event in past) for past in before]
    assert timeline.last_time(entity, row).to_list() == [past[-1][4] if past else None for past in before]
    history = timeline.history(entity, row, last)
    assert history.to_list() == [[event[2] for event in past[-last:]] for past in before]
    assert history.dtype == pl.List(pl.Int32)


def test_ties_are_told_apart_by_their_order() -> None:
    events = pl.DataFrame({"row": [0, 1, 2], "timestamp": [5, 5, 5], "positive": [True] * 3, "item_index": [7, 8, 9]})
    timeline = Timeline.build(np.zeros(3, dtype=np.int64), events)
    asked = np.zeros(3, dtype=np.int64)
    assert timeline.history(asked, np.arange(3), 5).to_list() == [[], [7], [7, 8]]
    assert timeline.last_time(asked, np.arange(3)).to_list() == [None, 5, 5]


def test_slices() -> None:
    values: Any = np.arange(10)
    flat, offsets = gather_slices(values, np.array([2, 5, 0]), np.array([4, 5, 3]))
    assert flat.tolist() == [2, 3, 0, 1, 2]
    assert offsets.tolist() == [0, 2, 2, 5]
    assert ragged(values, np.array([2, 5, 0]), np.array([4, 5, 3])).to_list() == [[2, 3], [], [0, 1, 2]]
    assert ragged(values, np.zeros(0, int), np.zeros(0, int)).to_list() == []
